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
from robustnn.closedloop.evaluate import EvaluationResult, evaluate, first_weight
from robustnn.closedloop.gym_loop import evaluate_env
from robustnn.closedloop.mad import MaximalActionDifference
from robustnn.closedloop.perturb import Policy, UniformBall
from robustnn.closedloop.sarsa import RobustSarsaAttack
from robustnn.closedloop.snooping import imitate
from robustnn.closedloop.transitions import LEARNING_SEEDS, watch
from robustnn.errors import check_positive, invalid

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
    timesteps: int = 400_000,
    sizes: Sequence[float] = (1.0, 3.0),
    trials: int = 64,
    seed: int = 0,
    file: str | None = None,
) -> LearnedAdversary:
    """Train adversaries against the policy by PPO and keep the one that does most damage, or read one.

    Small errors change the return by less than the start states do, so that an adversary often learns more from errors
    larger than those it will make.

    Args:
        eps: Radius, in observation units over those of the scale.
        policy: The policy.
        env: The plant, or a gymnasium id.
        norm: "l2" or "linf".
        scale: d, one positive number per observation component; None for ones.
        timesteps: Environment steps of every training.
        sizes: One adversary is trained for each of these multiples of `eps`; all are judged at `eps` itself.
        trials: Episodes to judge the damage, of other seeds than small ones; with one size none are run.
        seed: Of training and of these episodes.
        file: One that `LearnedAdversary.save` wrote, in the place of training; it keeps its norm and scale.

    Returns:
        The adversary, with the environment steps of all trainings and trials.

    Raises:
        InvalidArgumentError: If there are no sizes, or one is not positive.
    """
    if file is not None:
        return replace(LearnedAdversary.load(file), eps=eps)
    if not len(sizes):
        raise invalid("sizes", "at least one multiple of eps", "none", "Pass (1.0,) to train at eps alone.")
    settings = AdversarySettings(timesteps=timesteps, seed=seed)
    radii = [check_positive("sizes", size) * eps for size in sizes]
    found = [
        replace(train_adversary(policy, env, radius, norm=norm, scale=scale, settings=settings), eps=eps)
        for radius in radii
    ]
    if len(found) == 1:
        return found[0]
    first = LEARNING_SEEDS * (seed + 1)
    damage = [_judged(policy, env, adversary, range(first, first + trials)) for adversary in found]
    best = min(range(len(found)), key=lambda k: damage[k].mean.item())
    steps = sum(one.timesteps for one in found) + sum(int(one.lengths.sum()) for one in damage)
    return replace(found[best], timesteps=steps)


def _judged(policy: Policy, env: Plant | str, adversary: LearnedAdversary, seeds: range) -> EvaluationResult:
    if isinstance(env, str):
        return evaluate_env(policy, env, adversary, seeds=seeds)
    dtype, device, _ = _kind(policy)
    return evaluate(policy, env, adversary, seeds=seeds, dtype=dtype, device=device)


def _kind(policy: Policy) -> tuple[torch.dtype, torch.device, int | None]:
    """Dtype and device of a policy, and the number of policies of a stack."""
    weight = first_weight(policy)
    if weight is None:
        return torch.get_default_dtype(), torch.device("cpu"), None
    stacked = weight.ndim == 3 and not isinstance(policy, nn.Module)
    return weight.dtype, weight.device, weight.shape[0] if stacked else None
