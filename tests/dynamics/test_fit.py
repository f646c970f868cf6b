"""Fitting: what is found, what decides, and what an interrupt loses."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from robustnn.dynamics import Dataset, LinearStateSpace
from robustnn.dynamics.fit import FitResult, fit, validation_error
from robustnn.dynamics.gamma_path import gamma_path
from robustnn.dynamics.models import LipschitzStateSpace
from robustnn.errors import CheckpointError, InvalidArgumentError

ROOT = Path(__file__).resolve().parents[2]


def record(steps: int = 400, seed: int = 0, n_init: int = 20) -> Dataset:
    """A damped oscillator whose input saturates, with a little noise."""
    rng = np.random.default_rng(seed)
    u = np.repeat(rng.normal(size=(steps // 5, 1)), 5, axis=0)
    a, b = np.array([[0.85, 0.2], [-0.2, 0.85]]), np.array([0.3, 0.5])
    x, y = np.zeros(2), np.empty((steps, 1))
    for t in range(steps):
        y[t] = x[0]
        x = a @ x + b * np.tanh(2.0 * u[t, 0])
    return Dataset.from_arrays(3.0 * u + 1.0, 10.0 * y + rng.normal(size=y.shape) * 0.01, 0.1, n_init=n_init)


def model_of(data: Dataset, bound: float = 0.95) -> LipschitzStateSpace:
    return LipschitzStateSpace(data, 2, (4,), lipschitz_x=bound)


def values(model: LipschitzStateSpace) -> list[np.ndarray]:
    return [parameter.detach().numpy().copy() for parameter in model.parameters()]


def test_a_nonlinear_system_is_found_where_a_linear_model_fails() -> None:
    data = record()
    train, val = data.window(0, 300), data.window(300)
    model = model_of(train)
    linear = model.linear_start(train)
    start = validation_error(_started(model, train), val)
    result = fit(model, train, val, max_iterations=300)
    fresh = record(seed=1)
    assert start > 0.2
    assert result.validation < 0.01
    assert validation_error(model, fresh) < 0.01
    assert _linear_error(linear, fresh) > 0.2


def _started(model: LipschitzStateSpace, data: Dataset) -> LipschitzStateSpace:
    made = copy.deepcopy(model)
    made.start_(None, data)
    return made


def _linear_error(linear: LinearStateSpace, data: Dataset) -> float:
    one, n = data.experiments[0], data.n_init
    simulated = linear.simulate(one.u, linear.initial_state(one.u[:n], one.y[:n]))
    return float(np.sqrt(np.mean((simulated - one.y)[n:] ** 2)) / one.y[n:].std())


def test_the_best_model_by_validation_is_kept() -> None:
    data = record()
    model = model_of(data)
    result = fit(model, data.window(0, 120), data.window(300), starts=2, max_iterations=60, check_every=5)
    errors = [row[3] for start in result.starts for row in start.history]
    assert result.validation == min(start.validation for start in result.starts) <= min(errors)
    assert validation_error(model, data.window(300)) == result.validation
    assert result.starts[result.best].validation == result.validation
    assert [start.seed for start in result.starts] == [0, 1]


def test_the_same_call_gives_the_same_model_and_other_seeds_another() -> None:
    data = record()
    first, second, other = (model_of(data) for _ in range(3))
    fit(first, data, max_iterations=20, seed=3)
    fit(second, data, max_iterations=20, seed=3)
    fit(other, data, max_iterations=20, seed=4)
    assert all(np.array_equal(a, b) for a, b in zip(values(first), values(second), strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(values(first), values(other), strict=True))


def test_no_decision_sees_more_than_training_and_validation_data() -> None:
    # Without a validation set the last quarter decides, and the rest is all that is trained on.
    data = record()
    poisoned = replace(data, experiments=(replace(data.experiments[0], y=data.experiments[0].y.copy()),))
    poisoned.experiments[0].y[300:] += 5.0
    clean, other = model_of(data.window(0, 300)), model_of(data.window(0, 300))
    a = fit(clean, data, max_iterations=20, check_every=20)
    b = fit(other, poisoned, max_iterations=20, check_every=20)
    assert a.starts[0].history[0][2] == b.starts[0].history[0][2]
    assert a.validation != b.validation


def test_records_of_different_lengths_are_fitted_together() -> None:
    parts = [record(steps, seed) for seed, steps in enumerate((200, 150, 300))]
    data = Dataset.from_arrays(
        [p.experiments[0].u for p in parts], [p.experiments[0].y for p in parts], 0.1, n_init=20
    )
    model = model_of(data)
    assert fit(model, data, record(seed=5), max_iterations=200).validation < 0.02


def test_windows_reach_the_same_accuracy() -> None:
    data = record(1500)
    model = model_of(data)
    result = fit(model, data, method="windows", max_iterations=400, patience=3, check_every=10)
    assert result.validation < 0.02
    iterations = [row[0] for row in result.starts[0].history]
    assert iterations == sorted(iterations)
    assert result.starts[0].history[0][3] > result.validation


def test_early_stopping_and_the_time_budget() -> None:
    data = record()
    patient = fit(model_of(data), data, patience=2, check_every=2)
    assert patient.starts[0].ended in ("patience", "converged")
    assert patient.starts[0].iterations - patient.starts[0].iteration >= 4
    hurried = fit(model_of(data), data, time_budget=1e-3)
    assert hurried.starts[0].ended == "time"
    assert len(hurried.starts[0].history) == 1


def test_workers_find_what_one_process_finds() -> None:
    data = record(200)
    one, two = model_of(data), model_of(data)
    a = fit(one, data, starts=2, max_iterations=20)
    b = fit(two, data, starts=2, max_iterations=20, workers=2)
    assert a.validation == b.validation
    assert all(np.array_equal(p, q) for p, q in zip(values(one), values(two), strict=True))


KILLED = """
import os, random, signal, sys, time
import torch
torch.set_num_threads(1)
from tests.dynamics.test_fit import model_of, record
from robustnn.dynamics.fit import fit
from robustnn.dynamics.model_file import save_model

