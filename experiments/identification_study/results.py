"""Read access to a run of the experiment on identified models."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.identification_study.config import Config, Model
from experiments.identification_study.measure import cell_key, certificate_key
from robustnn.report import Interval, bootstrap_interval
from robustnn.runs import RunFolder

Array = NDArray[np.float64]
# Cell with the simulations of the chosen models, and what the tables need to know about the data.
PAGE = "simulations"
CHOSEN = "LBDN, bound by validation"
# Stands for infinity where an interval is computed.
_HUGE = 1e150


class Results:
    """Read access to the cells of a run.

    Args:
        run: A run folder in which all fits are done; what needs the simulations needs them, too.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self.config = Config.of(run.config)
        self._cells: dict[str, dict[str, Any]] = {}

    def fits(self, model: Model) -> list[dict[str, Any]]:
        """What `measure.fit_and_judge` returned, one entry per seed."""
        keys = [cell_key(model, seed) for seed in self.config.training_seeds]
        for key in keys:
            if key not in self._cells:
                self._cells[key] = self.run.cell(key)
        return [self._cells[key] for key in keys]

    def certified(self, model: Model, name: str) -> Array:
        """Return a constant of `measure.certify_chosen`, infinite where nothing was proved, (n_seeds,)."""
        cells = [self.run.cell(certificate_key(model, seed)) for seed in self.config.training_seeds]
        return np.array([np.inf if cell is None else number(cell[name]) for cell in cells])

    def page(self) -> dict[str, Any]:
        """What `measure.simulate_chosen` returned."""
        result: dict[str, Any] = self.run.cell(PAGE)
        return result

    def panels(self) -> list[tuple[str, int, str]]:
        """Test records and outputs that errors are of: name of the record, index of the output, title."""
        page = self.page()
        several = len(page["outputs"]) > 1
        names = {record: record_name(record) for record in page["records"]}
        return [
            (record, k, f"{names[record]}, {output}" if several else names[record])
            for record in page["records"]
            for k, output in enumerate(page["outputs"])
        ]

    def validation(self, model: Model) -> Array:
        """Validation errors of the fits, relative to the standard deviation of the output, (n_seeds,)."""
        return np.array([number(fit["starts"][fit["best"]]["validation"]) for fit in self.fits(model)])

    def errors(self, model: Model, key: str, output: int) -> Array:
        """RMSE of the fits in the published unit, (n_seeds,).

        Args:
            model: Which model class.
            key: Name of a test record, or "train_rmse" or "val_rmse" for a part of the training record.
            output: Index of the output.
        """
        return np.array([_error(fit["starts"][fit["best"]], key, output) for fit in self.fits(model)])

    def start_errors(self, model: Model, record: str, output: int) -> Array:
        """RMSE on a test record after every start, whether it was chosen or not, (n_seeds, n_starts)."""
        return np.array(
            [[_error(start, record, output) for start in fit["starts"]] for fit in self.fits(model)]
        )

    def seconds(self, model: Model) -> Array:
        """Wall time of the fits in s, (n_seeds,)."""
        return np.array([fit["seconds"] for fit in self.fits(model)])

    def best_seed(self, model: Model) -> int:
        """Index of the seed with the smallest validation error."""
        return int(np.argmin(self.validation(model)))

    def chosen_bounds(self) -> list[Model]:
        """For every seed the bounded model class with the smallest validation error."""
        models = self.config.bounded
        errors = np.stack([self.validation(model) for model in models])
        return [models[k] for k in np.argmin(errors, axis=0)]

    def rows(self) -> dict[str, list[Model]]:
        """What the tables compare: label, and the model class of every seed."""
        n = len(self.config.training_seeds)
        rows = {model.label: [model] * n for model in self.config.bounded}
        rows[CHOSEN] = self.chosen_bounds()
        rows.update({model.label: [model] * n for model in self.config.models if model.lipschitz is None})
        return rows

    def of_row(self, models: list[Model], values: Any) -> Array:
        """Pick for every seed the value of its model class; `values` maps a class to an array (n_seeds,)."""
        table = {model: values(model) for model in set(models)}
        return np.array([table[model][k] for k, model in enumerate(models)])

    def shown(self) -> dict[str, tuple[Model, int]]:
        """Model class and seed of the models in the time-domain figure: the best of each kind by validation."""
        result = {}
        for models in (self.config.bounded, (Model(None),)):
            best = min(models, key=lambda model: self.validation(model).min())
            k = self.best_seed(best)
            if self.fits(best)[k]["parameters"] is not None:
                result[best.label] = (best, self.config.training_seeds[k])
        return result


def record_name(record: str) -> str:
    """Return the name of a test record as it is written in tables and figures."""
    return "test record" if record == "test" else record.replace("_", " ")


def number(value: float | None) -> float:
    """Return a stored number; None stands for an infinite one."""
    return float("inf") if value is None else value


def median_interval(values: Array) -> Interval:
    """Return the median of errors, which may be infinite, with its 95 % bootstrap interval over seeds."""
    found = bootstrap_interval(np.minimum(values, _HUGE), "median")
    return Interval(*(float("inf") if one > 0.1 * _HUGE else one for one in found))


def quartiles(values: Array) -> tuple[float, float]:
    """Return the quartiles of errors, which may be infinite: each of them is one of the values."""
    low, high = np.quantile(values, (0.25, 0.75), method="nearest")
    return float(low), float(high)


def _error(start: dict[str, Any], key: str, output: int) -> float:
    if start["validation"] is None:
        return float("inf")
    found = start[key] if key in ("train_rmse", "val_rmse") else start["test_rmse"][key]
    return number(found[output])
