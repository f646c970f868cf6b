from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from robustnn.errors import InvalidArgumentError, RobustNNError
from robustnn.runs import RunFolder
from robustnn.sweep import BACKENDS, Task, run_tasks
from robustnn.workers import WorkerDied, run_calls

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Config:
    cells: int = 6


# A bare parent package keeps torch out of all processes, and the functions here need no numpy: a start takes a tenth of
# a second.
BARE = f"__path__ = [{str(ROOT / 'robustnn')!r}]"

HEAD = """
import os, signal, sys, time

CELLS = 240

def cell(k):
    time.sleep(0.02)
    return [{"k": k, "root": k ** 0.5}]

def deadly(k, folder):
    if k == 3:
        with open(os.path.join(folder, "tries"), "a") as stream:
            stream.write("x")
        if os.path.getsize(os.path.join(folder, "tries")) <= 2:
            os.kill(os.getpid(), signal.SIGKILL)
    return k

def always_deadly(k):
    time.sleep(0.02)
    if k == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return k

def failing(k):
    if k == 1:
        raise ZeroDivisionError("cell one")
    time.sleep(0.1)
    return k

def slow(k, folder):
    open(os.path.join(folder, str(os.getpid())), "w").close()
    time.sleep(60)
"""

KILLED = (
    HEAD
    + """
def sweep(root, name):
    from dataclasses import make_dataclass
    from robustnn.report.files import write_csv
    from robustnn.runs import RunFolder
    from robustnn.sweep import run_tasks
    run = RunFolder.create(root, name, make_dataclass("Config", [])(), resume=True)
    values = run_tasks(run, [(f"k={k}", cell, (k,)) for k in range(CELLS)], 2, name)
    write_csv(run.path / "table.csv", [row for rows in values for row in rows])

def count(root):
    cells = os.path.join(root, "killed", "cells")
    return sum(not name.startswith(".") for name in os.listdir(cells)) if os.path.isdir(cells) else 0

if __name__ == "__main__":
    import random
    import robustnn.sweep, robustnn.report.files  # once for all children
    root, moments, kills = sys.argv[1], random.Random(0), 0
    sys.stderr = open(os.devnull, "w")
    while kills < 20:
        child = os.fork()
        if child == 0:
            os.setsid()
            try:
                sweep(root, "killed")
            finally:
                os._exit(0)
        # Every second kill is timed from the first new cell on, wherever a loaded machine makes a start slow.
        before, deadline = count(root), time.monotonic() + (kills % 2) * 10.0
        while count(root) == before and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(moments.uniform(0.0, 0.15 if kills % 2 else 0.4))
        if os.waitpid(child, os.WNOHANG)[0] == 0:
            while os.getpgid(child) != child:
                time.sleep(0.001)
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            kills += 1
        else:
            break
    print(kills, count(root))
    sweep(root, "killed")
    sweep(root, "whole")
"""
)


def run_script(folder: Path, text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(write_script(folder, text)), *arguments]
    environment = os.environ | {"PYTHONPATH": str(folder)}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)


def write_script(folder: Path, text: str) -> Path:
    (folder / "robustnn").mkdir()
    (folder / "robustnn" / "__init__.py").write_text(BARE)
    (folder / "script.py").write_text(text)
    return folder / "script.py"


def test_twenty_kills_change_no_byte_of_the_table(tmp_path: Path) -> None:
    done = run_script(tmp_path, KILLED, str(tmp_path))
    assert done.returncode == 0, done.stderr
    kills, finished = map(int, done.stdout.split())
    assert kills == 20, f"the sweep was over after {kills} kills"
    assert 10 < finished < 240  # the kills hit the middle of the sweep
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    assert (killed / "table.csv").read_bytes() == (whole / "table.csv").read_bytes()
    assert (whole / "table.csv").read_text().count("\n") == 241
    for file in (whole / "cells").iterdir():
        assert (killed / "cells" / file.name).read_bytes() == file.read_bytes()
    assert not list(killed.rglob(".*.tmp")) and RunFolder.open(killed).keys() == RunFolder.open(whole).keys()


def test_cells_of_killed_workers_are_computed_again_or_named(tmp_path: Path) -> None:
    body = """
if __name__ == "__main__":
    from robustnn.workers import WorkerDied, run_calls
    folder = sys.argv[1]
    twice = [(f"k={k}", deadly, (k, folder)) for k in range(8)]
    print(sorted(result.value for result in run_calls(twice, 2)))
    found = []
    try:
        for result in run_calls([(f"k={k}", always_deadly, (k,)) for k in range(8)], 2, retries=1):
            found.append(result.value)
    except WorkerDied as error:
        print(error)
    print(3 not in found and len(found) >= 3)
    found = []
    try:
        for result in run_calls([(f"k={k}", failing, (k,)) for k in range(8)], 2):
            found.append(result.value)
    except ZeroDivisionError as error:
        print(repr(error), "in failing" in str(error.__cause__), found)
"""
    done = run_script(tmp_path, HEAD + body, str(tmp_path))
    assert done.returncode == 0, done.stderr
    values, error, others, failure = done.stdout.splitlines()
    assert values == "[0, 1, 2, 3, 4, 5, 6, 7]" and (tmp_path / "tries").read_text() == "xxx"
    assert error.startswith("cell k=3: expected its worker process") and "exit code -9" in error
    assert others == "True"
    # The cell that ran beside the failing one is not lost, and no further ones began.
    assert failure == "ZeroDivisionError('cell one') True [0]"


