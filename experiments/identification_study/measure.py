"""Fit one model class with one seed, judge it on the test records, certify it; simulate the models that were chosen."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.identification_study.config import Config, Model
from experiments.identification_study.systems import load_system, noise_of
from robustnn.dynamics import (
    Dataset,
    FitResult,
    LipschitzStateSpace,
    StateSpaceModel,
    UnconstrainedStateSpace,
    Validation,
    fit,
    page_arrays,
    validate,
)
from robustnn.dynamics.certificate import certify_model
from robustnn.errors import CertificateError, RobustNNError
from robustnn.runs import RunFolder

# Samples of a test record that are stored for the figure, from its start.
_SHOWN = 2000
# Significant digits of stored signals.
_DIGITS = 6


def cell_key(model: Model, seed: int) -> str:
    """Return the key of one fit in the run folder."""
    return f"{model.key}_seed={seed}"


def certificate_key(model: Model, seed: int) -> str:
    """Return the key of the certificate of one fit in the run folder."""
    return f"certificate_{cell_key(model, seed)}"


def make_model(config: Config, model: Model, train: Dataset) -> StateSpaceModel:
    """Return a model of a class, not yet fitted, with the scaling of the training data."""
    if model.lipschitz is None:
        return UnconstrainedStateSpace(train, config.n_x, config.hidden, feedthrough=config.feedthrough)
    return LipschitzStateSpace(
        train, config.n_x, config.hidden, lipschitz_x=model.lipschitz, feedthrough=config.feedthrough
    )


def split(config: Config, data: Dataset) -> tuple[Dataset, Dataset]:
    """Return the part of the training record that is fitted, and the last part, which validates."""
    return data.split(1.0 - config.val_share)


def fit_and_judge(config: Config, model: Model, seed: int) -> dict[str, Any]:
    """Fit a model from several starts, choose by validation, then simulate the test records.

    The starts are fitted one by one, which gives what `fit` with `starts` gives, but keeps the model of every start:
    after the choice each of them is judged, to tell the spread over starts from that of the chosen models.

    Args:
        config: Settings.
        model: Which model class.
        seed: Of the fit.

    Returns:
        JSON values, where None stands for an infinite error: one entry per start in `starts`, the index of the chosen
        one in `best`, its parameters, the number of them, and the wall time of all starts in s. An entry has
        the seed, the validation error as in `robustnn.dynamics.validate.validation_error` (`validation`), the RMSE of
        the training and validation parts and of every test record in the published unit, one number per output, and
        what `fit` records of a start.
    """
    benchmark = load_system(config.task, config.record)
    train, val = split(config, benchmark.train)
    began = time.perf_counter()
    fitted = [_one_start(config, model, train, val, start) for start in config.start_seeds(seed)]
    seconds = time.perf_counter() - began
    best = int(np.argmin([np.inf if one is None else one.validation for one in fitted]))

    def rmse(one: FitResult, data: Dataset) -> list[float | None]:
        return [stored(error) for error in benchmark.factor * validate(one.model, data).rmse]

    starts: list[dict[str, Any]] = []
    for start, one in zip(config.start_seeds(seed), fitted, strict=True):
        if one is None:
            starts.append({"seed": start, "validation": None, "ended": "diverged"})
            continue
        record = one.starts[0]
        starts.append(
            {
                "seed": start,
                "validation": one.validation,
                "ended": record.ended,
                "iteration": record.iteration,
                "iterations": record.iterations,
                "evaluations": record.evaluations,
                "seconds": round(one.seconds, 2),
                "train_rmse": rmse(one, train),
                "val_rmse": rmse(one, val),
                "test_rmse": {name: rmse(one, test) for name, test in benchmark.tests.items()},
            }
        )
    chosen = fitted[best]
    return {
        "starts": starts,
        "best": best,
        "seconds": round(seconds, 2),
        "n_parameters": sum(p.numel() for p in make_model(config, model, train).parameters()),
        "lipschitz_u": None if chosen is None else _lipschitz_u(chosen.model),
        "parameters": None if chosen is None else parameters(chosen.model),
    }


def _one_start(config: Config, model: Model, train: Dataset, val: Dataset, seed: int) -> FitResult | None:
    """Fit from one start; None if the validation error was never finite."""
    try:
        return fit(
            make_model(config, model, train), train, val, seed=seed, time_budget=config.time_budget,
            max_iterations=config.max_iterations, patience=config.patience, check_every=config.check_every,
        )  # fmt: skip
    except RobustNNError as error:
        if type(error) is not RobustNNError:
            raise
        return None


def _lipschitz_u(model: StateSpaceModel) -> float | None:
    return model.lipschitz_u if isinstance(model, LipschitzStateSpace) else None


def stored(value: float) -> float | None:
    """Return a number as it is stored: None in the place of an infinite one."""
    return float(value) if np.isfinite(value) else None


def parameters(model: StateSpaceModel) -> dict[str, Any]:
    """Return the parameters as nested lists, exact."""
    return {name: p.detach().tolist() for name, p in model.named_parameters()}


def load_parameters(model: StateSpaceModel, values: dict[str, Any]) -> None:
    """Set the parameters to those that `parameters` has returned."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.tensor(values[name], dtype=p.dtype).reshape(p.shape))


