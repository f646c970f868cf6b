"""Critics by value: what an agent expects to collect from an observation, or from an observation and an action."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import MlpExtractor
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor, nn

from robustnn.closedloop.padded import padded
from robustnn.errors import InvalidArgumentError, invalid
from robustnn.params.explicit import ExplicitMLP
from robustnn.policies.action_map import action_map
from robustnn.policies.networks import Decider, decider_of
from robustnn.policies.normalization import Normalization, normalization_of

__all__ = ["Critic", "Takes", "critic_of"]

Takes = Literal["observation", "action", "choice"]


@dataclass(frozen=True, eq=False)
class Critic:
    r"""Value of raw observations and actions, by value: the least of its networks where there are several.

    Attributes:
        networks: Explicit weights, each with one output, or with one per discrete action for "choice".
        takes: "observation" for V(y), "action" for Q(y, a), "choice" for Q(y) of all discrete actions.
        normalization: Applied to the raw observation first; None for none.
        low: Lower action limits (n_u,), mapped to -1 for the networks; None where actions go in as they are.
        high: Upper action limits (n_u,), mapped to 1.

    Example:
        >>> net = ExplicitMLP((torch.ones(1, 4),), (None,), "tanh")
        >>> Critic((net,), "action")(torch.ones(2, 3), torch.zeros(2, 1))
        tensor([3., 3.])
    """

    networks: tuple[ExplicitMLP, ...]
    takes: Takes
    normalization: Normalization | None = None
    low: Tensor | None = None
    high: Tensor | None = None

    def __call__(self, observation: Tensor, action: Tensor | None = None) -> Tensor:
        """Return the value.

        Args:
            observation: Shape (..., n_y), raw units; (S, E, n_y) for a stack of S critics.
            action: Shape (..., n_u), in the units of the action space; for `takes` "action" only.

        Returns:
            Shape (...); (..., n_actions) for `takes` "choice".
        """
        features = observation if self.normalization is None else self.normalization(observation)
        if action is not None:
            if self.low is not None and self.high is not None:
                action = 2.0 * (action - self.low) / (self.high - self.low) - 1.0
            features = torch.cat((features, action), dim=-1)
        values = padded(self.networks[0])(features)
        for network in self.networks[1:]:
            values = torch.minimum(values, padded(network)(features))
        return values if self.takes == "choice" else values.squeeze(-1)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Critic:
        """Return a copy on another device or in another dtype."""

        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device=device, dtype=dtype)

        normalization = self.normalization
        return replace(
            self,
            networks=tuple(network.to(device, dtype) for network in self.networks),
            normalization=None if normalization is None else normalization.to(device, dtype),
            low=move(self.low),
            high=move(self.high),
        )

    @staticmethod
    def stack(critics: Sequence[Critic]) -> Critic:
        """Stack critics of one architecture: the result maps (S, E, n_y) to (S, E).

        Args:
            critics: At least one; equal shapes, kinds and action limits.

        Returns:
            The stack.

        Raises:
            InvalidArgumentError: If they differ in what is not stacked.
        """
        first = critics[0]
        if any(len(c.networks) != len(first.networks) or c.takes != first.takes for c in critics):
            raise invalid("critics", "one kind, with equally many networks", "a mixture", "Stack them apart.")
        limits = [c.low is None or c.high is None for c in critics]
        if any(limits) != all(limits) or any(
            not torch.equal(getattr(first, name), getattr(c, name))
            for c in critics
            for name in ("low", "high")
            if not any(limits)
        ):
            raise invalid("critics", "equal action limits", "different ones", "Stack critics of one task.")
        networks = [ExplicitMLP.stack(same) for same in zip(*(c.networks for c in critics), strict=True)]
        return replace(first, networks=tuple(networks), normalization=_stack_normalization(critics))


def _stack_normalization(critics: Sequence[Critic]) -> Normalization | None:
    parts = [c.normalization for c in critics if c.normalization is not None]
    if not parts:
        return None
    clips = [torch.as_tensor(part.clip) for part in parts]
    if len(parts) != len(critics) or not all(torch.equal(clip, clips[0]) for clip in clips):
        raise invalid("critics", "all or none normalised, with one clip", "a mixture", "Stack them apart.")
    mean, std = (
        torch.stack([getattr(part, name) for part in parts]).unsqueeze(-2) for name in ("mean", "std")
    )
    return Normalization(mean, std, parts[0].clip)


def critic_of(model: Any, vec_env: VecEnv | None = None, *, dtype: torch.dtype = torch.float64) -> Critic:
    """Return an agent's own critic by value.

    PPO, A2C, TRPO and MaskablePPO have V(y); SAC, TD3, DDPG and TQC have Q(y, a), the least of their networks
    (TQC: of the means over quantiles); DQN and QR-DQN have Q(y) of all actions.

    Args:
        model: The model or its policy: SB3's own, or of this package.
        vec_env: The vector environment whose `VecNormalize`, if any, feeds it.
        dtype: Of the result.

    Returns:
        The critic, on the model's device, without graph.

    Raises:
        InvalidArgumentError: If there is no critic, or a part of it is not a plain feed-forward network.

    Example:
        >>> from stable_baselines3 import PPO
        >>> critic_of(PPO("MlpPolicy", "Pendulum-v1", device="cpu")).takes
        'observation'
    """
    policy = getattr(model, "policy", model)
    normalization = normalization_of(vec_env, policy.observation_space)
    if hasattr(policy, "value_net"):
        if type(policy.mlp_extractor) is not MlpExtractor:
            raise invalid(
                "model", "SB3's MlpExtractor", type(policy.mlp_extractor).__name__, "Set widths by net_arch."
            )
        trunk = policy.mlp_extractor.value_net
        body = (*([trunk] if len(trunk) else []), policy.value_net)
        network = _explicit(body, policy.vf_features_extractor, 0, 0, dtype)
        return Critic((network,), "observation", normalization).to(network.weights[0].device, dtype)
    if hasattr(policy, "q_net") or hasattr(policy, "quantile_net"):
        decider_of(policy)  # refuses policies of images
        decider = action_map(policy, vec_env, dtype=dtype)
        return Critic((decider.network,), "choice", decider.normalization)
    critic = getattr(policy, "critic", None)
    if critic is None or not isinstance(policy.action_space, spaces.Box):
        raise invalid("model", "a model with a critic", type(policy).__name__, "Pass a PPO, SAC, TD3 or DQN.")
    extractor = (
        policy.actor.features_extractor if critic.features_extractor is None else critic.features_extractor
    )
    networks = tuple(
        _explicit((net,), extractor, int(policy.action_space.shape[0]), _quantiles(critic), dtype)
        for net in critic.q_networks
    )
    low, high = (
        torch.from_numpy(limit.reshape(-1).copy())
        for limit in (policy.action_space.low, policy.action_space.high)
    )
    return Critic(networks, "action", normalization, low, high).to(networks[0].weights[0].device, dtype)


def _quantiles(critic: Any) -> int:
    return int(getattr(critic, "n_quantiles", 0))


def _explicit(
    body: tuple[nn.Module, ...], extractor: nn.Module, n_u: int, n_quantiles: int, dtype: torch.dtype
) -> ExplicitMLP:
    """Weights by value; an observation scale goes into the first of them, actions come after the features."""
    decider = Decider(body, extractor, "value", n_quantiles=n_quantiles)
    network = decider.explicit().to(dtype=dtype)
    weight = network.weights[0]
    scale = decider.scale().to(weight)
    if weight.shape[-1] != len(scale) + n_u:
        raise InvalidArgumentError(
            f"model: expected a critic of {len(scale)} observations and {n_u} actions, got {weight.shape[-1]} inputs. "
            "Features of another extractor are not supported."
        )
    divisor = torch.cat((scale, scale.new_ones(n_u)))
    return replace(network, weights=(weight / divisor, *network.weights[1:]))
