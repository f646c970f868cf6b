"""Data sets from files and from simulated environments."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import Env, spaces
from numpy.typing import NDArray
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from robustnn.dynamics.data import Dataset
from robustnn.errors import CheckpointError, UnsupportedSpaceError, check_positive_int, invalid

__all__ = ["from_csv", "from_env", "from_mat"]

# Largest deviation of a sampling interval from their median, as a fraction of it.
_JITTER = 1e-3


def from_csv(
    path: str | os.PathLike[str],
    u: Sequence[str],
    y: Sequence[str],
    *,
    dt: float | None = None,
    time: str | None = None,
    x: Sequence[str] = (),
    delimiter: str = ",",
    u_units: Sequence[str] | None = None,
    y_units: Sequence[str] | None = None,
    n_init: int = 0,
) -> Dataset:
    """Read one experiment from a text file with a header line.

    Args:
        path: The file, UTF-8; further columns are ignored.
        u: Columns of the inputs.
        y: Columns of the outputs.
        dt: Sampling time in s. Give this or `time`.
        time: Column with the time in s, which must be sampled uniformly.
        x: Columns of measured states.
        delimiter: Between two cells.
        u_units: As in `Dataset.from_arrays`.
        y_units: As in `Dataset.from_arrays`.
        n_init: As in `Dataset.from_arrays`.

    Returns:
        The data set, with the names of the columns.

    Raises:
        CheckpointError: The file is missing or not a table.
        InvalidArgumentError: A column is missing, a cell is not a number, or the sampling is not uniform.
    """
    if (dt is None) == (time is None):
        raise invalid(
            "dt, time", "one of the two", f"{dt}, {time}", "Give a sampling time or a column of times."
        )
    wanted = [
        *_columns("u", u),
        *_columns("y", y),
        *(_columns("x", x) if x else ()),
        *([time] if time else ()),
    ]
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, delimiter=delimiter, strict=True)
            header = [name for name in reader.fieldnames or () if name]
            missing = [name for name in wanted if name not in header]
            if missing:
                raise invalid(
                    "u, y, x, time", f"columns of {header}", missing, "Correct the names or the delimiter."
                )
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CheckpointError(
            f"path: expected a table of text with a header line, got {os.fspath(path)} ({error}). Check the file."
        ) from error
    values = {name: np.array([_number(row.get(name), name, line) for line, row in rows]) for name in wanted}
    if time is not None:
        dt = sampling_time(values[time])
    assert dt is not None
    return Dataset.from_arrays(
        np.stack([values[name] for name in u], axis=1),
        np.stack([values[name] for name in y], axis=1),
        dt,
        x=np.stack([values[name] for name in x], axis=1) if x else None,
        u_names=u,
        y_names=y,
        u_units=u_units,
        y_units=y_units,
        n_init=n_init,
        names=[Path(path).stem],
    )


def from_mat(
    path: str | os.PathLike[str],
    u: Sequence[str],
    y: Sequence[str],
    dt: float | str,
    *,
    u_units: Sequence[str] | None = None,
    y_units: Sequence[str] | None = None,
    n_init: int = 0,
) -> Dataset:
    """Read one experiment from a MATLAB file (up to version 7).

    Args:
        path: The file.
        u: Variables of the inputs: vectors, or matrices with one channel per column.
        y: Variables of the outputs.
        dt: Sampling time in s, or the variable that holds it.
        u_units: As in `Dataset.from_arrays`.
        y_units: As in `Dataset.from_arrays`.
        n_init: As in `Dataset.from_arrays`.

    Returns:
        The data set; channels of a matrix `v` are called v1, v2, ...

    Raises:
        CheckpointError: The file is missing or not a MATLAB file of such a version.
        InvalidArgumentError: A variable is missing.
    """
    try:
        content = loadmat(path)
    except (OSError, ValueError, NotImplementedError, TypeError, MatReadError) as error:
        raise CheckpointError(
            f"path: expected a MATLAB file up to version 7, got {os.fspath(path)} ({error}). "
            "Save it again with save(..., '-v7')."
        ) from error
    variables = [name for name in content if not name.startswith("__")]
    wanted = [*_columns("u", u), *_columns("y", y), *([dt] if isinstance(dt, str) else ())]
    missing = [name for name in wanted if name not in variables]
    if missing:
        raise invalid("u, y, dt", f"variables of {variables}", missing, "Correct the names.")
    blocks = {name: _signal(content[name]) for name in wanted}
    return Dataset.from_arrays(
        np.concatenate([blocks[name] for name in u], axis=1),
        np.concatenate([blocks[name] for name in y], axis=1),
        float(np.asarray(content[dt]).reshape(-1)[0]) if isinstance(dt, str) else dt,
        u_names=_channel_names(u, blocks),
        y_names=_channel_names(y, blocks),
        u_units=u_units,
        y_units=y_units,
        n_init=n_init,
        names=[Path(path).stem],
    )


def from_env(
    env: Env[Any, Any],
    policy: Callable[[NDArray[Any]], NDArray[Any]] | None = None,
    *,
    dt: float,
    episodes: int = 1,
    steps: int | None = None,
    seed: int = 0,
    n_init: int = 0,
) -> Dataset:
    """Record episodes of a gymnasium environment: actions as inputs, observations as outputs.

    Args:
        env: Environment with Box spaces of one axis.
        policy: Maps an observation to an action; None for actions drawn uniformly from the action space.
        dt: Sampling time in s.
        episodes: Number of episodes, one experiment each.
        steps: Largest number of steps of an episode; None for as many as the environment takes.
        seed: Episode k is reset with seed + k; the action space is seeded as well.
        n_init: As in `Dataset.from_arrays`.

    Returns:
        The data set; u[t] is the action taken after observing y[t].

    Raises:
        UnsupportedSpaceError: A space is not a Box of one axis.
    """
    for name, space in (("observation_space", env.observation_space), ("action_space", env.action_space)):
        if not isinstance(space, spaces.Box) or len(space.shape) != 1:
            raise UnsupportedSpaceError(
                f"env.{name}: expected a Box of shape (n,), got {space}. Flatten it with a wrapper of gymnasium."
            )
    check_positive_int("episodes", episodes)
    limit = np.inf if steps is None else check_positive_int("steps", steps)
    env.action_space.seed(seed)
    inputs, outputs = [], []
    for k in range(episodes):
        observation, _ = env.reset(seed=seed + k)
        u: list[NDArray[np.float64]] = []
        y: list[NDArray[np.float64]] = []
        over = False
        while not over and len(u) < limit:
            action = env.action_space.sample() if policy is None else policy(observation)
            u.append(np.asarray(action, dtype=np.float64))
            y.append(np.asarray(observation, dtype=np.float64))
            observation, _, terminated, truncated, _ = env.step(action)
            over = terminated or truncated
        inputs.append(np.stack(u))
        outputs.append(np.stack(y))
    return Dataset.from_arrays(
        inputs, outputs, dt, n_init=n_init, names=[f"episode {k}" for k in range(episodes)]
    )


def sampling_time(times: NDArray[np.float64]) -> float:
    """Return the sampling time in s of uniformly sampled times.

    Args:
        times: Shape (T,), s.

    Raises:
        InvalidArgumentError: If they do not ascend by equal steps, up to a thousandth of one.
    """
    if len(times) < 2:
        raise invalid("time", "at least two samples", len(times), "Use a longer record.")
    steps = np.diff(times)
    dt = float(np.median(steps))
    off = np.abs(steps - dt) > _JITTER * abs(dt)
    if not dt > 0.0 or not np.isfinite(steps).all() or off.any():
        worst = int(np.argmax(np.where(np.isfinite(steps), np.abs(steps - dt), np.inf)))
        raise invalid(
            "time", f"uniform sampling (median step {dt:.6g} s)",
            f"a step of {steps[worst]:.6g} s after sample {worst}, {int(off.sum())} uneven steps in all",
            "Resample the record, or cut it at the gaps into several experiments.",
        )  # fmt: skip
    return float((times[-1] - times[0]) / (len(times) - 1))


def _columns(name: str, given: Sequence[str]) -> Sequence[str]:
    if isinstance(given, str) or not given or not all(isinstance(one, str) for one in given):
        raise invalid(name, "a list of at least one name", repr(given), 'Pass a list, such as ["V1"].')
    return given


def _number(cell: str | None, column: str, line: int) -> float:
    try:
        return float(cell or "nan" if cell is None or not cell.strip() else cell)
    except ValueError as error:
        raise invalid(
            f"column {column!r}, line {line}",
            "a number",
            repr(cell),
            "Correct the cell, or set the delimiter.",
        ) from error


def _signal(values: Any) -> NDArray[np.float64]:
    """A variable of a MATLAB file with time along the first axis."""
    array = np.atleast_2d(np.asarray(values, dtype=np.float64))
    return array.T if array.shape[0] == 1 else array


def _channel_names(names: Sequence[str], blocks: dict[str, NDArray[np.float64]]) -> list[str]:
    result = []
    for name in names:
        count = blocks[name].shape[1]
        result += [name] if count == 1 else [f"{name}{k + 1}" for k in range(count)]
    return result
