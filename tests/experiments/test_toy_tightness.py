"""The toy experiment end to end, at its smallest size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments import toy_tightness
from experiments.toy.config import INITS, LAYERS, SMOKE, Config, Model
from experiments.toy.report import REFERENCE_MSE, REFERENCE_TIGHTNESS, Results
from experiments.toy.train import gradient_factor, learning_rate, target, train_and_measure
from robustnn.runs import RunFolder


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    toy_tightness.main(["--smoke", "--root", str(root), "--workers", "1"])
    return root / "toy_smoke"


def test_the_tables_can_be_rebuilt_from_the_run_folder(smoke: Path) -> None:
    tables = (smoke / "tables.md").read_text(encoding="utf-8")
    (smoke / "tables.md").unlink()
    toy_tightness.main(["--report", str(smoke)])
    assert (smoke / "tables.md").read_text(encoding="utf-8") == tables
    assert (smoke / "figures" / "fits.png").stat().st_size > 10_000


def test_no_network_exceeds_its_bound(smoke: Path) -> None:
    results = Results(RunFolder.open(smoke))
    assert len(SMOKE.models) == 6
    for model in SMOKE.models:
        tightness = results.tightness(model)
        assert tightness.shape == (2,)
        assert (tightness > 1.0).all() and (tightness <= 100.0).all()


def test_training_lowers_the_error_below_that_of_a_constant() -> None:
    cell = train_and_measure(replace(SMOKE, epochs=100), Model("sandwich", 10.0), seed=0)
    assert cell["train_mse"] < 0.1  # the variance of the target is 0.25
    assert len(cell["prediction"]) == SMOKE.n_test


def test_a_gradient_factor_is_the_mean_ratio_of_successive_layers() -> None:
    deep, deeper = (gradient_factor(replace(SMOKE, init_depth=n), "balanced", 0)["factor"] for n in (3, 12))
    assert (
        0.3 < deep < 1.0 and 0.3 < deeper < 1.0
    )  # no layer amplifies; a per-layer figure, whatever the depth


def test_a_finished_run_is_not_repeated(smoke: Path) -> None:
    cells = {path: path.stat().st_mtime_ns for path in (smoke / "cells").iterdir()}
    toy_tightness.main(["--smoke", "--root", str(smoke.parent), "--workers", "1"])
    assert {path: path.stat().st_mtime_ns for path in (smoke / "cells").iterdir()} == cells


def test_the_grid_of_models() -> None:
    config = Config()
    assert config.layers == LAYERS and config.inits == tuple(INITS)
    assert len(config.models) == len(set(config.models)) == len(LAYERS) * len(config.gammas) + len(INITS) - 1
    for reference in (REFERENCE_TIGHTNESS, REFERENCE_MSE):
        assert set(reference) == set(LAYERS)
        assert all(set(columns) == set(config.gammas) for columns in reference.values())


def test_the_target_jumps_where_it_should() -> None:
    x = torch.tensor([-2.0, -1.0, -0.999, 0.0, 0.001, 1.0, 1.001, 2.0])
    assert target(x).tolist() == [1, 1, 0, 0, 1, 1, 0, 0]


def test_the_learning_rate_rises_falls_and_vanishes() -> None:
    rates = [learning_rate(Config(), p) for p in (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0)]
    assert np.allclose(rates, [0.0, 0.005, 0.01, 0.00525, 0.0005, 0.00025, 0.0])
