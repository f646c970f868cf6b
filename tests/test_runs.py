from __future__ import annotations

import json
import math
import platform
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from robustnn.errors import CheckpointError, InvalidArgumentError
from robustnn.report.environment import environment, relative_paths
from robustnn.runs import RunFolder

ROOT = Path(__file__).resolve().parents[1]

# A bare parent package keeps torch out of the child process, which then starts in a second.
WITHOUT_TORCH = f"""
import sys, types
package = types.ModuleType("robustnn")
package.__path__ = [{str(ROOT / "robustnn")!r}]
sys.modules["robustnn"] = package
"""


@dataclass(frozen=True)
class Config:
    gammas: tuple[float, ...] = (5.0, 8.0)
    steps: int = 1000
    cap: float = math.inf
    seeds: tuple[int, ...] = (0, 1)
    data: Path = Path("data")
    options: dict[str, object] = field(default_factory=lambda: {"lr": 3e-4, "name": None})


def test_report_and_runs_import_no_torch() -> None:
    code = WITHOUT_TORCH + "import robustnn.report, robustnn.runs\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_a_new_run_reads_back(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "runs", "demo", Config(), seeds=[np.int64(3), 0])
    again = RunFolder.open(tmp_path / "runs" / "demo")
    for folder in (run, again):
        assert folder.name == "demo" and folder.seeds == (3, 0)
        assert folder.config["gammas"] == [5.0, 8.0]
        assert folder.config["cap"] == math.inf
        assert folder.config["options"] == {"lr": 3e-4, "name": None}
        assert folder.metrics() == [] and folder.keys() == []
    assert run.figure("a.png") == run.path / "figures" / "a.png"
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["demo"]


def test_the_environment_tells_versions_but_not_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    argv = [
        str(tmp_path / "experiments" / "a.py"),
        "--out=/secret/place/t.csv",
        "/secret/b,/secret/c",
        "--eps=0.1",
    ]
    monkeypatch.setattr(sys, "argv", argv)
    run = RunFolder.create("runs", "demo", Config(data=Path("/secret/place/set")), packages=["pytest"])
    (record,) = run.environments
    assert record["packages"]["numpy"] == np.__version__
    assert record["packages"]["pytest"] == pytest.__version__
    assert record["python"] == platform.python_version()
    assert record["command"] == ["experiments/a.py", "--out=.../t.csv", ".../b,.../c", "--eps=0.1"]
    assert record["git"] is None
    assert run.config["data"] == ".../set"
    text = "".join(file.read_text() for file in run.path.glob("*.json"))
    for private in ("secret", str(tmp_path), str(Path.home()) + "/", json.dumps(platform.node())):
        assert private not in text


