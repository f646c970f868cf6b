"""Constants of all dynamics models: they hold for any parameters, and are nearly attained where they must be."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from robustnn import LBDN
from robustnn.bounds import lower_bound
from robustnn.dynamics import (
    ContinuousStateSpace,
    LipschitzNARX,
    LipschitzStateSpace,
    ResidualStateSpace,
)
from robustnn.dynamics.continuous import rate_matrix
from robustnn.errors import InvalidArgumentError
from robustnn.linalg import spectral_norm
from tests.dynamics.model_cases import (
    BOUNDED,
    DATA,
    EPS,
    ROUNDING,
    U,
    gains,
    moved,
    points,
    step_of,
    system,
)


@pytest.mark.parametrize("size", [0.0, 0.5, 5.0])
@pytest.mark.parametrize("name", BOUNDED)
def test_the_claimed_constants_hold_for_any_parameters(name: str, size: float) -> None:
    model: Any = moved(name, size)
    l_x, l_u = model.lipschitz_x, model.lipschitz_u
    found_x, found_u = gains(model, points(model))
    assert 0.0 < found_x <= l_x * ROUNDING
    assert 0.0 < found_u <= l_u * ROUNDING
    if isinstance(model, LipschitzStateSpace | LipschitzNARX):
        scale = 1.0 / torch.tensor([l_x] * model.n_x + [l_u] * model.n_u, dtype=torch.float64)
        joint = lower_bound(step_of(model), points(model) * scale, input_scale=scale, iterations=60, lr=0.05)
        assert joint.value <= ROUNDING
    if isinstance(model, LipschitzNARX):
        newest = step_of(model)
        one_step = lower_bound(lambda xi: newest(xi)[:, : model.n_y], points(model), iterations=60, lr=0.05)
        assert one_step.value <= model.lipschitz * ROUNDING


@pytest.mark.parametrize("name", BOUNDED)
def test_the_sum_bound_holds_where_state_and_input_move_together(name: str) -> None:
    model: Any = moved(name, 0.5)
    generator = torch.Generator().manual_seed(3)
    a, b = (
        4.0 * torch.randn(2000, model.n_x + model.n_u, generator=generator, dtype=torch.float64) for _ in "ab"
    )
    x, u = (a - b).split((model.n_x, model.n_u), dim=1)
    change = (step_of(model)(a) - step_of(model)(b)).norm(dim=1)
    assert bool(
        (change <= (model.lipschitz_x * x.norm(dim=1) + model.lipschitz_u * u.norm(dim=1)) * ROUNDING).all()
    )


@pytest.mark.parametrize("name", ["lipschitz all", "residual deep"])
def test_the_bound_of_the_output_network_holds(name: str) -> None:
    model = moved(name, 2.0)
    network = model.explicit().detach().h
    assert network is not None
    found = lower_bound(network, points(model), iterations=60, lr=0.05).value
    assert 0.0 < found <= model.output_lipschitz * ROUNDING


@pytest.mark.parametrize("hidden", [(4,), (6, 6)])
def test_the_lipschitz_bounds_are_nearly_attained(hidden: tuple[int, ...]) -> None:
    model = LipschitzStateSpace(DATA, 3, hidden, lipschitz_x=0.8, lipschitz_u=5.0, activation="relu")
    rng = np.random.default_rng(0)
    model.map.start_(np.concatenate((np.eye(3), np.zeros((3, 2))), axis=1), np.zeros(3), rng, effect=1e-3)
    assert 0.98 * 0.8 <= gains(model, 0.1 * points(model))[0] <= 0.8 * ROUNDING
    model.map.start_(np.concatenate((np.zeros((3, 3)), np.eye(3, 2)), axis=1), np.zeros(3), rng, effect=1e-3)
    assert 0.98 * 5.0 <= gains(model, 0.1 * points(model))[1] <= 5.0 * ROUNDING


def linear_correction(model: ResidualStateSpace, gain: Tensor) -> None:
    """Let g be a linear map of the largest norm that its bound allows."""
    made = LBDN.from_linear(
        model.lipschitz * (1.0 - 1e-9) * gain, model.hidden, lipschitz=model.lipschitz, activation="relu",
        region=20.0, dtype=torch.float64,
    )  # fmt: skip
    model.network.load_state_dict(made.state_dict())


@pytest.mark.parametrize("cls", [ResidualStateSpace, ContinuousStateSpace])
def test_the_bounds_of_a_correction_are_attained_where_it_adds_up(cls: type[ResidualStateSpace]) -> None:
    model = cls(DATA, 3, (6,), lipschitz=0.1, activation="relu")
    identity = torch.eye(3, dtype=torch.float64)
    with torch.no_grad():
        model.a.copy_(0.4 * identity)
        model.b.copy_(0.7 * torch.eye(3, 2, dtype=torch.float64))
    linear_correction(model, torch.cat((identity, identity[:, :2] * 0.0), dim=1))
    found = gains(model, 0.1 * points(model))[0]
    assert (1.0 - 1e-6) * model.lipschitz_x <= found <= model.lipschitz_x * ROUNDING
    linear_correction(model, torch.cat((identity * 0.0, identity[:, :2]), dim=1))
    found = gains(model, 0.1 * points(model))[1]
    assert 0.9 * model.lipschitz_u <= found <= model.lipschitz_u * ROUNDING


def test_a_correction_of_states_and_inputs_acts_on_itself_within_a_step() -> None:
    model = ContinuousStateSpace(DATA, 3, (6,), lipschitz=2.0, activation="relu")
    identity = torch.eye(3, dtype=torch.float64)
    linear_correction(model, torch.cat((identity, identity[:, :2]), dim=1) / math.sqrt(2.0))
    gain = 2.0 / math.sqrt(2.0)
    alone = gain * (1.0 + gain / 2 + gain**2 / 6 + gain**3 / 24)
    found = gains(model, 0.01 * points(model))[1]
    assert alone * (1.0 - 1e-6) <= found <= model.lipschitz_u * ROUNDING


def test_the_bound_through_the_integrator_is_exact_for_linear_rates_and_never_worse_than_norms() -> None:
    for seed in range(5):
        model: Any = moved("continuous", 0.5, seed)
        rate = float(spectral_norm(model.a.detach())) + model.lipschitz
        by_norms = 1.0 + rate + rate**2 / 2 + rate**3 / 6 + rate**4 / 24
        assert model.lipschitz_x <= by_norms * ROUNDING
        model.network.set_lipschitz(1e-300)
        found_x, found_u = gains(model, points(model))
        assert found_x == pytest.approx(model.lipschitz_x, rel=1e-9)
        assert found_u == pytest.approx(model.lipschitz_u, rel=1e-9)


def test_a_damped_continuous_model_is_contracting() -> None:
    model: Any = ContinuousStateSpace(DATA, 3, (8,), lipschitz=0.1)
    model.start_(system(), DATA)
    with torch.no_grad():
        model.a.copy_(-0.5 * torch.eye(3, dtype=torch.float64))
    expected = 1.0 - 0.5 + 0.125 - 0.125 / 6 + 0.0625 / 24 + sum(
        (0.6**k - 0.5**k) / math.factorial(k) for k in range(1, 5)
    )  # fmt: skip
    assert model.lipschitz_x == pytest.approx(expected, rel=1e-12)
    assert model.lipschitz_x < 0.8
    first, second = (model.states(U[:30], x0) for x0 in (np.zeros(3), np.ones(3)))
    distance = np.linalg.norm(first - second, axis=1)
    limits = model.lipschitz_x ** np.arange(31) * distance[0]
    assert (distance <= limits * ROUNDING + 1e2 * EPS * np.abs(first).max()).all()


def test_one_step_of_a_continuous_model_integrates_its_rate() -> None:
    from scipy.integrate import solve_ivp

    model = moved("continuous", 0.02)
    explicit, one = model.explicit().detach(), points(model, 1)[0]
    x, u = one[:3], one[3:]
    exact = solve_ivp(
        lambda _, z: explicit.rate(torch.from_numpy(z), u).numpy(), (0.0, 1.0), x.numpy(), rtol=1e-10, atol=1e-12
    ).y[:, -1]  # fmt: skip
    single = np.abs(explicit.step(x, u).numpy() - exact).max()
    half = replace(explicit, step_size=0.5)
    double = np.abs(half.step(half.step(x, u), u).numpy() - exact).max()
    assert 0.0 < double < single / 8.0 and single < 0.02  # fourth order: 16 in the limit


@pytest.mark.parametrize("name", ["lipschitz", "lipschitz deep", "lipschitz all"])
@pytest.mark.parametrize("size", [0.0, 0.3, 3.0])
def test_a_bound_is_raised_without_changing_the_function(name: str, size: float) -> None:
    model: Any = moved(name, size)
    xi = 3.0 * points(model, 200)
    before = step_of(model)(xi)
    bound = model.lipschitz_x
    for factor in (1.0, 1.01, 3.0):
        model.raise_lipschitz_x(factor * bound)
        assert model.lipschitz_x == factor * bound
        torch.testing.assert_close(step_of(model)(xi), before, atol=1e-9, rtol=1e-9)
    assert gains(model, points(model))[0] <= bound * (1.0 + 1e-9)
    with pytest.raises(InvalidArgumentError, match="set_lipschitz_x"):
        model.raise_lipschitz_x(bound)
    model.set_lipschitz_x(0.5)
    assert gains(model, points(model))[0] <= 0.5 * ROUNDING


def test_rates_reproduce_every_eigenvalue_they_can() -> None:
    rng = np.random.default_rng(0)

    def step(x: np.ndarray) -> np.ndarray:
        eye = np.eye(len(x))
        return eye + x @ (eye + x @ (eye / 2 + x @ (eye / 6 + x / 24)))

    slow = system().a
    np.testing.assert_allclose(step(rate_matrix(slow)), slow, atol=1e-12)
    for size in (1, 2, 3, 5):
        a = rng.normal(size=(size, size))
        a *= 0.99 / np.abs(np.linalg.eigvals(a)).max()
        assert np.abs(np.linalg.eigvals(step(rate_matrix(a)))).max() <= 0.99 + 1e-9
    moved_ones = step(rate_matrix(np.diag([-0.5, 0.0, 0.1, 0.9])))
    np.testing.assert_allclose(moved_ones, np.diag([0.3, 0.3, 0.3, 0.9]), atol=1e-9)
    defective = np.array([[0.5, 1.0], [0.0, 0.5]])
    np.testing.assert_array_equal(rate_matrix(defective), defective - np.eye(2))
