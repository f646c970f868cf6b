"""The robustness study end to end, at its smallest size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments import what_buys_robustness
from experiments.policy_files import load_critic, load_policy
from experiments.robustness_study import controllers
from experiments.robustness_study.config import ATTACKS, Config, Method
from experiments.robustness_study.further import blocks, blocks_of
from experiments.robustness_study.measure import plant_of, policy_gain, policy_path, problem_of
from experiments.robustness_study.report import verdict
from experiments.robustness_study.results import WORST, Results
from experiments.robustness_study.settings import FLOOR, PENDULUM, QUADROTOR, SECOND, SMOKE, SWING_UP
from experiments.robustness_study.train import matched_widths
from robustnn.closedloop import evaluate, loop_gain, perturbation_from_config, static_controller
from robustnn.params import ExplicitMLP
from robustnn.policies import ActionMap, n_parameters
from robustnn.report import Interval
from robustnn.runs import RunFolder


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    what_buys_robustness.main(["--smoke", "--root", str(root), "--workers", "0"])
    return root / "what_buys_robustness_smoke"


def test_tables_can_be_rebuilt_from_the_run_folder(smoke: Path) -> None:
    tables = (smoke / "tables.md").read_text(encoding="utf-8")
    (smoke / "tables.md").unlink()
    what_buys_robustness.main(["--report", str(smoke)])
    assert (smoke / "tables.md").read_text(encoding="utf-8") == tables
    for name in ("returns", "frontier", "gamma"):
        assert (smoke / "figures" / f"{name}.png").stat().st_size > 10_000


def test_the_worst_case_is_the_least_return_of_each_episode(smoke: Path) -> None:
    results = Results(RunFolder.open(smoke))
    method, eps = SMOKE.methods[SMOKE.recipe], SMOKE.eps[0]
    worst = results.returns(method, WORST, eps)
    assert worst.shape == (2, SMOKE.episodes)
    every = [results.returns(method, attack, eps) for attack in SMOKE.attacks_on(method)]
    assert set(SMOKE.attacks_on(method)) == set(ATTACKS)
    assert all((worst <= one).all() for one in every) and (worst == np.min(every, axis=0)).all()


def test_stored_policies_return_what_the_cells_say(smoke: Path) -> None:
    results = Results(RunFolder.open(smoke))
    for method in SMOKE.methods:
        path = policy_path(smoke, method, 1)
        policy = load_policy(path)
        again = evaluate(policy, plant_of(SMOKE), episodes=SMOKE.episodes).returns
        np.testing.assert_allclose(again, results.returns(method)[1], atol=0.02)
        assert (policy.normalization is not None) == method.normalised
        critic = load_critic(path)
        assert (critic.normalization is not None) == method.normalised


@pytest.mark.parametrize(
    "config",
    [PENDULUM, FLOOR, SECOND, SWING_UP, QUADROTOR, SMOKE],
    ids=["pendulum", "floor", "second", "swing-up", "quadrotor", "smoke"],
)
def test_configurations_are_complete(config: Config, tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "run", config, seeds=config.training_seeds)
    assert Config.of(run.config) == config
    assert len({method.key for method in config.methods}) == len(config.methods)
    assert len({method.label for method in config.methods}) == len(config.methods)
    assert config.recipe not in config.controls and Method() in config.methods
    for fault in config.faults.values():
        assert perturbation_from_config(fault).plant(plant_of(config)) is not None
    for title, tasks in what_buys_robustness.stages(run, config):
        assert title and len({key for key, *_ in tasks}) == len(tasks)


def test_blocks_of_further_plants_come_from_their_run_or_say_what_makes_it(
    smoke: Path, tmp_path: Path
) -> None:
    results = Results(RunFolder.open(smoke))
    made = blocks_of(results, "smoke")
    assert set(made) == {"smoke", "smoke-twins", "smoke-attacks", "smoke-facts"}
    assert all(SMOKE.methods[SMOKE.recipe].label in text for text in made.values())
    missing = blocks(tmp_path)
    assert "--swing-up" in missing["swing-up"] and "--quadrotor" in missing["quadrotor-facts"]


def test_matched_widths_have_the_capacity_of_the_lbdn() -> None:
    (width,) = set(matched_widths(3, (32, 32, 32), 1))
    target = n_parameters(3, (32, 32, 32), 1)
    sizes = [n_parameters(3, (w,) * 3, 1, kind="mlp") for w in (width - 1, width, width + 1)]
    assert abs(sizes[1] - target) == min(abs(size - target) for size in sizes)


def test_verdicts_need_intervals_that_do_not_overlap() -> None:
    def interval(low: float, high: float) -> Interval:
        return Interval(0.5 * (low + high), low, high)

    assert verdict(interval(2.0, 3.0), interval(0.0, 1.0)) == "(recipe above)"
    assert verdict(interval(0.0, 1.0), interval(2.0, 3.0)) == "(recipe below)"
    assert verdict(interval(0.0, 2.0), interval(1.0, 3.0)) == "(overlap)"


def test_linear_controllers_hold_the_pendulum_and_lqg_swings_it_up() -> None:
    config = replace(PENDULUM, episodes=4)
    for name in controllers.CONTROLLERS:
        assert np.mean(controllers.controller_near_upright(config, name, 0.0)["returns"]) > -0.2
    assert controllers.gains(config)["hinf"] < controllers.gains(config)["lqg"]
    swung = np.array(controllers.controller_swing_up(config, 0.0)["returns"])
    assert (swung > -400.0).all()


def test_the_gain_of_a_loop_is_that_of_the_linear_policy() -> None:
    problem = problem_of(PENDULUM)
    gain = np.array([[0.0, 10.0, 2.0]])
    weights = (torch.from_numpy(-gain),)
    limits = torch.ones(1, dtype=torch.float64)
    policy = ActionMap(ExplicitMLP(weights, (None,), "identity"), None, -limits, limits)
    expected = loop_gain(problem, static_controller(problem, -gain))
    assert policy_gain(problem, policy) == pytest.approx(expected, rel=1e-9)
    weak = replace(policy, network=ExplicitMLP((weights[0] / 10.0,), (None,), "identity"))
    assert policy_gain(problem, weak) is None
