"""The distribution around the deterministic action, where its bound follows from that of one network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import (
    DiagGaussianDistribution,
    SquashedDiagGaussianDistribution,
)
from torch import Tensor

__all__ = ["Noise", "noise_of"]


@dataclass(frozen=True, eq=False)
class Noise:
    """What a policy adds to its deterministic action.

    Attributes:
        kind: "gaussian" (independent components with constant standard deviations around the mean before clipping),
            "categorical" (probabilities from logits), or "" for anything else.
        std: Standard deviations of a Gaussian, shape (n_act,), in the units of the action space.
        reason: Why there is no bound, for the kind "".
    """

    kind: str
    std: Tensor | None = None
    reason: str = ""


def noise_of(policy: Any) -> Noise:
    """Return the distribution of a policy's action around the deterministic one.

    Args:
        policy: A policy or model.

    Returns:
        The distribution by value.
    """
    policy = getattr(policy, "policy", policy)
    if hasattr(policy, "mlp_extractor"):
        if not isinstance(policy.action_space, spaces.Box):
            return Noise("categorical")
        distribution = policy.action_dist
        constant = isinstance(distribution, DiagGaussianDistribution) and not isinstance(
            distribution, SquashedDiagGaussianDistribution
        )
        if constant and isinstance(policy.log_std, Tensor):
            return Noise("gaussian", policy.log_std.detach().to(torch.float64).exp())
        return Noise(
            "", reason="with gSDE the standard deviation depends on the observation by features of its own"
        )
    actor = getattr(policy, "actor", None)
    if actor is not None and hasattr(actor, "log_std"):
        return Noise(
            "", reason="its standard deviation is a free function of the observation, which no bound covers"
        )
    if actor is not None:
        return Noise("", reason="its policy is deterministic: see action_change")
    return Noise("", reason="it acts greedily: see certified_radius")
