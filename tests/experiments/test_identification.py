"""The experiment on identified models end to end, at its smallest size."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from experiments import identification
from experiments.command import RESULTS
from experiments.identification_study import document, measure, systems
from experiments.identification_study.config import SMOKE, Config, Model
from experiments.identification_study.published import PUBLISHED
from experiments.identification_study.results import PAGE, Results, median_interval, quartiles
from robustnn.dynamics import BENCHMARKS, fit, validate
from robustnn.errors import InvalidArgumentError
from robustnn.report import block_is_current
from robustnn.runs import RunFolder


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    identification.main(["--smoke", "--root", str(root), "--workers", "0"])
    return root / "identification_smoke"


def test_tables_can_be_rebuilt_from_the_run_folder(smoke: Path) -> None:
    tables = (smoke / "tables.md").read_text(encoding="utf-8")
    (smoke / "tables.md").unlink()
    identification.main(["--report", str(smoke)])
    assert (smoke / "tables.md").read_text(encoding="utf-8") == tables
    for name in ("bound", "spread", "simulation"):
        assert (smoke / "figures" / f"{name}.png").stat().st_size > 10_000
    text = document.block(smoke, "--smoke")
    assert "figures/spread.png" in text and "unconstrained" in text


def test_an_interrupted_run_continues_to_the_same_numbers(smoke: Path, tmp_path: Path) -> None:
    again = tmp_path / smoke.name
    shutil.copytree(smoke, again)
    lost = measure.cell_key(Model(SMOKE.bounds[0]), 1)
    for name in (lost, f"certificate_{lost}", PAGE):
        (again / "cells" / f"{name}.json").unlink()
    identification.main(["--smoke", "--root", str(tmp_path), "--workers", "0"])
    old, new = (RunFolder.open(path) for path in (smoke, again))
    assert old.keys() == new.keys()
    for key in (lost, PAGE):
        assert _timeless(old.cell(key)) == _timeless(new.cell(key))


def test_starts_one_by_one_are_the_starts_of_one_fit(smoke: Path) -> None:
    cell = RunFolder.open(smoke).cell(measure.cell_key(Model(SMOKE.bounds[1]), 1))
    train, val = measure.split(SMOKE, systems.load_system(SMOKE.task, SMOKE.record).train)
    model = measure.make_model(SMOKE, Model(SMOKE.bounds[1]), train)
    result = fit(
        model, train, val, starts=SMOKE.starts, seed=SMOKE.start_seeds(1)[0], patience=SMOKE.patience,
        max_iterations=SMOKE.max_iterations, check_every=SMOKE.check_every,
    )  # fmt: skip
    assert [start["validation"] for start in cell["starts"]] == [one.validation for one in result.starts]
    assert cell["best"] == result.best
    assert cell["parameters"] == measure.parameters(model)


def test_stored_models_have_the_errors_of_the_cells(smoke: Path) -> None:
    results = Results(RunFolder.open(smoke))
    benchmark = systems.load_system(SMOKE.task, SMOKE.record)
    for model in SMOKE.models:
        fitted = measure.stored_model(results.run, SMOKE, model, 1)
        found = benchmark.factor * validate(fitted, benchmark.tests["test"]).rmse
        assert found[0] == results.errors(model, "test", 0)[1]
        assert results.start_errors(model, "test", 0).shape == (2, SMOKE.starts)
        if model.lipschitz is not None and model.lipschitz < 1.0:
            assert (results.certified(model, "rate") < 1.0).all()


def test_choices_follow_the_validation_error_alone(smoke: Path, tmp_path: Path) -> None:
    folder = tmp_path / smoke.name
    shutil.copytree(smoke, folder)
    before = Results(RunFolder.open(folder))
    chosen, shown = before.chosen_bounds(), before.shown()
    for file in (folder / "cells").glob("*_seed=*.json"):
        cell = json.loads(file.read_text(encoding="utf-8"))
        for start in (cell["value"] or {}).get("starts", []):
            start["test_rmse"]["test"] = [1.0 / start["test_rmse"]["test"][0]]
        file.write_text(json.dumps(cell), encoding="utf-8")
    after = Results(RunFolder.open(folder))
    assert (after.chosen_bounds(), after.shown()) == (chosen, shown)
    for k, model in enumerate(chosen):
        assert before.validation(model)[k] == min(before.validation(one)[k] for one in SMOKE.bounded)


def test_fits_that_diverged_stay_in_tables_and_figures(smoke: Path, tmp_path: Path) -> None:
    folder = tmp_path / smoke.name
    shutil.copytree(smoke, folder)
    run, twin = RunFolder.open(folder), Model(None)
    first, second = (run.cell(measure.cell_key(twin, seed)) for seed in (0, 1))
    first["starts"] = [{"seed": k, "validation": None, "ended": "diverged"} for k in range(2)]
    run.record(measure.cell_key(twin, 0), {**first, "best": 0, "parameters": None, "lipschitz_u": None})
    run.record(measure.certificate_key(twin, 0), None)
    second["starts"][second["best"]]["test_rmse"]["test"] = [None]
    run.record(measure.cell_key(twin, 1), second)
    identification.main(["--report", str(folder)])
    results = Results(RunFolder.open(folder))
    assert np.isinf(results.errors(twin, "test", 0)).all()
    assert "diverged 2" in (folder / "tables.md").read_text(encoding="utf-8")
    assert results.shown()[twin.label] == (twin, 1)


def test_statistics_take_infinite_errors() -> None:
    values = np.array([0.3, 0.2, np.inf, 0.4, 0.25, 0.5, 0.6, np.inf, 0.35, 0.45])
    found = median_interval(values)
    assert found.estimate == np.median(values)
    assert found.low < found.estimate < found.high
    assert quartiles(values) == (0.3, 0.6)
    assert np.isinf(median_interval(np.full(10, np.inf))).all()


@pytest.mark.parametrize("name", list(identification.SIZES))
def test_configurations_are_complete(name: str, tmp_path: Path) -> None:
    config = identification.SIZES[name].config
    run = RunFolder.create(tmp_path, "run", config, seeds=config.training_seeds)
    assert Config.of(run.config) == config
    assert config.task in BENCHMARKS or config.task in systems.SYSTEMS
    assert len({model.key for model in config.models}) == len(config.models)
    starts = [start for seed in config.training_seeds for start in config.start_seeds(seed)]
    assert len(set(starts)) == len(starts)
    published = {record for one in PUBLISHED.get(config.task, ()) for record in one.errors}
    assert bool(published) == (config.task in BENCHMARKS)


@pytest.mark.parametrize("task", list(systems.SYSTEMS))
def test_records_of_own_plants(task: str) -> None:
    record = {"train": 300, "test": 200, "n_init": 20}
    first, again = (systems.load_system(task, record) for _ in range(2))
    train, test = first.train.experiments[0], first.tests["test"].experiments[0]
    assert (len(train), len(test), first.train.n_init) == (300, 200, 20)
    assert np.array_equal(train.y, again.train.experiments[0].y)
    assert not np.array_equal(train.u[:200], test.u)
    assert np.abs(train.y).max() < 4.0
    noise = np.array(systems.noise_of(task, record)) / first.factor
    # Of 180 samples: the standard deviation of a standard deviation is 5.3 %, and the true one is of all samples.
    assert np.all(np.abs(noise / (systems.NOISE * test.y.std(axis=0)) - 1.0) < 5.0 * 0.053)
    longer = systems.load_system(task, {**record, "train": 301})
    assert np.array_equal(longer.tests["test"].experiments[0].y, test.y)
    if task == "two_link_arm":
        reference, angles = train.u, train.y
        assert np.abs(reference).max() <= 1.5
        assert angles.std() < reference.std()


def test_the_page_is_up_to_date() -> None:
    for name, content in document.blocks(RESULTS).items():
        assert block_is_current(document.DOCUMENT, name, content), name
    assert set(document.TASKS) == set(identification.SIZES) - {"full", "smoke"}
    for name, (folder, option) in document.TASKS.items():
        assert identification.SIZES[name].name == folder and option == f"--{name}"


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="Choose one"):
        systems.load_system("cascaded_tank")


def _timeless(cell: dict) -> dict:
    """A cell without wall times."""
    kept = {k: v for k, v in cell.items() if k != "seconds"}
    if "starts" in kept:
        kept["starts"] = [{k: v for k, v in one.items() if k != "seconds"} for one in kept["starts"]]
    return kept
