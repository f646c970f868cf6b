from __future__ import annotations

import math

import numpy as np
import pytest

from robustnn.closedloop.linear import hinf_norm, linearize
from robustnn.envs import Pendulum, SpringChain
from robustnn.errors import InvalidArgumentError, NonFiniteError, ShapeError


def peak(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray | float = 0.0, n: int = 40_001) -> float:
    """Largest gain over a fine grid of frequencies, refined around the largest."""

    def gain(angle: float) -> float:
        return float(np.linalg.norm(c @ np.linalg.solve(np.exp(1j * angle) * np.eye(len(a)) - a, b) + d, 2))

    angles = np.linspace(0.0, math.pi, n)
    gains = [gain(angle) for angle in angles]
    k = int(np.argmax(gains))
    low, high = angles[max(k - 1, 0)], angles[min(k + 1, n - 1)]
    return max(gain(angle) for angle in np.linspace(low, high, 2001))


@pytest.mark.parametrize("seed", range(12))
def test_norm_is_the_peak_of_the_response(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, n_u, n_y = rng.integers(1, 7), rng.integers(1, 4), rng.integers(1, 4)
    a = rng.normal(size=(n, n))
    a *= rng.choice([0.3, 0.9, 0.999]) / np.abs(np.linalg.eigvals(a)).max()
    b, c = rng.normal(size=(n, n_u)), rng.normal(size=(n_y, n))
    d = rng.normal(size=(n_y, n_u)) * rng.choice([0.0, 1.0])
    norm = hinf_norm(a, b, c, d)
    expected = peak(a, b, c, d, n=4001)
    assert expected <= norm <= expected * (1 + 1e-5)


def test_first_order_systems_by_hand() -> None:
    for pole in (-0.99, -0.3, 0.0, 0.5, 0.999):
        assert hinf_norm([[pole]], [[1.0]], [[1.0]]) == pytest.approx(1.0 / (1.0 - abs(pole)), rel=1e-9)
    # An all-pass has the gain one at all frequencies.
    assert hinf_norm([[0.5]], [[0.75]], [[1.0]], [[-0.5]]) == pytest.approx(1.0, rel=1e-8)
    assert hinf_norm([[0.5]], [[0.0]], [[1.0]]) == 0.0
    assert hinf_norm(np.diag([0.5, 0.2]), [[1.0], [0.0]], [[0.0, 1.0]]) == 0.0


def test_lightly_damped_mass_approaches_the_formula_of_the_oscillator() -> None:
    # max |1 / (k - m w^2 + i d w)| = 1 / (2 zeta sqrt(1 - zeta^2) k); sampling fast loses little of it.
    m, k, d = 2.0, 3.0, 0.05
    zeta = d / (2 * math.sqrt(k * m))
    expected = 1.0 / (2 * zeta * math.sqrt(1 - zeta**2) * k)
    errors = []
    for dt in (0.1, 0.05):
        plant = SpringChain(masses=1, mass=m, stiffness=k, damping=d, max_force=1.0, dt=dt)
        a, b, c = plant.matrices()
        errors.append(abs(hinf_norm(a, b, c[:1]) / expected - 1.0))
    assert errors[0] < 1e-3 and errors[1] < 0.3 * errors[0]  # second order in the sampling time


def test_chain_against_the_grid() -> None:
    a, b, c = SpringChain(masses=5, damping=0.3).matrices()
    norm = hinf_norm(a, b, c[:5])
    assert peak(a, b, c[:5]) <= norm <= peak(a, b, c[:5]) * (1 + 1e-6)


def test_pendulum_about_the_upright() -> None:
    linear = linearize(Pendulum(), [0.0, 0.0], [0.0])
    inertia = Pendulum().inertia
    expected_a = np.array([[1 + 0.0025 * 5 / inertia, 0.05], [0.05 * 5 / inertia, 1.0]])
    np.testing.assert_allclose(linear.a, expected_a, rtol=1e-14)
    np.testing.assert_allclose(linear.b[:, 0], [0.0025 * 2 / inertia, 0.05 * 2 / inertia], rtol=1e-14)
    np.testing.assert_allclose(linear.c, [[0, 0], [1, 0], [0, 1]], atol=0)
    assert not linear.drift.any()


def test_bad_calls() -> None:
    with pytest.raises(InvalidArgumentError, match="a: expected eigenvalues inside the unit circle"):
        hinf_norm([[1.0]], [[1.0]], [[1.0]])
    with pytest.raises(ShapeError, match="a, b, c, d: expected"):
        hinf_norm(np.eye(2) / 2, [[1.0]], [[1.0, 0.0]])
    with pytest.raises(NonFiniteError, match="b"):
        hinf_norm([[0.5]], [[math.nan]], [[1.0]])
    with pytest.raises(ShapeError, match="state: expected shape"):
        linearize(Pendulum(), [0.0], [0.0])
    with pytest.raises(NonFiniteError, match="action"):
        linearize(Pendulum(), [0.0, 0.0], [math.inf])
