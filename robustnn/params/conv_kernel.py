r"""Convolution kernels of norm at most one, and the sandwich convolution made of them.

A layer $h^+ = \sqrt2 A^T \Psi \sigma(\sqrt2 \Psi^{-1} B h + b)$ is 1-Lipschitz as soon as $A A^T + B B^T \preceq I$ for
the operators A and B (Wang & Manchester, ICML 2023, for the equality; appending columns C with
$A A^T + B B^T + C C^T = I$ gives the rest). Here [A B] is a convolution with the symbol

$$K(z_1, z_2) = H \prod_i (I - P_i + z_1 P_i)(I - R_i + z_2 R_i), \qquad H H^T = I,$$

with orthogonal projectors P_i, R_i of half the size: every factor is unitary for $|z_1| = |z_2| = 1$, so
$K K^H = I$ at every frequency and the kernel has k_h x k_w taps. Such products of projectors are the block
convolutions of Xiao et al. (ICML 2018) and Li et al. (*Preventing Gradient Attenuation in Lipschitz Constrained
Convolutional Networks*, NeurIPS 2019); H and the projectors come from Cayley maps of free matrices.

On a periodic image the singular values of the convolution are those of K at its frequencies: all are one. Padding with
zeros embeds the image in the infinite grid and cuts out the same window of the result, so the norm is at most one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from robustnn.linalg import cayley, frobenius_norm, polish
from robustnn.params.conv_direct import KernelParams
from robustnn.params.conv_explicit import ActivationStage, ConvStage, Stage
from robustnn.params.conv_grid import Pair, reach, to_fine_kernel
from robustnn.params.direct import SandwichParams
from robustnn.params.fused import RADIUS_LIMIT, psi_limit
from robustnn.params.maps import sandwich_factors

__all__ = [
    "contraction_kernel",
    "conv_margin",
    "kernel_to_stages",
    "pointwise_kernel",
    "sandwich_stages",
    "shift_frames",
]


def shift_frames(shifts: Tensor) -> Tensor:
    """Orthonormal bases of the subspaces of the projectors.

    Args:
        shifts: X stacked on Y of each, shape (n, N, r).

    Returns:
        Shape (n, N, r), with orthonormal columns; the projector is Q Q^T.
    """
    r = shifts.shape[-1]
    norm = frobenius_norm(shifts)[:, None, None]
    scaled = shifts * (RADIUS_LIMIT / norm.clamp_min(RADIUS_LIMIT))
    factors = cayley(scaled[:, :r], scaled[:, r:])
    return torch.cat(polish(*factors), dim=-2)


def contraction_kernel(params: KernelParams, taps: Pair) -> Tensor:
    """Return the kernel of [A B], whose symbol has orthonormal rows at every frequency.

    Args:
        params: Free parameters of a layer n_in -> n_out.
        taps: Size of the kernel (k_h, k_w).

    Returns:
        Shape (n_out, n_out + n_in, k_h, k_w).
    """
    mixture = torch.cat(sandwich_factors(SandwichParams(params.weight, params.alpha, None, None))).mT
    return _spread(mixture, params.shifts, taps)


def pointwise_kernel(params: KernelParams, taps: Pair) -> tuple[Tensor, Tensor]:
    r"""Return a matrix A and a kernel B, such that [A B] has orthonormal rows at every frequency.

    The shifts act on the columns of B only: $B = V \prod_i (I - P_i + z_1 P_i)(I - R_i + z_2 R_i)$ with
    $A A^T + V V^T = I$. B may have more columns than there are channels; the others are left out, and the norm of what
    remains is at most one.

    Args:
        params: Free parameters; the weight is (n_out + m, n_out) and the shifts are (taps, m, m // 2).
        taps: Size of the kernel (k_h, k_w).

    Returns:
        A of shape (n_out, n_out), B of shape (n_out, m, k_h, k_w).
    """
    a_t, v_t = sandwich_factors(SandwichParams(params.weight, params.alpha, None, None))
    return a_t.mT, _spread(v_t.mT, params.shifts, taps)


def _spread(mixture: Tensor, shifts: Tensor, taps: Pair) -> Tensor:
    """Multiply a matrix by the factors of all shifts."""
    kernel = mixture[None, None]  # (rows, columns, n_out, N)
    frames = shift_frames(shifts) if len(shifts) else shifts
    n_rows, n_columns = taps[0] - 1, taps[1] - 1
    for k in range(max(n_rows, n_columns)):
        if k < n_rows:
            kernel = _widen(kernel, frames[k], 0)
        if k < n_columns:
            kernel = _widen(kernel, frames[n_rows + k], 1)
    return kernel.permute(2, 3, 0, 1)


def _widen(kernel: Tensor, frame: Tensor, axis: int) -> Tensor:
    """Multiply a symbol by I - Q Q^T + z Q Q^T, z a shift along an axis."""
    moved = (kernel @ frame) @ frame.mT
    nothing = torch.zeros_like(moved.narrow(axis, 0, 1))
    return torch.cat((kernel - moved, nothing), dim=axis) + torch.cat((nothing, moved), dim=axis)


def conv_margin(n_out: int, size: int, taps: int, dtype: torch.dtype) -> float:
    r"""Factor slightly below one that absorbs the rounding of a kernel [A B] to a dtype.

    Rounding changes every entry by at most u of itself, u half a machine epsilon, hence the operator by at most
    $u \sum_t \|K_t\|_F \le u \sqrt{T} \|K\|_F \le u \sqrt{T n_{out}}$ for T taps. Twice that is taken off. In float64
    there is no wider type to convert and to prove in, and the factor allows for the rounding of both.

    Args:
        n_out: Rows of the symbol.
        size: Columns of the symbol N.
        taps: Number of taps T.
        dtype: Dtype that the kernel is rounded to.

    Returns:
        The factor.
    """
    root = math.sqrt(taps * n_out)
    units = root + 1.0
    if dtype == torch.float64:
        units += 16.0 * (size + taps) * root + taps**2 * size * n_out
    return 1.0 / (1.0 + units * torch.finfo(dtype).eps)


def kernel_to_stages(
    params: KernelParams,
    activation: str,
    taps: Pair,
    stride: Pair,
    *,
    circular: bool,
    n_in: int | None = None,
    gain: float = 1.0,
    target: torch.dtype | None = None,
) -> tuple[Stage, ...]:
    r"""Explicit form of a sandwich convolution: strided convolution, activation, convolution.

    Args:
        params: Free parameters of a layer n_in * stride area -> n_out.
        activation: Key of the activation table.
        taps: Size of the kernel in pixels of the output.
        stride: (rows, columns); the layer acts on the image after `space_to_depth`.
        circular: Whether the image is continued periodically, and not by zeros.
        n_in: Channels after `space_to_depth`, which makes A a matrix as in `pointwise_kernel`; a kernel if None.
        gain: Factor of the input.
        target: Dtype that the weights will be rounded to; that of the parameters if None.

    Returns:
        The stages.
    """
    target = target or params.weight.dtype
    size, n_out = params.weight.shape
    if n_in is None:
        kernel = contraction_kernel(params, taps)
        a, b = kernel[:, :n_out], kernel[:, n_out:]
    else:
        a, b = pointwise_kernel(params, taps)
        a, b = a[..., None, None], b[:, :n_in]
    margin = conv_margin(n_out, size, math.prod(taps), target)
    return sandwich_stages(
        a, b, params.psi, params.bias, activation, stride, circular, gain * margin, margin, target
    )


def sandwich_stages(
    a: Tensor,
    b: Tensor,
    psi: Tensor,
    bias: Tensor | None,
    activation: str,
    stride: Pair,
    circular: bool,
    gain: float,
    outer_gain: float,
    target: torch.dtype,
) -> tuple[Stage, ...]:
    """Explicit form of a sandwich convolution from the kernels of A and B, with [A B] of norm at most one.

    Args:
        a: Shape (n_out, n_out, rows, columns).
        b: Shape (n_out, n_in, rows, columns), on the image after `space_to_depth`.
        psi: Shape (n_out,).
        bias: Shape (n_out,), or None.
        activation: Key of the activation table.
        stride: (rows, columns).
        circular: Whether the image is continued periodically.
        gain: Factor of B.
        outer_gain: Factor of A.
        target: Dtype that the weights will be rounded to.

    Returns:
        The stages.
    """
    limit = psi_limit(target)
    diagonal = psi.clamp(-limit, limit).exp()
    root = math.sqrt(2.0)
    inner = to_fine_kernel(b * (root * gain / diagonal)[:, None, None, None], stride)
    outer = a.transpose(0, 1).flip(-2, -1) * (root * outer_gain * diagonal)[:, None, None]
    pads = [tuple(n * s for n in reach(k)) for k, s in zip(b.shape[2:], stride, strict=True)]
    back = [reach(k, transposed=True) for k in a.shape[2:]]
    return (
        ConvStage(inner, bias, stride, (pads[0][0], pads[0][1]), (pads[1][0], pads[1][1]), circular),
        ActivationStage(activation),
        ConvStage(outer, None, (1, 1), back[0], back[1], circular),
    )
