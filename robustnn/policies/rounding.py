"""What rounding can add to the outputs of a network and to a comparison of them, as evaluated in floating point."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from robustnn.params.activations import ACTIVATIONS
from robustnn.params.explicit import ExplicitMLP

__all__ = ["comparison_error", "evaluation_error", "evaluation_growth", "overflow_radius"]

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


def evaluation_growth(
    network: ExplicitMLP, reach: Tensor, eps: float, *, input_eps: float | None = None
) -> tuple[Tensor, Tensor]:
    """Bound what `evaluation_error` grows by when no input moves by more than `reach`.

    Args:
        network: As there.
        reach: Shape (..., n_in), float64; the result is proportional to it.
        eps: As there.
        input_eps: Unit of rounding of the inputs; `eps` if None.

    Returns:
        Growth of the magnitudes and of the errors of the outputs, shape (..., n_out).
    """
    error = 3.0 * (eps if input_eps is None else input_eps) * reach
    for weight in network.weights:
        reach = reach @ weight.abs().mT
        error = error @ weight.abs().mT + (_sums(weight, eps) + 4.0 * eps) * reach
    return reach, error


def _sums(weight: Tensor, eps: float) -> float:
    return (0.5 * weight.shape[-1] + 4.0) * eps


def overflow_radius(network: ExplicitMLP, x: Tensor, gain: Tensor, reach: Tensor, limit: float) -> Tensor:
    """How far inputs can move before a number of the evaluation may exceed a limit, by sums of magnitudes.

    Args:
        network: As there.
        x: Inputs, shape (..., n_in), float64.
        gain: What the inputs are multiplied by before the network, if anything is computed so, shape (n_in,).
        reach: Largest change of every input per unit of the radius, shape (n_in,).
        limit: Largest number that the evaluation can hold, with room for what it does to the outputs.

    Returns:
        Shape (...), zero or greater, zero where x itself is too large; infinity where nothing grows.
    """
    first, *others = (weight.abs() for weight in network.weights)
    biases = [0.0 if bias is None else float(bias.abs().amax()) for bias in network.biases]
    scaled = gain.clamp_min(1.0)
    size, growth = (x.abs() * scaled).amax(-1), (reach * scaled).amax()
    radius = (limit - size) / growth
    size, growth = (x.abs() @ first.mT).amax(-1) + biases[0], (reach @ first.mT).amax()
    radius = torch.minimum(radius, (limit - size) / growth)
    for weight, bias in zip(others, biases[1:], strict=True):
        rows = weight.sum(-1).amax()
        # No activation adds more than one to a magnitude.
        size, growth = (size + 1.0) * rows + bias, growth * rows
        radius = torch.minimum(radius, (limit - size) / growth)
    return radius.nan_to_num(0.0, torch.inf).clamp_min(0.0)


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
