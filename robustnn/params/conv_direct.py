"""Direct parameters of convolutional sandwich layers: free tensors, any real values."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from robustnn.linalg import frobenius_norm
from robustnn.params.direct import init_sandwich

__all__ = ["KernelParams", "SpectralParams", "init_kernel", "init_spectral"]


class KernelParams(NamedTuple):
    """Free parameters of a sandwich convolution with an explicit kernel, n_in -> n_out channels, N = n_in + n_out.

    Attributes:
        weight: X stacked on Y of the channel mixture, shape (N, n_out); only its direction matters.
        alpha: Radius of the polar form, shape ().
        shifts: X stacked on Y of one subspace per further tap, shape (taps, N, N // 2): first the k_h - 1 of the
            rows, then the k_w - 1 of the columns. If A is a matrix, N is here the number m of columns of B, and there
            are n_out + m rows in the weight.
        psi: Logarithm of the diagonal of Psi, shape (n_out,).
        bias: Shape (n_out,), or None.
    """

    weight: Tensor
    alpha: Tensor
    shifts: Tensor
    psi: Tensor
    bias: Tensor | None


class SpectralParams(NamedTuple):
    """Free parameters of a circular sandwich convolution, n_in -> n_out channels, N = n_in + n_out.

    Attributes:
        weight: Kernel whose spectrum is X next to Y, shape (n_out, N, k_h, k_w); only its direction matters.
        alpha: Radius of the polar form, shape ().
        psi: Logarithm of the diagonal of Psi, shape (n_out,).
        bias: Shape (n_out,), or None.
    """

    weight: Tensor
    alpha: Tensor
    psi: Tensor
    bias: Tensor | None


def init_kernel(
    n_in: int,
    n_out: int,
    taps: tuple[int, int],
    *,
    pointwise: bool = False,
    bias: bool = True,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> KernelParams:
    """Draw fresh parameters: the channel mixture as in a dense layer, the subspaces at random.

    Args:
        n_in: Channels in.
        n_out: Channels out.
        taps: Size of the kernel (rows, columns).
        pointwise: Whether A is a matrix, as in `robustnn.params.conv_kernel.pointwise_kernel`.
        bias: Whether the layer has a bias.
        device: Device of the tensors.
        dtype: Floating dtype of the tensors.

    Returns:
        Fresh parameters (plain tensors without gradient).
    """
    # A filter bank needs room to shift in: at least as many columns as there are outputs, and two.
    columns = max(n_in, n_out, 2) if pointwise else n_in
    dense = init_sandwich(columns, n_out, bias=bias, device=device, dtype=dtype)
    size = columns if pointwise else n_in + n_out
    shifts = torch.empty(sum(taps) - 2, size, size // 2, device=device, dtype=dtype)
    # S = I + X - X^T + Y^T Y: with entries of this size both parts matter and S is well conditioned.
    shifts.normal_(std=1.0 / math.sqrt(size))
    psi = torch.zeros(n_out, device=device, dtype=dtype)
    return KernelParams(dense.weight, dense.alpha, shifts, psi, dense.bias)


def init_spectral(
    n_in: int,
    n_out: int,
    taps: tuple[int, int],
    *,
    bias: bool = True,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> SpectralParams:
    """Draw the published initialisation, that of `torch.nn.Conv2d`; the radius is the norm of the weight.

    Args:
        n_in: Channels in.
        n_out: Channels out.
        taps: Size of the kernel (rows, columns).
        bias: Whether the layer has a bias.
        device: Device of the tensors.
        dtype: Floating dtype of the tensors.

    Returns:
        Fresh parameters (plain tensors without gradient).
    """
    bound = 1.0 / math.sqrt((n_in + n_out) * math.prod(taps))
    weight = torch.empty(n_out, n_in + n_out, *taps, device=device, dtype=dtype).uniform_(-bound, bound)
    return SpectralParams(
        weight=weight,
        alpha=frobenius_norm(weight.reshape(n_out, -1)),
        psi=torch.zeros(n_out, device=device, dtype=dtype),
        bias=torch.empty(n_out, device=device, dtype=dtype).uniform_(-bound, bound) if bias else None,
    )
