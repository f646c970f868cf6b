"""The robustness study on a MuJoCo task end to end, at its smallest size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from experiments import mujoco_robustness
from experiments.mujoco_robustness_study import train
from experiments.mujoco_robustness_study.config import FULL, SHORT, SMOKE, Config
from experiments.mujoco_robustness_study.report import WORST, Results, blocks
from experiments.mujoco_robustness_study.train import policy_path
from experiments.policy_files import load_critic, load_policy
from robustnn.closedloop import evaluate_env
from robustnn.errors import RobustNNError
from robustnn.runs import RunFolder


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mujoco")
    root = tmp_path_factory.mktemp("runs")
    mujoco_robustness.main(["--smoke", "--root", str(root), "--workers", "0"])
    return root / "mujoco_robustness_smoke"


def test_tables_can_be_rebuilt_from_the_run_folder(smoke: Path) -> None:
    tables = (smoke / "tables.md").read_text(encoding="utf-8")
    (smoke / "tables.md").unlink()
    mujoco_robustness.main(["--report", str(smoke)])
    assert (smoke / "tables.md").read_text(encoding="utf-8") == tables
    assert (smoke / "figures" / "mujoco.png").stat().st_size > 10_000


def test_stored_policies_return_what_the_cells_say(smoke: Path) -> None:
    results = Results(RunFolder.open(smoke))
    for model in SMOKE.models:
        path = policy_path(smoke, model, 1)
        policy = load_policy(path)
        # Rewards are normalised in training, observations are not.
        assert policy.normalization is None and load_critic(path).normalization is None
        again = evaluate_env(
            policy, SMOKE.env_id, episodes=SMOKE.episodes, n_envs=2, steps=SMOKE.steps
        ).returns
        np.testing.assert_allclose(again, results.returns(model)[1], atol=0.02)


def test_the_worst_case_is_the_least_return_of_each_episode(smoke: Path) -> None:
    results = Results(RunFolder.open(smoke))
    model, eps = SMOKE.models[0], SMOKE.eps[-1]
    every = np.array([results.returns(model, attack, eps) for attack in SMOKE.attacks])
    worst = results.returns(model, WORST, eps)
    assert worst.shape == (len(SMOKE.training_seeds), SMOKE.episodes)
    assert (worst == every.min(0)).all() and np.ptp(every, axis=0).max() > 0.0


def test_certified_changes_stand_above_what_is_found(smoke: Path) -> None:
    results = Results(RunFolder.open(smoke))
    root = np.sqrt(len(SMOKE.scale))
    for model in SMOKE.models:
        certified, found = (results.trained(model, name) for name in ("certified", "found"))
        assert certified.shape == found.shape == (2, len(SMOKE.eps), SMOKE.states)
        assert (found <= certified).all() and (found[:, -1] > 0.0).all()
        bound = results.trained(model, "bound")
        if model.lipschitz is not None:
            # Scales and weights are rounded to float32, always to the safe side.
            assert (bound <= model.lipschitz).all()
            assert (bound >= model.lipschitz * (1.0 - 4.0 * np.finfo(np.float32).eps)).all()
            most = model.lipschitz * root * np.array(SMOKE.eps)
            # Rounding of the actions by float32 comes on top, as `action_change` says.
            assert (certified <= most[:, None] * (1.0 + 1e-12) + 1e3 * np.finfo(np.float32).eps).all()


def test_without_the_simulator_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "find_spec", lambda name: None)
    with pytest.raises(RobustNNError, match=r"mujoco.*robustnn\[rl\]"):
        mujoco_robustness.main(["--smoke", "--root", str(tmp_path), "--workers", "0"])


@pytest.mark.parametrize("config", [FULL, SHORT, SMOKE], ids=["full", "short", "smoke"])
def test_configurations_are_complete(config: Config, tmp_path: Path) -> None:
    pytest.importorskip("mujoco")
    run = RunFolder.create(tmp_path, "run", config, seeds=config.training_seeds)
    assert Config.of(run.config) == config
    for title, tasks in mujoco_robustness.stages(run, config):
        assert title and len({key for key, *_ in tasks}) == len(tasks)


def test_blocks_say_where_results_are_missing(tmp_path: Path) -> None:
    assert all("python -m experiments.mujoco_robustness" in text for text in blocks(tmp_path).values())
