"""The experiment script end to end, at its smallest size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from experiments import pendulum_robustness
from experiments.pendulum.config import SMOKE, Model
from experiments.pendulum.report import Results
from robustnn.runs import RunFolder


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    pendulum_robustness.main(["--smoke", "--root", str(root), "--workers", "1"])
    return root / "pendulum_smoke"


def test_every_table_can_be_rebuilt_from_the_run_folder(
    smoke: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = (smoke / "tables.md").read_text(encoding="utf-8")
    (smoke / "tables.md").unlink()
    pendulum_robustness.main(["--report", str(smoke)])
    assert (smoke / "tables.md").read_text(encoding="utf-8") == tables
    for name in ("summary", "phase_portraits", "convergence", "returns_4.096k"):
        assert (smoke / "figures" / f"{name}.png").stat().st_size > 10_000


def test_an_attack_is_never_weaker_than_no_perturbation(smoke: Path) -> None:
    results = Results(RunFolder.open(smoke))
    for model in SMOKE.models:
        nominal = results.returns(model, 4_096, "none", 0.0)
        assert nominal.shape == (2, 4)
        attacked = results.returns(model, 4_096, "strong", 0.3)
        assert (attacked <= nominal + 1e-2).all() and (attacked < nominal).any()


def test_found_constants_stay_below_certified_ones(smoke: Path) -> None:
    results = Results(RunFolder.open(smoke))
    for model in SMOKE.models:
        cell = results.constants(model, 4_096)
        certified = np.array(cell["certified"])
        assert (np.array(cell["empirical"]) <= certified * (1 + 1e-6)).all()
        changes = np.array(cell["action_change"])
        assert (changes <= certified[:, None] * np.array(SMOKE.eps) * (1 + 1e-6)).all()


def test_a_finished_run_is_not_repeated(smoke: Path) -> None:
    cells = {path: path.stat().st_mtime_ns for path in (smoke / "cells").iterdir()}
    pendulum_robustness.main(["--smoke", "--root", str(smoke.parent), "--workers", "1"])
    assert {path: path.stat().st_mtime_ns for path in (smoke / "cells").iterdir()} == cells


def test_labels_and_keys_of_models() -> None:
    assert (Model(None).label, Model(4.0).label, Model(4.0).key) == ("MLP", "LBDN γ=4", "LBDN-4")
