"""Take one trained agent down the bounds."""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

from stable_baselines3 import PPO

from experiments.fine_tune_study.config import PLAYED, START, Config, lowered
from experiments.policy_files import save_agent, save_policy
from experiments.robustness_study.config import Method
from experiments.robustness_study.measure import plant_of, policy_path
from experiments.robustness_study.train import train_ppo
from robustnn.closedloop import TorchVecEnv, critic_of
from robustnn.policies import FreezeWeights, action_map, convert_policy
from robustnn.policies.finetune import NoisyReturn, fine_tune
from robustnn.training import robust_fine_tune


def train_chain(config: Config, folder: Path, seed: int) -> dict[str, Any]:
    """Train an MLP agent, make its policy an LBDN, and lower the bound level by level; store every policy.

    Returns:
        JSON values: the first bound, for every level the bound and the measure before and after, and wall times in s.
    """
    clock = time.perf_counter()
    agent = train_ppo(config.study, START, seed)
    seconds = {"ppo": _since(clock)}
    save_agent(policy_path(folder, START, seed), agent)
    agent.learning_rate = config.learning_rate
    bounded = convert_policy(agent)
    policy: Any = bounded.policy
    first = float(policy.lipschitz)
    clock = time.perf_counter()
    _play(config, folder, PLAYED, bounded, seed)
    seconds["game"] = _since(clock)
    clock = time.perf_counter()
    measure = NoisyReturn(
        TorchVecEnv(plant_of(config.study), 32, device="cpu"), config.measure_eps, seed=seed
    )
    trials = []
    for gamma in config.levels:
        course = fine_tune(
            bounded, config.level_steps, final_lipschitz=min(gamma, policy.lipschitz), measure=measure,
            fall=config.fall, eval_every=config.level_steps, keep_best=False, callback=FreezeWeights(),
        )  # fmt: skip
        trials.append([[trial.lipschitz, round(trial.measure, 2)] for trial in course.trials])
        save_agent(policy_path(folder, lowered(gamma), seed), bounded)
        if gamma in config.played:
            _play(config, folder, lowered(gamma, game=True), bounded, seed)
    seconds["levels"] = _since(clock)
    return {"first": first, "trials": trials, "seconds": seconds}


def _play(config: Config, folder: Path, method: Method, agent: PPO, seed: int) -> None:
    """Train a copy of the policy on by gradients through the plant, and store it."""
    policy = copy.deepcopy(agent.policy)
    robust_fine_tune(
        policy, plant_of(config.study), scale=config.study.attack_scale, seed=seed, **config.game
    )
    save_policy(policy_path(folder, method, seed), action_map(policy), critic_of(policy))


def _since(start: float) -> float:
    return round(time.perf_counter() - start, 2)
