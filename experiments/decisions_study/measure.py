"""Train one DQN agent, and measure which of its decisions are certified and which ones an attack changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from experiments.algorithms_study.config import Config as AlgorithmsConfig
from experiments.algorithms_study.config import Model
from experiments.algorithms_study.train import train_agent
from experiments.decisions_study.config import Config
from robustnn.certify import (
    PolicyCertificate,
    attack_decision,
    certification_rate,
    certified_radius,
    certify_policy,
)

# Start states of the rollouts: far from the seeds of training.
_ROLLOUT_SEED = 30_000
# Gradient steps and random starts of the attack inside a rollout, which is made at every step.
_QUICK = {"iterations": 3, "restarts": 0}


def train_and_measure(config: Config, model: Model, seed: int) -> dict[str, Any]:
    """Train a policy, take its best weights, and measure its decisions.

    Args:
        config: Settings.
        model: Which policy.
        seed: Seed of training.

    Returns:
        JSON values. Over all visited states: the share that is certified at every size (`rate`). Over a sample of
        them: the shares certified globally and locally, the share whose decision the attack did not change, and the
        number of certified decisions that it did change (none, or a certificate is wrong). Returns of the episodes,
        without error first, then under the attack at every size. Median certified radius.
    """
    agent, curve, _ = train_agent(AlgorithmsConfig(), config.task, model, seed)
    agent.policy.load_state_dict(curve.best)
    env = make_vec_env(config.task.env_id, config.episodes)
    scale = config.task.observation_scale
    visited = certification_rate(
        agent, env, config.eps, episodes=config.episodes, seed=_ROLLOUT_SEED, scale=scale
    )
    certificate = certify_policy(agent, env, scale=scale)
    nominal, states = attacked_episodes(agent, env, certificate, 0.0)
    chosen = np.random.default_rng(seed).choice(len(states), min(config.attacked, len(states)), replace=False)
    points = torch.from_numpy(states[np.sort(chosen)])
    radii = {
        name: certified_radius(certificate, points, local=name == "local") for name in ("global", "local")
    }
    changed = [attack_decision(agent, certificate, points, eps, seed=seed).changed for eps in config.eps]
    returns = [nominal, *(attacked_episodes(agent, env, certificate, eps)[0] for eps in config.eps)]
    return {
        "rate": visited.rate.tolist(),
        "certified": {name: [_share(radius >= eps) for eps in config.eps] for name, radius in radii.items()},
        "unchanged": [_share(~one) for one in changed],
        "contradictions": sum(
            int((one & (radii["local"] >= eps)).sum()) for one, eps in zip(changed, config.eps, strict=True)
        ),
        "radius": float(np.median(visited.radius)),
        "returns": [one.tolist() for one in returns],
    }


def attacked_episodes(
    agent: BaseAlgorithm, env: VecEnv, certificate: PolicyCertificate, eps: float
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Roll the greedy policy out while every decision is attacked with errors of one size.

    Args:
        agent: The agent.
        env: One episode in every environment.
        certificate: Of the agent.
        eps: Size of the error in the norm and scale of the certificate; zero for no attack.

    Returns:
        Returns of the episodes, and the true observations that they visited, (n, n_obs).
    """
    env.seed(_ROLLOUT_SEED)
    observation = np.asarray(env.reset())
    returns, running = np.zeros(env.num_envs), np.ones(env.num_envs, dtype=np.bool_)
    visited = []
    while running.any():
        visited.append(observation[running])
        seen = observation.astype(np.float64)
        if eps > 0.0:
            points = torch.from_numpy(seen[running])
            seen[running] = attack_decision(agent, certificate, points, eps, **_QUICK).observation.numpy()
        action, _ = agent.predict(seen.astype(np.float32), deterministic=True)
        following, reward, done, _ = env.step(action)
        observation = np.asarray(following)
        returns += np.where(running, reward, 0.0)
        running &= ~done
    return returns, np.concatenate(visited)


def _share(flags: Tensor) -> float:
    return float(flags.double().mean())
