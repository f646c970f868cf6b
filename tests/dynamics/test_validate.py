"""Validation of dynamics models: simulation, predictions, residuals and comparisons."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from robustnn import InvalidArgumentError, ShapeError
from robustnn.dynamics import (
    Dataset,
    LinearStateSpace,
    compare,
    horizon_errors,
    nrmse,
    page_arrays,
    predict_data,
    r_squared,
    residual_statistics,
    rmse,
    simulate_data,
    validate,
)

EPS = np.finfo(np.float64).eps
RNG = np.random.default_rng(0)
MODEL = LinearStateSpace(
    np.array([[0.9, 0.2], [-0.2, 0.8]]),
    np.array([[1.0, 0.0], [0.5, -1.0]]),
    np.array([[1.0, 0.0], [1.0, 1.0]]),
    np.array([[0.0, 0.3], [0.0, 0.0]]),
    np.array([0.1, -0.2]),
    np.array([3.0, -1.0]),
    0.1,
)
FIRST_ORDER = LinearStateSpace(
    *(np.array([[v]]) for v in (0.8, 0.5, 2.0, 0.0)), np.zeros(1), np.zeros(1), 0.1
)


def records(
    model: LinearStateSpace, lengths: tuple[int, ...], noise: float = 0.0, n_init: int = 10
) -> Dataset:
    inputs = [RNG.normal(size=(n, model.b.shape[1])) for n in lengths]
    outputs = [model.simulate(u, RNG.normal(size=model.n_x)) for u in inputs]
    outputs = [y + noise * RNG.normal(size=y.shape) for y in outputs]
    return Dataset.from_arrays(inputs, outputs, model.dt, n_init=n_init, y_units=["V"] * len(model.c))


class Batched:
    """The same model, with the methods for many windows at once."""

    def __init__(self, model: LinearStateSpace) -> None:
        self.model, self.calls = model, 0
        self.dt, self.n_x = model.dt, model.n_x
        self.simulate, self.initial_state = model.simulate, model.initial_state

    def initial_states(self, u: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.stack([self.model.initial_state(a, b) for a, b in zip(u, y, strict=True)])

    def simulate_batch(self, u: np.ndarray, x0: np.ndarray) -> np.ndarray:
        self.calls += 1
        return np.stack([self.model.simulate(a, b) for a, b in zip(u, x0, strict=True)])


class Broken:
    """A model whose state cannot be found, in one of three ways."""

    dt, n_x = 0.1, 1

    def __init__(self, how: str) -> None:
        self.how = how

    def initial_state(self, u: np.ndarray, y: np.ndarray) -> np.ndarray:
        if self.how == "raises":
            raise np.linalg.LinAlgError("SVD did not converge")
        return np.full(1, np.nan if self.how == "nan" else 1.0)

    def simulate(self, u: np.ndarray, x0: np.ndarray | None = None) -> np.ndarray:
        result = np.ones((len(u), 1))
        result[len(u) // 2 :] = np.inf
        return result


def test_the_true_model_has_no_error() -> None:
    data = records(MODEL, (300, 120))
    found = validate(MODEL, data)
    scale = max(np.abs(one.y).max() for one in data)
    assert found.rmse.shape == (2,) and (found.rmse <= 1e3 * EPS * scale).all()
    assert (found.fit >= 100.0 - 1e6 * EPS).all() and not found.diverged
    assert [one.shape for one in found.simulated] == [(300, 2), (120, 2)]
    for one, predicted in zip(data, predict_data(MODEL, data, 4), strict=True):
        assert np.isnan(predicted[:13]).all()
        np.testing.assert_allclose(predicted[13:], one.y[13:], atol=1e3 * EPS * scale)


def test_errors_are_those_of_the_metrics_after_the_window() -> None:
    data = records(MODEL, (300, 120), noise=0.4)
    found = validate(MODEL, data)
    y = np.concatenate([one.y[10:] for one in data])
    simulated = np.concatenate([one[10:] for one in found.simulated])
    np.testing.assert_allclose(found.rmse, rmse(y, simulated), rtol=8 * EPS)
    np.testing.assert_allclose(found.nrmse, nrmse(y, simulated), rtol=8 * EPS)
    np.testing.assert_allclose(found.fit, 100 * (1 - found.nrmse), rtol=8 * EPS)
    np.testing.assert_allclose(found.r_squared, r_squared(y, simulated), rtol=8 * EPS)
    np.testing.assert_allclose(found.residuals.mean, (y - simulated).mean(0), atol=8 * EPS)
    np.testing.assert_allclose(found.residuals.std, (y - simulated).std(0), rtol=64 * EPS)
    np.testing.assert_allclose(found.residuals.largest, np.abs(y - simulated).max(0), rtol=8 * EPS)
    assert np.array_equal(found.errors()[1], data.experiments[1].y - found.simulated[1])


def test_an_offset_is_an_error_in_the_unit_of_the_data_and_no_correlation() -> None:
    data = records(FIRST_ORDER, (400,), n_init=0)
    zero = Dataset.from_arrays(data.experiments[0].u, FIRST_ORDER.simulate(data.experiments[0].u), 0.1)
    found = validate(replace(FIRST_ORDER, y_offset=np.array([0.25])), zero)
    np.testing.assert_allclose(found.rmse, 0.25, rtol=64 * EPS)
    np.testing.assert_allclose(found.residuals.mean, -0.25, rtol=64 * EPS)
    assert found.residuals.std[0] <= 64 * EPS


def test_simulation_sees_outputs_of_the_window_only() -> None:
    data = records(MODEL, (200,), noise=1.0)
    one = data.experiments[0]
    y = one.y.copy()
    y[10:] += RNG.normal(size=y[10:].shape)
    other = replace(data, experiments=(replace(one, y=y),))
    assert np.array_equal(simulate_data(MODEL, data)[0], simulate_data(MODEL, other)[0])
    blind = replace(data, n_init=0)
    assert np.array_equal(simulate_data(MODEL, blind)[0], MODEL.simulate(one.u))


def test_predictions_are_those_of_a_first_order_system_and_causal() -> None:
    data = records(FIRST_ORDER, (60,), noise=0.5, n_init=0)
    u, y = data.experiments[0].u, data.experiments[0].y
    k = 3
    expected = np.full_like(y, np.nan)
    for t in range(len(y) - k):  # a window of one sample gives the state y / c, as there is no feedthrough
        x = y[t] / 2.0
        for j in range(k):
            x = 0.8 * x + 0.5 * u[t + j]
        expected[t + k] = 2.0 * x
    found = predict_data(FIRST_ORDER, data, k, window=1)[0]
    np.testing.assert_allclose(found, expected, atol=64 * EPS * np.abs(y).max())
    changed = y.copy()
    changed[31:] += 1.0
    later = replace(data, experiments=(replace(data.experiments[0], y=changed),))
    assert np.array_equal(predict_data(FIRST_ORDER, later, k, window=1)[0][3:34], found[3:34])
    coarse = predict_data(FIRST_ORDER, data, k, window=1, stride=7)[0]
    rows = np.arange(3, 60, 7)
    assert np.array_equal(coarse[rows], found[rows]) and np.isfinite(coarse).sum() == len(rows)


def test_errors_against_the_horizon_are_those_of_predictions_from_the_same_windows() -> None:
    data = records(MODEL, (80, 50), noise=0.3)
    horizons = (1, 4, 20)
    found = horizon_errors(MODEL, data, horizons)
    for row, k in zip(found, horizons, strict=True):
        y, predicted = [], []
        for one, p in zip(data, predict_data(MODEL, data, k), strict=True):
            last = len(one) - 20 + k  # windows that reach the largest horizon
            y.append(one.y[9 + k : last])
            predicted.append(p[9 + k : last])
        np.testing.assert_allclose(row, rmse(np.concatenate(y), np.concatenate(predicted)), rtol=64 * EPS)
    some = horizon_errors(MODEL, data, horizons, starts=30)
    assert some.shape == (3, 2) and not np.array_equal(some, found) and (some > 0.0).all()


def test_models_that_take_many_windows_at_once_are_used_so() -> None:
    data, model = records(MODEL, (80, 50), noise=0.3), Batched(MODEL)
    for a, b in zip(predict_data(model, data, 5), predict_data(MODEL, data, 5), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(horizon_errors(model, data, (1, 9)), horizon_errors(MODEL, data, (1, 9)))
    assert model.calls == 4


@pytest.mark.parametrize("model", [Broken("raises"), Broken("nan"), Broken("inf")])
def test_a_model_without_finite_outputs_has_infinite_errors(model: Broken) -> None:
    data = records(FIRST_ORDER, (60,), noise=0.1, n_init=5)
    found = validate(model, data)
    assert found.diverged and np.isposinf(found.rmse).all() and np.isposinf(found.nrmse).all()
    assert np.isneginf(found.fit).all() and np.isneginf(found.r_squared).all()
    assert np.isnan(found.residuals.auto).all() and not found.residuals.auto_inside.any()
    assert np.isposinf(horizon_errors(model, data, (1, 40))[-1]).all()
    assert compare(data, broken=model)[0]["rmse"] == np.inf


def test_an_unstable_model_is_worse_than_any_number_or_finite_without_warning() -> None:
    data = records(FIRST_ORDER, (2500,), noise=0.1)
    for a, finite in ((1.2, True), (2.0, False)):
        found = validate(replace(FIRST_ORDER, a=np.array([[a]])), data)
        assert bool(np.isfinite(found.rmse[0])) is finite and found.rmse[0] > 1e100
        assert np.isneginf(found.r_squared[0]) or found.r_squared[0] < -1e200


def brute_correlation(a: list[np.ndarray], b: list[np.ndarray], lag: int) -> float:
    total = 0.0
    for x, y in zip(a, b, strict=True):
        total += sum(x[t] * y[t - lag] for t in range(len(x)) if 0 <= t - lag < len(y))
    return total / np.sqrt(sum((x**2).sum() for x in a) * sum((y**2).sum() for y in b))


def test_correlations_are_sums_over_pairs_within_a_record() -> None:
    e, u = [[RNG.normal(size=(n, 2)) + 0.5 for n in (40, 25)] for _ in range(2)]
    found = residual_statistics(e, u, 6)
    e_0, u_0 = ([one - np.concatenate(parts).mean(0) for one in parts] for parts in (e, u))
    for j in range(2):
        for lag in range(7):
            own = brute_correlation([one[:, j] for one in e_0], [one[:, j] for one in e_0], lag)
            assert found.auto[lag, j] == pytest.approx(own, abs=64 * EPS)
        for k in range(2):
            for row, lag in enumerate(range(-6, 7)):
                cross = brute_correlation([one[:, j] for one in e_0], [one[:, k] for one in u_0], lag)
                assert found.cross_lags[row] == lag
                assert found.cross[row, j, k] == pytest.approx(cross, abs=64 * EPS)
    np.testing.assert_allclose(found.auto[0], 1.0, rtol=64 * EPS)
    assert found.band == pytest.approx(2.58 / np.sqrt(65))


def test_the_band_holds_what_it_says_of_white_residuals() -> None:
    rng = np.random.default_rng(1)
    auto, cross = [], []
    for _ in range(200):
        found = residual_statistics([rng.normal(size=(1000, 1))], [rng.normal(size=(1000, 1))])
        auto.append(found.auto_inside[0])
        cross.append(found.cross_inside[0, 0])
    # 5,000 lags, 99 % of which are expected inside; four standard deviations of a binomial number are 0.0056.
    assert 0.9844 <= np.mean(auto) <= 0.9956 and 0.9844 <= np.mean(cross) <= 0.9956


def test_what_is_left_is_found_at_its_lag() -> None:
    rng = np.random.default_rng(2)
    u = rng.normal(size=(2000, 1))
    late = np.roll(u, 4, axis=0) + rng.normal(
        size=u.shape
    )  # an input that the model missed, four samples before
    found = residual_statistics([late], [u])
    assert found.cross_lags[np.abs(found.cross[:, 0, 0]).argmax()] == 4 and found.cross_inside[0, 0] < 1.0
    coloured = np.cumsum(rng.normal(size=(2000, 1)), axis=0)
    assert residual_statistics([coloured], [u]).auto_inside[0] == 0.0
    assert residual_statistics([np.zeros((50, 1))], [u[:50]]).auto_inside[0] == 1.0


def test_comparison_has_a_row_per_model_and_output() -> None:
    data = records(MODEL, (200,), noise=0.2)
    off = replace(MODEL, y_offset=MODEL.y_offset + 1.0, a=0.5 * MODEL.a)
    rows = compare(data, {"true one": MODEL}, off=off)
    assert [(row["model"], row["output"], row["n_x"]) for row in rows] == [
        ("true one", "y1", 2), ("true one", "y2", 2), ("off", "y1", 2), ("off", "y2", 2),
    ]  # fmt: skip
    assert rows[0]["unit"] == "V" and rows[0]["rmse"] == float(validate(MODEL, data).rmse[0])
    assert rows[0]["rmse"] < rows[2]["rmse"]


def test_arrays_of_the_page_are_those_of_one_output() -> None:
    data = records(MODEL, (200, 90), noise=0.2)
    first, second = validate(MODEL, data), validate(replace(MODEL, a=0.9 * MODEL.a), data)
    arrays = page_arrays({"one": first, "two": [first, second]}, output=1, input=1, experiment=1)
    assert arrays["time"][-1] == pytest.approx(8.9) and arrays["unit"] == "V" and arrays["input_name"] == "u2"
    assert np.array_equal(arrays["simulated"]["two"][1], second.simulated[1][:, 1])
    assert arrays["auto"]["two"].shape == (2, 25) and arrays["cross"]["one"].shape == (1, 51)
    with pytest.raises(InvalidArgumentError, match="at least one per model"):
        page_arrays({"one": []})
    with pytest.raises(InvalidArgumentError, match="same data"):
        page_arrays({"one": first, "two": validate(MODEL, data.window(0, 80))})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: validate(replace(MODEL, dt=0.2), d), r"data.dt: expected .* 0.2 s, got 0.1 s"),
        (lambda d: validate(replace(MODEL, c=MODEL.c[:1], d=MODEL.d[:1], y_offset=np.zeros(1)), d.window(n_init=0)),
         r"outputs of shape \(60, 2\)"),
        (lambda d: predict_data(MODEL, d.window(n_init=0), 1), "window: expected a window"),
        (lambda d: predict_data(MODEL, d, 51), "at least 61 samples"),
        (lambda d: predict_data(MODEL, d, 0), "k: expected an integer >= 1"),
        (lambda d: horizon_errors(MODEL, d, ()), "horizons: expected at least one"),
        (lambda d: horizon_errors(MODEL, d, (1, 0)), r"horizons\[1\]"),
        (lambda d: compare(d), "models: expected at least one"),
        (lambda d: residual_statistics([np.zeros((3, 1))], [np.zeros((4, 1))]), "equal, positive lengths"),
    ],
)  # fmt: skip
def test_bad_calls(call: Any, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        call(records(MODEL, (60,)))


def test_outputs_that_rest_are_refused() -> None:
    y = np.zeros((60, 1))
    y[:5] = 1.0
    data = Dataset.from_arrays(RNG.normal(size=60), y, 0.1, n_init=10)
    with pytest.raises(InvalidArgumentError, match="outputs that vary after sample n_init = 10"):
        validate(FIRST_ORDER, data)
    with pytest.raises(ShapeError):
        validate(MODEL, data)
