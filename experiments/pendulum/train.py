"""Train one policy of the comparison with PPO, and keep its action map."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

from experiments.pendulum.config import Config, Model
from robustnn.closedloop import TorchVecEnv
from robustnn.envs import Pendulum
from robustnn.policies import (
    ActionMap,
    FreezeWeights,
    LBDNActorCriticPolicy,
    ObservationScale,
    action_map,
)


class KeepActionMaps(BaseCallback):
    """Keep the policy, by value, once each of some numbers of environment steps has been trained on."""

    def __init__(self, timesteps: tuple[int, ...]) -> None:
        super().__init__()
        self.pending = sorted(timesteps)
        self.maps: dict[int, ActionMap] = {}

    def _keep(self) -> None:
        while self.pending and self.num_timesteps >= self.pending[0]:
            self.maps[self.pending.pop(0)] = action_map(self.model.policy)

    def _on_rollout_start(self) -> None:
        self._keep()

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        self._keep()


def train(config: Config, model: Model, seed: int) -> tuple[dict[int, ActionMap], float]:
    """Train a policy.

    Args:
        config: Settings.
        model: Which policy class.
        seed: Seed of network, environment and PPO.

    Returns:
        The action map after each of `config.timesteps`, and the wall time in s.
    """
    plant = Pendulum()
    scaled = replace(
        plant,
        angle_cost=config.reward_scale * plant.angle_cost,
        speed_cost=config.reward_scale * plant.speed_cost,
        torque_cost=config.reward_scale * plant.torque_cost,
    )
    policy_kwargs: dict[str, Any] = {"net_arch": {"pi": list(config.hidden), "vf": list(config.value_hidden)}}
    keep = KeepActionMaps(config.timesteps)
    callbacks: list[BaseCallback] = [keep]
    policy: Any = "MlpPolicy"
    if model.lipschitz is None:
        policy_kwargs["features_extractor_class"] = ObservationScale
        policy_kwargs["features_extractor_kwargs"] = {"scale": config.observation_scale}
    else:
        policy = LBDNActorCriticPolicy
        policy_kwargs |= {"lipschitz": model.lipschitz, "observation_scale": config.observation_scale}
        callbacks.append(FreezeWeights())
    agent = PPO(
        policy,
        TorchVecEnv(scaled, config.num_envs, device=config.device),
        n_steps=config.n_steps,
        batch_size=config.batch_size,
        n_epochs=config.n_epochs,
        learning_rate=config.learning_rate,
        gamma=config.discount,
        clip_range=config.clip_range,
        ent_coef=config.ent_coef,
        target_kl=config.target_kl,
        policy_kwargs=policy_kwargs,
        seed=seed,
        device=config.device,
    )
    start = time.perf_counter()
    agent.learn(max(config.timesteps), callback=callbacks)
    return keep.maps, time.perf_counter() - start


def policy_path(folder: Path, model: Model, steps: int, seed: int) -> Path:
    """Return the file of one trained policy in a run folder."""
    return folder / "policies" / f"{model.key}_steps={steps}_seed={seed}.npz"
