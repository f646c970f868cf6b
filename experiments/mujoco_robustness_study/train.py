"""Train one policy on the MuJoCo task, and bound how far errors of its sensors move its action."""

from __future__ import annotations

import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from experiments.algorithms_study.config import Model
from experiments.mujoco_robustness_study.config import Config
from experiments.policy_files import save_agent
from robustnn.certify import action_change_curve, certify_policy, visited_observations
from robustnn.errors import RobustNNError
from robustnn.policies import FreezeWeights, LBDNActorCriticPolicy, ObservationScale

# Of the environments whose states are visited: far from those of training and evaluation.
_VISITED_SEED = 50_000
# Visited states lie this many steps apart.
_APART = 25


def check_mujoco() -> None:
    """Raise unless the simulator is installed."""
    if find_spec("mujoco") is None:
        raise RobustNNError(
            "mujoco: expected it to be installed, got no such module. Run: pip install 'robustnn[rl]'."
        )


def policy_path(folder: Path, model: Model, seed: int) -> Path:
    """Return the file of one trained policy in a run folder."""
    return folder / "policies" / f"{model.key}_seed={seed}.npz"


def train_cell(config: Config, folder: Path, model: Model, seed: int) -> dict[str, Any]:
    """Train one policy and store it with its value network.

    Returns:
        JSON values: wall time of PPO in s; the bound of the action per scaled observation, l2; and per size of the
        errors (eps x states) the certified change of the action and the largest one found, l2, in its unit.
    """
    check_mujoco()
    start = time.perf_counter()
    agent = train_ppo(config, model, seed)
    seconds = round(time.perf_counter() - start, 2)
    save_agent(policy_path(folder, model, seed), agent)
    return {"seconds": seconds, **sensitivity(config, agent)}


def train_ppo(config: Config, model: Model, seed: int) -> PPO:
    """Return an agent with fixed scales of the observation; rewards are normalised, observations are not.

    Args:
        config: Settings.
        model: Which policy.
        seed: Seed of network, environment and PPO.
    """
    copies = make_vec_env(config.env_id, config.num_envs, seed=seed)
    env = VecNormalize(copies, norm_obs=False, gamma=config.ppo["gamma"])
    kwargs: dict[str, Any] = {"net_arch": list(config.hidden), "log_std_init": config.log_std}
    if model.lipschitz is None:
        policy: Any = "MlpPolicy"
        kwargs["features_extractor_class"] = ObservationScale
        kwargs["features_extractor_kwargs"] = {"scale": config.scale}
    else:
        policy = LBDNActorCriticPolicy
        kwargs |= {"lipschitz": model.lipschitz, "observation_scale": config.scale}
    agent = PPO(policy, env, policy_kwargs=kwargs, seed=seed, device="cpu", **config.ppo)
    agent.learn(config.timesteps, callback=None if model.lipschitz is None else FreezeWeights())
    return agent


def sensitivity(config: Config, agent: PPO) -> dict[str, Any]:
    """Return the bound of a policy, and certified and found changes of its action at visited states.

    Args:
        config: Settings.
        agent: The agent.
    """
    env = make_vec_env(config.env_id, config.state_envs, seed=_VISITED_SEED)
    steps = -(-config.states // config.state_envs) * _APART
    visited = visited_observations(agent, env, steps, seed=_VISITED_SEED)
    apart = visited.reshape(steps, config.state_envs, -1)[::_APART].reshape(-1, visited.shape[-1])
    env.close()
    certificate = certify_policy(agent, norm=config.norm, scale=config.scale)
    curve = action_change_curve(agent, certificate, apart[: config.states], config.eps)
    bound = certificate.path.bound
    scale = torch.tensor(config.scale, dtype=torch.float64)
    # The bound belongs to its own scales, which are those of the configuration up to the rounding of float32.
    ratio = (scale / torch.tensor(bound.observation_scale, dtype=torch.float64)).max()
    return {
        "bound": float(bound.lipschitz * ratio),
        "certified": curve.certified.tolist(),
        "found": curve.found.tolist(),
    }
