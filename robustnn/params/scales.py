r"""Weighted norms: the scales of inputs and outputs, folded into the first and last weight and out again.

A scale is a vector d, which measures x as $\|x / d\|_2$, or an invertible matrix S, which measures x as
$\|S^{-1} x\|_2$. The ellipsoidal norm $\sqrt{x^T Q x}$ of a positive definite Q is the scale $S = Q^{-1/2}$ (any S
with $S S^T = Q^{-1}$ serves).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["condition_number", "fold_input", "fold_output", "unfold_input", "unfold_output"]


def condition_number(scale: Tensor) -> Tensor:
    """Ratio of the largest to the least singular value of a square matrix, shape ()."""
    values = torch.linalg.svdvals(scale)
    return values[..., 0] / values[..., -1]


def _margin(scale: Tensor, eps: float) -> Tensor:
    """What a folded weight is divided by, so that rounding it stays inside the bound.

    Rounding acts on the entries of the product with the matrix; seen in the weighted norm its effect is larger by
    up to the condition number. A vector only changes the unit of each entry and needs no margin.
    """
    return 1.0 + eps * condition_number(scale)


def fold_input(weight: Tensor, scale: Tensor | None, eps: float) -> Tensor:
    r"""Return $W S^{-1}$.

    Args:
        weight: Shape (n_out, n_in).
        scale: Shape (n_in,) or (n_in, n_in); None for ones.
        eps: Machine epsilon of the dtype that the result will be rounded to.

    Returns:
        Shape (n_out, n_in); for a matrix it is smaller by the margin for rounding.
    """
    if scale is None:
        return weight
    if scale.ndim == 1:
        return weight / scale
    return torch.linalg.solve(scale, weight, left=False) / _margin(scale, eps)


def fold_output(weight: Tensor, scale: Tensor | None, eps: float) -> Tensor:
    r"""Return $S W$.

    Args:
        weight: Shape (n_out, n_in).
        scale: Shape (n_out,) or (n_out, n_out); None for ones.
        eps: Machine epsilon of the dtype that the result will be rounded to.

    Returns:
        Shape (n_out, n_in); for a matrix it is smaller by the margin for rounding.
    """
    if scale is None:
        return weight
    if scale.ndim == 1:
        return weight * scale.unsqueeze(-1)
    return scale @ weight / _margin(scale, eps)


def unfold_input(weight: Tensor, scale: Tensor | None, eps: float) -> Tensor:
    """Return the weight whose `fold_input` is the one given; arguments as there."""
    if scale is None:
        return weight
    return weight * scale if scale.ndim == 1 else weight @ scale * _margin(scale, eps)


def unfold_output(weight: Tensor, scale: Tensor | None, eps: float) -> Tensor:
    """Return the weight whose `fold_output` is the one given; arguments as there."""
    if scale is None:
        return weight
    if scale.ndim == 1:
        return weight / scale.unsqueeze(-1)
    return torch.linalg.solve(scale, weight) * _margin(scale, eps)
