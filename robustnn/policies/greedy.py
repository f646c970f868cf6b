"""How far an observation may move before a greedy discrete decision can change, as evaluated in floating point."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from robustnn.params.activations import ACTIVATIONS
from robustnn.params.explicit import ExplicitMLP

__all__ = ["comparison_error", "evaluation_error", "evaluation_growth", "greedy_radius"]

_PIECEWISE_LINEAR = ("identity", "leaky_relu", "relu")


def evaluation_error(
    network: ExplicitMLP, x: Tensor, eps: float, *, error: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    r"""Bound what rounding adds to the outputs of a network at given inputs.

    A running error bound: with $|\delta z|$ of the layer before and n inputs, a layer has at most
    $|W| |\delta z| + (n/2 + 4)\,\epsilon\,(|W| |z| + |b|)$ in any order of summation. That covers weights that were
    themselves rounded from those of a bound, both here and at a second point.

    Args:
        network: Weights that are evaluated with rounding, in float64.
        x: Inputs, shape (..., n_in), float64.
        eps: Distance from one to the next number, for example 1.2e-7 for float32.
        error: Errors of the inputs, shape (..., n_in); those of a conversion and a division if None.

    Returns:
        Magnitudes and largest errors of the outputs, shape (..., n_out).
    """
    activation = ACTIVATIONS[network.activation].function
    # Exponentials are as far off as one is.
    offset = 0.0 if network.activation in _PIECEWISE_LINEAR else 1.0
    error = 2.0 * eps * x.abs() if error is None else error
    last = len(network.weights) - 1
    size = x.abs()
    for k, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True)):
        size = x.abs() @ weight.abs().mT
        x = x @ weight.mT
        if bias is not None:
            size, x = size + bias.abs(), x + bias
        error = error @ weight.abs().mT + _sums(weight, eps) * size
        if k < last:
            x = activation(x)
            error = error + 4.0 * eps * (x.abs() + offset)
    return size, error


def evaluation_growth(network: ExplicitMLP, reach: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Bound what `evaluation_error` grows by when no input moves by more than `reach`.

    Args:
        network: As there.
        reach: Shape (..., n_in), float64; the result is proportional to it.
        eps: As there.

    Returns:
        Growth of the magnitudes and of the errors of the outputs, shape (..., n_out).
    """
    error = 3.0 * eps * reach
    for weight in network.weights:
        reach = reach @ weight.abs().mT
        error = error @ weight.abs().mT + (_sums(weight, eps) + 4.0 * eps) * reach
    return reach, error


def _sums(weight: Tensor, eps: float) -> float:
    return (0.5 * weight.shape[-1] + 4.0) * eps


def comparison_error(size: Tensor, eps: float, *, constants: bool = True) -> Tensor:
    """Bound what rounding adds to each of several logits of which SB3 takes the largest.

    It compares probabilities: normalised logits and their exponentials.

    Args:
        size: Largest magnitudes of the logits, shape (..., n).
        eps: Unit of rounding.
        constants: Whether the part that does not depend on the sizes counts.

    Returns:
        Shape (...).
    """
    return eps * (4.0 * size.amax(-1) + (math.log(size.shape[-1]) + 8.0 if constants else 0.0))


def greedy_radius(network: ExplicitMLP, features: Tensor, lipschitz: float, eps: float) -> Tensor:
    r"""Radius within which the greedy choice cannot change, as evaluated in floating point.

    Two logits move apart by at most $\sqrt2\,\gamma r$ within a radius r, and rounding adds at most $a + b r$ to each
    of them anywhere in the ball, so the choice stands while
    $r \le (\text{margin} - 2 a) / (\sqrt2\,\gamma + 2 b)$.

    Args:
        network: The map from features to logits in float64: the weights that are evaluated with rounding `eps`.
        features: Shape (batch, n_in), float64.
        lipschitz: l2 bound gamma of the network.
        eps: Unit of rounding of the evaluation, for example 1.2e-7 for float32.

    Returns:
        Shape (batch,), float64, zero or greater, in the input norm of gamma.
    """
    top = network(features).topk(2, dim=-1).values
    size, error = evaluation_error(network, features, eps)
    growth, slope = evaluation_growth(network, torch.ones_like(features[:1]), eps)
    worst = error.amax(-1) + comparison_error(size, eps)
    further = slope.amax(-1) + comparison_error(growth, eps, constants=False)
    radius = (top[..., 0] - top[..., 1] - 2.0 * worst) / (math.sqrt(2.0) * lipschitz + 2.0 * further)
    return radius.clamp_min(0.0)
