"""Train one LBDN policy with PPO, on the true plant or on a learned model of it."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from stable_baselines3 import PPO

from experiments.model_based_study.config import Config, Source
from experiments.model_based_study.models import load_model, model_path
from experiments.policy_files import save_policy
from robustnn.bounds import lipsdp
from robustnn.closedloop import TorchVecEnv
from robustnn.envs import Pendulum
from robustnn.policies import FreezeWeights, LBDNActorCriticPolicy, action_map, policy_bound


def train_cell(config: Config, folder: Path, source: Source, seed: int) -> dict[str, Any]:
    """Train a policy and store it by value.

    Returns:
        JSON values: its proved constant, action per scaled observation, the smaller one of its declared bound and
        LipSDP; seconds of training.
    """
    start = time.perf_counter()
    plant = Pendulum()
    costs = {
        name: config.reward_scale * getattr(plant, name)
        for name in ("angle_cost", "speed_cost", "torque_cost")
    }
    scaled = replace(plant, **costs)
    where: Any = scaled if source.kind == "plant" else load_model(model_path(folder, source, seed), scaled)
    agent = PPO(
        LBDNActorCriticPolicy,
        TorchVecEnv(where, config.num_envs, device="cpu"),
        policy_kwargs={
            "net_arch": {"pi": list(config.policy_hidden), "vf": list(config.value_hidden)},
            "lipschitz": config.policy_lipschitz,
            "observation_scale": config.observation_scale,
        },
        seed=seed,
        device="cpu",
        **config.ppo,
    )
    agent.learn(config.timesteps, callback=FreezeWeights())
    seconds = round(time.perf_counter() - start, 2)
    policy = action_map(agent)
    save_policy(policy_path(folder, source, seed), policy)
    declared = policy_bound(agent)
    assert declared.observation_scale == config.observation_scale and declared.action_scale == (1.0,)
    found = lipsdp(policy.network, input_scale=config.observation_scale).value
    return {"constant": min(declared.lipschitz, found), "seconds": seconds}


def policy_path(folder: Path, source: Source, seed: int) -> Path:
    """Return the file of one policy in a run folder."""
    return folder / "policies" / f"{source.key}_seed={seed}.npz"
