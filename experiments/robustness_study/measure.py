"""Measure the policies of one method: returns under attacks, delays and faults, and constants."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.policy_files import load_critic, load_policy
from experiments.robustness_study.config import Config, Method
from robustnn import envs
from robustnn.bounds import lipsdp, lower_bound, product_bound
from robustnn.closedloop import (
    ControlProblem,
    Critic,
    CriticAttack,
    NoPerturbation,
    Perturbation,
    control_problem,
    evaluate,
    perturbation_from_config,
    rollout,
    start_states,
    static_controller,
)
from robustnn.closedloop.learned import learned_adversary
from robustnn.closedloop.linear import hinf_norm
from robustnn.closedloop.synthesis import close_loop
from robustnn.policies import ActionMap


def policy_path(folder: Path, method: Method, seed: int) -> Path:
    """Return the file of one trained policy in a run folder."""
    return folder / "policies" / f"{method.key}_seed={seed}.npz"


def plant_of(config: Config) -> Any:
    """Return the plant of a configuration."""
    return getattr(envs, config.plant)(**config.parameters)


def stacked(config: Config, folder: Path, method: Method) -> ActionMap:
    """Read the policies of all training seeds as one stack in float32."""
    maps = [load_policy(policy_path(folder, method, seed)) for seed in config.training_seeds]
    return ActionMap.stack(maps).to(dtype=torch.float32)


def returns_under(config: Config, folder: Path, method: Method, attack: str, eps: float) -> dict[str, Any]:
    """Evaluate all training seeds of a method under one attack.

    Returns:
        JSON values: returns (seeds x episodes).
    """
    policy = stacked(config, folder, method)
    files = [policy_path(folder, method, seed) for seed in config.training_seeds]
    plant = plant_of(config)
    parts: dict[str, Callable[[], Any]] = {
        "critic": lambda: Critic.stack([load_critic(file) for file in files]).to(dtype=torch.float32),
        "policy": lambda: policy,
        "plant": lambda: plant,
    }
    if (
        attack == CriticAttack.name
    ):  # the value one step ahead: that of the observation shown helps the policy
        parts["model"] = lambda: plant
    settings: dict[str, Any] = {"name": attack}
    if attack != NoPerturbation.name:
        settings |= {"eps": eps, "scale": config.attack_scale, **config.attack_settings.get(attack, {})}
    return _evaluated(config, policy, perturbation_from_config(settings, parts))


def returns_under_adversary(
    config: Config, folder: Path, method: Method, eps: float, seed: int
) -> dict[str, Any]:
    """Train an adversary against one policy by PPO, and evaluate it.

    Returns:
        JSON values: returns (1 x episodes).
    """
    plant = plant_of(config)
    policy = load_policy(policy_path(folder, method, seed)).to(dtype=torch.float32)
    adversary = learned_adversary(
        eps, policy, plant, scale=config.attack_scale, timesteps=config.learned_steps, seed=seed
    )
    return _evaluated(config, policy, adversary)


def returns_in_condition(config: Config, folder: Path, method: Method, name: str) -> dict[str, Any]:
    """Evaluate all training seeds of a method under one of the faults of the configuration, as `returns_under`."""
    return _evaluated(config, stacked(config, folder, method), perturbation_from_config(config.faults[name]))


def _evaluated(config: Config, policy: ActionMap, disturbance: Perturbation) -> dict[str, Any]:
    result = evaluate(policy, plant_of(config), disturbance, episodes=config.episodes, dtype=torch.float32)
    return {"returns": np.atleast_2d(np.round(result.returns, 2)).tolist()}


def facts(config: Config, folder: Path, method: Method) -> dict[str, Any]:
    """Certified and empirical Lipschitz constants, action per raw observation in the weighted norm of the attack.

    The certified one of a network without a bound of its own is the smaller of the product of spectral norms and
    LipSDP; the empirical one is found by gradient ascent from visited states. Both are without clipping.

    The gain of the loop is that of plant and policy, both linearised at the equilibrium; None for an unstable one.

    Returns:
        JSON values, one entry per training seed.
    """
    certified, empirical, gains = [], [], []
    plant = plant_of(config)
    scale = torch.tensor(config.attack_scale or (1.0,) * plant.n_y, dtype=torch.float64)
    for seed in config.training_seeds:
        policy = load_policy(policy_path(folder, method, seed)).to(dtype=torch.float64)
        state0 = start_states(plant, range(16), dtype=torch.float64)
        visited = rollout(plant, policy, state0).observations.reshape(-1, plant.n_y)[::8]
        unit, normalization = scale, policy.normalization
        if normalization is not None:  # the network's inputs are observations over their standard deviations
            unit, visited = scale / normalization.std, normalization(visited)
        network = policy.network
        empirical.append(lower_bound(network, visited, input_scale=unit).value)
        certified.append(
            min(product_bound(network, input_scale=unit), lipsdp(network, input_scale=unit).value)
        )
        if config.equilibrium is not None:
            gains.append(policy_gain(problem_of(config), policy))
    return {"certified": certified, "empirical": empirical, "loop_gain": gains}


def problem_of(config: Config, process: tuple[float, ...] | None = None) -> ControlProblem:
    """Return the linearised plant with the costs of its reward, and disturbances of the state, if any."""
    assert config.equilibrium is not None
    state, action = config.equilibrium
    return control_problem(plant_of(config), state, action, process=process)


def policy_gain(problem: ControlProblem, policy: ActionMap) -> float | None:
    """Return the gain from sensor error to cost of the loop with the linearised policy, None if it is unstable."""
    observation = torch.from_numpy(problem.observation)
    unclipped = replace(policy, low=None, high=None)
    gain = torch.func.jacrev(unclipped)(observation).numpy()
    loop = close_loop(problem, static_controller(problem, gain))
    stable = bool(np.abs(np.linalg.eigvals(loop[0])).max() < 1.0)
    return hinf_norm(*loop) if stable else None
