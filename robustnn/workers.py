"""Worker processes, each with one call at a time, so that the death of one touches nothing but its own call."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, NamedTuple

from robustnn.errors import RobustNNError, check_positive_int

__all__ = ["Call", "Finished", "WorkerDied", "run_calls", "single_threaded"]

# Key, a function of a module (worker processes import it), and its arguments.
Call = tuple[str, Callable[..., Any], tuple[Any, ...]]

_SPAWN = multiprocessing.get_context("spawn")


class WorkerDied(RobustNNError, RuntimeError):
    """A worker process ended in the middle of a call, as often as was allowed."""


class Finished(NamedTuple):
    """A call that has returned."""

    key: str
    value: Any


class _Trace(Exception):
    """The traceback of an error in a worker process, as text."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


def single_threaded(function: Callable[..., Any], arguments: Sequence[Any]) -> Any:
    """Call a function with torch on one thread, as is best where every core has a process.

    Args:
        function: What to call.
        arguments: Its arguments.

    Returns:
        What it returns.
    """
    torch = sys.modules.get("torch")  # not imported for functions that do without it
    if torch is None:
        return function(*arguments)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return function(*arguments)
    finally:
        torch.set_num_threads(before)


def run_calls(calls: Sequence[Call], workers: int, *, retries: int = 2) -> Generator[Finished, None, None]:
    """Run calls in worker processes and yield each one's value when it has returned.

    A worker that dies in the middle of a call (out of memory, killed from outside) is replaced, and the call is made
    again. When a call raises, no further ones begin; those that run are yielded before its error is raised. On an
    interrupt, or when the iterator is closed, what has returned by then is lost unless it was yielded.

    Args:
        calls: What to call, in this order.
        workers: Number of processes.
        retries: How often a call is repeated after the death of its worker.

    Yields:
        Key and value of every call, in the order in which they return.

    Raises:
        WorkerDied: If a call's worker died `retries` + 1 times.
        Exception: What a call raised, with the traceback in the worker as its cause.
    """
    retries = check_positive_int("retries", retries, minimum=0)
    waiting = list(reversed(calls))
    deaths: dict[str, int] = {}
    team: list[_Worker] = []
    failure: BaseException | None = None
    try:
        for _ in range(min(check_positive_int("workers", workers), len(calls))):
            team.append(_Worker())
        while True:
            for worker in team:
                if failure is None and worker.call is None and waiting:
                    worker.begin(waiting.pop())
            busy = [worker for worker in team if worker.call is not None]
            if not busy:
                break
            for worker in _ready(busy):
                call, outcome = worker.end()
                if outcome is None:
                    team[team.index(worker)] = _Worker()
                    deaths[call[0]] = deaths.get(call[0], 0) + 1
                    if deaths[call[0]] <= retries:
                        waiting.append(call)
                    elif failure is None:
                        failure = _died(call[0], deaths[call[0]], worker.exit_code)
                elif outcome.error is not None:
                    failure = failure or outcome.error
                else:
                    yield Finished(call[0], outcome.value)
        if failure is not None:
            raise failure
    finally:
        for worker in team:
            worker.stop()


class _Outcome(NamedTuple):
    value: Any
    error: Exception | None


class _Worker:
    """A process and the call it is busy with."""

    def __init__(self) -> None:
        self._connection, theirs = _SPAWN.Pipe()
        self._process: SpawnProcess = _SPAWN.Process(target=_serve, args=(theirs,), name="robustnn-worker")
        self._process.start()
        theirs.close()
        self.call: Call | None = None

    @property
    def handles(self) -> tuple[Connection, int]:
        """What becomes ready when the call has returned, or the process has ended."""
        return self._connection, self._process.sentinel

    @property
    def exit_code(self) -> int | None:
        """Exit code of the process; minus the signal that ended it."""
        self._process.join()
        return self._process.exitcode

    def begin(self, call: Call) -> None:
        self.call = call
        # By value: `send` would put the memory of tensors into the hands of both processes.
        data = pickle.dumps(call[1:])
        with suppress(BrokenPipeError, ConnectionResetError):  # it has died: `end` will tell
            self._connection.send_bytes(data)

    def end(self) -> tuple[Call, _Outcome | None]:
        """Return the call and its outcome, or None if the process died."""
        assert self.call is not None
        call, self.call = self.call, None
        try:
            data = self._connection.recv_bytes() if self._connection.poll() else b""
        except (EOFError, OSError):
            data = b""
        if not data:
            return call, None
        value, error, trace = pickle.loads(data)
        if error is not None:
            error.__cause__ = _Trace(trace)
        return call, _Outcome(value, error)

    def stop(self) -> None:
        self._connection.close()
        self._process.kill() if self.call is not None else self._process.terminate()
        self._process.join()


def _ready(busy: Sequence[_Worker]) -> list[_Worker]:
    done = wait([handle for worker in busy for handle in worker.handles])
    return [worker for worker in busy if any(handle in done for handle in worker.handles)]


def _died(key: str, times: int, exit_code: int | None) -> WorkerDied:
    return WorkerDied(
        f"cell {key}: expected its worker process to finish it, got {times} processes that ended in the middle, the "
        f"last with exit code {exit_code}. Look for too little memory or a crash of a library (-9: killed, -11: "
        "segmentation fault); what has finished is recorded."
    )


def _serve(connection: Connection) -> None:
    """What a worker process does: answer calls until the pipe or the main process ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process, which ends this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            function, arguments = pickle.loads(connection.recv_bytes())
        except EOFError:
            return
        except Exception as error:  # the function cannot be imported here
            data = _answer(None, error)
        else:
            try:
                data = _answer(single_threaded(function, arguments), None)
            except Exception as error:
                data = _answer(None, error)
        connection.send_bytes(data)


def _answer(value: Any, error: Exception | None) -> bytes:
    trace = "" if error is None else "".join(traceback.format_exception(error))
    if error is not None:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # an error that cannot travel
            error = RobustNNError(f"{type(error).__name__}: {error}")
    return pickle.dumps((value, error, trace))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
