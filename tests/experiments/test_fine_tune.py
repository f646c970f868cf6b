"""The study of fine-tuning end to end, at its smallest size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from experiments import fine_tune
from experiments.fine_tune_study.config import FULL, PLAYED, SMOKE, START, Config, lowered
from experiments.fine_tune_study.report import blocks
from experiments.fine_tune_study.results import Results, Trade
from experiments.policy_files import load_policy
from experiments.robustness_study.measure import plant_of, policy_path
from experiments.robustness_study.results import WORST
from robustnn.bounds import lipsdp
from robustnn.closedloop import evaluate
from robustnn.report import Interval
from robustnn.runs import RunFolder


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    fine_tune.main(["--smoke", "--root", str(root), "--workers", "0"])
    return root / "fine_tune_smoke"


def test_tables_can_be_rebuilt_from_the_run_folder(smoke: Path) -> None:
    tables = (smoke / "tables.md").read_text(encoding="utf-8")
    (smoke / "tables.md").unlink()
    fine_tune.main(["--report", str(smoke)])
    assert (smoke / "tables.md").read_text(encoding="utf-8") == tables
    assert (smoke / "figures" / "frontier.png").stat().st_size > 10_000


def test_every_policy_keeps_the_bound_of_its_level(smoke: Path) -> None:
    scale = torch.tensor(SMOKE.study.observation_scale, dtype=torch.float64)
    for seed, chain in zip(SMOKE.training_seeds, Results(RunFolder.open(smoke)).chains(), strict=True):
        ends = [trials[-1][0] for trials in chain["trials"]]
        assert chain["first"] > SMOKE.levels[0] and ends == list(SMOKE.levels)
        for method in (PLAYED, lowered(SMOKE.levels[-1]), lowered(SMOKE.played[0], game=True)):
            network = load_policy(policy_path(smoke, method, seed)).network
            declared = method.lipschitz or chain["first"]
            # The proof that the construction carries is among those that LipSDP looks through.
            assert lipsdp(network, input_scale=scale).value <= declared * (1.0 + 1e-12)


def test_stored_policies_return_what_the_cells_say(smoke: Path) -> None:
    results = Results(RunFolder.open(smoke))
    for method in (START, PLAYED, SMOKE.longer, lowered(SMOKE.levels[-1])):
        policy = load_policy(policy_path(smoke, method, 1)).to(dtype=torch.float32)
        again = evaluate(policy, plant_of(SMOKE.study), episodes=SMOKE.study.episodes).returns
        np.testing.assert_allclose(again, results.returns(method)[1], atol=0.02)


def test_a_trade_is_the_difference_to_the_agent_it_came_from(smoke: Path) -> None:
    results = Results(RunFolder.open(smoke))
    method, eps = lowered(SMOKE.levels[-1]), SMOKE.study.eps[0]
    trade = results.trade(method, eps)
    lost = results.returns(START).mean() - results.returns(method).mean()
    bought = results.returns(method, WORST, eps).mean() - results.returns(START, WORST, eps).mean()
    # Sums of a few hundred float64 numbers in another order.
    size = float(np.abs(results.returns(START)).max())
    np.testing.assert_allclose(
        [trade.lost.estimate, trade.bought.estimate], [lost, bought], atol=1e-13 * size
    )


def test_a_rate_needs_a_loss() -> None:
    bought = Interval(20.0, 10.0, 30.0)
    assert Trade(Interval(4.0, 1.0, 6.0), bought).rate == 5.0
    assert Trade(Interval(4.0, -1.0, 6.0), bought).rate is None


@pytest.mark.parametrize("config", [FULL, SMOKE], ids=["full", "smoke"])
def test_configurations_are_complete(config: Config, tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "run", config, seeds=config.training_seeds)
    assert Config.of(run.config) == config
    assert list(config.levels) == sorted(config.levels, reverse=True)
    assert set(config.played) <= set(config.levels)
    methods = config.study.methods
    assert len({method.key for method in methods}) == len(methods) and methods[0] == START
    extra = len(config.levels) * config.level_steps
    assert config.longer.steps * config.study.timesteps == pytest.approx(
        config.study.timesteps + extra, abs=1.0
    )
    for title, tasks in fine_tune.stages(run, config):
        assert title and len({key for key, *_ in tasks}) == len(tasks)


def test_blocks_say_where_results_are_missing(tmp_path: Path) -> None:
    assert all("python -m experiments.fine_tune" in text for text in blocks(tmp_path).values())
