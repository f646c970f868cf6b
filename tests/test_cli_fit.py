from __future__ import annotations

import ast
import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from robustnn.cli import main
from robustnn.cli.fit import BENCHMARK_NAMES, MODEL_NAMES
from robustnn.cli.fitting import linear_model
from robustnn.cli.records import labelled, read_columns
from robustnn.dynamics import BENCHMARKS, MODELS, certify_model, from_csv, load_model, validate
from robustnn.report.files import read_csv

ROOT = Path(__file__).resolve().parents[1]
EPS = float(np.finfo(np.float64).eps)
CHANNELS = ("--u", "pump", "--y", "level", "--n-init", "10")
SMALL = (*CHANNELS, "--n-x", "1", "--hidden", "3", "--time", "time")


def run(*arguments: str | Path) -> int:
    return main([str(argument) for argument in arguments])


def record(seed: int, samples: int = 240) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    u = np.repeat(rng.normal(size=samples // 4), 4)
    y = np.zeros(samples)
    for k in range(samples - 1):
        y[k + 1] = 0.8 * y[k] + 0.4 * np.tanh(u[k])
    return u, y + 1e-3 * rng.normal(size=samples)


def write(
    path: Path, u: np.ndarray, y: np.ndarray | None, header: str = "time [s],pump [V],level [m]"
) -> Path:
    columns = [0.1 * np.arange(len(u)), u] + ([] if y is None else [y])
    lines = [",".join(repr(float(cell)) for cell in row) for row in zip(*columns, strict=True)]
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def fit_command(where: Path, *, iterations: int = 20) -> list[str]:
    return ["fit", str(where / "train.csv"), *SMALL, "--max-iterations", str(iterations)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files train.csv and test.csv, and the run folder "run" of a fit of two starts."""
    where = tmp_path_factory.mktemp("fit")
    for seed, name in enumerate(("train", "test")):
        write(where / f"{name}.csv", *record(seed))
    assert (
        run(*fit_command(where), "--starts", "2", "--test", where / "test.csv", "--out", where / "run") == 0
    )
    return where


def test_fit_writes_a_model_with_its_errors_and_certificate(folder: Path) -> None:
    out = folder / "run"
    model = load_model(out / "model.npz")
    assert model.channels.u_names == ("pump",) and model.channels.y_units == ("m",)
    assert model.dt == pytest.approx(0.1, rel=8 * EPS)
    report = json.loads((out / "report.json").read_text())
    test = from_csv(folder / "test.csv", ["pump [V]"], ["level [m]"], time="time [s]", n_init=10)
    found = validate(model, test)
    assert report["errors"]["test"][0]["rmse"] == found.rmse[0]
    assert report["errors"]["test"][0]["unit"] == "m"
    assert set(report["errors"]) == {"train", "val", "test"}
    assert [start["seed"] for start in report["fit"]["starts"]] == [0, 1]
    assert report["fit"]["validation"] == min(start["validation"] for start in report["fit"]["starts"])
    certificate = certify_model(model)
    assert report["certificate"]["model_sha256"] == certificate.model_sha256
    assert report["certificate"]["rate"] == certificate.rate < 1.0
    assert report["certificate"]["lipschitz_u_each"] == certificate.lipschitz_u_each.tolist()
    rows = [row for row in read_csv(out / "simulated.csv") if row["part"] == "test"]
    assert [row["level simulated [m]"] for row in rows] == found.simulated[0][:, 0].tolist()
    assert [row["level [m]"] for row in rows] == test.experiments[0].y[:, 0].tolist()
    assert len(read_csv(out / "history.csv")) == 2
    figures = {path.name for path in (out / "figures").iterdir()}
    assert figures == {"val_level.png", "test_level.png", "convergence.png"}
    text = (out / "report.md").read_text()
    assert "linear: RMSE" in text and "contracting" in text and "| 0" in text


def test_a_finished_fit_is_not_computed_again_and_another_one_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("model.npz", "report.json", "report.md", "simulated.csv", "history.csv")
    before = {name: (folder / "run" / name).read_bytes() for name in names}
    monkeypatch.setattr("robustnn.cli.fitting.fit", None)
    monkeypatch.setattr("robustnn.cli.fitting.certify_model", None)
    again = [*fit_command(folder), "--starts", "2", "--test", folder / "test.csv", "--out", folder / "run"]
    assert run(*again) == 0
    assert {name: (folder / "run" / name).read_bytes() for name in names} == before
    assert run(*again, "--patience", "3") == 2
    assert "config.patience" in capsys.readouterr().err


def test_an_interrupted_fit_is_continued_to_the_last_bit(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fit_module = importlib.import_module("robustnn.dynamics.fit")
    original, calls = fit_module.validation_error, 0

    def interrupted(*arguments: Any) -> float:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    arguments = [*fit_command(folder, iterations=60), "--starts", "1", "--out"]
    monkeypatch.setattr(fit_module, "validation_error", interrupted)
    assert run(*arguments, tmp_path / "two") == 130
    assert not (tmp_path / "two" / "model.npz").exists()
    monkeypatch.setattr(fit_module, "validation_error", original)
    assert run(*arguments, tmp_path / "two") == 0
    assert run(*arguments, tmp_path / "one") == 0
    one, two = (tmp_path / name / "model.npz" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    history = read_csv(tmp_path / "two" / "history.csv")
    assert [row["iteration"] for row in history] == [20, 40, 60]
    assert "the same command goes on" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["residual", "narx"])
def test_the_other_models(kind: str, folder: Path, tmp_path: Path) -> None:
    arguments = [
        *fit_command(folder, iterations=2),
        "--starts",
        "1",
        "--model",
        kind,
        "--out",
        tmp_path / kind,
    ]
    assert run(*arguments, "--lipschitz", "1.5", "--val", folder / "test.csv") == 0
    model = load_model(tmp_path / kind / "model.npz")
    assert type(model) is MODELS[kind] and model.settings()["lipschitz"] == 1.5
    report = json.loads((tmp_path / kind / "report.json").read_text())
    assert report["data"]["val"]["experiments"] == ["test"] and report["data"]["train"]["samples"] == 240


def test_path_takes_the_elbow(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        *fit_command(folder, iterations=3),
        "--starts",
        "1",
        "--path",
        "0.95,0.5",
        "--out",
        tmp_path / "path",
    ]
    assert run(*arguments) == 0
    path = json.loads((tmp_path / "path" / "report.json").read_text())["fit"]["path"]
    assert path["bounds"] == [0.5, 0.95] and path["errors"][1] <= path["errors"][0]
    taken = path["bounds"][path["elbow"]]
    chosen = (tmp_path / "path" / "model.npz").read_bytes()
    assert chosen == (tmp_path / "path" / "path" / f"bound={taken:g}.npz").read_bytes()
    assert load_model(tmp_path / "path" / "model.npz").settings()["lipschitz_x"] == taken
    assert "taken" in capsys.readouterr().out


@pytest.mark.parametrize("feedthrough", [False, True])
def test_the_linear_model_is_that_of_the_subspace_method(folder: Path, feedthrough: bool) -> None:
    data = from_csv(folder / "train.csv", ["pump [V]"], ["level [m]"], time="time [s]", n_init=10)
    model = linear_model(data, 2, feedthrough=feedthrough)
    u = 3.0 + data.experiments[0].u
    expected = model.linear_start(data).simulate(u)
    assert model.feedthrough is feedthrough
    np.testing.assert_allclose(
        model.simulate(u), expected, rtol=0.0, atol=1000 * EPS * np.abs(expected).max()
    )


def test_matlab_file_and_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    u, y = record(0)
    savemat("record.mat", {"pump": u, "level": y, "Ts": 0.1})
    linear = ("--model", "linear", "--n-x", "1", "--out")
    units = ("--units-u", "V", "--units-y", "m")
    assert run("fit", "record.mat", *CHANNELS, "--ts", "Ts", *units, *linear, "runs/mat") == 0
    model = load_model("runs/mat/model.npz")
    assert model.dt == 0.1 and model.channels.u_units == ("V",)
    assert run("simulate", "runs/mat/model.npz", "record.mat", "--n-init", "10") == 0
    assert len(read_csv("simulated.csv")) == len(u)
    (first, second), (third, fourth) = record(1, 1024), record(2, 1024)
    Path("cascaded_tanks").mkdir()
    tanks = {"uEst": first, "yEst": second, "uVal": third, "yVal": fourth}
    savemat("cascaded_tanks/dataBenchmark.mat", tanks)
    monkeypatch.setenv("ROBUSTNN_DATA", str(tmp_path))
    assert run("fit", "--benchmark", "cascaded_tanks", *linear[:-1]) == 0
    (out,) = Path("runs").glob("fit_cascaded_tanks_linear_*")
    data = json.loads((out / "report.json").read_text())["data"]
    assert {name: part["samples"] for name, part in data.items()} == {"train": 768, "val": 256, "test": 1024}


def test_simulate_gives_what_python_gives(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = folder / "run" / "model.npz", tmp_path / "deep" / "out.csv"
    figure = tmp_path / "out.png"
    command = ("simulate", file, folder / "test.csv", "--n-init", "10", "--out", out)
    assert run(*command, "--time", "time", "--figure", figure) == 0
    model = load_model(file)
    u, y = (column[:, None] for column in record(1))
    expected = model.simulate(u, model.initial_state(u[:10], y[:10]))
    rows = read_csv(out)
    assert list(rows[0]) == ["time [s]", "pump [V]", "level [m]", "level simulated [m]"]
    assert [row["level simulated [m]"] for row in rows] == expected[:, 0].tolist()
    rmse = np.sqrt(np.mean(np.square(expected - y)[10:]))
    text = capsys.readouterr().out
    assert f"{rmse:.4g} m" in text and "from the first 10 samples" in text and figure.exists()
    assert run(*command[:2], out, *command[3:-1], tmp_path / "back.csv", "--time", "time") == 0
    assert (tmp_path / "back.csv").read_bytes() == out.read_bytes()
    assert run(*command, "--x0", "zero") == 0
    assert [row["level simulated [m]"] for row in read_csv(out)] == model.simulate(u)[:, 0].tolist()


def test_simulate_without_outputs_and_with_a_constant_input(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    u = np.full(5, 0.3)
    data = write(tmp_path / "step.csv", u, None, "time [s],voltage")
    out = tmp_path / "out.csv"
    command = ("simulate", folder / "run" / "model.npz", data, "--u", "voltage", "--out", out)
    assert run(*command, "--figure", tmp_path / "out.png") == 0
    model = load_model(folder / "run" / "model.npz")
    rows = read_csv(out)
    assert list(rows[0]) == ["time [s]", "pump [V]", "level simulated [m]"]
    assert [row["level simulated [m]"] for row in rows] == model.simulate(u[:, None])[:, 0].tolist()
    assert "RMSE" not in capsys.readouterr().out


FIT_A = ("fit", "train.csv")
NAMED = (*FIT_A, *CHANNELS, "--ts", "0.1", "--out", "x")
SIM = ("simulate", "model.npz")
BAD: dict[str, tuple[tuple[str, ...], str]] = {
    "no data": (("fit", *CHANNELS), "DATA, --benchmark: expected one of the two, got neither"),
    "two sources": ((*NAMED, "--benchmark", "silverbox"), "DATA, --benchmark: expected one of the two, got both"),
    "missing column": ((*NAMED, "--u", "valve"), "expected columns of ['time [s]', 'pump [V]', 'level [m]']"),
    "no input": ((*FIT_A, "--y", "level", "--ts", "1"), "--u: expected at least one column"),
    "column twice": ((*NAMED, "--u", "level"), "--u, --y: expected every column once"),
    "no sampling time": ((*FIT_A, *CHANNELS), "--ts, --time: expected one of the two"),
    "two sampling times": ((*NAMED, "--time", "time"), "--ts, --time: expected one of the two"),
    "text as sampling time": ((*NAMED, "--ts", "fast"), "--ts: expected a sampling time in s"),
    "negative sampling time": ((*NAMED, "--ts=-1"), "--ts: expected a sampling time > 0"),
    "gap": (("fit", "gap.csv", *NAMED[2:]), "expected finite samples"),
    "text in a cell": (("fit", "text.csv", *NAMED[2:]), "line 4: expected a number"),
    "uneven time": (("fit", "uneven.csv", *CHANNELS, "--time", "time"), "expected uniform sampling"),
    "constant": (("fit", "constant.csv", *NAMED[2:]), "expected a signal that varies"),
    "short": (("fit", "short.csv", *NAMED[2:]), "expected at least n_init + 2"),
    "absent": (("fit", "absent.csv", *NAMED[2:]), "expected a table of text with a header line"),
    "no text": (("fit", "model.npz", *NAMED[2:]), "expected a table of text with a header line"),
    "no MATLAB file": (("fit", "text.mat", *NAMED[2:]), "expected a MATLAB file"),
    "time in MATLAB file": (("fit", "text.mat", *CHANNELS, "--time", "t"), "--time: expected --ts"),
    "delimiter": ((*NAMED, "--delimiter", ";;"), "--delimiter: expected one character"),
    "wrong delimiter": ((*NAMED, "--delimiter", ";"), "or the delimiter"),
    "unit of validation": ((*NAMED, "--val", "feet.csv"), "units of val: expected those of train"),
    "units": ((*NAMED, "--units-y", "m", "s"), "y_units: expected 1 strings"),
    "validation part": ((*NAMED, "--val-fraction", "1.5"), "--val-fraction: expected a number in (0, 1)"),
    "widths": ((*NAMED, "--hidden", "8;8"), "--hidden: expected integers"),
    "order": ((*NAMED, "--n-x", "0"), "--n-x: expected an integer >= 1"),
    "activation": ((*NAMED, "--activation", "sine"), "activation"),
    "bound": ((*NAMED, "--lipschitz", "0"), "--lipschitz: expected a finite number > 0"),
    "bound of nothing": ((*NAMED, "--model", "linear", "--lipschitz", "1"), "--lipschitz: expected no value"),
    "feedthrough": ((*NAMED, "--model", "narx", "--feedthrough"), "--feedthrough: expected another model"),
    "path of another model": ((*NAMED, "--model", "narx", "--path", "1,2"), "--path: expected --model lipschitz"),
    "bound twice": ((*NAMED, "--path", "0.9,0.9"), "--path: expected every bound once"),
    "text as bound": ((*NAMED, "--path", "small"), "--path: expected numbers"),
    "no starts": ((*NAMED, "--starts", "0"), "--starts: expected an integer >= 1"),
    "no time": ((*NAMED, "--time-budget", "0"), "--time-budget: expected a finite number > 0"),
    "no workers": ((*NAMED, "--workers", "0"), "--workers: expected an integer >= 1"),
    "absent model": (("simulate", "absent.npz", "test.csv"), "absent.npz: expected a readable file"),
    "no model": (("simulate", "text.csv", "test.csv"), "text.csv: expected a readable file"),
    "no data to simulate": ((*SIM, "absent.csv"), "DATA: expected a table of text"),
    "empty": ((*SIM, "empty.csv"), "DATA: expected at least one line of numbers"),
    "input not there": ((*SIM, "test.csv", "--u", "valve"), "expected columns of"),
    "output not there": ((*SIM, "test.csv", "--y", "height"), "expected columns of"),
    "too many inputs": ((*SIM, "test.csv", "--u", "pump", "level"), "--u: expected columns for pump"),
    "cell": ((*SIM, "text.csv"), "column 'pump [V]', line 4: expected a finite number, got 'much'"),
    "other sampling time": ((*SIM, "test.csv", "--ts", "0.2"), "expected the sampling time of the model, 0.1 s"),
    "two times": ((*SIM, "test.csv", "--ts", "0.1", "--time", "time"), "expected one of the two at most"),
    "window without outputs": ((*SIM, "inputs.csv", "--x0", "window"), "--x0: expected zero"),
    "long window": ((*SIM, "test.csv", "--n-init", "240"), "expected at least --n-init + 1 = 241 samples"),
    "figure": ((*SIM, "test.csv", "--figure", "a.pdf"), "--figure: expected a name ending in .png"),
    "foreign units": ((*SIM, "test.csv", "--units-u", "mV"), "--units-u: expected no value"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told_in_one_line(
    case: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("train.csv", "test.csv", "run/model.npz"):
        shutil.copy(folder / name, tmp_path)
    u, y = record(0)
    write(Path("gap.csv"), u, np.where(np.arange(240) == 7, np.nan, y))
    write(Path("constant.csv"), np.ones(240), y)
    write(Path("short.csv"), u[:11], y[:11])
    write(Path("feet.csv"), u, y, "time [s],pump [V],level [ft]")
    write(Path("inputs.csv"), u, None, "time [s],pump [V]")
    write(Path("empty.csv"), u[:0], y[:0])
    lines = Path("train.csv").read_text().splitlines()
    Path("uneven.csv").write_text("\n".join([*lines[:50], *lines[53:]]))
    cells = lines[3].split(",")
    Path("text.csv").write_text("\n".join([*lines[:3], f"{cells[0]},much,{cells[2]}", *lines[4:]]))
    Path("text.mat").write_text("no MATLAB file")
    arguments, expected = BAD[case]
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    error = captured.err.splitlines()[-1]
    assert error.startswith("robustnn: error: ") and expected in error, captured.err
    assert not Path("runs").exists() and not Path("x").exists() and not Path("simulated.csv").exists()


def test_columns_are_found_with_and_without_units(tmp_path: Path) -> None:
    header = ["time [s]", "u", "y [V]", "z [m]", "z [ft]"]
    assert labelled(["u", "y"], header) == (["u", "y [V]"], ("u", "y"), ("", "V"))
    assert labelled(["y [V]"], header) == (["y [V]"], ("y",), ("V",))
    assert labelled(["z"], header) == (["z"], ("z",), ("",))  # two of them: not found
    assert labelled(["z [m]", "z [ft]"], header)[1] == ("z [m]", "z [ft]")
    (tmp_path / "a.csv").write_text("\ufefftime [s];u\n0;1\n\n1;2e0\n", encoding="utf-8")
    found = read_columns(tmp_path / "a.csv", ";", ["u", "time"], ["y"])
    assert {name: values.tolist() for name, values in found.items()} == {"u": [1.0, 2.0], "time": [0.0, 1.0]}


def test_names_in_the_parser_are_those_of_the_library() -> None:
    assert MODEL_NAMES == (*MODELS, "linear")
    assert BENCHMARK_NAMES == tuple(BENCHMARKS)


@pytest.mark.parametrize("name", ["fit", "simulate"])
def test_the_parser_is_made_without_the_models(name: str) -> None:
    tree = ast.parse((ROOT / "robustnn" / "cli" / f"{name}.py").read_text(encoding="utf-8"))
    modules = {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert modules == {"__future__", "pathlib", "typing", "robustnn.cli.options"}


@pytest.mark.parametrize("command", ["fit", "simulate"])
def test_help_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        run(command, "--help")
    text = capsys.readouterr().out
    assert done.value.code == 0 and f"example:\n  robustnn {command} " in text
