"""Validation of dynamics models: open-loop simulation, its errors and residuals, and comparisons.

All errors are in the units of the data. A simulation that diverges has infinite errors and raises nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from robustnn.dynamics.data import Dataset, Experiment
from robustnn.dynamics.residuals import Residuals, residual_statistics
from robustnn.errors import ShapeError, invalid

__all__ = [
    "DynamicsModel", "Validation", "compare", "page_arrays", "simulate_data", "validate",
]  # fmt: skip

Array = NDArray[np.float64]


@runtime_checkable
class DynamicsModel(Protocol):
    """What can be validated: a state-space model in the units of its data."""

    @property
    def dt(self) -> float:
        """Sampling time in s."""
        ...

    @property
    def n_x(self) -> int:
        """Number of states."""
        ...

    def simulate(self, u: Array, x0: Array | None = None) -> Array:
        """Return outputs (T, n_y) to inputs (T, n_u) from the state x0 (n_x,) at the first sample, zero if None."""
        ...

    def initial_state(self, u: Array, y: Array) -> Array:
        """Return the state (n_x,) at the first sample of a window of inputs (n, n_u) and outputs (n, n_y)."""
        ...


@dataclass(frozen=True, eq=False)
class Validation:
    """Open-loop simulation of a data set and its errors, which count the samples from `n_init` on.

    Attributes:
        data: What was simulated.
        simulated: Outputs of every experiment, shape (T, n_y), in the units of the data.
        rmse: Root mean square error of every output over all experiments, shape (n_y,), in the units of the data;
            infinite where the simulation diverged.
        nrmse: RMSE over the standard deviation of the measured output, shape (n_y,).
        fit: 100 (1 - NRMSE), in per cent, shape (n_y,).
        r_squared: 1 - NRMSE^2, shape (n_y,).
        residuals: Statistics of measured less simulated outputs.
    """

    data: Dataset
    simulated: tuple[Array, ...]
    rmse: Array
    nrmse: Array
    fit: Array
    r_squared: Array
    residuals: Residuals

    @property
    def diverged(self) -> bool:
        """Whether an output is NaN or infinite."""
        return not all(np.isfinite(one).all() for one in self.simulated)

    def errors(self) -> list[Array]:
        """Return measured less simulated outputs of every experiment, shape (T, n_y), all samples."""
        with np.errstate(all="ignore"):
            return [one.y - found for one, found in zip(self.data, self.simulated, strict=True)]

    def rows(self, model: str = "") -> list[dict[str, Any]]:
        """Return one plain row per output, for tables and files.

        Args:
            model: What stands in the column "model".
        """
        found = self.residuals
        return [
            {
                "model": model,
                "output": name,
                "unit": unit,
                "rmse": float(self.rmse[k]),
                "nrmse": float(self.nrmse[k]),
                "fit": float(self.fit[k]),
                "r_squared": float(self.r_squared[k]),
                "auto_inside": float(found.auto_inside[k]),
                "cross_inside": float(found.cross_inside[k].min()),
            }
            for k, (name, unit) in enumerate(zip(self.data.y_names, _units(self.data), strict=True))
        ]


def simulate_data(model: DynamicsModel, data: Dataset) -> list[Array]:
    """Simulate every experiment in open loop.

    The model sees the inputs and the outputs of the first `data.n_init` samples, from which comes the initial state;
    that is zero for `n_init` = 0.

    Args:
        model: The model.
        data: The experiments.

    Returns:
        Outputs of every experiment, shape (T, n_y), in the units of the data; NaN throughout where no initial state
        could be found because the model diverges.

    Raises:
        InvalidArgumentError: If the sampling times differ.
        ShapeError: If the outputs of the model do not fit the data.
    """
    check_dt(model, data)
    return [simulate_window(model, one, 0, data.n_init, len(one)) for one in data]


def validate(model: DynamicsModel, data: Dataset, *, n_lags: int = 25) -> Validation:
    """Simulate a data set in open loop and judge the result.

    Args:
        model: The model.
        data: Data that no decision about the model has used.
        n_lags: Largest lag of the correlations of residuals, in samples.

    Returns:
        The simulation and its errors.

    Raises:
        InvalidArgumentError: If the sampling times differ, or a measured output is constant.
        ShapeError: If the outputs of the model do not fit the data.

    Example:
        >>> from robustnn.dynamics import subspace
        >>> u = np.random.default_rng(0).normal(size=(500, 1))
        >>> data = Dataset.from_arrays(u, np.cumsum(u, axis=0) * 0.9 ** np.arange(500)[:, None], 1.0, n_init=10)
        >>> validate(subspace(data, 2), data).rmse.shape
        (1,)
    """
    simulated = simulate_data(model, data)
    measured = [one.y[data.n_init :] for one in data]
    found = [one[data.n_init :] for one in simulated]
    y = np.concatenate(measured)
    std = y.std(axis=0)
    if not (std > 0.0).all():
        raise invalid(
            "data", f"outputs that vary after sample n_init = {data.n_init}",
            f"standard deviations {std.tolist()}", "Validate on a longer record.",
        )  # fmt: skip
    rms = finite_rmse(y, np.concatenate(found))
    with np.errstate(all="ignore"):
        ratio = rms / std
        left = [a - b for a, b in zip(measured, found, strict=True)]
        r_squared = 1.0 - np.square(ratio)
    residuals = residual_statistics(left, [one.u[data.n_init :] for one in data], n_lags)
    return Validation(data, tuple(simulated), rms, ratio, 100.0 * (1.0 - ratio), r_squared, residuals)


def compare(
    data: Dataset, models: Mapping[str, DynamicsModel] | None = None, /, **named: DynamicsModel
) -> list[dict[str, Any]]:
    """Validate several models on the same data.

    Args:
        data: Data that no decision about the models has used.
        models: Models by name, for names that are no identifiers.
        **named: Further models.

    Returns:
        One row per model and output, in the order given: the model's name and number of states "n_x", and what
        `Validation.rows` has. `robustnn.report.comparison_table` makes a table of it.

    Raises:
        InvalidArgumentError: If there is no model, or as in `validate`.

    Example:
        >>> compare(tanks.tests["test"], linear=linear, lbdn=model)  # doctest: +SKIP
    """
    every = {**(models or {}), **named}
    if not every:
        raise invalid("models", "at least one model", "none", "Pass compare(data, linear=model).")
    rows = []
    for name, model in every.items():
        for row in validate(model, data).rows(name):
            rows.append({"model": name, "n_x": model.n_x, **row})
    return rows


def page_arrays(
    validations: Mapping[str, Validation | Sequence[Validation]],
    *,
    output: int = 0,
    input: int = 0,
    experiment: int = 0,
) -> dict[str, Any]:
    """Return the arguments of `robustnn.report.validation_page` for one output.

    Args:
        validations: For each model its validation, or those of several seeds; all of the same data.
        output: Index of the output.
        input: Index of the input of the cross-correlation.
        experiment: Index of the experiment that is drawn; correlations are of all.

    Returns:
        Arguments by name; of the errors against the horizon there are none.

    Raises:
        InvalidArgumentError: If there is no validation, or they differ in their data.

    Example:
        >>> validation_page(**page_arrays({"linear": validate(model, data)}))  # doctest: +SKIP
    """
    runs = {k: [v] if isinstance(v, Validation) else list(v) for k, v in validations.items()}
    every = [one for some in runs.values() for one in some]
    if not every or not all(runs.values()):
        raise invalid(
            "validations", "at least one per model", {k: len(v) for k, v in runs.items()}, "Pass some."
        )
    data, found = every[0].data, every[0].residuals
    same = [(one.data.n_init, len(one.residuals.auto_lags), [len(e) for e in one.data]) for one in every]
    if any(one != same[0] for one in same):
        raise invalid("validations", "all of the same data, with equal lags", same, "Validate again.")

    def stack(of: Callable[[Validation], Array]) -> dict[str, Array]:
        return {name: np.stack([of(one) for one in some]) for name, some in runs.items()}

    return {
        "time": data.dt * np.arange(len(data.experiments[experiment])),
        "measured": data.experiments[experiment].y[:, output],
        "simulated": stack(lambda one: one.simulated[experiment][:, output]),
        "auto_lags": found.auto_lags[1:],
        "auto": stack(lambda one: one.residuals.auto[1:, output]),
        "cross_lags": found.cross_lags,
        "cross": stack(lambda one: one.residuals.cross[:, output, input]),
        "band": found.band,
        "start": data.dt * data.n_init if data.n_init else None,
        "output": data.y_names[output],
        "unit": _units(data)[output],
        "input_name": data.u_names[input],
    }


def simulate_window(model: DynamicsModel, one: Experiment, start: int, n: int, stop: int) -> Array:
    """Return simulated outputs of the samples from `start` to `stop`, shape (stop - start, n_y).

    Args:
        model: The model.
        one: Experiment with the samples.
        start: First sample.
        n: Number of samples that the initial state comes from; 0 for a zero state.
        stop: Sample after the last one.

    Raises:
        ShapeError: If the outputs of the model do not fit the data.
    """
    u, y = one.u[start:stop], one.y[start:stop]
    with np.errstate(all="ignore"):
        x0 = None
        if n > 0:
            try:
                x0 = np.asarray(model.initial_state(u[:n], y[:n]), dtype=np.float64)
            except np.linalg.LinAlgError:  # least squares with a free response that is not finite
                return np.full(y.shape, np.nan)
            if not np.isfinite(x0).all():
                return np.full(y.shape, np.nan)
        found = np.asarray(model.simulate(u, x0), dtype=np.float64)
    if found.shape != y.shape:
        raise ShapeError(
            f"model.simulate(u): expected outputs of shape {y.shape} for {one.name}, got {found.shape}. "
            "Validate with data of the channels that the model was fitted to."
        )
    return found


def finite_rmse(y: Array, found: Array) -> Array:
    """Return the root mean square error of every channel, infinite where a sample is not."""
    with np.errstate(all="ignore"):
        error = y - found
        largest = np.abs(error).max(axis=0)
        scale = np.where((largest > 0.0) & np.isfinite(largest), largest, 1.0)
        result = scale * np.sqrt(np.square(error / scale).mean(axis=0))
    return np.where(np.isfinite(result), result, np.inf)


def check_dt(model: DynamicsModel, data: Dataset) -> None:
    """Raise an error if a model and data have different sampling times."""
    if not np.isclose(model.dt, data.dt, rtol=1e-6, atol=0.0):
        raise invalid(
            "data.dt", f"the sampling time of the model, {model.dt:g} s", f"{data.dt:g} s",
            "Resample the data, or fit a model to data of this sampling time.",
        )  # fmt: skip


def _units(data: Dataset) -> tuple[str, ...]:
    return data.y_units or ("",) * data.n_y
