"""The whole deterministic predict path of a policy, by value."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from robustnn.bounds import network_sha256
from robustnn.errors import InvalidArgumentError, UnsupportedSpaceError
from robustnn.params.explicit import ExplicitMLP
from robustnn.policies.networks import check_methods, decider_of, image_policy
from robustnn.policies.normalization import Normalization, feeding_env, image_env, normalization_of

__all__ = ["ActionMap", "action_map", "choices_of"]


@dataclass(frozen=True, eq=False)
class ActionMap:
    """The whole deterministic predict path by value: a differentiable function from raw observation to action.

    Attributes:
        network: Explicit weights, raw (or normalised) observation -> mean action, logits or Q-values.
        normalization: Applied to the raw observation first; None for none.
        low: Lower action limits, shape (n_act,); None for discrete actions (the map returns logits).
        high: Upper action limits, shape (n_act,).
        squash: Whether actions are tanh-squashed and rescaled to [low, high]; otherwise they are clipped.
        clip_leak: Slope that gradients see where an action is clipped. Zero is the truth; gradient attacks use
            a positive one, because a clipped action tells them no direction. Values are the same.
        mean_clip: Limit of the network's output before tanh; None for none.
        kind: "box", "discrete", "multidiscrete" or "multibinary".
        choices: For discrete actions the numbers of logits that belong together: (n,) for Discrete, `nvec` for
            MultiDiscrete, and ones for MultiBinary, where a choice is taken when its logit is positive.

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
    mean_clip: float | None = None
    kind: str = "box"
    choices: tuple[int, ...] = ()

    def __call__(self, observation: Tensor) -> Tensor:
        """Return the deterministic actions (or the logits or Q-values) of raw observations.

        Args:
            observation: Shape (..., n_obs), raw units; (S, E, n_obs) for a stack of S policies.

        Returns:
            Shape (..., n_act), in the units of the action space.
        """
        features = observation if self.normalization is None else self.normalization(observation)
        output = self.network(features)
        if self.mean_clip is not None:
            output = output.clamp(-self.mean_clip, self.mean_clip)
        if self.low is None or self.high is None:
            return output
        if self.squash:
            return self.low + 0.5 * (self.high - self.low) * (output.tanh() + 1.0)
        action = torch.minimum(torch.maximum(output, self.low), self.high)
        if self.clip_leak:
            beyond = self.clip_leak * (output - action)
            action = action + (beyond - beyond.detach())
        return action

    def decide(self, observation: Tensor) -> Tensor:
        """Return the greedy discrete actions of raw observations.

        Args:
            observation: Shape (..., n_obs), raw units.

        Returns:
            Integers: shape (...) for Discrete actions, (..., k) for MultiDiscrete and MultiBinary ones.

        Raises:
            UnsupportedSpaceError: If actions are continuous.
        """
        if not self.choices:
            raise UnsupportedSpaceError(
                "action_space: expected discrete actions, got Box. Call the map for continuous actions."
            )
        output = self(observation)
        if self.kind == "multibinary":
            return (output > 0.0).long()
        picked = [group.argmax(-1) for group in output.split(self.choices, dim=-1)]
        return picked[0] if self.kind == "discrete" else torch.stack(picked, dim=-1)

    @property
    def network_sha256(self) -> str:
        """Digest of what follows the normalisation: weights, and what is done with their output.

        Maps made in float64 of the same policy have the same digest; it is that of `Bound.network_sha256`.
        """
        limits = b"".join(
            b"" if t is None else t.detach().cpu().double().numpy().astype("<f8").tobytes()
            for t in (self.low, self.high)
        )
        rest = f"robustnn action map 1 {self.squash} {self.mean_clip} {self.kind} {self.choices}".encode()
        return hashlib.sha256(network_sha256(self.network).encode() + rest + limits).hexdigest()

    @property
    def statistics_sha256(self) -> str:
        """Digest of the normalisation: mean, standard deviation and clip by value; "" for none."""
        return "" if self.normalization is None else self.normalization.sha256

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> ActionMap:
        """Return a copy on another device or in another dtype."""

        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device=device, dtype=dtype)

        normalization = self.normalization
        if normalization is not None:
            normalization = normalization.to(device=device, dtype=dtype)
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
            same_output = (other.squash, other.mean_clip, other.kind, other.choices) == (
                first.squash,
                first.mean_clip,
                first.kind,
                first.choices,
            )
            if not same_limits or not same_output:
                raise InvalidArgumentError(
                    f"maps: expected equal action limits and squashing, got a difference at index {k}. "
                    "Stack only policies of one task."
                )
        normalization = None
        if any(m.normalization is not None for m in maps):
            parts = [m.normalization for m in maps if m.normalization is not None]
            clips = [torch.as_tensor(p.clip, dtype=p.mean.dtype) for p in parts]
            if len(parts) != len(maps) or not all(torch.equal(clip, clips[0]) for clip in clips):
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
    policy: Any, vec_env: VecEnv | None = None, *, dtype: torch.dtype = torch.float64
) -> ActionMap:
    """Return the deterministic predict path of a policy by value.

    Works for the policies of this package and for SB3's own, of every algorithm that `policy_bound` knows.

    Args:
        policy: The policy or the model.
        vec_env: The vector environment whose `VecNormalize`, if any, feeds the policy; None for the model's own, as in
            `policy_bound`.
        dtype: Dtype of the result; float64 evaluates the float32 weights without further rounding.

    Returns:
        Flat raw observation (`robustnn.policies.flatten_observation`) -> what `predict(..., deterministic=True)`
        returns, or the logits or Q-values it compares, on the policy's device, without graph. For policies of images
        an `ImageMap`, of raw images with their channels first.

    Raises:
        InvalidArgumentError: If a part of the policy is not a plain feed-forward network.
        UnsupportedSpaceError: If a space is not supported.

    Example:
        >>> from stable_baselines3 import PPO
        >>> model = PPO("MlpPolicy", "Pendulum-v1", device="cpu")
        >>> action_map(model.policy)(torch.zeros(4, 3, dtype=torch.float64)).shape
        torch.Size([4, 1])
    """
    images = image_policy(policy)
    if images is not None:
        found: ActionMap = images.action_map(image_env(policy, vec_env), dtype=dtype)
        return found
    decider = decider_of(policy)
    vec_env = feeding_env(policy, vec_env)
    policy = getattr(policy, "policy", policy)
    check_methods(policy)
    network = decider.explicit().to(dtype=dtype)
    device = network.weights[0].device
    scale = decider.scale().to(device=device, dtype=dtype)
    network = replace(network, weights=(network.weights[0] / scale, *network.weights[1:]))
    result = ActionMap(
        network,
        normalization_of(vec_env, policy.observation_space),
        squash=decider.squash,
        mean_clip=decider.mean_clip,
    )
    space = policy.action_space
    if isinstance(space, spaces.Box):
        # A copy: the map must not change with the space.
        low, high = (
            torch.from_numpy(np.array(limit, dtype=np.float64).reshape(-1))
            for limit in (space.low, space.high)
        )
        result = replace(result, low=low, high=high)
    else:
        kind, choices = choices_of(space, decider.n_outputs)
        result = replace(result, kind=kind, choices=choices)
    return result.to(device=device, dtype=dtype)


def choices_of(space: spaces.Space, n_outputs: int) -> tuple[str, tuple[int, ...]]:
    """Return the kind of discrete actions, and the numbers of scores that belong together; see `ActionMap`.

    Args:
        space: The action space.
        n_outputs: Number of scores that the network computes.

    Returns:
        Kind and numbers.

    Raises:
        UnsupportedSpaceError: If the space is another.
    """
    if isinstance(space, spaces.Discrete):
        return "discrete", (int(space.n),)
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
        return "multidiscrete", tuple(int(n) for n in space.nvec)
    if isinstance(space, spaces.MultiBinary) and len(space.shape) == 1:
        n = int(space.shape[0])  # MaskablePPO compares two logits per component
        return ("multidiscrete", (2,) * n) if n_outputs == 2 * n else ("multibinary", (1,) * n)
    raise UnsupportedSpaceError(
        f"policy.action_space: expected Box, Discrete, MultiDiscrete or MultiBinary, got {space}. "
        "Choose one of these action spaces."
    )
