"""The pendulum policy published with arXiv 2405.11432 in our plant: nominal, delayed and attacked returns.

The reference figures are those of the golden README (8,192 random starts; tolerance 10 at 1,024) and, for the
attack, the mean over the ten published gamma = 4 policies: -652 at eps 0.15.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from experiments import published_policy
from experiments.policy_files import load_published_policy
from robustnn.closedloop import Delay, TrajectoryAttack, evaluate
from robustnn.envs import Pendulum
from robustnn.errors import InvalidArgumentError
from robustnn.policies import ActionMap
from robustnn.runs import RunFolder

FILE = "published_pendulum_lbdn_g4_s6.npz"


@pytest.fixture(scope="module")
def published(golden: Path) -> ActionMap:
    return load_published_policy(golden / FILE)


def test_actions_match_the_probes(published: ActionMap, golden: Path) -> None:
    with np.load(golden / FILE, allow_pickle=False) as data:
        observation, action = (torch.as_tensor(data[key]).double() for key in ("probe_obs", "probe_action"))
    torch.testing.assert_close(published(observation), action, rtol=0, atol=1e-6)


@pytest.mark.parametrize("delay, expected", [(0, -155.7), (2, -167.3), (3, -218.6), (4, -604.4)])
def test_nominal_and_delayed_returns(published: ActionMap, delay: int, expected: float) -> None:
    result = evaluate(published, Pendulum(), Delay(delay) if delay else None, episodes=1024)
    assert float(result.mean) == pytest.approx(expected, abs=10)


def test_the_strong_attack_does_at_least_the_damage_published_for_the_family(
    published: ActionMap,
) -> None:
    policy = published.to(dtype=torch.float32)
    attack = TrajectoryAttack.strong(0.15)
    assert float(evaluate(policy, Pendulum(), attack, episodes=256).mean) <= -652


def test_the_experiment_runs_and_its_tables_are_rebuilt(
    golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROBUSTNN_DATA", str(golden))
    published_policy.main(["--smoke", "--root", str(tmp_path), "--workers", "0"])
    run = tmp_path / "published_policy_smoke"
    tables = (run / "tables.md").read_text(encoding="utf-8")
    (run / "tables.md").unlink()
    published_policy.main(["--report", str(run)])
    assert (run / "tables.md").read_text(encoding="utf-8") == tables
    assert published_policy.LABEL in tables and (run / "figures" / "returns.png").stat().st_size > 10_000
    cells = published_policy.Conditions(RunFolder.open(run))
    constants = cells.run.cell("constants")
    assert 0.5 * constants["certified"] < constants["empirical"] <= constants["certified"]
    worst = cells.attacked(published_policy.LABEL, "worst", 0.3)
    assert worst.mean() < cells.attacked(published_policy.LABEL, "none", 0.0).mean()


def test_a_missing_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBUSTNN_DATA", str(tmp_path))
    with pytest.raises(InvalidArgumentError, match=f"ROBUSTNN_DATA: expected a folder with {FILE}"):
        published_policy.policy_of(published_policy.Config())
