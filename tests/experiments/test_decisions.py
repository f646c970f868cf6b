"""The experiment on certified decisions end to end, at its smallest size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from experiments import decisions
from experiments.decisions_study.config import SMOKE, Config
from experiments.decisions_study.report import Results
from robustnn.runs import RunFolder


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    decisions.main(["--smoke", "--root", str(root), "--workers", "0"])
    return root / "decisions_smoke"


def test_tables_can_be_rebuilt_from_the_run_folder(smoke: Path) -> None:
    tables = (smoke / "tables.md").read_text(encoding="utf-8")
    (smoke / "tables.md").unlink()
    decisions.main(["--report", str(smoke)])
    assert (smoke / "tables.md").read_text(encoding="utf-8") == tables
    assert (smoke / "figures" / "decisions.png").stat().st_size > 10_000


def test_certified_states_are_a_part_of_those_that_survive(smoke: Path) -> None:
    results = Results(RunFolder.open(smoke))
    assert results.contradictions() == 0
    for model in SMOKE.models:
        certified, local, unchanged = (
            results.share(model, name) for name in ("certified", "local", "unchanged")
        )
        assert certified.shape == (2, len(SMOKE.eps))
        assert (certified <= local).all() and (local <= unchanged).all()
        assert (np.diff(certified) <= 0.0).all() and (np.diff(local) <= 0.0).all()
        assert results.returns(model).shape == (2, 1 + len(SMOKE.eps), SMOKE.episodes)
        assert (results.returns(model) >= 8.0).all()


@pytest.mark.parametrize("config", [Config(), SMOKE], ids=["full", "smoke"])
def test_the_configuration_survives_the_run_folder(config: Config, tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "run", config, seeds=config.training_seeds)
    assert Config.of(run.config) == config
