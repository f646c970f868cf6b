"""Train one policy of the robustness study: PPO, and what a method adds to it."""

from __future__ import annotations

import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from experiments.policy_files import save_agent
from experiments.robustness_study.config import Config, Method
from experiments.robustness_study.measure import plant_of, policy_path
from robustnn.closedloop import TorchVecEnv
from robustnn.policies import (
    FreezeWeights,
    LBDNActorCriticPolicy,
    ObservationScale,
    convert_policy,
    n_parameters,
)
from robustnn.training import (
    CAPS,
    ObservationAdversary,
    SARegulariser,
    SmoothnessPenalty,
    SpectralActorCriticPolicy,
    robust_fine_tune,
)


def train_cell(config: Config, folder: Path, method: Method, seed: int) -> dict[str, Any]:
    """Train one policy and store its weights and value network.

    Returns:
        JSON values: the wall time of PPO and of what follows it, in s.
    """
    start = time.perf_counter()
    agent = train_ppo(config, method, seed)
    seconds = {"ppo": round(time.perf_counter() - start, 2)}
    if method.network == "converted":
        agent = convert_policy(agent)
    if method.training == "game":
        start = time.perf_counter()
        robust_fine_tune(agent, plant_of(config), scale=config.attack_scale, seed=seed, **config.game)
        seconds["game"] = round(time.perf_counter() - start, 2)
    save_agent(policy_path(folder, method, seed), agent)
    return seconds


def train_ppo(config: Config, method: Method, seed: int) -> PPO:
    """Train an agent with PPO under what the method puts into the rollouts or the loss.

    Args:
        config: Settings.
        method: Which policy and training.
        seed: Seed of network, environment, adversary and PPO.

    Returns:
        The agent.
    """
    policy, policy_kwargs = _policy(config, method)
    env = _environment(config, method, seed)
    agent = PPO(policy, env, policy_kwargs=policy_kwargs, seed=seed, device="cpu", **config.ppo)
    adversary = env.venv if isinstance(env, VecNormalize) else env
    if isinstance(adversary, ObservationAdversary):
        adversary.attach(agent)
    callbacks: list[BaseCallback] = []
    if method.network in ("lbdn", "spectral"):
        callbacks.append(FreezeWeights())
    scale = config.attack_scale
    if method.training == "caps":
        callbacks.append(SmoothnessPenalty(CAPS(scale=scale, **config.caps), seed=seed))
    elif method.training == "sa":
        callbacks.append(SmoothnessPenalty(SARegulariser(scale=scale, **config.sa), seed=seed))
    agent.learn(round(method.steps * config.timesteps), callback=callbacks)
    return agent


def _environment(config: Config, method: Method, seed: int) -> VecEnv:
    plant = plant_of(config)
    costs = [field.name for field in fields(plant) if field.name.endswith("_cost")]
    scaled = replace(plant, **{name: config.reward_scale * getattr(plant, name) for name in costs})
    env: VecEnv = TorchVecEnv(scaled, config.num_envs, device="cpu")
    if method.training in ("noise", "mad", "plan"):
        kinds: dict[str, Any] = {"noise": "uniform", "mad": "mad", "plan": "plant"}
        settings = {} if method.training == "noise" else config.adversary
        env = ObservationAdversary(
            env,
            config.rollout_eps,
            kinds[method.training],
            scale=config.attack_scale,
            seed=seed,
            **settings,
        )
    return VecNormalize(env, norm_reward=False) if method.normalised else env


def _policy(config: Config, method: Method) -> tuple[Any, dict[str, Any]]:
    """Policy class and its arguments."""
    widths = list(config.hidden)
    plant = plant_of(config)
    if method.network == "matched":
        widths = matched_widths(plant.n_y, config.hidden, plant.n_u)
    kwargs: dict[str, Any] = {"net_arch": {"pi": widths, "vf": list(config.value_hidden)}}
    if method.network in ("lbdn", "spectral"):
        kwargs["lipschitz"] = method.lipschitz
        if not method.normalised:
            kwargs["observation_scale"] = config.observation_scale
        classes = {"lbdn": LBDNActorCriticPolicy, "spectral": SpectralActorCriticPolicy}
        return classes[method.network], kwargs
    if not method.normalised:
        kwargs["features_extractor_class"] = ObservationScale
        kwargs["features_extractor_kwargs"] = {"scale": config.observation_scale}
    return "MlpPolicy", kwargs


def matched_widths(n_in: int, widths: tuple[int, ...], n_out: int) -> list[int]:
    """Return equal widths of the MLP that has about as many parameters as the LBDN of the given widths."""
    target = n_parameters(n_in, widths, n_out)

    def distance(width: int) -> int:
        return abs(n_parameters(n_in, (width,) * len(widths), n_out, kind="mlp") - target)

    return [min(range(1, 4 * max(widths)), key=distance)] * len(widths)
