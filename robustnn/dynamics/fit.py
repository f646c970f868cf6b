"""Fit a state-space model to input-output data by its simulation error."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from robustnn.dynamics.checkpoint import Checkpoint
from robustnn.dynamics.data import Dataset
from robustnn.dynamics.full_record import FullRecord
from robustnn.dynamics.linear import LinearStateSpace
from robustnn.dynamics.models import StateSpaceModel
from robustnn.dynamics.validate import check_dt, simulate_data
from robustnn.dynamics.windows import Windows
from robustnn.errors import RobustNNError, check_nonnegative, check_positive, check_positive_int, invalid
from robustnn.workers import Call, run_calls

__all__ = ["FitResult", "Start", "fit", "validation_error"]

Array = NDArray[np.float64]
METHODS = ("auto", "full", "windows")
# Records of more samples are first fitted by windows, where whole simulations are too slow to begin with.
_LONG = 300_000
# Share of the time that windows get before whole records polish the result.
_WINDOWS_SHARE = 0.7
# Initialisation window where the data leave none to a validation set cut from the middle of a record.
_N_INIT = 50
# The share of the time or of the iterations that is used up, with the time that the rest takes at most.
_BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
# Least standard deviation of a validation output, relative to the training data: below, it is rounding.
_LEAST_DEVIATION = 1e-9


@dataclass(frozen=True)
class Start:
    """What became of one start.

    Attributes:
        seed: Of the start.
        validation: Smallest validation error, as in `validation_error`.
        iteration: At which it was found.
        iterations: Done in all.
        evaluations: Simulations of the training data with their gradients (windows: steps of Adam).
        seconds: Time used, over all runs of an interrupted fit.
        ended: "patience", "time", "iterations" or "converged".
        history: One row per check: iteration, evaluations, root of the mean squared training error in scaled
            outputs, validation error, seconds.
    """

    seed: int
    validation: float
    iteration: int
    iterations: int
    evaluations: int
    seconds: float
    ended: str
    history: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, eq=False)
class FitResult:
    """A fitted model and how it was found.

    Attributes:
        model: The best model by validation error; the one given to `fit`.
        validation: Its validation error.
        starts: All starts.
        best: Index of the start that it comes from.
        seconds: Wall time of this run.
    """

    model: StateSpaceModel
    validation: float
    starts: tuple[Start, ...]
    best: int
    seconds: float


@dataclass(frozen=True)
class _Settings:
    """What all starts of a fit share."""

    method: str
    seconds: float
    max_iterations: int
    patience: int
    check_every: int
    ridge: float
    warm: bool


def fit(
    model: StateSpaceModel,
    train: Dataset,
    val: Dataset | None = None,
    *,
    method: str = "auto",
    starts: int = 1,
    seed: int = 0,
    time_budget: float = 300.0,
    max_iterations: int = 100_000,
    patience: int = 30,
    check_every: int = 20,
    ridge: float = 0.0,
    warm: bool = False,
    workers: int = 1,
    checkpoint: str | Path | None = None,
    progress: bool = False,
) -> FitResult:
    """Fit a model to data by its open-loop simulation error, and keep what simulates validation data best.

    Every start begins near a linear subspace model, with nonlinear units drawn at random, and goes on until the
    validation error has stopped falling. Method "full" runs L-BFGS on whole records in float64 and trains their
    initial states along; "windows" runs Adam on windows whose initial states an encoder estimates, then "full".

    Args:
        model: Is changed in place.
        train: Training data, of the model's channels.
        val: Validation data, which decides when to stop, and between starts. None cuts off the last quarter of every
            training record for that.
        method: "full", "windows", or "auto": windows for more than 300,000 samples.
        starts: Number of starts.
        seed: Of the first start; the others follow.
        time_budget: For all starts together, in s of wall time; each gets its share. A start may use what earlier ones
            left. Ends the fit at the next check.
        max_iterations: Per start. A fit that this or `patience` ends does not depend on the speed of the machine.
        patience: A start ends when so many checks have found no smaller validation error.
        check_every: Iterations between two checks (windows: times 10).
        ridge: Weight of the mean squared parameters, in scaled outputs squared.
        warm: Continue from the present parameters instead; then there is one start.
        workers: Processes that work on starts, one each, each with one thread.
        checkpoint: Folder that keeps the state of every start, written at every check; the same call continues from
            there to the last bit, after whatever interrupted it. None for none.
        progress: Whether to show a bar per start with training and validation errors (one process only).

    Returns:
        The model and a record of the starts.

    Raises:
        InvalidArgumentError: If an argument is out of its range, the data do not fit the model, or a channel of the
            training data or an output of the validation data is constant.
        CheckpointError: If the checkpoint belongs to another fit or is damaged.
        RobustNNError: If no start gave a model with finite errors.

    Example:
        >>> model = LipschitzStateSpace(tanks.train, 3, (8,), lipschitz_x=0.99)  # doctest: +SKIP
        >>> fit(model, tanks.train, starts=10, time_budget=60.0).validation  # doctest: +SKIP
        0.16
    """
    began = time.perf_counter()
    if method not in METHODS:
        raise invalid("method", f"one of {', '.join(METHODS)}", repr(method), "Choose one of these.")
    n_starts = check_positive_int("starts", starts)
    if warm and n_starts > 1:
        raise invalid(
            "starts", "1 where warm is True", n_starts, "Only one fit can go on from the present parameters."
        )
    first_seed = check_positive_int("seed", seed, minimum=0)
    workers = check_positive_int("workers", workers)
    budget = check_positive("time_budget", time_budget)
    _check_data("train", model, train)
    if val is None:
        train, val = _cut(train)
    _check_data("val", model, val)
    _check_varies(model, val)
    if method == "auto":
        method = "full" if train.n_samples <= _LONG else "windows"
    linear = None if warm else model.linear_start(train)
    settings = _Settings(
        method,
        budget / -(-n_starts // workers),
        check_positive_int("max_iterations", max_iterations),
        check_positive_int("patience", patience),
        check_positive_int("check_every", check_every),
        check_nonnegative("ridge", ridge),
        bool(warm),
    )
    folder = None if checkpoint is None else Path(checkpoint)
    seeds = range(first_seed, first_seed + n_starts)
    found: dict[int, tuple[Start, dict[str, Array]]] = {}
    if workers == 1:
        for k, one in enumerate(seeds):
            left = budget - (time.perf_counter() - began)
            share = settings if warm else _with_share(settings, left / (n_starts - k))
            found[one] = _run_start(model, train, val, linear, one, share, folder, progress)
    else:
        calls: list[Call] = [
            (str(one), _run_start, (model, train, val, linear, one, settings, folder, False)) for one in seeds
        ]
        found = {int(done.key): done.value for done in run_calls(calls, workers)}
    order = [found[one] for one in seeds]
    errors = [start.validation for start, _ in order]
    best = int(np.argmin(errors))
    if not np.isfinite(errors[best]):
        raise RobustNNError(
            f"fit: expected a model with a finite validation error, got none from {n_starts} starts. Use a smaller "
            "bound or order, or check the data."
        )
    _load(model, order[best][1])
    return FitResult(model, errors[best], tuple(s for s, _ in order), best, time.perf_counter() - began)


def validation_error(model: StateSpaceModel, data: Dataset) -> float:
    """Return the root mean square over outputs of the NRMSE of the open-loop simulation.

    Args:
        model: The model.
        data: Validation data; samples from `n_init` on count.

    Returns:
        The error, infinite if the simulation diverges.
    """
    simulated = simulate_data(model, data)
    n = data.n_init
    y = np.concatenate([one.y[n:] for one in data])
    error = y - np.concatenate([one[n:] for one in simulated])
    if not np.isfinite(error).all():
        return float("inf")
    return float(np.sqrt(np.mean(np.square(error).mean(axis=0) / y.var(axis=0))))


def _with_share(settings: _Settings, seconds: float) -> _Settings:
    return _Settings(**{**vars(settings), "seconds": max(seconds, 0.0)})


def _run_start(
    model: StateSpaceModel,
    train: Dataset,
    val: Dataset,
    linear: LinearStateSpace | None,
    seed: int,
    settings: _Settings,
    folder: Path | None,
    progress: bool,
) -> tuple[Start, dict[str, Array]]:
    """One start from beginning to end, or from its checkpoint on."""
    began = time.perf_counter()
    if not settings.warm:
        model.start_(linear, train, seed)
    checkpoint = None
    if folder is not None:
        identity = {"seed": seed, **{k: v for k, v in vars(settings).items() if k not in ("seconds",)}}
        checkpoint = Checkpoint(folder / f"start_{seed:04d}.npz", identity, model, (train, val))
    track = _Track(model, val, settings)
    saved = None if checkpoint is None else checkpoint.load(track.header())
    stages = ("windows", "full") if settings.method == "windows" else ("full",)
    if saved is not None:
        track.load(saved.header, saved.arrays)
        _load(model, track.best)
        began -= track.seconds
    # Without a bar no lock is made either, which a worker process would leave behind.
    bar = tqdm(total=100.0, desc=f"start {seed}", bar_format=_BAR) if progress else None
    for number, stage in enumerate(stages):
        if number < track.stage or track.done:
            continue
        share = _WINDOWS_SHARE * settings.seconds if stage == "windows" else settings.seconds
        engine: FullRecord | Windows
        if stage == "windows":
            engine = Windows(model, train, settings.ridge, seed)
        else:
            engine = FullRecord(model, train, settings.ridge)
        if saved is not None and saved.header["stage"] == number and saved.engine:
            engine.load(saved.engine)
        every = settings.check_every * (10 if stage == "windows" else 1)
        ended = ""
        while not ended:
            count = min(every, settings.max_iterations - track.in_stage)
            moved = engine.advance(count)
            track.check(engine, count, time.perf_counter() - began)
            if bar is not None:
                done = max(
                    track.seconds / max(settings.seconds, 1e-9), track.in_stage / settings.max_iterations
                )
                bar.set_postfix(train=f"{track.history[-1][2]:.4g}", val=f"{track.error:.4g}", refresh=False)
                bar.update(max(0.0, 100.0 * min(1.0, done) - bar.n))
            ended = track.verdict(moved, share)
            if ended:
                track.end(ended, last=number == len(stages) - 1)
            if checkpoint is not None:
                checkpoint.save(track.header(), track.arrays(), {} if ended else engine.state())
    if bar is not None:
        bar.close()
    return track.result(seed), track.arrays()


class _Track:
    """The best model so far, and when to stop."""

    def __init__(self, model: StateSpaceModel, val: Dataset, settings: _Settings) -> None:
        self._model, self._val, self._settings = model, val, settings
        self.stage = 0
        self.iterations, self.evaluations, self.waited = 0, 0, 0
        self.in_stage, self.before = 0, 0  # iterations of this method, evaluations of the ones before
        self.seconds = 0.0
        self.done = False
        self.ended = ""
        self.history: list[tuple[float, ...]] = []
        self.best = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
        self.error, self.iteration = validation_error(model, val), 0

    def begin(self, stage: int) -> None:
        """Go on to the next method from the best model of the one before."""
        self.stage, self.waited, self.in_stage, self.before = stage, 0, 0, self.evaluations
        _load(self._model, self.best)

    def check(self, engine: FullRecord | Windows, iterations: int, seconds: float) -> None:
        """Validate the present model."""
        self.iterations += iterations
        self.in_stage += iterations
        self.evaluations = self.before + engine.evaluations
        self.seconds = seconds
        error = validation_error(self._model, self._val)
        self.waited += 1
        if error < self.error:
            self.error, self.iteration, self.waited = error, self.iterations, 0
            self.best = {name: p.detach().numpy().copy() for name, p in self._model.named_parameters()}
        train = float(np.sqrt(engine.loss)) if engine.loss >= 0.0 else float("nan")
        self.history.append((self.iterations, self.evaluations, train, error, round(seconds, 3)))

    def verdict(self, moved: bool, share: float) -> str:
        """Say why to stop, "" to go on."""
        if not moved:
            return "converged"
        if self.waited >= self._settings.patience:
            return "patience"
        if self.in_stage >= self._settings.max_iterations:
            return "iterations"
        return "time" if self.seconds >= share else ""

    def end(self, why: str, *, last: bool) -> None:
        """Note that a method has ended."""
        self.ended, self.done = why, last
        if not last:
            self.begin(self.stage + 1)

    def header(self) -> dict[str, Any]:
        """Return plain values."""
        names = (
            "stage", "iterations", "evaluations", "waited", "in_stage", "before", "seconds", "done", "ended", "history",
            "iteration",
        )  # fmt: skip
        return {**{name: getattr(self, name) for name in names}, "error": self.error}

    def arrays(self) -> dict[str, Array]:
        """Return the parameters of the best model."""
        return self.best

    def load(self, header: dict[str, Any], arrays: dict[str, Array]) -> None:
        """Continue from stored values."""
        for name, value in header.items():
            setattr(self, name, value)
        self.history = [tuple(row) for row in header["history"]]
        self.best = arrays

    def result(self, seed: int) -> Start:
        """Return the record of the start."""
        return Start(
            seed, self.error, self.iteration, self.iterations, self.evaluations, round(self.seconds, 3), self.ended,
            tuple(self.history),
        )  # fmt: skip


def _load(model: StateSpaceModel, arrays: dict[str, Array]) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(arrays[name]))


def _cut(train: Dataset) -> tuple[Dataset, Dataset]:
    first, second = train.split(0.75)
    shortest = min(len(one) for one in second)
    return first, second.window(n_init=max(second.n_init, min(_N_INIT, shortest // 4)))


def _check_data(name: str, model: StateSpaceModel, data: Dataset) -> None:
    if not isinstance(data, Dataset):
        raise invalid(name, "a Dataset", type(data).__name__, "Make one with Dataset.from_arrays.")
    if (data.n_u, data.n_y) != (model.n_u, model.n_y):
        raise invalid(
            name, f"{model.n_u} inputs and {model.n_y} outputs as in the model", f"{data.n_u} and {data.n_y}",
            "Make the model for data of the same channels.",
        )  # fmt: skip
    check_dt(model, data)


def _check_varies(model: StateSpaceModel, val: Dataset) -> None:
    """Refuse validation outputs that are constant: the validation error is relative to their deviation."""
    std = np.concatenate([one.y[val.n_init :] for one in val]).std(axis=0)
    if not (std > _LEAST_DEVIATION * model.channels.scaling.y_scale).all():
        raise invalid(
            "val", f"outputs that vary after sample n_init = {val.n_init}", f"standard deviations {std.tolist()}",
            "Pass data in which they move; None takes the last quarter of every training record.",
        )  # fmt: skip