def test_relative_paths_leave_other_text_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for text in ("", "a/b", "--x=a/b", "http://a.b/c", "1/2", "eps=0.1"):
        assert relative_paths(text) == text
    assert relative_paths(str(tmp_path / "a" / "b")) == "a/b"


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_git_commit_and_dirty_flag(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    (tmp_path / "a.txt").write_text("1")
    git("add", "a.txt")
    git("commit", "-q", "-m", "first")
    expected = {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "untracked.txt").write_text("1")
    assert environment(repository=tmp_path)["git"] == expected
    (tmp_path / "a.txt").write_text("2")
    assert environment(repository=tmp_path)["git"] == {**expected, "dirty": True}


def test_metrics_fix_their_columns(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "demo", Config())
    rows = [{"step": i, "loss": 0.1 * i, "model": "MLP"} for i in range(4)]
    for row in rows[:2]:
        run.log(row)
    assert RunFolder.open(run.path).metrics() == rows[:2]
    later = RunFolder.open(run.path)
    later.log(dict(reversed(rows[2].items())))
    with pytest.raises(InvalidArgumentError, match=r"missing \['loss'\], unknown \['lose'\]"):
        later.log({"step": 3, "lose": 1.0, "model": "MLP"})
    later.log(rows[3])
    assert later.metrics() == rows


def test_cells_round_trip_and_are_not_confused(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "demo", Config())
    values = {"MLP_eps=0.15": [{"return": 0.1 + 0.2, "seed": 0}], "MLP_eps=0.1": {"x": [math.inf, 5e-324]}}
    for key, value in values.items():
        assert not run.done(key)
        run.record(key, value)
    assert RunFolder.open(run.path).keys() == sorted(values)
    assert {key: run.cell(key) for key in run.keys() if run.done(key)} == values
    run.record("MLP_eps=0.1", {"x": np.arange(2.0), "n": np.int64(3)})
    assert run.cell("MLP_eps=0.1") == {"x": [0.0, 1.0], "n": 3}
    with pytest.raises(CheckpointError, match="MLP_eps=0.2"):
        run.cell("MLP_eps=0.2")


def test_an_existing_run_is_resumed_only_on_demand_and_unchanged(tmp_path: Path) -> None:
    first = RunFolder.create(tmp_path, "demo", Config(), seeds=[0], resume=True)
    first.log({"a": 1})
    first.record("cell", 1)
    with pytest.raises(CheckpointError, match="resume=True"):
        RunFolder.create(tmp_path, "demo", Config(), seeds=[0])
    for config, seeds, name in [
        (Config(steps=2), [0], "config.steps"),
        (Config(), [1], "'seeds'"),
    ]:
        with pytest.raises(CheckpointError, match=name):
            RunFolder.create(tmp_path, "demo", config, seeds=seeds, resume=True)
    (first.path / "cells" / ".cell.json.0123.tmp").write_text("half")
    again = RunFolder.create(tmp_path, "demo", Config(), seeds=[0], resume=True)
    assert again.metrics() == [{"a": 1}] and again.done("cell") and len(again.environments) == 2
    assert [p.name for p in (first.path / "cells").iterdir()] == ["cell.json"]


def test_foreign_and_corrupted_folders_are_refused(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "demo", Config())
    run.log({"a": 1, "b": 2})
    run.record("cell", 1)
    good = (run.path / "config.json").read_text()
    with pytest.raises(CheckpointError):
        RunFolder.open(tmp_path / "missing")
    (tmp_path / "foreign").mkdir()
    for resume in (False, True):
        with pytest.raises(CheckpointError):
            RunFolder.create(tmp_path, "foreign", Config(), resume=resume)
    for file, content, match in [
        ("config.json", good[: len(good) // 2], "JSON"),
        ("config.json", '{"lr": 1}', "another program"),
        ("config.json", "[]", "another program"),
        ("config.json", good.replace('"version": 1', '"version": 99'), "99"),
        ("config.json", good.replace('"seeds": []', '"seeds": ["a"]'), "name, config and seeds"),
        ("environment.json", "{}", "starts"),
        ("metrics.csv", "a,b\n1\n3,4\n", "row 2"),
    ]:
        old = (run.path / file).read_text()
        (run.path / file).write_text(content)
        with pytest.raises(CheckpointError, match=match):
            RunFolder.open(run.path)
        (run.path / file).write_text(old)
    RunFolder.open(run.path)
    (run.path / "cells" / "cell.json").write_text('{"key": "cell", "val')
    with pytest.raises(CheckpointError, match=r"cell\.json"):
        run.done("cell")


@pytest.mark.parametrize("name", ["", "a/b", "../a", ".hidden", "a b", "x" * 151])
def test_names_and_keys_stay_inside_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidArgumentError, match="name: expected"):
        RunFolder.create(tmp_path, name, Config())
    run = RunFolder.create(tmp_path, "demo", Config())
    with pytest.raises(InvalidArgumentError, match="key: expected"):
        run.record(name, 1)
    with pytest.raises(InvalidArgumentError, match="name: expected"):
        run.figure(name)


def test_what_cannot_be_stored_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="config: expected a dataclass"):
        RunFolder.create(tmp_path, "demo", {"a": 1})
    with pytest.raises(InvalidArgumentError, match=r"config\.options\.f: expected"):
        RunFolder.create(tmp_path, "demo", Config(options={"f": object()}))
    with pytest.raises(InvalidArgumentError, match="seeds: expected"):
        RunFolder.create(tmp_path, "demo", Config(), seeds=[-1])
    assert list(tmp_path.iterdir()) == []
    run = RunFolder.create(tmp_path, "demo", Config())
    with pytest.raises(InvalidArgumentError, match=r"value\[0\]\.x"):
        run.record("cell", [{"x": object()}])
    assert not run.done("cell")


@pytest.mark.parametrize("tail", ["3,0.", "step,lo", "2,0.5\n3"])
def test_a_torn_line_is_dropped_and_the_next_row_is_whole(tmp_path: Path, tail: str) -> None:
    run = RunFolder.create(tmp_path, "demo", Config())
    expected = []
    if not tail.startswith("step"):
        run.log({"step": 1, "loss": 0.25})
        expected = [{"step": 1, "loss": 0.25}] + ([{"step": 2, "loss": 0.5}] if "\n" in tail else [])
    with open(run.path / "metrics.csv", "a") as stream:
        stream.write(tail)
    later = RunFolder.open(run.path)
    assert later.metrics() == expected
    later.log({"step": 9, "loss": 1.0})
    assert later.metrics() == [*expected, {"step": 9, "loss": 1.0}]


def test_a_header_without_rows_is_written_anew(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "demo", Config())
    (run.path / "metrics.csv").write_text("step,loss\n1,")
    run.log({"step": 1, "loss": 0.5})
    assert run.metrics() == [{"step": 1, "loss": 0.5}]


REPLACER = """
from robustnn.files import atomic_write_bytes
contents = [letter * 8_000_000 for letter in (b"a", b"b")]
for i in range(100_000):
    atomic_write_bytes(sys.argv[1], contents[i % 2])
    print(i, flush=True)
"""

WRITER = """
from dataclasses import make_dataclass
from robustnn.runs import RunFolder
run = RunFolder.create(sys.argv[1], "demo", make_dataclass("C", [])(), resume=True)
start = len(run.metrics())
for i in range(start, start + 100_000):
    run.log({"i": i, "text": "x" * 200})
    run.record("cell", [i] * 20_000)
    print(i, flush=True)
"""


def run_and_kill(code: str, argument: Path, delay: float) -> list[int]:
    """Kill a child ``delay`` seconds after its first line, and return the numbers it has printed."""
    command = [sys.executable, "-c", WITHOUT_TORCH + code, str(argument)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        time.sleep(delay)
        process.kill()
        output = first + process.stdout.read()
    assert process.returncode == -signal.SIGKILL
    return [int(line) for line in output.splitlines(keepends=True) if line.endswith("\n")]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_writer_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    file = tmp_path / "t.bin"
    for delay in (0.0, 0.011, 0.029, 0.037):
        run_and_kill(REPLACER, file, delay)
        data = file.read_bytes()
        assert len(data) == 8_000_000 and len(set(data)) == 1


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_writer_loses_nothing(tmp_path: Path) -> None:
    acknowledged = -1
    for delay in (0.0, 0.013, 0.031):
        acknowledged = max(acknowledged, *run_and_kill(WRITER, tmp_path, delay))
        run = RunFolder.open(tmp_path / "demo")
        rows = run.metrics()
        assert [row["i"] for row in rows] == list(range(len(rows)))
        assert all(len(row["text"]) == 200 for row in rows)
        cell = run.cell("cell")
        assert len(cell) == 20_000 and len(set(cell)) == 1
        assert len(rows) > acknowledged and cell[0] >= acknowledged
    assert len(run.environments) == 3
