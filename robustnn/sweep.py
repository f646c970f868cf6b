"""The cells of a sweep, computed in other processes and recorded in a run folder as they come."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import closing, contextmanager, nullcontext
from typing import Any

from tqdm import tqdm

from robustnn.errors import RobustNNError, check_positive_int, invalid
from robustnn.runs import RunFolder
from robustnn.workers import Call, Finished, WorkerDied, run_calls, single_threaded

__all__ = ["BACKENDS", "Task", "run_tasks"]

# Key of the cell, a function of a module (worker processes import it), and its arguments.
Task = Call

_SCHEDULER = "DASK_SCHEDULER_ADDRESS"

BACKENDS = ("processes", "loky", "dask", "ray")


def run_tasks(
    run: RunFolder,
    tasks: Sequence[Task],
    workers: int,
    what: str,
    *,
    backend: str = "processes",
    retries: int = 2,
) -> list[Any]:
    """Compute the cells that are not recorded yet, and record each one when it comes.

    An interrupt, whether of this process or of a worker, loses at most the cells that were running. The values are
    read back from the run folder, so that they are the same whether the sweep was interrupted or not.

    Args:
        run: The run folder; the cell of a task is recorded under its key.
        tasks: What to compute: key, function and arguments. A result must not depend on the order or the process.
        workers: Number of processes, each with torch on one thread; 0 to compute in this process.
        what: Title of the progress bar.
        backend: "processes" for processes of this machine, or one of joblib's: "loky" (processes of this machine
            as well), "dask" (the workers of the present `distributed.Client`, or of the scheduler that the
            environment variable DASK_SCHEDULER_ADDRESS names), "ray" (the cluster that ray has been connected to).
        retries: How often a cell is computed anew after its worker died in the middle. Dask counts its own.

    Returns:
        The value of every task, in the order of `tasks`.

    Raises:
        InvalidArgumentError: If two tasks have one key, or an option is unknown.
        RobustNNError: If the library of the backend is missing, or a worker died too often.
        Exception: What a task raised; cells that ran beside it are recorded first.

    Example:
        >>> tasks = [(f"seed={k}", train, (k,)) for k in range(10)]  # doctest: +SKIP
        >>> values = run_tasks(run, tasks, workers=4, what="training")  # doctest: +SKIP
    """
    keys = [task[0] for task in tasks]
    repeated = sorted({key for key in keys if keys.count(key) > 1}) if len(set(keys)) < len(keys) else []
    if repeated:
        raise invalid("tasks", "one task per key", repeated, "Put everything that differs into the key.")
    if backend not in BACKENDS:
        raise invalid("backend", f"one of {', '.join(BACKENDS)}", repr(backend), "Choose one of these.")
    workers = check_positive_int("workers", workers, minimum=0)
    pending = [task for task in tasks if not run.done(task[0])]
    bar = tqdm(total=len(tasks), initial=len(tasks) - len(pending), desc=what, unit="cell", smoothing=0.1)
    with bar, closing(_finished(pending, workers, backend, retries)) as results:
        for key, value in results:
            run.record(key, value)
            bar.update()
    return [run.cell(key) for key in keys]


def _finished(
    pending: Sequence[Task], workers: int, backend: str, retries: int
) -> Generator[Finished, None, None]:
    if not pending:
        return
    if workers == 0:
        for key, function, arguments in pending:
            yield Finished(key, single_threaded(function, arguments))
    elif backend == "processes":
        yield from run_calls(pending, workers, retries=retries)
    else:
        with _library(backend) as joblib:
            yield from _by_joblib(joblib, pending, workers, backend, retries)


def _by_joblib(
    joblib: Any, tasks: Sequence[Task], workers: int, backend: str, retries: int
) -> Generator[Finished, None, None]:
    """Run tasks on a backend of joblib, which begins anew with what is left when its workers have died."""
    left = {task[0]: task for task in tasks}
    breaks: dict[str, int] = {}
    while left:
        begun: list[str] = []
        try:
            for result in _one_attempt(joblib, list(left.values()), workers, backend, begun):
                del left[result.key]
                yield result
        except BrokenExecutor as error:
            running = [key for key in begun if key in left]
            for key in running:
                breaks[key] = breaks.get(key, 0) + 1
            often = [key for key in running if breaks[key] > retries]
            if often or not running:
                raise WorkerDied(
                    f"cells {', '.join(often)}: expected the workers to finish them, got {retries + 1} deaths while "
                    "they ran. Look for too little memory or a crash of a library; what has finished is recorded."
                ) from error


def _one_attempt(
    joblib: Any, tasks: Sequence[Task], workers: int, backend: str, begun: list[str]
) -> Generator[Finished, None, None]:
    def calls(part: Sequence[Task]) -> Generator[Any, None, None]:
        for key, function, arguments in part:
            begun.append(key)
            yield joblib.delayed(_keyed)(key, function, arguments)

    options = {"n_jobs": workers, "pre_dispatch": "n_jobs", "batch_size": 1}
    with joblib.parallel_config(backend=backend):
        if backend != "ray":
            with closing(joblib.Parallel(**options, return_as="generator_unordered")(calls(tasks))) as found:
                yield from found
            return
        # Ray's pool returns nothing before all is done: one cell per worker at a time.
        for first in range(0, len(tasks), workers):
            yield from joblib.Parallel(**options)(calls(tasks[first : first + workers]))


def _keyed(key: str, function: Callable[..., Any], arguments: Sequence[Any]) -> Finished:
    return Finished(key, single_threaded(function, arguments))


@contextmanager
def _library(backend: str) -> Generator[Any, None, None]:
    """Give joblib, with the backend ready to be used, or say what is missing."""
    try:
        import joblib

        client: Any = _dask_client() if backend == "dask" else nullcontext()
        if backend == "ray":
            from ray.util.joblib import register_ray

            register_ray()
    except ImportError as error:
        raise RobustNNError(
            f"backend: expected the libraries of {backend!r}, got no module {error.name!r}. Install them with "
            "'pip install robustnn[scale]', or use the backend 'processes'."
        ) from error
    with client:
        yield joblib


def _dask_client() -> Any:
    """Return a context in which there is a client: the present one stays open, one made here is closed after it."""
    import distributed

    try:
        distributed.get_client()
    except ValueError as error:
        address = os.environ.get(_SCHEDULER)
        if not address:
            raise RobustNNError(
                "backend: expected a client of dask, got none. Make one with distributed.Client(...), or set the "
                f"environment variable {_SCHEDULER} to the address of a scheduler."
            ) from error
        try:
            return distributed.Client(address, timeout=10)
        except OSError as failure:
            raise RobustNNError(
                f"{_SCHEDULER}: expected the address of a scheduler, got {address} ({failure}). Start it, or correct "
                "the address."
            ) from failure
    return nullcontext()
