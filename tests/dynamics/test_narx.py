"""The NARX model: what it predicts, what its states are, and its linear start."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from robustnn.bounds import lower_bound
from robustnn.dynamics import Dataset, LinearStateSpace, LipschitzNARX, fit, validation_error
from robustnn.errors import InvalidArgumentError, NonFiniteError, ShapeError

EPS = np.finfo(np.float64).eps
COEFFICIENTS = {"y": [1.2, -0.5], "u": [0.7, 0.3]}


def record(steps: int = 500, noise: float = 0.0, n_init: int = 0, seed: int = 0) -> Dataset:
    """An ARX system with offsets and units."""
    rng = np.random.default_rng(seed)
    u, y = rng.normal(size=steps), np.zeros(steps)
    for t in range(1, steps - 1):
        past = 1.2 * y[t] - 0.5 * y[t - 1] + 0.7 * u[t] + 0.3 * u[t - 1]
        y[t + 1] = past + noise * rng.normal()
    return Dataset.from_arrays(2.0 * u + 1.0, 10.0 * y - 3.0, 0.1, n_init=n_init)


def several(steps: int = 200) -> Dataset:
    rng = np.random.default_rng(0)
    return Dataset.from_arrays(rng.normal(size=(steps, 2)), rng.normal(size=(steps, 3)), 0.1)


def started(
    data: Dataset, n_a: int, n_b: int, hidden: tuple[int, ...] = (6,), bound: float = 3.0
) -> LipschitzNARX:
    model = LipschitzNARX(data, n_a, n_b, hidden, lipschitz=bound)
    model.start_(None, data, 1)
    return model


def one_step(model: LipschitzNARX, u: np.ndarray, y: np.ndarray, t: int) -> np.ndarray:
    """F of the samples up to t, written out."""
    channels = model.channels
    scaled_u, scaled_y = channels.scaled_u(u), channels.scaled_y(y)
    phi = np.concatenate(
        [scaled_y[t - k] for k in range(model.n_a)]
        + [scaled_u[t - k] for k in range(1, model.n_b)]
        + [scaled_u[t]]
    )
    with torch.no_grad():
        gain, network = model.map.parts()
        found = network(torch.from_numpy(phi))
        if gain is not None:
            found = found + gain @ torch.from_numpy(phi)
    return channels.physical_y(model.lipschitz * found.numpy())


SIZES = [(1, 1), (1, 2), (1, 4), (3, 1), (3, 2), (2, 4)]


@pytest.mark.parametrize("hidden", [(6,), (6, 6)])
@pytest.mark.parametrize(("n_a", "n_b"), SIZES)
def test_prediction_and_simulation_are_the_recursion(n_a: int, n_b: int, hidden: tuple[int, ...]) -> None:
    data = several()
    model, one = started(data, n_a, n_b, hidden), data.experiments[0]
    first = max(n_a, n_b)
    predicted = model.predict(one.u, one.y)
    assert np.isnan(predicted[:first]).all()
    for t in range(first, 20):
        np.testing.assert_allclose(predicted[t], one_step(model, one.u, one.y, t - 1), rtol=1e-12, atol=1e-12)
    channels = model.channels
    state = np.concatenate(
        [channels.scaled_y(one.y)[first - 1 - k] for k in range(n_a)]
        + [channels.scaled_u(one.u)[first - 1 - k] for k in range(1, n_b)]
    )
    y = one.y[: first + 10].copy()
    for t in range(first, first + 10):
        y[t] = one_step(model, one.u, y, t - 1)
    simulated = model.simulate(one.u[first - 1 : first + 10], state)
    np.testing.assert_allclose(simulated, y[first - 1 :], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("n_a", "n_b"), SIZES)
def test_the_constants_are_norms_of_the_stacked_maps(n_a: int, n_b: int) -> None:
    model = LipschitzNARX(several(), n_a, n_b, (6,), lipschitz=0.6)
    shifts = n_a > 1 or n_b > 2
    assert model.lipschitz_x == pytest.approx(math.sqrt(0.36 + 1.0) if shifts else 0.6, rel=1e3 * EPS)
    assert model.lipschitz_u == pytest.approx(math.sqrt(0.36 + 1.0) if n_b > 1 else 0.6, rel=1e3 * EPS)


@pytest.mark.parametrize("hidden", [(6,), (6, 6)])
def test_the_bound_of_the_prediction_is_nearly_attained(hidden: tuple[int, ...]) -> None:
    data = several()
    model = LipschitzNARX(data, 2, 3, hidden, lipschitz=1.7, activation="relu")
    gain = np.linalg.qr(np.random.default_rng(0).normal(size=(12, 3)))[0].T
    model.map.start_(gain, np.zeros(3), np.random.default_rng(0), effect=1e-3)
    explicit = model.explicit().detach()

    def newest(xi: torch.Tensor) -> torch.Tensor:
        return explicit.step(xi[:, : model.n_x], xi[:, model.n_x :])[:, :3]

    starts = 0.1 * torch.randn(8, 12, dtype=torch.float64)
    found = lower_bound(newest, starts, iterations=60, lr=0.02).value
    assert 0.98 * 1.7 <= found <= 1.7 * (1.0 + 1e2 * EPS)


def test_the_bound_of_the_state_map_is_nearly_attained() -> None:
    model = LipschitzNARX(several(), 2, 1, (6,), lipschitz=1.7, activation="relu")
    gain = np.concatenate(
        (np.eye(3), np.zeros((3, 5))), axis=1
    )  # the newest outputs are kept by the shift as well
    model.map.start_(gain, np.zeros(3), np.random.default_rng(0), effect=1e-3)
    explicit = model.explicit().detach()
    u = torch.zeros(1, 2, dtype=torch.float64)
    starts = 0.1 * torch.randn(8, 6, dtype=torch.float64)
    found = lower_bound(
        lambda x: explicit.step(x, u.expand(len(x), -1)), starts, iterations=60, lr=0.02
    ).value
    assert 0.98 * model.lipschitz_x <= found <= model.lipschitz_x * (1.0 + 1e2 * EPS)


def test_an_arx_system_is_found_exactly() -> None:
    data = record()
    model = LipschitzNARX(data, 2, 2, (6,), lipschitz=5.0)
    linear = model.linear_start(data)
    scale = float(data.scaling().u_scale[0] / data.scaling().y_scale[0])
    np.testing.assert_allclose(linear.a[0, :2], COEFFICIENTS["y"], rtol=1e-9)
    np.testing.assert_allclose(linear.a[0, 2], 0.3 * 5.0 * scale, rtol=1e-9)
    np.testing.assert_allclose(linear.b[0, 0], 0.7 * 5.0 / data.scaling().y_scale[0], rtol=1e-9)
    model.map.start_(
        np.concatenate((linear.a[:1], linear.b[:1] * data.scaling().u_scale), axis=1) / 5.0,
        np.zeros(1), np.random.default_rng(0), effect=1e-9,
    )  # fmt: skip
    one = data.experiments[0]
    error = (model.predict(one.u, one.y) - one.y)[2:]
    assert np.ptp(error) < 1e-6 * np.ptp(one.y)  # all but the constant, which start_ finds


def test_the_start_predicts_as_the_linear_model_does() -> None:
    data = record(noise=0.1)
    one = data.experiments[0]
    model = started(data, 2, 2, bound=5.0)
    error = (model.predict(one.u, one.y) - one.y)[2:]
    assert error.std() < 1.3 * 10.0 * 0.1
    assert abs(error.mean()) < 2.0 * 0.03 * one.y.std()  # the random units are not of zero mean
    fresh = LipschitzNARX(data, 2, 2, (6,), lipschitz=5.0)
    fresh.start_(model.linear_start(data), data, 1)
    assert np.array_equal(fresh.simulate(one.u), model.simulate(one.u))


def test_the_linear_start_is_the_best_within_its_bound() -> None:
    data = record(noise=0.1)
    channels = LipschitzNARX(data, 2, 2, lipschitz=1.0).channels
    y, u = channels.scaled_y(data.experiments[0].y)[:, 0], channels.scaled_u(data.experiments[0].u)[:, 0]
    phi = np.stack((y[1:-1], y[:-2], u[:-2], u[1:-1]), axis=1)
    target = y[2:] - y[2:].mean()
    phi = phi - phi.mean(axis=0)
    model = LipschitzNARX(data, 2, 2, lipschitz=0.8)
    linear = model.linear_start(data)
    found = np.concatenate((linear.a[0], linear.b[0] * channels.scaling.u_scale))
    assert np.linalg.norm(found) == pytest.approx(0.99 * 0.8, rel=1e-6)
    least = np.mean((target - phi @ found) ** 2)
    rng = np.random.default_rng(0)
    for _ in range(300):
        other = found + 0.05 * rng.normal(size=4)
        other *= min(1.0, 0.99 * 0.8 / np.linalg.norm(other))
        assert np.mean((target - phi @ other) ** 2) >= least * (1.0 - 1e-9)


def test_a_start_that_would_diverge_is_made_stable() -> None:
    steps = 200
    u = np.random.default_rng(0).normal(size=steps)
    y = np.zeros(steps)
    for t in range(1, steps - 1):
        y[t + 1] = 2.04 * y[t] - 1.05 * y[t - 1] + u[t]
    data = Dataset.from_arrays(u, y, 0.1)
    linear = LipschitzNARX(data, 2, 1, lipschitz=5.0).linear_start(data)
    assert linear.spectral_radius == pytest.approx(0.999, rel=1e-9)


def test_the_initial_state_comes_from_the_data() -> None:
    data = record(n_init=20)
    model, one = started(data, 3, 3), data.experiments[0]
    y, u = model.channels.scaled_y(one.y)[:, 0], model.channels.scaled_u(one.u)[:, 0]
    expected = [y[4], 2.0 * y[4] - y[5], 2.0 * y[4] - y[6], u[5], u[6]]
    np.testing.assert_array_equal(model.initial_state(one.u[4:24], one.y[4:24]), expected)
    np.testing.assert_array_equal(model.initial_state(one.u[4:5], one.y[4:5]), [y[4]] * 3 + [u[4]] * 2)
    windows = np.stack([one.u[:9], one.u[9:18]]), np.stack([one.y[:9], one.y[9:18]])
    states = model.initial_states(*windows)
    assert states.shape == (2, model.n_x)
    np.testing.assert_array_equal(states[1], model.initial_state(one.u[9:18], one.y[9:18]))
    with pytest.raises(ShapeError, match="u, y"):
        model.initial_states(one.u[:9], one.y[:9])


def test_it_is_fitted_by_simulation() -> None:
    rng = np.random.default_rng(0)
    u, y = rng.normal(size=300), np.zeros(300)
    for t in range(1, 299):
        y[t + 1] = 0.9 * np.tanh(y[t]) - 0.3 * y[t - 1] + np.tanh(2.0 * u[t])
    data = Dataset.from_arrays(u, y, 0.1, n_init=10)
    train, val = data.window(0, 200), data.window(200)
    model = LipschitzNARX(data, 2, 1, (8,), lipschitz=3.0)
    model.start_(None, train, 0)
    before = validation_error(model, val)
    result = fit(model, train, val, max_iterations=150, seed=0)
    assert result.validation < 0.2 * before


def test_bad_calls() -> None:
    data = several()
    model, one = LipschitzNARX(data, 2, 3, (6,), lipschitz=1.0), data.experiments[0]
    with pytest.raises(ShapeError, match="Cut both alike"):
        model.predict(one.u, one.y[:-1])
    with pytest.raises(NonFiniteError, match="y"):
        model.predict(one.u, np.where(one.y > 2.0, np.nan, one.y))
    assert np.isnan(model.predict(one.u[:2], one.y[:2])).all()
    with pytest.raises(ShapeError, match="longer"):
        model.start_(None, data.window(0, 4))
    zeros = np.zeros((model.n_x, 2)), np.zeros((3, model.n_x)), np.zeros((3, 2)), np.zeros(2), np.zeros(3)
    linear = LinearStateSpace(np.zeros((model.n_x, model.n_x)), *zeros, 0.1)
    with pytest.raises(InvalidArgumentError, match="past outputs"):
        model.start_(linear, data)
    for n_a, n_b in ((0, 1), (1, 0), (1.5, 1)):
        with pytest.raises(InvalidArgumentError, match="n_"):
            LipschitzNARX(data, n_a, n_b, lipschitz=1.0)  # type: ignore[arg-type]
