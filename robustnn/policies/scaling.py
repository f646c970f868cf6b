r"""The bound in the units of the task: from the raw observation to the action that the plant receives.

The deterministic predict path of a policy is a chain of maps. With diagonal scales it stays a weighted
Lipschitz bound, which is never worse than the plain one:

=====================================  ==========================================================
stage                                  effect on $\|\Delta\|$
=====================================  ==========================================================
`VecNormalize` (frozen statistics)     component i multiplied by $1/\sqrt{var_i + \epsilon}$; clipping <= 1
observation scale D                    component i multiplied by $1/d_i$
network                                at most gamma
clipping to [low, high]                at most 1
tanh and rescaling to [low, high]      component i multiplied by at most $(high_i - low_i)/2$
=====================================  ==========================================================
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import (
    VecEnv,
)
from torch import Tensor, nn

from robustnn.errors import (
    InvalidArgumentError,
    ShapeError,
    UnsupportedSpaceError,
    invalid,
)
from robustnn.nn.module import ExplicitModule
from robustnn.params.activations import resolve_activation
from robustnn.params.explicit import ExplicitMLP
from robustnn.policies.extractors import ObservationScale
from robustnn.policies.normalization import Normalization, normalization_of

__all__ = ["ActionMap", "Bound", "action_map"]


@dataclass(frozen=True)
class Bound:
    r"""A weighted l2 Lipschitz bound of the map from raw observation to deterministic action.

    $$\|D_a^{-1}(a - a')\|_2 \le \gamma \, \|D_o^{-1}(o - o')\|_2$$

    For discrete actions the map is the one to the logits.

    Attributes:
        lipschitz: gamma.
        observation_scale: Diagonal of D_o, one entry per raw observation component, in its unit.
        action_scale: Diagonal of D_a, one entry per action component, in its unit.
    """

    lipschitz: float
    observation_scale: tuple[float, ...]
    action_scale: tuple[float, ...]

    @property
    def plain(self) -> float:
        r"""Bound in unweighted norms: $\gamma \max(D_a) / \min(D_o)$."""
        return self.lipschitz * max(self.action_scale) / min(self.observation_scale)

    def action_change(self, observation_change: ArrayLike) -> NDArray[np.float64]:
        r"""Largest $\|D_a^{-1} \Delta a\|_2$ that a given observation error can cause.

        Args:
            observation_change: Observation errors, shape (..., n_obs), in raw units.

        Returns:
            Shape (...).

        Raises:
            ShapeError: If the last axis is not n_obs.
        """
        change = np.asarray(observation_change, dtype=np.float64)
        if change.ndim == 0 or change.shape[-1] != len(self.observation_scale):
            raise ShapeError(
                f"observation_change: expected shape (..., {len(self.observation_scale)}), got {change.shape}. "
                "Give one error per observation component."
            )
        return self.lipschitz * np.linalg.norm(change / np.asarray(self.observation_scale), axis=-1)


@dataclass(frozen=True, eq=False)
class ActionMap:
    """The whole deterministic predict path by value: a differentiable function from raw observation to action.

    Attributes:
        network: Explicit weights, raw (or normalised) observation -> mean action or logits.
        normalization: Applied to the raw observation first; None for none.
        low: Lower action limits, shape (n_act,); None for discrete actions (the map returns logits).
        high: Upper action limits, shape (n_act,).
        squash: Whether actions are tanh-squashed and rescaled to [low, high]; otherwise they are clipped.
        clip_leak: Slope that gradients see where an action is clipped. Zero is the truth; gradient attacks use
            a positive one, because a clipped action tells them no direction. Values are the same.

    Example:
        >>> policy_map = action_map(model.policy, vec_env)  # doctest: +SKIP
        >>> policy_map(torch.as_tensor(raw_observations))  # doctest: +SKIP
    """

    network: ExplicitMLP
    normalization: Normalization | None = None
    low: Tensor | None = None
    high: Tensor | None = None
    squash: bool = False
    clip_leak: float = 0.0

    def __call__(self, observation: Tensor) -> Tensor:
        """Return the deterministic actions (or the logits) of raw observations.

        Args:
            observation: Shape (..., n_obs), raw units; (S, E, n_obs) for a stack of S policies.

        Returns:
            Shape (..., n_act), in the units of the action space.
        """
        features = observation if self.normalization is None else self.normalization(observation)
        output = self.network(features)
        if self.low is None or self.high is None:
            return output
        if self.squash:
            return self.low + 0.5 * (self.high - self.low) * (output.tanh() + 1.0)
        action = torch.minimum(torch.maximum(output, self.low), self.high)
        if self.clip_leak:
            beyond = self.clip_leak * (output - action)
            action = action + (beyond - beyond.detach())
        return action

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> ActionMap:
        """Return a copy on another device or in another dtype."""

        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device=device, dtype=dtype)

        normalization = self.normalization
        if normalization is not None:
            normalization = Normalization(
                normalization.mean.to(device=device, dtype=dtype),
                normalization.std.to(device=device, dtype=dtype),
                normalization.clip,
            )
        network = self.network.to(device=device, dtype=dtype)
        return replace(
            self, network=network, normalization=normalization, low=move(self.low), high=move(self.high)
        )

    @staticmethod
    def stack(maps: Sequence[ActionMap]) -> ActionMap:
        """Stack policies of one architecture: the result maps (S, E, n_obs) to (S, E, n_act).

        Args:
            maps: At least one policy; equal shapes, squashing and action limits.

        Returns:
            The stack.

        Raises:
            InvalidArgumentError: If they differ in architecture, action limits or use of normalisation.
        """
        network = ExplicitMLP.stack([m.network for m in maps])
        first = maps[0]
        for k, other in enumerate(maps):
            same_limits = (first.low is None) == (other.low is None) and (
                first.low is None
                or (torch.equal(first.low, other.low) and torch.equal(first.high, other.high))  # type: ignore[arg-type]
            )
            if not same_limits or other.squash != first.squash:
                raise InvalidArgumentError(
                    f"maps: expected equal action limits and squashing, got a difference at index {k}. "
                    "Stack only policies of one task."
                )
        normalization = None
        if any(m.normalization is not None for m in maps):
            parts = [m.normalization for m in maps if m.normalization is not None]
            if len(parts) != len(maps) or any(p.clip != parts[0].clip for p in parts):
                raise InvalidArgumentError(
                    "maps: expected all or none to be normalised, with one clip, got a mixture. "
                    "Stack them separately."
                )
            normalization = Normalization(
                torch.stack([p.mean for p in parts]).unsqueeze(-2),
                torch.stack([p.std for p in parts]).unsqueeze(-2),
                parts[0].clip,
            )
        return replace(first, network=network, normalization=normalization)


def action_map(
    policy: ActorCriticPolicy, vec_env: VecEnv | None = None, *, dtype: torch.dtype = torch.float64
) -> ActionMap:
    """Return the deterministic predict path of an actor-critic policy by value.

    Works for `LBDNActorCriticPolicy` and for SB3's own `MlpPolicy` (PPO, A2C).

    Args:
        policy: The policy, with Box or Discrete actions and vector observations.
        vec_env: The vector environment whose `VecNormalize`, if any, feeds the policy.
        dtype: Dtype of the result; float64 evaluates the float32 weights without further rounding.

    Returns:
        Raw observation -> what `predict(..., deterministic=True)` returns (logits for Discrete actions), on
        the policy's device, without graph.

    Raises:
        InvalidArgumentError: If a part of the policy is not a plain feed-forward network.
        UnsupportedSpaceError: If the action space is neither Box nor Discrete.

    Example:
        >>> from stable_baselines3 import PPO
        >>> model = PPO("MlpPolicy", "Pendulum-v1", device="cpu")
        >>> action_map(model.policy)(torch.zeros(4, 3, dtype=torch.float64)).shape
        torch.Size([4, 1])
    """
    if not isinstance(policy, ActorCriticPolicy):
        raise invalid(
            "policy",
            "an ActorCriticPolicy (PPO, A2C)",
            type(policy).__name__,
            "Pass model.policy of PPO or A2C.",
        )
    with torch.no_grad():
        network = _actor_network(policy).to(dtype=dtype)
    n_obs = network.in_features
    device = network.weights[0].device
    extractor = policy.pi_features_extractor
    if isinstance(extractor, ObservationScale):
        scale = extractor.scale.to(device=device, dtype=dtype)
        network = replace(network, weights=(network.weights[0] / scale, *network.weights[1:]))
    elif type(extractor) is not FlattenExtractor:
        raise invalid(
            "policy.features_extractor",
            "FlattenExtractor or ObservationScale",
            type(extractor).__name__,
            "The gain of other extractors is unknown; move what they do into the environment.",
        )
    normalization = normalization_of(vec_env, n_obs)
    space = policy.action_space
    if isinstance(space, spaces.Discrete):
        result = ActionMap(network, normalization)
    elif isinstance(space, spaces.Box):
        low, high = (torch.as_tensor(limit.reshape(-1)) for limit in (space.low, space.high))
        result = ActionMap(network, normalization, low, high, bool(policy.squash_output))
    else:
        raise UnsupportedSpaceError(
            f"policy.action_space: expected Box or Discrete, got {space}. Choose one of these action spaces."
        )
    return result.to(device=device, dtype=dtype)


def _actor_network(policy: ActorCriticPolicy) -> ExplicitMLP:
    """Explicit weights of features -> mean action or logits."""
    trunk = list(policy.mlp_extractor.policy_net)
    head = policy.action_net
    if isinstance(head, ExplicitModule):
        if trunk:
            raise invalid(
                "policy.mlp_extractor",
                "an empty policy trunk",
                trunk,
                "The bounded network must be the whole actor.",
            )
        return head.explicit().detach()
    weights: list[Tensor] = []
    biases: list[Tensor | None] = []
    activations: set[str] = set()
    for module in (*trunk, head):
        if isinstance(module, nn.Linear):
            weights.append(module.weight.detach().clone())
            biases.append(None if module.bias is None else module.bias.detach().clone())
        else:
            activations.add(_plain_activation(module))
    if len(activations) > 1 or len(weights) != len(trunk) // 2 + 1:
        raise invalid(
            "policy", "alternating Linear and one kind of activation", [type(m).__name__ for m in (*trunk, head)],
            "Use SB3's MlpPolicy or LBDNActorCriticPolicy.",
        )  # fmt: skip
    return ExplicitMLP(tuple(weights), tuple(biases), activations.pop() if activations else "identity")


def _plain_activation(module: nn.Module) -> str:
    entry = resolve_activation(type(module))

    def settings(m: nn.Module) -> dict[str, object]:
        return {
            k: v for k, v in vars(m).items() if not k.startswith("_") and k not in ("training", "inplace")
        }

    if settings(module) != settings(entry.module()):
        raise invalid(
            "policy",
            f"{entry.name} with its default settings",
            repr(module),
            "Use the torch.nn class itself.",
        )
    return entry.name


def greedy_radius(network: ExplicitMLP, features: Tensor, lipschitz: float, eps: float) -> Tensor:
    r"""Radius within which the greedy choice cannot change, as evaluated in floating point.

    Two logits move apart by at most $\sqrt2\,\gamma r$ within a radius r, and a running error bound e limits
    what rounding adds to each of them anywhere in the ball, so the choice stands while
    $r < (\text{margin} - 2 e) / (\sqrt2\,\gamma)$.

    Args:
        network: The map from features to logits in float64: the weights that are evaluated with rounding `eps`.
        features: Shape (batch, n_in), float64.
        lipschitz: l2 bound gamma of the network.
        eps: Unit of rounding of the evaluation, for example 1.2e-7 for float32.

    Returns:
        Shape (batch,), float64, zero or greater, in the input norm of gamma.
    """
    top = network(features).topk(2, dim=-1).values
    margin = top[..., 0] - top[..., 1]
    rate = math.sqrt(2.0) * lipschitz
    # Largest magnitudes in the ball, and what rounding adds to them. Activations have |s(v)| <= |v| + 1.
    size = features.abs() + (margin / rate).unsqueeze(-1)
    error = 2.0 * eps * size
    for weight, bias in zip(network.weights, network.biases, strict=True):
        size = size @ weight.abs().mT + (0.0 if bias is None else bias.abs()) + 1.0
        error = error @ weight.abs().mT + (weight.shape[-1] + 8) * eps * size
    # SB3 compares probabilities: normalised logits and their exponentials.
    worst = error.amax(-1) + eps * (4.0 * size.amax(-1) + math.log(size.shape[-1]) + 8.0)
    return ((margin - 2.0 * worst) / rate).clamp_min(0.0)
