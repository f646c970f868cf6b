"""Measure trained policies: returns under perturbations, Lipschitz constants, trajectories."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.pendulum.config import Config, Model, perturbation
from experiments.pendulum.train import policy_path
from experiments.policy_files import load_policy
from robustnn.bounds import lipsdp, lower_bound, product_bound
from robustnn.closedloop import evaluate, rollout, start_states
from robustnn.envs import Pendulum
from robustnn.policies import ActionMap


def load_policies(config: Config, folder: Path, model: Model, steps: int) -> list[ActionMap]:
    """Read the policies of all training seeds."""
    return [load_policy(policy_path(folder, model, steps, seed)) for seed in config.training_seeds]


def returns_under(
    config: Config, folder: Path, model: Model, steps: int, attack: str, eps: float
) -> dict[str, Any]:
    """Evaluate all training seeds of a model under one perturbation.

    Returns:
        JSON values: returns (seeds x episodes), the perturbation, and for the strong attack the mean return of
        its windows against iterations (iterations x seeds).
    """
    maps = load_policies(config, folder, model, steps)
    stack = ActionMap.stack(maps).to(config.device, torch.float32)
    disturbance = perturbation(attack, eps)
    result = evaluate(
        stack, Pendulum(), disturbance,
        episodes=config.episodes, policies=len(maps), dtype=torch.float32, device=config.device,
    )  # fmt: skip
    cell: dict[str, Any] = {
        "returns": np.round(result.returns, 3).tolist(),
        "perturbation": result.perturbation,
    }
    if attack == "strong":
        cell["convergence"] = np.round(result.convergence[0].mean(), 3).tolist()
    return cell


def constants(config: Config, folder: Path, model: Model, steps: int) -> dict[str, Any]:
    """Certified and empirical Lipschitz constants, raw observation to action.

    Both are for the weighted l2 norm of the observation in which the bound is stated. The certified one of the
    MLP is the smaller of the product of spectral norms and the LipSDP bound. The empirical ones are gradient ascent
    from visited states, and the largest action change that the per-step attack found at each plain l2 size eps
    (no weight is below one, so eps times the certified constant bounds it).

    Returns:
        JSON values, one entry per training seed.
    """
    certified, empirical, changes = [], [], []
    scale = torch.tensor(config.observation_scale, dtype=torch.float64)
    plant = Pendulum()
    for policy in load_policies(config, folder, model, steps):
        state0 = start_states(plant, range(16), dtype=torch.float64)
        visited = rollout(plant, policy, state0).observations.reshape(-1, plant.n_y)[::8]
        empirical.append(lower_bound(policy, visited, input_scale=scale).value)
        certified.append(model.lipschitz or _certified(policy, scale))
        changes.append([_largest_change(plant, policy, eps) for eps in config.eps])
    return {"certified": certified, "empirical": empirical, "action_change": changes}


def _certified(policy: ActionMap, scale: torch.Tensor) -> float:
    """Return the best bound of a network without one of its own."""
    network = policy.network
    return min(product_bound(network, input_scale=scale), lipsdp(network, input_scale=scale).value)


def _largest_change(plant: Pendulum, policy: ActionMap, eps: float) -> float:
    state0 = start_states(plant, range(16), dtype=torch.float64)
    run = rollout(plant, policy, state0, perturbation=perturbation("mad", eps), seeds=range(16))
    return float((policy(run.perturbed) - policy(run.observations)).norm(dim=-1).max())


def phase_paths(
    config: Config, folder: Path, model: Model, steps: int, eps: float, episodes: int = 8
) -> dict[str, Any]:
    """State trajectories of the first training seed with and without the strong attack.

    Returns:
        Lists of shape (episodes, time, 2): nominal and attacked, rad and rad/s.
    """
    policy = load_policies(config, folder, model, steps)[0]
    plant = Pendulum()
    state0 = start_states(plant, range(episodes), dtype=torch.float64)
    paths = {}
    for name, attack in (("nominal", "none"), ("attacked", "strong")):
        run = rollout(plant, policy, state0, perturbation=perturbation(attack, eps), seeds=range(episodes))
        paths[name] = np.round(run.states.movedim(0, 1).numpy(), 4).tolist()
    return paths
