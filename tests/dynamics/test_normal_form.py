"""The normal form of a linear model: the same outputs, and the norms that bounded models start from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from robustnn.dynamics import Channels, Dataset, LinearStateSpace
from robustnn.dynamics.normal_form import STABLE_RATE, NormalForm, normal_form

EPS = np.finfo(np.float64).eps


def system(n_x: int, n_u: int, n_y: int, radius: float, seed: int = 0) -> LinearStateSpace:
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(n_x, n_x))
    a *= radius / np.abs(np.linalg.eigvals(a)).max()
    return LinearStateSpace(
        a, 3.0 * rng.normal(size=(n_x, n_u)), rng.normal(size=(n_y, n_x)), rng.normal(size=(n_y, n_u)),
        rng.normal(size=n_u), 20.0 * rng.normal(size=n_y), 0.1,
    )  # fmt: skip


def record(linear: LinearStateSpace, steps: int = 300, experiments: int = 2) -> Dataset:
    rng = np.random.default_rng(1)
    n_u = linear.b.shape[1]
    inputs = [
        2.0 + np.array([0.3, 5.0, 1.0])[:n_u] * rng.normal(size=(steps, n_u)) for _ in range(experiments)
    ]
    return Dataset.from_arrays(inputs, [linear.simulate(u) for u in inputs], 0.1)


def outputs(form: NormalForm, channels: Channels, u: np.ndarray) -> np.ndarray:
    scaled, x, found = channels.scaled_u(u), np.zeros(len(form.a)), []
    for one in scaled:
        found.append(form.c @ x + form.d @ one + form.output_constant)
        x = form.a @ x + form.b @ one + form.state_constant
    return channels.physical_y(np.array(found))


@pytest.mark.parametrize("rate", [0.95, 1.0, STABLE_RATE, 2.0])
@pytest.mark.parametrize(("n_x", "n_u", "n_y"), [(1, 1, 1), (3, 1, 2), (4, 3, 2)])
def test_the_outputs_are_those_of_the_linear_model(n_x: int, n_u: int, n_y: int, rate: float) -> None:
    linear = system(n_x, n_u, n_y, 0.9)
    data = record(linear)
    other = Channels.of(record(system(n_x, n_u, n_y, 0.5, seed=3)))  # scaled by the mean of other data
    for channels in (Channels.of(data), other):
        form = normal_form(linear, channels, data, rate)
        for one in data:
            size = np.abs(one.y).max()
            np.testing.assert_allclose(outputs(form, channels, one.u), one.y, atol=1e-9 * size, rtol=0)


@pytest.mark.parametrize("rate", [0.95, 1.0, 2.0])
def test_state_and_input_matrices_stay_within_the_rate_and_the_input_gain(rate: float) -> None:
    linear = system(4, 2, 1, 0.9)
    data = record(linear)
    form = normal_form(linear, Channels.of(data), data, rate)
    joint = np.concatenate((form.a / rate, form.b / form.input_gain), axis=1)
    values = np.linalg.svd(joint, compute_uv=False)
    assert values.max() < 1.0
    # Rows are orthogonal and of one length: no direction of the states is wasted.
    assert values.min() > values.max() * (1.0 - 1e-4) and values.max() > 0.97


def test_the_states_have_unit_variance() -> None:
    linear = system(3, 2, 1, 0.9)
    data = record(linear)
    channels = Channels.of(data)
    form = normal_form(linear, channels, data, 1.0)
    states = []
    for one in data:
        x = np.zeros(3)
        for u in channels.scaled_u(one.u):
            x = form.a @ x + form.b @ u + form.state_constant
            states.append(x)
    assert np.sqrt(np.mean(np.square(states))) == pytest.approx(1.0, rel=1e3 * EPS)


def test_eigenvalues_beyond_the_rate_are_shrunk_and_no_others() -> None:
    linear = system(3, 1, 1, 0.9999)
    data = record(linear)
    channels = Channels.of(data)

    def radius(rate: float) -> float:
        return float(np.abs(np.linalg.eigvals(normal_form(linear, channels, data, rate).a)).max())

    assert radius(STABLE_RATE) == pytest.approx(0.9999, rel=1e-9)
    assert radius(0.9) == pytest.approx(0.9 * (1.0 - 1e-3), rel=1e-6)
    form = normal_form(linear, channels, data, 0.9)
    assert np.linalg.norm(form.a, 2) < 0.9


@pytest.mark.parametrize("seed", range(12))
def test_no_matrix_is_left_outside_the_rate(seed: int) -> None:
    """Matrices far from normal with complex eigenvalues far outside are the hard ones."""
    linear = replace(system(5, 1, 1, 0.5), a=1.5 * np.random.default_rng(seed).normal(size=(5, 5)))
    data = record(system(2, 1, 1, 0.5))
    form = normal_form(linear, Channels.of(data), data, 0.9)
    assert np.linalg.norm(np.concatenate((form.a / 0.9, form.b / form.input_gain), axis=1), 2) < 1.0


def test_a_state_that_no_input_reaches_is_kept() -> None:
    linear = LinearStateSpace(
        np.diag([0.8, 0.5]), np.array([[1.0], [0.0]]), np.array([[1.0, 1.0]]), np.zeros((1, 1)), np.zeros(1),
        np.zeros(1), 0.1,
    )  # fmt: skip
    data = record(linear)
    form = normal_form(linear, Channels.of(data), data, 0.9)
    assert np.sort(np.linalg.eigvals(form.a).real) == pytest.approx([0.5, 0.8], rel=1e-9)
    assert np.isfinite(form.c).all() and np.linalg.norm(form.a, 2) < 0.9