def stored_model(run: RunFolder, config: Config, model: Model, seed: int) -> StateSpaceModel:
    """Return the model that a fit has chosen.

    Args:
        run: The run folder.
        config: Its configuration.
        model: Which model class.
        seed: Of the fit.
    """
    train, _ = split(config, load_system(config.task, config.record).train)
    result = make_model(config, model, train)
    load_parameters(result, run.cell(cell_key(model, seed))["parameters"])
    return result


def certify_chosen(config: Config, folder: Path, model: Model, seed: int) -> dict[str, Any] | None:
    """Certify the model that a fit has chosen, bounded or not.

    Args:
        config: Settings.
        folder: Run folder with the fits.
        model: Which model class.
        seed: Of the fit.

    Returns:
        JSON values, where None stands for an infinite one, all proved for all states and inputs: the smallest
        contraction rate found, in a metric of its own (`rate`); the incremental l2 gain from inputs to outputs in their
        units (`l2_gain`), and for each output the gain of largest changes (`peak_gains`). None throughout for a fit
        without a model, or if nothing could be proved.
    """
    run = RunFolder.open(folder)
    if run.cell(cell_key(model, seed))["parameters"] is None:
        return None
    fitted = stored_model(run, config, model, seed)
    began = time.perf_counter()
    try:
        certificate = certify_model(fitted, iterations=config.certificate_iterations)
    except CertificateError:
        return None
    seconds = time.perf_counter() - began
    certificate.verify(fitted)
    return {
        "rate": stored(certificate.smallest_rate),
        "l2_gain": stored(certificate.l2_gain),
        "peak_gains": [stored(one) for one in certificate.peak_gains],
        "seconds": round(seconds, 2),
    }


def simulate_chosen(config: Config, folder: Path, models: dict[str, tuple[Model, int]]) -> dict[str, Any]:
    """Simulate the first test record by models that were chosen by validation, and say what the data are.

    Args:
        config: Settings.
        folder: Run folder with the fits.
        models: Model class and seed by label.

    Returns:
        JSON values: names of the test records and outputs; units of errors and channels; the errors of the linear
        model that fits start from, and of the noise where it is known, in that unit; and for each output the arguments
        of `robustnn.report.validation_page` (`pages`), signals cut after 2000 samples, correlations of all of them.
    """
    run = RunFolder.open(folder)
    benchmark = load_system(config.task, config.record)
    train, _ = split(config, benchmark.train)
    linear = make_model(config, config.models[0], train).linear_start(train)
    errors = {name: validate(linear, test).rmse for name, test in benchmark.tests.items()}
    test = next(iter(benchmark.tests.values()))
    found = {
        label: validate(stored_model(run, config, model, seed), test)
        for label, (model, seed) in models.items()
    }
    kept = {label: one for label, one in found.items() if not one.diverged}
    return {
        "records": list(benchmark.tests),
        "outputs": list(test.y_names),
        "unit": benchmark.unit,
        "u_units": list(test.u_units),
        "y_units": list(test.y_units),
        "linear": {name: [stored(one) for one in benchmark.factor * rms] for name, rms in errors.items()},
        "noise": noise_of(config.task, config.record),
        "samples": len(test.experiments[0]),
        "pages": [_page(kept, k) for k in range(test.n_y)],
    }


def _page(validations: dict[str, Validation], output: int) -> dict[str, Any]:
    """Arguments of `robustnn.report.validation_page` as JSON values."""
    arrays = page_arrays(validations, output=output)
    for key in ("time", "measured"):
        arrays[key] = arrays[key][:_SHOWN]
    for key in ("simulated", "auto", "cross"):
        arrays[key] = {label: values[0] for label, values in arrays[key].items()}
    arrays["simulated"] = {label: values[:_SHOWN] for label, values in arrays["simulated"].items()}
    return {key: _rounded(value) for key, value in arrays.items()}


def _rounded(value: Any) -> Any:
    """JSON values with few digits."""
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, np.ndarray):
        return [float(f"{one:.{_DIGITS}g}") for one in value.tolist()]
    return value
