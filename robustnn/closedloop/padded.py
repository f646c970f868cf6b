"""Networks on batches of whole blocks, so that an episode does not depend on the others of its batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustnn.errors import check_shape
from robustnn.params.explicit import ExplicitMLP
from robustnn.policies.action_map import ActionMap
from robustnn.policies.normalization import Normalization

__all__ = ["BLOCK", "WIDTH", "Padded", "padded"]

BLOCK = 32
"""Matrix products are made of a multiple of this many rows,"""
WIDTH = 16
"""and of rows whose length is a multiple of this many numbers, which therefore begin at multiples of 64 bytes."""


@dataclass(frozen=True, eq=False)
class Padded:
    """A network in a form in which a row has the same result whatever the other rows and their number.

    Libraries of linear algebra choose their kernels by the number of rows and by where a row begins in memory, and
    kernels add in different orders: a product of 5 rows differs in the last bit from the first 5 rows of one of
    64, and in a closed loop the last bit grows with time. With whole blocks of rows and with rows of whole cache
    lines, zeros added where something is missing, they agree to the last bit on one thread of one CPU. That
    is found by trial with the library that torch comes with (MKL), not promised by it.

    Attributes:
        policy: Maps (..., n_in) to (..., n_out), row by row, with n_in and n_out at least those of the network.
        n_y: Number of inputs of the network; None where the policy has its own sizes.
        n_u: Number of its outputs; None likewise.
    """

    policy: Callable[[Tensor], Tensor]
    n_y: int | None = None
    n_u: int | None = None

    def __call__(self, observation: Tensor) -> Tensor:
        """Return what the network makes of (..., E, n_y), shape (..., E, n_u).

        Raises:
            ShapeError: If there is another number of components than the network has inputs.
        """
        if self.n_y is not None:
            expected = f"(..., {self.n_y})"
            check_shape("observation", observation, expected, observation.shape[-1:] == (self.n_y,))
        if observation.ndim < 2 or not observation.shape[-2]:
            output = self.policy(self._widened(observation))
            return output if self.n_u is None else output[..., : self.n_u]
        rows = observation.shape[-2]
        observation = self._widened(observation)
        if rows % BLOCK:
            last = observation[..., -1:, :]
            filler = last.expand(*last.shape[:-2], -rows % BLOCK, last.shape[-1])
            observation = torch.cat([observation, filler], dim=-2)
        output = self.policy(observation)
        return output[..., :rows, :] if self.n_u is None else output[..., :rows, : self.n_u]

    def _widened(self, observation: Tensor) -> Tensor:
        return observation if self.n_u is None else _widen(observation)


def padded(policy: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Pad what is known to be a network that treats every row alike; return any other callable as it is.

    Modules in eval mode get whole blocks of rows only: their results may differ in the last bit from batch to batch
    unless all their widths are multiples of `WIDTH`.

    Args:
        policy: Maps (..., n_y) to (..., n_u).

    Returns:
        The same map.
    """
    network: Any = policy
    if isinstance(policy, ExplicitMLP):
        return Padded(_wide_network(policy), policy.in_features, policy.out_features)
    if isinstance(policy, ActionMap):
        return Padded(_wide_map(policy), policy.network.in_features, policy.network.out_features)
    if isinstance(network, nn.Module) and not network.training:
        return Padded(policy)
    return policy


def _wide_map(policy: ActionMap) -> ActionMap:
    """The same map with further components of the observation and the action, which are zero."""
    norm, low, high = policy.normalization, policy.low, policy.high
    if norm is not None:
        clip = _widen(norm.clip, 1.0) if isinstance(norm.clip, Tensor) else norm.clip
        norm = Normalization(_widen(norm.mean), _widen(norm.std, 1.0), clip)
    return replace(
        policy,
        network=_wide_network(policy.network),
        normalization=norm,
        low=None if low is None else _widen(low),
        high=None if high is None else _widen(high),
    )


def _wide_network(network: ExplicitMLP) -> ExplicitMLP:
    """The same function with zeros for further inputs, neurons and outputs."""
    weights = tuple(
        functional.pad(weight, (0, -weight.shape[-1] % WIDTH, 0, -weight.shape[-2] % WIDTH))
        for weight in network.weights
    )
    biases = tuple(None if bias is None else _widen(bias) for bias in network.biases)
    return replace(network, weights=weights, biases=biases)


def _widen(values: Tensor, filler: float = 0.0) -> Tensor:
    return functional.pad(values, (0, -values.shape[-1] % WIDTH), value=filler)
