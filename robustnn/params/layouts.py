"""Parameter layouts of other programs, read into ours. Differentiable, so that gradients can be compared."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from robustnn.linalg import frobenius_norm
from robustnn.params.direct import SandwichParams

__all__ = ["sandwich_from_jax", "sandwich_from_torch"]

_JAX_NORM_EPS = float(torch.finfo(torch.float32).eps)


def sandwich_from_torch(
    weight: Tensor, alpha: Tensor, psi: Tensor | None, bias: Tensor | None
) -> SandwichParams:
    """Read a layer of the authors' torch code: weight is wide, (n_out, n_out + n_in), psi is a logarithm.

    The output layer's bias is not scaled by the network's bound there, as here.

    Args:
        weight: Shape (n_out, n_out + n_in), transpose of X stacked on Y.
        alpha: Radius, one element.
        psi: Shape (n_out,), or None for an output layer.
        bias: Shape (n_out,), or None.

    Returns:
        The same layer in our layout.
    """
    return SandwichParams(weight.mT, alpha.reshape(()), psi, bias)


def sandwich_from_jax(
    xy: Tensor, a: Tensor, d: Tensor | None, b: Tensor | None, *, lipschitz: float = 1.0
) -> SandwichParams:
    r"""Read a layer of the R2DN (JAX) code: XY is tall, (n_out + n_in, n_out), d is a logarithm.

    That code divides by $\sqrt{\|XY\|_F^2 + 1.19 \cdot 10^{-7}}$ instead of $\|XY\|_F$ (absorbed into alpha
    here), and multiplies the output layer's bias by $\sqrt\gamma$ (absorbed into the bias when `d` is None).

    Args:
        xy: Shape (n_out + n_in, n_out).
        a: Radius, one element.
        d: Shape (n_out,), or None for an output layer.
        b: Shape (n_out,), or None.
        lipschitz: Bound of the network, used for the output layer's bias only.

    Returns:
        The same layer in our layout.
    """
    norm = frobenius_norm(xy)
    alpha = a.reshape(()) * norm / (norm.square() + _JAX_NORM_EPS).sqrt()
    if d is None and b is not None:
        b = math.sqrt(lipschitz) * b
    return SandwichParams(xy, alpha, d, b)
