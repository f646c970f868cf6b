"""Predictions some samples ahead from windows of measured outputs, and their errors, in the units of the data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from robustnn.dynamics.data import Dataset, Experiment
from robustnn.dynamics.validate import DynamicsModel, check_dt, finite_rmse, simulate_window
from robustnn.errors import ShapeError, check_positive_int, invalid

__all__ = ["horizon_errors", "predict_data"]

Array = NDArray[np.float64]


def predict_data(
    model: DynamicsModel, data: Dataset, k: int, *, window: int | None = None, stride: int = 1
) -> list[Array]:
    """Predict every sample from the outputs measured up to k samples before.

    The state comes from `model.initial_state` on the window that ends at sample t, and the model runs from the first
    sample of the window to t + k. Models that have the methods `initial_states` and `simulate_batch`, which take and
    return the same arrays with one more leading axis, do all windows at once.

    Args:
        model: The model.
        data: The experiments.
        k: Number of samples ahead, at least 1.
        window: Length of the window in samples; None for `data.n_init`.
        stride: Only every so many samples are predicted.

    Returns:
        For every experiment an array (T, n_y) in the units of the data, whose row i is the prediction of y[i] from
        y[: i - k + 1] and u[: i + 1]; NaN where there is none, infinite where the model diverged.

    Raises:
        InvalidArgumentError: If there is no window, or the sampling times differ.
        ShapeError: If an experiment is too short for one prediction.
    """
    k, stride = check_positive_int("k", k), check_positive_int("stride", stride)
    n = _window(model, data, window, k)
    result = []
    for one in data:
        starts = np.arange(0, len(one) - n - k + 1, stride)
        predicted = np.full(one.y.shape, np.nan)
        predicted[starts + n + k - 1] = _predict(model, one, starts, n, np.array([k]))[:, 0]
        result.append(predicted)
    return result


def horizon_errors(
    model: DynamicsModel,
    data: Dataset,
    horizons: Sequence[int],
    *,
    window: int | None = None,
    starts: int = 1000,
) -> Array:
    """Return the root mean square error of predictions against how far they look ahead.

    Every window is simulated once, up to the largest horizon, so that all horizons are judged from the same windows.

    Args:
        model: The model.
        data: The experiments.
        horizons: Numbers of samples ahead, each at least 1.
        window: As in `predict_data`.
        starts: Largest number of windows; where there are more, so many are taken, evenly spread.

    Returns:
        Shape (n_horizons, n_y), in the units of the data; infinite where a prediction diverged.

    Raises:
        InvalidArgumentError: As in `predict_data`, or if there is no horizon.
        ShapeError: If an experiment is too short for the largest horizon.
    """
    steps = np.array([check_positive_int(f"horizons[{j}]", k) for j, k in enumerate(horizons)])
    if not len(steps):
        raise invalid("horizons", "at least one number of samples", "none", "Pass for example (1, 5, 25).")
    starts = check_positive_int("starts", starts)
    n = _window(model, data, window, int(steps.max()))
    counts = [len(one) - n - int(steps.max()) + 1 for one in data]
    total = sum(counts)
    chosen = np.unique(np.linspace(0, total - 1, min(starts, total)).round().astype(int))
    first = np.cumsum([0, *counts])
    measured, predicted = [], []
    for j, one in enumerate(data):
        local = chosen[(chosen >= first[j]) & (chosen < first[j + 1])] - first[j]
        if len(local):
            predicted.append(_predict(model, one, local, n, steps))
            measured.append(one.y[local[:, None] + n - 1 + steps])
    y, found = np.concatenate(measured), np.concatenate(predicted)
    return np.stack([finite_rmse(y[:, j], found[:, j]) for j in range(len(steps))])


def _predict(
    model: DynamicsModel, one: Experiment, starts: NDArray[np.int64], n: int, steps: NDArray[np.int64]
) -> Array:
    """Predictions `steps` after windows of n samples, shape (windows, steps, n_y)."""
    length = n + int(steps.max())
    kept = n - 1 + steps
    batch = getattr(model, "simulate_batch", None), getattr(model, "initial_states", None)
    if batch[0] is None or batch[1] is None:
        found = np.empty((len(starts), len(steps), one.y.shape[1]))
        for j, start in enumerate(starts):
            found[j] = simulate_window(model, one, start, n, start + length)[kept]
    else:
        inside = starts[:, None] + np.arange(length)
        with np.errstate(all="ignore"):
            states = batch[1](one.u[inside[:, :n]], one.y[inside[:, :n]])
            found = np.asarray(batch[0](one.u[inside], states), dtype=np.float64)[:, kept]
    return np.where(np.isfinite(found), found, np.inf)


def _window(model: DynamicsModel, data: Dataset, window: int | None, k: int) -> int:
    check_dt(model, data)
    n = data.n_init if window is None else check_positive_int("window", window)
    if n == 0:
        raise invalid(
            "window", "a window of measured outputs, since data.n_init = 0", window, "Pass window=20."
        )
    for one in data:
        if len(one) < n + k:
            raise ShapeError(
                f"{one.name}: expected at least {n + k} samples for a window of {n} and {k} steps ahead, got "
                f"{len(one)}. Use a shorter window or horizon."
            )
    return n
