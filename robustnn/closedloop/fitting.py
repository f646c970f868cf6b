"""What attackers that learn have in common: stacked networks fitted to standardised steps of a closed loop."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from robustnn.params.explicit import ExplicitMLP

__all__ = ["in_raw_units", "masked_statistics", "random_network"]


def masked_statistics(values: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation over the valid rows, (S, 1, n) each; where it is zero, one.

    Args:
        values: Shape (S, N, n).
        valid: Ones and zeros, shape (S, N, 1).
    """
    total = valid.sum(-2, keepdim=True).clamp_min(1.0)
    mean = (valid * values).sum(-2, keepdim=True) / total
    std = ((valid * (values - mean).square()).sum(-2, keepdim=True) / total).sqrt()
    return mean, torch.where(std > 1e-6 * (1.0 + mean.abs()), std, torch.ones_like(std))


def random_network(sizes: Sequence[int], stack: int, like: Tensor, generator: torch.Generator) -> ExplicitMLP:
    """Return tanh networks with leaves that require gradients, the same start for every member of the stack.

    Args:
        sizes: Numbers of inputs, of every hidden layer, and of outputs.
        stack: Number of networks.
        like: A tensor of the dtype and on the device wanted.
        generator: Source of the weights, on the CPU.
    """
    weights, biases = [], []
    for n_in, n_out in zip(sizes, sizes[1:], strict=False):
        drawn = torch.randn(n_out, n_in, generator=generator) / n_in**0.5
        weights.append(drawn.to(like).repeat(stack, 1, 1).requires_grad_())
        biases.append(like.new_zeros(stack, n_out).requires_grad_())
    return ExplicitMLP(tuple(weights), tuple(biases), "tanh")


def in_raw_units(
    network: ExplicitMLP, mean: Tensor, std: Tensor, target_mean: Tensor, target_std: Tensor
) -> ExplicitMLP:
    """Fold the standardisation of inputs and outputs into the first and the last layer.

    Args:
        network: S networks of standardised inputs and outputs, with biases.
        mean: Of the inputs, shape (S, 1, n_in).
        std: Of the inputs, same shape.
        target_mean: Of the outputs, shape (S, 1, n_out).
        target_std: Of the outputs, same shape.

    Returns:
        The networks of raw inputs and outputs, without graph.
    """
    plain = network.detach()
    weights, biases = list(plain.weights), [bias for bias in plain.biases if bias is not None]
    biases[0] = biases[0] - (weights[0] @ (mean / std).mT).squeeze(-1)
    weights[0] = weights[0] / std
    weights[-1] = weights[-1] * target_std.mT
    biases[-1] = biases[-1] * target_std.squeeze(-2) + target_mean.squeeze(-2)
    return ExplicitMLP(tuple(weights), tuple(biases), plain.activation)