root = sys.argv[1]

def run(name, method):
    data = record(300)
    model = model_of(data)
    fit(model, data, starts=2, method=method, max_iterations=120, patience=1000, check_every=2, time_budget=1e9,
        checkpoint=os.path.join(root, name))
    save_model(model, os.path.join(root, name + ".npz"))

def written(folder):
    # Moments at which checkpoints were replaced.
    try:
        return sorted((f.name, f.stat().st_mtime_ns) for f in os.scandir(folder) if f.name.endswith(".npz"))
    except FileNotFoundError:
        return []

moments = random.Random(0)
run("warm-up", "full")  # compiled code before the clock starts
for method in ("full", "windows"):
    run("whole-" + method, method)
    kills = 0
    while kills < 10:
        folder = os.path.join(root, "killed-" + method)
        before = written(folder)
        child = os.fork()
        if child == 0:
            run("killed-" + method, method)
            os._exit(0)
        # Every second kill is timed from the first new checkpoint on, wherever a loaded machine makes a start slow.
        deadline = time.monotonic() + (kills % 2) * 20.0
        while time.monotonic() < deadline and written(folder) == before:
            time.sleep(0.002)
        time.sleep(moments.uniform(0.0, 0.1 if kills % 2 else 0.3))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            break
        kills += 1
    print(method, kills, len(os.listdir(os.path.join(root, "killed-" + method))))
    run("killed-" + method, method)
