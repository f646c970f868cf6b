"""Attacks that first learn something of the policy they attack, from plain values, the policy and its plant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from robustnn.closedloop.adversary import LearnedAdversary
from robustnn.closedloop.adversary_train import AdversarySettings, train_adversary
from robustnn.closedloop.ball import Norm
from robustnn.closedloop.evaluate import first_weight
from robustnn.closedloop.mad import MaximalActionDifference
from robustnn.closedloop.perturb import Policy, UniformBall
from robustnn.closedloop.sarsa import RobustSarsaAttack
from robustnn.closedloop.snooping import imitate
from robustnn.closedloop.transitions import watch

if TYPE_CHECKING:
    from robustnn.envs.plant import Plant

__all__ = ["learned_adversary", "robust_sarsa", "snooping_mad"]


def robust_sarsa(
    eps: float,
    policy: Policy,
    plant: Plant,
    norm: Norm = "l2",
    scale: Sequence[float] | None = None,
    exploration: float | None = None,
    episodes: int = 32,
    trials: int = 16,
    iterations: int = 600,
    seed: int = 0,
) -> RobustSarsaAttack:
    """Learn a critic of the policy by robust Sarsa, and attack with it.

    Args:
        eps: Radius, in observation units over those of the scale.
        policy: The policy, or a stack of S.
        plant: The plant.
        norm: "l2" or "linf".
        scale: d, one positive number per observation component; None for ones.
        exploration: As in `RobustSarsaAttack.learn`; None for a quarter of the largest range of an action.
        episodes: Episodes to watch.
        trials: Episodes per setting to judge the damage.
        iterations: Steps of learning.
        seed: Of weights, batches, and episodes.

    Returns:
        The attack, for this policy only.
    """
    if exploration is None:
        space: Any = plant.action_space
        exploration = 0.25 * float(np.max(space.high - space.low))
    dtype, device, policies = _kind(policy)
    return RobustSarsaAttack.learn(
        eps, policy, plant, norm=norm, scale=scale, policies=policies, exploration=exploration,
        episodes=episodes, trials=trials, iterations=iterations, seed=seed, dtype=dtype, device=device,
    )  # fmt: skip


def snooping_mad(
    eps: float,
    policy: Policy,
    plant: Plant,
    norm: Norm = "l2",
    scale: Sequence[float] | None = None,
    episodes: int = 32,
    iterations: int = 1000,
    seed: int = 0,
) -> MaximalActionDifference:
    """Imitate the policy from what it does under noise of the same size, and attack with the imitation's gradients.

    Args:
        eps: Radius, in observation units over those of the scale.
        policy: The policy, or a stack of S; its weights are not looked at.
        plant: The plant.
        norm: "l2" or "linf".
        scale: d, one positive number per observation component; None for ones.
        episodes: Episodes to watch.
        iterations: Steps of learning.
        seed: Of weights and batches.

    Returns:
        The attack.
    """
    dtype, device, policies = _kind(policy)
    probe = UniformBall(eps, norm, scale)  # shows the gains of sensors that always move together
    data = watch(policy, plant, episodes=episodes, policies=policies, probe=probe, dtype=dtype, device=device)
    copy = imitate(data, iterations=iterations, seed=seed).policy
    return MaximalActionDifference(eps, norm, scale, surrogate=copy)


def learned_adversary(
    eps: float,
    policy: Policy,
    env: Plant | str,
    norm: Norm = "l2",
    scale: Sequence[float] | None = None,
    timesteps: int = 600_000,
    seed: int = 0,
    file: str | None = None,
) -> LearnedAdversary:
    """Train an adversary against the policy by PPO, or read one.

    Args:
        eps: Radius, in observation units over those of the scale.
        policy: The policy.
        env: The plant, or a gymnasium id.
        norm: "l2" or "linf".
        scale: d, one positive number per observation component; None for ones.
        timesteps: Environment steps of training.
        seed: Of training.
        file: One that `LearnedAdversary.save` wrote, in the place of training; it keeps its norm and scale.

    Returns:
        The adversary.
    """
    if file is not None:
        return replace(LearnedAdversary.load(file), eps=eps)
    settings = AdversarySettings(timesteps=timesteps, seed=seed)
    return train_adversary(policy, env, eps, norm=norm, scale=scale, settings=settings)


def _kind(policy: Policy) -> tuple[torch.dtype, torch.device, int | None]:
    """Dtype and device of a policy, and the number of policies of a stack."""
    weight = first_weight(policy)
    if weight is None:
        return torch.get_default_dtype(), torch.device("cpu"), None
    stacked = weight.ndim == 3 and not isinstance(policy, nn.Module)
    return weight.dtype, weight.device, weight.shape[0] if stacked else None
