"""What `robustnn fit` does: data and model from the options, the fit in a run folder, and what is stored of it."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robustnn.cli.fit_report import write_report
from robustnn.cli.options import file_word, numbers
from robustnn.cli.records import read_record
from robustnn.dynamics.base import StateSpaceModel
from robustnn.dynamics.benchmarks import load_benchmark
from robustnn.dynamics.certificate import ModelCertificate, certify_model
from robustnn.dynamics.data import Dataset
from robustnn.dynamics.fit import FitResult, fit, validation_error
from robustnn.dynamics.gamma_path import gamma_path
from robustnn.dynamics.model_file import load_model, save_model
from robustnn.dynamics.models import LipschitzStateSpace
from robustnn.dynamics.narx import LipschitzNARX
from robustnn.dynamics.registry import MODELS
from robustnn.dynamics.unconstrained import UnconstrainedStateSpace
from robustnn.dynamics.validate import validate
from robustnn.errors import CertificateError, check_positive, check_positive_int, invalid
from robustnn.runs import RunFolder

__all__ = ["FitSetup", "linear_model", "run_fit"]

_BOUNDS = {"lipschitz": 0.99, "residual": 0.5, "continuous": 0.5, "narx": 2.0}


@dataclass(frozen=True)
class FitSetup:
    """What is fitted to what; decides whether a folder can be continued.

    Attributes:
        data: Digests of the data sets: "train", "val" and those of the tests.
        model: Name of the class of models, or "linear".
        settings: Arguments of the model.
        path: Bounds of a path, or None.
        method: As in `robustnn.dynamics.fit`, like what follows.
        starts: Number of starts.
        seed: Of the first start.
        time_budget: In s.
        max_iterations: Per start.
        patience: In checks.
    """

    data: dict[str, str]
    model: str
    settings: dict[str, Any]
    path: tuple[float, ...] | None
    method: str
    starts: int
    seed: int
    time_budget: float
    max_iterations: int
    patience: int

    def options(self) -> dict[str, Any]:
        """Return the arguments of `fit`."""
        names = ("method", "starts", "seed", "time_budget", "max_iterations", "patience")
        return {name: getattr(self, name) for name in names}


def run_fit(arguments: argparse.Namespace) -> None:
    """Fit, certify and report; what a run folder already holds is not computed again."""
    data = data_sets(arguments)
    train, val = data["train"], data["val"]
    model = make_model(arguments, train)
    path = None if arguments.path is None else _bounds(arguments)
    setup = FitSetup(
        {name: _digest(one) for name, one in data.items()},
        arguments.model,
        model.settings(),
        path,
        arguments.method,
        check_positive_int("--starts", arguments.starts),
        check_positive_int("--seed", arguments.seed, minimum=0),
        check_positive("--time-budget", arguments.time_budget),
        check_positive_int("--max-iterations", arguments.max_iterations),
        check_positive_int("--patience", arguments.patience),
    )
    workers = check_positive_int("--workers", arguments.workers)
    linear = model.linear_start(train)
    compared = {
        name: validate(linear, one) for name, one in data.items()
    }  # refuses data before there is a folder
    out = arguments.out or _default_folder(arguments, setup)
    run = RunFolder.create(out.parent, out.name, setup, seeds=_seeds(setup), resume=True)
    if not run.done("fit"):
        run.record("fit", _fit(run.path, setup, model, train, val, workers))
    fitted = load_model(run.path / "model.npz")
    if not run.done("certificate"):
        run.record("certificate", _certify(fitted))
    print(write_report(run, fitted, compared))
    history = "" if setup.model == "linear" else "history.csv, "
    print(f"written to {run.path}: model.npz, report.json, report.md, simulated.csv, {history}figures/")


def data_sets(arguments: argparse.Namespace) -> dict[str, Dataset]:
    """Return the data sets "train" and "val", and the tests, as the options name them."""
    if bool(arguments.data) == (arguments.benchmark is not None):
        got = "both" if arguments.data else "neither"
        raise invalid("DATA, --benchmark", "one of the two", got, "Name a file with data, or a benchmark.")
    tests: dict[str, Dataset] = {}
    if arguments.benchmark is not None:
        benchmark = load_benchmark(arguments.benchmark)
        train, tests = benchmark.train, dict(benchmark.tests)
    else:
        train = _joined(arguments.data, arguments)
    if arguments.test:
        extra = [read_record(path, arguments) for path in arguments.test]
        names = ["test"] if len(extra) == 1 else [f"test {k + 1}" for k in range(len(extra))]
        tests |= dict(zip(names, extra, strict=True))
    if arguments.val:
        val = _joined(arguments.val, arguments)
    else:
        if not 0.0 < arguments.val_fraction < 1.0:
            raise invalid("--val-fraction", "a number in (0, 1)", arguments.val_fraction, "Use 0.25.")
        train, val = train.split(1.0 - arguments.val_fraction)
    every = {"train": train, "val": val, **tests}
    for name, one in every.items():
        if not np.isclose(one.dt, train.dt, rtol=1e-6, atol=0.0):
            raise invalid(
                f"sampling time of {name}", f"that of train, {train.dt:g} s", f"{one.dt:g} s", "Resample one of them."
            )  # fmt: skip
        if (one.u_units, one.y_units) != (train.u_units, train.y_units):
            raise invalid(
                f"units of {name}", f"those of train, {train.u_units} and {train.y_units}",
                f"{one.u_units} and {one.y_units}", "Convert the data, or give --units-u and --units-y.",
            )  # fmt: skip
    return every


def _joined(paths: Sequence[Path], arguments: argparse.Namespace) -> Dataset:
    result = read_record(paths[0], arguments)
    for path in paths[1:]:
        one = read_record(path, arguments)
        if np.isclose(one.dt, result.dt, rtol=1e-6, atol=0.0):  # rounding of times
            one = replace(one, dt=result.dt)
        result = result.join(one)
    return result


def make_model(arguments: argparse.Namespace, train: Dataset) -> StateSpaceModel:
    """Return the model before its fit."""
    kind = arguments.model
    try:
        hidden = [int(part) for part in arguments.hidden.split(",")]
    except ValueError as error:
        raise invalid(
            "--hidden", "integers with commas between them", repr(arguments.hidden), "Write 16,16."
        ) from error
    n_x = check_positive_int("--n-x", arguments.n_x)
    bound = arguments.lipschitz
    if bound is not None and kind not in _BOUNDS:
        raise invalid("--lipschitz", f"no value for --model {kind}", bound, "Leave it out.")
    bound = _BOUNDS.get(kind, 0.0) if bound is None else check_positive("--lipschitz", bound)
    common: dict[str, Any] = {"activation": arguments.activation}
    if kind == "linear":
        return linear_model(train, n_x, feedthrough=arguments.feedthrough)
    if kind == "narx":
        if arguments.feedthrough:
            raise invalid("--feedthrough", "another model than narx", "it", "Leave it out.")
        return LipschitzNARX(train, n_x, n_x, hidden, lipschitz=bound, **common)
    common["feedthrough"] = arguments.feedthrough
    if kind == "unconstrained":
        return UnconstrainedStateSpace(train, n_x, hidden, **common)
    name = "lipschitz_x" if kind == "lipschitz" else "lipschitz"
    cls: Any = MODELS[kind]
    model: StateSpaceModel = cls(train, n_x, hidden, **{name: bound}, **common)
    return model


def linear_model(train: Dataset, n_x: int, *, feedthrough: bool = False) -> UnconstrainedStateSpace:
    """Return a linear model, identified by `subspace`, as a state-space model whose nonlinear part is zero.

    Args:
        train: Training data.
        n_x: Number of states.
        feedthrough: Whether inputs act on outputs at once.

    Returns:
        The model; it can be stored and certified like the others.
    """
    model = UnconstrainedStateSpace(train, n_x, (1,), feedthrough=feedthrough)
    linear = model.linear_start(train)
    scaling = model.channels.scaling
    shift = scaling.u_offset - linear.u_offset
    constant = linear.y_offset - scaling.y_offset + linear.d @ shift
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.a.copy_(torch.from_numpy(linear.a))
        model.b.copy_(torch.from_numpy(linear.b * scaling.u_scale))
        model.c.copy_(torch.from_numpy(linear.c / scaling.y_scale[:, None]))
        model.d.copy_(torch.from_numpy(linear.d * scaling.u_scale / scaling.y_scale[:, None]))
        model.constant.copy_(torch.from_numpy(constant / scaling.y_scale))
        list(model.network.parameters())[-1].copy_(torch.from_numpy(linear.b @ shift))
    return model


def _bounds(arguments: argparse.Namespace) -> tuple[float, ...]:
    if arguments.model != "lipschitz" or arguments.lipschitz is not None:
        raise invalid(
            "--path", "--model lipschitz without --lipschitz", f"--model {arguments.model}, {arguments.lipschitz}",
            "The path goes through bounds of that model alone.",
        )  # fmt: skip
    found = tuple(sorted(check_positive("--path", one) for one in numbers("--path", arguments.path)))
    if len(set(found)) < len(found):
        raise invalid("--path", "every bound once", arguments.path, "Write 0.9,0.95,0.99.")
    return found


def _fit(
    folder: Path, setup: FitSetup, model: StateSpaceModel, train: Dataset, val: Dataset, workers: int
) -> dict[str, Any]:
    """Fit and write model.npz; return JSON values of how."""
    if setup.model == "linear":
        save_model(model, folder / "model.npz")
        return {"validation": validation_error(model, val), "best": None, "starts": [], "path": None}
    options = {**setup.options(), "workers": workers, "progress": workers == 1}
    if setup.path is None:
        result = fit(model, train, val, checkpoint=folder / "starts", **options)
        save_model(model, folder / "model.npz")
        return _stored(result, None)
    if not isinstance(model, LipschitzStateSpace):
        raise TypeError(type(model).__name__)
    path = gamma_path(model, train, val, bounds=setup.path, **options)
    for bound, one in zip(path.bounds, path.models, strict=True):
        save_model(one, folder / "path" / f"bound={bound:g}.npz")
    save_model(path.models[path.elbow], folder / "model.npz")
    found = {"bounds": path.bounds, "errors": path.errors, "elbow": path.elbow}
    return _stored(path.results[path.elbow], found)


def _stored(result: FitResult, path: Mapping[str, Any] | None) -> dict[str, Any]:
    starts = [asdict(one) for one in result.starts]
    return {"validation": result.validation, "best": result.best, "starts": starts, "path": path}


def _certify(model: StateSpaceModel) -> dict[str, Any]:
    """Return the certificate as JSON values, None for what is infinite; or why there is none."""
    try:
        certificate = certify_model(model)
        certificate.verify(model)
    except CertificateError as error:
        return {"none": str(error)}
    return certificate_values(certificate)


def certificate_values(certificate: ModelCertificate) -> dict[str, Any]:
    """Return the constants of a certificate as JSON values, None for what is infinite."""
    names = ("rate", "smallest_rate", "lipschitz_u", "state_reach", "peak_gain", "l2_gain")
    each = ("lipschitz_u_each", "output_by_state", "output_by_input", "peak_gains")
    return {
        **{name: _finite(float(getattr(certificate, name))) for name in names},
        **{name: [_finite(float(v)) for v in getattr(certificate, name)] for name in each},
        "metric": certificate.metric.tolist(),
        "input_scale": certificate.input_scale.tolist(),
        "output_scale": certificate.output_scale.tolist(),
        "model_sha256": certificate.model_sha256,
        "text": certificate.text(),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _digest(data: Dataset) -> str:
    labels = [data.dt, data.n_init, data.u_names, data.y_names, data.u_units, data.y_units]
    digest = hashlib.sha256(json.dumps(labels).encode())
    for one in data:
        digest.update(json.dumps([one.name, *one.u.shape, *one.y.shape]).encode())
        digest.update(np.ascontiguousarray(one.u).tobytes() + np.ascontiguousarray(one.y).tobytes())
    return digest.hexdigest()


def _seeds(setup: FitSetup) -> tuple[int, ...]:
    return () if setup.model == "linear" else tuple(range(setup.seed, setup.seed + setup.starts))


def _default_folder(arguments: argparse.Namespace, setup: FitSetup) -> Path:
    """One folder per fit: the same command continues it, another one does not meet it."""
    digest = hashlib.sha256(json.dumps(asdict(setup), sort_keys=True).encode()).hexdigest()[:8]
    source = arguments.benchmark or arguments.data[0].stem
    return Path("runs", file_word(f"fit_{source}_{setup.model}_{digest}"))