def test_workers_end_with_the_main_process(tmp_path: Path) -> None:
    # A process that a shell has put into the background ignores the interrupt, and so would its children.
    body = """
if __name__ == "__main__":
    import signal
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from robustnn.workers import run_calls
    list(run_calls([(f"k={k}", slow, (k, sys.argv[1])) for k in range(2)], 2))
"""
    script, started = write_script(tmp_path, HEAD + body), tmp_path / "started"
    started.mkdir()
    for number in (signal.SIGKILL, signal.SIGINT):
        with subprocess.Popen(
            [sys.executable, str(script), str(started)], stderr=subprocess.DEVNULL, start_new_session=True
        ) as main:
            workers = list(_until(started, 2))
            main.send_signal(number)
            assert main.wait(timeout=20) != 0
        deadline = time.monotonic() + 20.0
        while any(_alive(worker) for worker in workers):
            assert time.monotonic() < deadline, "a worker lives on without its main process"
            time.sleep(0.02)
        for worker in workers:
            (started / str(worker)).unlink()


def _until(folder: Path, count: int) -> Iterator[int]:
    deadline = time.monotonic() + 20.0
    while len(list(folder.iterdir())) < count:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    yield from (int(path.name) for path in folder.iterdir())


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not (state.exists() and ") Z " in state.read_text())


def square(k: int) -> dict[str, Any]:
    return {"square": k * k}


def tasks(count: int) -> list[Task]:
    return [(f"k={k}", square, (k,)) for k in range(count)]


def test_values_come_in_the_order_of_the_tasks_and_only_once(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "demo", Config())
    run.record("k=2", {"square": "recorded"})
    values = run_tasks(run, tasks(4), 0, "squares")
    assert values == [{"square": 0}, {"square": 1}, {"square": "recorded"}, {"square": 9}]
    assert run_tasks(run, tasks(4), 2, "squares") == values  # no process starts: nothing is left


def test_wrong_arguments(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "demo", Config())
    with pytest.raises(InvalidArgumentError, match=r"tasks: expected one task per key, got \['k=0'\]"):
        run_tasks(run, tasks(2) + tasks(1), 0, "squares")
    with pytest.raises(InvalidArgumentError, match="backend: expected one of processes, loky, dask, ray"):
        run_tasks(run, tasks(1), 1, "squares", backend="threads")
    with pytest.raises(InvalidArgumentError, match="workers: expected an integer >= 0"):
        run_tasks(run, tasks(1), -1, "squares")
    with pytest.raises(InvalidArgumentError, match="retries"):
        list(run_calls(tasks(1), 1, retries=-1))
    assert issubclass(WorkerDied, RobustNNError) and run.keys() == []


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_a_missing_library_is_named(backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = {"loky": "joblib", "dask": "distributed", "ray": "ray"}[backend]
    monkeypatch.setitem(sys.modules, library, None)
    run = RunFolder.create(tmp_path, "demo", Config())
    with pytest.raises(RobustNNError, match=r"pip install robustnn\[scale\]"):
        run_tasks(run, tasks(1), 1, "squares", backend=backend)


LOKY = (
    HEAD
    + """
if __name__ == "__main__":
    import joblib
    from robustnn.sweep import _by_joblib
    from robustnn.workers import WorkerDied
    twice = [(f"k={k}", deadly, (k, sys.argv[1])) for k in range(8)]
    print(sorted(result.value for result in _by_joblib(joblib, twice, 2, "loky", 2)))
    try:
        list(_by_joblib(joblib, [("k=3", always_deadly, (3,))], 2, "loky", 0))
    except WorkerDied as error:
        print(error)
"""
)


def test_loky_loses_no_cell_of_a_killed_worker(tmp_path: Path) -> None:
    pytest.importorskip("joblib")
    done = run_script(tmp_path, LOKY, str(tmp_path))
    assert done.returncode == 0, done.stderr
    values, error = done.stdout.splitlines()
    assert values == "[0, 1, 2, 3, 4, 5, 6, 7]" and (tmp_path / "tries").read_text() == "xxx"
    assert error.startswith("cells k=3: expected the workers to finish them")


DASK = (
    HEAD
    + """
if __name__ == "__main__":
    from distributed import LocalCluster
    from dataclasses import make_dataclass
    from robustnn.errors import RobustNNError
    from robustnn.runs import RunFolder
    from robustnn.sweep import run_tasks
    folder = sys.argv[1]
    run = RunFolder.create(folder, "demo", make_dataclass("Config", [])())
    twice = [(f"k={k}", deadly, (k, folder)) for k in range(40)]
    try:
        run_tasks(run, twice, 2, "dask", backend="dask")
    except RobustNNError as error:
        print(str(error)[:50])
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        os.environ["DASK_SCHEDULER_ADDRESS"] = cluster.scheduler_address
        print(run_tasks(run, twice, 2, "dask", backend="dask") == list(range(40)), len(run.keys()))
"""
)


@pytest.mark.slow
def test_dask_loses_no_cell_of_a_killed_worker(tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    pytest.importorskip("joblib")
    done = run_script(tmp_path, DASK, str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["backend: expected a client of dask, got none. Make", "True 40"]
    assert (tmp_path / "tries").read_text() == "xxx"
