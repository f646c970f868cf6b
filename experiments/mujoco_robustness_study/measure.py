"""Measure the policies of the MuJoCo task through the vector interface: returns under attacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.algorithms_study.config import Model
from experiments.mujoco_robustness_study.config import Config
from experiments.mujoco_robustness_study.train import check_mujoco, policy_path
from experiments.policy_files import load_critic, load_policy
from robustnn.closedloop import evaluate_env, perturbation_from_config


def returns_cell(
    config: Config, folder: Path, model: Model, seed: int, attack: str, eps: float
) -> dict[str, Any]:
    """Evaluate one policy under one attack.

    Returns:
        JSON values: returns and lengths per episode, and how the attack's objective developed with its iterations.
    """
    check_mujoco()
    path = policy_path(folder, model, seed)
    settings: dict[str, Any] = {"name": attack}
    if attack != "none":
        settings |= {"eps": eps, "norm": config.norm, "scale": config.scale}
    perturbation = perturbation_from_config(
        settings, {"critic": lambda: load_critic(path).to(dtype=torch.float32)}
    )
    result = evaluate_env(
        load_policy(path).to(dtype=torch.float32), config.env_id, perturbation, episodes=config.episodes,
        n_envs=config.episodes, steps=config.steps,
    )  # fmt: skip
    return {
        "returns": np.round(result.returns, 2).tolist(),
        "lengths": result.lengths.tolist(),
        "convergence": [np.round(one.mean(), 6).tolist() for one in result.convergence],
    }