"""


def test_ten_kills_change_no_bit_of_the_model(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    for method, line in zip(("full", "windows"), done.stdout.splitlines(), strict=True):
        name, kills, files = line.split()
        assert name == method
        assert int(kills) >= 1 and int(files) >= 1  # some hit the middle of the fit
        assert int(kills) == 10, f"{method}: the fit was over after {kills} kills"
        killed, whole = (tmp_path / f"{kind}-{method}.npz" for kind in ("killed", "whole"))
        assert killed.read_bytes() == whole.read_bytes()


def checkpointed(folder: Path, **changes: object) -> FitResult:
    data = record(200)
    options: dict[str, object] = {"max_iterations": 10, "checkpoint": folder, **changes}
    return fit(model_of(data), data, **options)  # type: ignore[arg-type]


def test_a_finished_fit_is_read_and_not_repeated(tmp_path: Path) -> None:
    first = checkpointed(tmp_path)
    again = checkpointed(tmp_path)
    assert first.validation == again.validation
    assert first.starts == again.starts
    assert all(np.array_equal(a, b) for a, b in zip(values(first.model), values(again.model), strict=True))


@pytest.mark.parametrize("changes", [{"max_iterations": 11}, {"ridge": 1.0}, {"patience": 2}])
def test_the_checkpoint_of_another_fit_is_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    checkpointed(tmp_path)
    with pytest.raises(CheckpointError, match="of this fit, got one of other data"):
        checkpointed(tmp_path, **changes)


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    checkpointed(tmp_path)
    file = next(tmp_path.iterdir())
    content = file.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"x" * 100, content[:-30] + bytes(30)):
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="expected the checkpoint of a fit"):
            checkpointed(tmp_path)


def test_the_path_of_bounds_keeps_functions_and_falls() -> None:
    data = record()
    model = model_of(data)
    before = values(model)
    path = gamma_path(model, data, bounds=[0.95, 0.5, 0.9], max_iterations=150)
    assert path.bounds == (0.5, 0.9, 0.95)
    assert [one.lipschitz_x for one in path.models] == [0.5, 0.9, 0.95]
    assert list(path.errors) == sorted(path.errors, reverse=True)
    assert path.errors[0] > 2 * path.errors[-1]  # the slowest mode needs .87
    assert path.elbow in (1, 2)
    assert all(np.array_equal(a, b) for a, b in zip(before, values(model), strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "newton"}, "method: expected one of auto, full, windows"),
        ({"starts": 0}, "starts"),
        ({"time_budget": 0.0}, "time_budget"),
        ({"warm": True, "starts": 2}, "starts: expected 1 where warm is True"),
        ({"ridge": -1.0}, "ridge"),
    ],
)
def test_bad_arguments(changes: dict[str, object], message: str) -> None:
    data = record(200)
    with pytest.raises(InvalidArgumentError, match=message):
        fit(model_of(data), data, **changes)  # type: ignore[arg-type]


def test_data_of_other_channels_are_refused() -> None:
    data = record(200)
    one = data.experiments[0]
    other = Dataset.from_arrays(np.column_stack((one.u, one.y)), one.y, 0.1, n_init=20)
    with pytest.raises(
        InvalidArgumentError, match="train: expected 1 inputs and 1 outputs as in the model, got 2"
    ):
        fit(model_of(data), other)
    with pytest.raises(InvalidArgumentError, match="val: expected 1 inputs"):
        fit(model_of(data), data, other)


def test_the_bound_holds_after_the_fit() -> None:
    data = record()
    model = model_of(data, 0.8)
    fit(model, data, max_iterations=60)
    with torch.no_grad():
        explicit = model.explicit()
    x = torch.randn(200, 2, dtype=torch.float64)
    u = torch.randn(200, 1, dtype=torch.float64)
    jacobian = torch.func.vmap(torch.func.jacrev(explicit.step))(x, u)
    gains = torch.linalg.matrix_norm(jacobian, ord=2)
    assert 0.5 < float(gains.max()) <= 0.8 * (1 + 1e-12)


def _without_history(content: dict[str, np.ndarray]) -> None:
    header = json.loads(str(content["header"]))
    del header["history"]
    content["header"] = np.array(json.dumps(header))


def _with_method(content: dict[str, np.ndarray]) -> None:
    header = {**json.loads(str(content["header"])), "arrays": 1}
    content["header"] = np.array(json.dumps(header))


CHANGES: dict[str, Callable[[dict[str, np.ndarray]], object]] = {
    "no history": _without_history,
    "a name that is no field": _with_method,
    "a parameter less": lambda content: content.pop("best:c"),
    "another shape": lambda content: content.update({"best:c": np.zeros(3)}),
    "nan": lambda content: content.update({"best:c": np.full((1, 2), np.nan)}),
    "a foreign array": lambda content: content.update({"other:c": np.zeros(1)}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_checkpoint_is_refused(tmp_path: Path, change: str) -> None:
    checkpointed(tmp_path)
    path = tmp_path / "start_0000.npz"
    with np.load(path) as loaded:
        content = dict(loaded)
    CHANGES[change](content)
    np.savez(path, allow_pickle=False, **content)
    with pytest.raises(CheckpointError, match="It was changed"):
        checkpointed(tmp_path)


def test_data_that_cannot_judge_a_model_are_refused() -> None:
    data = record()
    model = model_of(data)
    one = data.experiments[0]
    settled = replace(one, y=np.where(np.arange(400)[:, None] < 300, one.y, 1.0 / 3.0))
    held = replace(one, u=np.where(np.arange(400)[:, None] < 300, 1.0, one.u))
    cases = (
        ((one.u, one.y), None, "train: expected a Dataset"),
        (replace(data, dt=0.2), data, "sampling time"),
        (replace(data, experiments=(settled,)), None, "val: expected outputs that vary"),
        (replace(data, experiments=(held,)), None, "a signal that varies"),
    )
    for train, val, message in cases:
        with pytest.raises(InvalidArgumentError, match=message):
            fit(model, train, val, max_iterations=1)  # type: ignore[arg-type]
