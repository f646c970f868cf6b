"""The action map of a policy with a graph to its parameters, for training through a plant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor, nn

from robustnn.errors import UnsupportedSpaceError, invalid
from robustnn.nn.module import ExplicitModule
from robustnn.params.explicit import ExplicitMLP
from robustnn.policies.action_map import ActionMap, action_map
from robustnn.policies.networks import decider_of

__all__ = ["LiveMap"]


class LiveMap:
    """Makes differentiable action maps of one policy: what `action_map` returns, with a graph to the parameters.

    Args:
        policy: The policy or the model, with Box actions and vector observations; see `action_map`.
        vec_env: The vector environment whose `VecNormalize`, if any, feeds the policy. Its statistics are taken
            once, here.
        clip_leak: Slope that gradients see where an action is clipped.

    Attributes:
        parameters: What is trained: all of the network from observation to action, except a trained Lipschitz bound.
        sizes: Numbers of observation and of action components.

    Raises:
        UnsupportedSpaceError: If the actions are discrete.
        InvalidArgumentError: If a part of the policy is not a plain feed-forward network, or nothing is trained.
    """

    def __init__(self, policy: Any, vec_env: VecEnv | None = None, *, clip_leak: float = 0.0) -> None:
        """Check the policy and take what does not change with its parameters."""
        policy = getattr(policy, "policy", policy)
        template = action_map(policy, vec_env)
        if template.low is None:
            raise UnsupportedSpaceError(
                f"policy.action_space: expected Box, got {policy.action_space}. A gradient through the plant needs "
                "continuous actions."
            )
        decider = decider_of(policy)
        # A trained bound is not for this game, which would only raise it.
        self.parameters = [
            parameter
            for part in decider.body
            for name, parameter in part.named_parameters()
            if parameter.requires_grad and name != "log_lipschitz"
        ]
        if not self.parameters:
            raise invalid("policy", "parameters that require gradients", "none", "Call requires_grad_(True).")
        self._network = _live_network(decider.body, template.network.activation)
        like = self.parameters[0]
        self._scale = decider.scale().to(like)
        self._template = replace(template.to(like.device, like.dtype), clip_leak=clip_leak)
        self.sizes = template.network.in_features, template.network.out_features

    def __call__(self) -> ActionMap:
        """Return the map of the present parameters: one conversion of direct parameters, if there are any."""
        network = self._network()
        weights = (network.weights[0] / self._scale, *network.weights[1:])
        return replace(self._template, network=replace(network, weights=weights))

    def detached(self) -> ActionMap:
        """Return a copy of the map by value, without leak: it does not change with the parameters."""
        with torch.no_grad():
            present = self()
            return replace(present, network=present.network.map(Tensor.clone), clip_leak=0.0)


def _live_network(body: tuple[nn.Module, ...], activation: str) -> Callable[[], ExplicitMLP]:
    """The explicit weights of a body that `action_map` has accepted."""
    first = body[0]
    if len(body) == 1 and isinstance(first, ExplicitModule):
        return first.explicit
    linears = [module for module in body if isinstance(module, nn.Linear)]

    def network() -> ExplicitMLP:
        return ExplicitMLP(
            tuple(module.weight for module in linears), tuple(module.bias for module in linears), activation
        )

    return network
