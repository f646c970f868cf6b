"""The comparison of algorithms end to end, at its smallest size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from experiments import algorithms
from experiments.algorithms_study.config import PILOT, SMOKE, Config, Model
from experiments.algorithms_study.report import COLUMNS, Results, difference_table
from experiments.algorithms_study.train import POLICIES, LearningCurve, first_returns, make_model, train
from robustnn.policies import ObservationScale
from robustnn.runs import RunFolder


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    algorithms.main(["--smoke", "--root", str(root), "--workers", "1"])
    return root / "algorithms_smoke"


def test_tables_can_be_rebuilt_from_the_run_folder(smoke: Path) -> None:
    tables = (smoke / "tables.md").read_text(encoding="utf-8")
    (smoke / "tables.md").unlink()
    algorithms.main(["--report", str(smoke)])
    assert (smoke / "tables.md").read_text(encoding="utf-8") == tables
    assert (smoke / "figures" / "learning_curves.png").stat().st_size > 10_000


def test_the_configuration_survives_the_run_folder(smoke: Path, tmp_path: Path) -> None:
    assert Config.of(RunFolder.open(smoke).config) == SMOKE
    for name, config in (("full", Config()), ("pilot", PILOT)):
        run = RunFolder.create(tmp_path, name, config, seeds=config.training_seeds)
        assert Config.of(run.config) == config
        assert len(list(algorithms.jobs(config))) == len({key for key, _, _ in algorithms.jobs(config)})


def test_every_task_has_all_its_results(smoke: Path) -> None:
    results = Results(RunFolder.open(smoke))
    for task in SMOKE.tasks:
        for model in task.models:
            assert results.curve(task, model).shape == (2, 2, 2)
            for which in COLUMNS:
                returns = results.returns(task, model, which)
                assert returns.shape == (2, 2 if which == "half" else 3)
                assert ((returns >= 8.0) if "CartPole" in task.env_id else (returns < 0.0)).all()
            for cell in results.cells(task, model):
                scale = min(task.observation_scale)
                assert cell["bound"] <= cell["bound_raw"] * (1 + 1e-6) <= cell["bound"] / scale * (1 + 2e-6)
                if model.lipschitz is not None:
                    assert cell["bound"] == pytest.approx(model.lipschitz, rel=1e-6)


def test_a_difference_is_that_of_the_interquartile_means(smoke: Path) -> None:
    results = Results(RunFolder.open(smoke))
    rows = difference_table(results).rows
    assert len(rows) == 4
    for row, task in zip(rows, SMOKE.tasks, strict=True):
        for cell, which in zip(row[2:], COLUMNS, strict=True):
            pooled = [np.sort(results.returns(task, model, which).ravel()) for model in task.models]
            cut = [returns.size // 4 for returns in pooled]
            mlp, lbdn = (r[n : r.size - n].mean() for r, n in zip(pooled, cut, strict=True))
            assert float(cell.split()[0]) == pytest.approx(lbdn - mlp, abs=0.051)
            high = float(cell.split(", ")[1].split("]")[0])
            assert cell.endswith("below") == (high < 0.0)


def test_the_second_half_of_a_learning_curve(smoke: Path) -> None:
    results = Results(RunFolder.open(smoke))
    task = SMOKE.tasks[3]
    half = results.returns(task, task.models[0], "half")
    np.testing.assert_array_equal(half, results.curve(task, task.models[0])[:, 1])


def test_a_finished_run_is_not_repeated(smoke: Path) -> None:
    cells = {path: path.stat().st_mtime_ns for path in (smoke / "cells").iterdir()}
    algorithms.main(["--smoke", "--root", str(smoke.parent), "--workers", "1"])
    assert {path: path.stat().st_mtime_ns for path in (smoke / "cells").iterdir()} == cells


def test_both_policies_have_the_same_settings_but_for_the_network() -> None:
    for task in Config().tasks:
        mlp, lbdn = (make_model(Config(), task, model, 0) for model in task.models)
        assert isinstance(lbdn.policy, POLICIES[task.algorithm])
        assert lbdn.policy.lipschitz == task.gammas[0]
        assert lbdn.policy.lbdn.hidden_features == (64, 64)
        for agent in (mlp, lbdn):
            scale = agent.policy.features_extractor_class
            assert scale is ObservationScale
            modules = [m for m in agent.policy.modules() if isinstance(m, ObservationScale)]
            assert all(m.scale.tolist() == pytest.approx(task.observation_scale) for m in modules)
        for name in ("batch_size", "gamma", "train_freq", "n_epochs", "learning_starts"):
            assert getattr(mlp, name, None) == getattr(lbdn, name, None)
        for remaining in (1.0, 0.25):
            assert mlp.lr_schedule(remaining) == lbdn.lr_schedule(remaining)
    assert mlp.lr_schedule(0.25) == 0.25e-3


def test_returns_are_those_of_sb3() -> None:
    task = SMOKE.tasks[0]
    agent = make_model(SMOKE, task, Model(5.0), 0)
    env = make_vec_env(task.env_id, 3)
    env.seed(11)
    expected, _ = evaluate_policy(agent, env, n_eval_episodes=3, return_episode_rewards=True)
    # Equal lengths, so that episodes end in the order of the environments.
    np.testing.assert_allclose(first_returns(agent, env, 11), expected, rtol=1e-6)


def test_the_best_policy_is_the_one_that_is_kept() -> None:
    task = replace(SMOKE.tasks[3], timesteps=2048, eval_every=256)
    agent = make_model(SMOKE, task, Model(None), 0)
    env = make_vec_env(task.env_id, 4)
    curve = LearningCurve(task.points, env)
    agent.learn(task.timesteps, callback=curve)
    totals = [sum(returns) for returns in curve.returns]
    assert len(totals) == 8 and totals[-1] < max(totals)
    agent.policy.load_state_dict(curve.best)
    assert sum(first_returns(agent, env, 10_000)) == max(totals)


def test_training_is_repeatable() -> None:
    task = SMOKE.tasks[2]
    runs = [train(SMOKE, task, task.models[1], 3) for _ in range(2)]
    for run in runs:
        run.pop("seconds")
    assert runs[0] == runs[1]
