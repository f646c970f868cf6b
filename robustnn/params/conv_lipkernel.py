r"""Convolutions with a storage function: the kernels of LipKernel, for any value of the parameters.

The layer is $h^+ = \sqrt2 A^T \Psi \sigma(\sqrt2 \Psi^{-1} B * h + b)$, A a matrix and B a kernel of $k_1 \times k_2$
taps. As a Roesser system, B keeps the last $k_2 - 1$ pixels of a row in a shift register x_2, and $k_1 - 1$ rows of
partial sums in a chain x_1 that x_2 feeds. LipKernel (Pauli, Wang, Manchester & Allgoewer, arXiv 2410.22258) asks for a
storage $x_1^T P_1 x_1 + x_2^T P_2 x_2$ with which the layer is dissipative, a linear matrix inequality in P_1 and P_2.
Since x_1 does not act on x_2, that inequality can be split at the signal between the two, and it has a solution if and
only if

$$B(z_1, z_2) = S \, R_1(z_1) \, \Omega \, R_2(z_2), \qquad
  A A^T + S S^T \preceq I, \quad \|\Omega\| \le 1, \quad R_1 R_1^H \preceq I, \quad R_2^H R_2 \preceq I$$

with filters R_1 along the columns of the image and R_2 along its rows (derived). $R_2(z) = \sum_j L_j z^{k-1-j}$ takes
the factor $L^T L = F$ of the one-dimensional problem as its taps, R_1 the transpose of such a factor,

$$F = \begin{bmatrix} P - N^T P N & -N^T P E \\ -E^T P N & I - E^T P E \end{bmatrix}, \quad P = T^{-1}, \quad
  T = I + \sum_j N^j R N^{jT}, \quad R \succ 0,$$

where N and E shift the register. The blocks of F along every diagonal add up to I or to zero, so $R_2^H R_2 = I$.

Nothing is added to a matrix that fails to factorise: $r I \preceq R \preceq \bar r I$ by construction. So
$T = \Theta \Theta^T \succeq I$, and with $W = \mathrm{diag}(\Theta^{-1}, I)$, $Z = \Theta^{-1} [N \Theta \;\; E]$ is
$F = W^T (I - Z^T Z) W$, where $Z Z^T = I - \Theta^{-1} R \Theta^{-T}$ gives $I - Z^T Z \succeq r / \|T\|$, eight orders
of magnitude above the rounding of float64, in which all of this is computed. $\Omega = Y C^{-T}$ with the Cholesky
factor of $C C^T = I + Y^T Y$ is every strict contraction, each once; S comes from the Cayley map.

What is lost: kernels that are contractions, but have no storage of this form, are not reached; in one direction there
are none. Storages are reached up to the limits of R, $10^{-4}$ and $10^3$, which cost about 0.1 % of the gain at the
extremes, and H and Y up to a Frobenius norm of $10^3$.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from robustnn.linalg import accretive_inverse, frobenius_norm, polish
from robustnn.params.conv_grid import Pair
from robustnn.params.conv_kernel import conv_margin
from robustnn.params.direct import SandwichParams, init_sandwich
from robustnn.params.fused import RADIUS_LIMIT
from robustnn.params.maps import sandwich_factors

__all__ = [
    "LipKernelFactors",
    "LipKernelParams",
    "contraction",
    "gramian",
    "init_lipkernel",
    "innovation",
    "lipkernel_factors",
    "lipkernel_kernel",
    "lipkernel_margin",
    "storage_factor",
]

# Smallest and largest eigenvalue of R.
_LOW, _HIGH = 1e-4, 1e3


class LipKernelParams(NamedTuple):
    """Free parameters of a LipKernel layer, n_in -> n_out channels, k_1 x k_2 taps.

    Attributes:
        weight: X stacked on Y of the outer matrices, shape (2 n_out, n_out); only its direction matters.
        alpha: Radius of its polar form, shape ().
        core: Y of the contraction between the filters, shape (k_1 n_out, k_2 n_in).
        rows: H of the storage P_1, shape ((k_1 - 1) n_out, (k_1 - 1) n_out); None for one tap.
        columns: H of the storage P_2, shape ((k_2 - 1) n_in, (k_2 - 1) n_in); None for one tap.
        psi: Logarithm of the diagonal of Psi, shape (n_out,).
        bias: Shape (n_out,), or None.
    """

    weight: Tensor
    alpha: Tensor
    core: Tensor
    rows: Tensor | None
    columns: Tensor | None
    psi: Tensor
    bias: Tensor | None


class LipKernelFactors(NamedTuple):
    r"""The factors of [A B], float64: the taps of B are the blocks of $(I \otimes S) L_1^T \Omega L_2$.

    Attributes:
        outer: A, shape (n_out, n_out).
        gain: S, shape (n_out, n_out), with $A A^T + S S^T = I$.
        rows: L_1, shape (k_1 n_out, k_1 n_out).
        core: Omega, shape (k_1 n_out, k_2 n_in), of norm below one.
        columns: L_2, shape (k_2 n_in, k_2 n_in).
    """

    outer: Tensor
    gain: Tensor
    rows: Tensor
    core: Tensor
    columns: Tensor


def init_lipkernel(
    n_in: int,
    n_out: int,
    taps: Pair,
    *,
    bias: bool = True,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> LipKernelParams:
    """Draw fresh parameters: A and S as in a dense layer, a random rotation between filters of equal taps.

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
    dense = init_sandwich(n_out, n_out, bias=bias, device=device, dtype=dtype)
    core = torch.empty(taps[0] * n_out, taps[1] * n_in, device=device)
    torch.nn.init.orthogonal_(core, gain=2.0)
    rows, columns = (
        _equal_taps(n, k).to(device=device, dtype=dense.weight.dtype) if k > 1 else None
        for n, k in ((n_out, taps[0]), (n_in, taps[1]))
    )
    psi = torch.zeros(n_out, device=device, dtype=dtype)
    return LipKernelParams(
        dense.weight, dense.alpha, core.to(dense.weight.dtype), rows, columns, psi, dense.bias
    )


def _equal_taps(channels: int, taps: int) -> Tensor:
    """H of a filter with taps of equal size: the blocks of T are k/1, k/2, ..., k/(k - 1), and those of R follow."""
    r = torch.tensor([taps / ((j + 1) * (j + 2)) for j in range(taps - 1)], dtype=torch.float64)
    r = r.clamp(2.0 * _LOW, 0.5 * _HIGH)
    squared = (r - _LOW) / (1.0 - r / _HIGH)
    return torch.diag(squared.sqrt().repeat_interleave(channels))


def innovation(storage: Tensor) -> Tensor:
    r"""Return $R = (r I + H^T H)(I + H^T H / \bar r)^{-1}$, whose eigenvalues are between the limits whatever H is.

    Args:
        storage: H, shape (n, n).

    Returns:
        Shape (n, n), float64. NaN where H is not finite.
    """
    h = _confined(storage.double())
    identity = torch.eye(len(h), dtype=h.dtype, device=h.device)
    m = accretive_inverse(identity + h.mT @ h / _HIGH)
    return _HIGH * identity - (_HIGH - _LOW) / 2.0 * (m + m.mT)


def gramian(storage: Tensor, channels: int, taps: int) -> Tensor:
    """Return T, the inverse of the storage matrix of a shift register.

    Args:
        storage: H, shape ((k - 1) n, (k - 1) n).
        channels: Width n of the register.
        taps: Number of taps k, at least two.

    Returns:
        Shape ((k - 1) n, (k - 1) n), float64, oldest entry first; at least the unit matrix. NaN where H is not finite.
    """
    term = innovation(storage)
    total = torch.eye(len(term), dtype=term.dtype, device=term.device)
    for _ in range(taps - 1):  # N R N^T has the blocks of R shifted towards the front
        total = total + term
        term = functional.pad(term[channels:, channels:], (0, channels, 0, channels))
    return total


def storage_factor(storage: Tensor | None, channels: int, taps: int, like: Tensor) -> Tensor:
    r"""Return an L with $L^T L = F$: the taps, oldest first, of a filter with $L(z)^H L(z) = I$.

    Args:
        storage: H, shape ((k - 1) n, (k - 1) n); None for one tap.
        channels: Width n of the filter's input.
        taps: Number of taps k.
        like: A tensor on the device of the result.

    Returns:
        Shape (k n, k n), float64, nonsingular. NaN where H is not finite.
    """
    identity = torch.eye(channels, dtype=torch.float64, device=like.device)
    if storage is None:
        return identity
    root = torch.linalg.cholesky_ex(gramian(storage, channels, taps)).L
    n = len(root)
    unit = torch.eye(n, dtype=root.dtype, device=root.device)
    shifted = torch.cat(
        (functional.pad(root[channels:], (0, 0, 0, channels)), unit[:, n - channels :]), dim=1
    )
    z = torch.linalg.solve_triangular(root, shifted, upper=False)
    gap = torch.eye(n + channels, dtype=root.dtype, device=root.device) - z.mT @ z
    inverse = torch.linalg.solve_triangular(root, unit, upper=False)
    return torch.linalg.cholesky_ex(gap).L.mT @ torch.block_diag(inverse, identity)


def contraction(core: Tensor) -> Tensor:
    r"""Return $Y (I + Y^T Y)^{-1/2}$ with the Cholesky factor for the root: norm below one for every Y.

    Args:
        core: Y, shape (m, n).

    Returns:
        Shape (m, n), float64. NaN where Y is not finite.
    """
    y = _confined(core.double())
    if len(y) > y.shape[1]:
        return contraction(core.mT).mT
    total = torch.eye(len(y), dtype=y.dtype, device=y.device) + y @ y.mT
    return torch.linalg.solve_triangular(torch.linalg.cholesky_ex(total).L, y, upper=False)


def lipkernel_factors(params: LipKernelParams, n_in: int, taps: Pair) -> LipKernelFactors:
    """Return the factors of [A B].

    Args:
        params: Free parameters.
        n_in: Channels in.
        taps: Size of the kernel (rows, columns).

    Returns:
        The factors, float64, differentiable.
    """
    outer = SandwichParams(params.weight.double(), params.alpha.double(), None, None)
    a_t, s_t = polish(*sandwich_factors(outer))
    n_out = len(params.psi)
    return LipKernelFactors(
        a_t.mT, s_t.mT,
        storage_factor(params.rows, n_out, taps[0], params.core),
        contraction(params.core),
        storage_factor(params.columns, n_in, taps[1], params.core),
    )  # fmt: skip


def lipkernel_kernel(factors: LipKernelFactors, taps: Pair) -> Tensor:
    r"""Return the kernel B, $A A^T + B B^H \preceq I$ at every frequency.

    Args:
        factors: The factors of [A B].
        taps: Size of the kernel (rows, columns).

    Returns:
        Shape (n_out, n_in, k_1, k_2), in the order of `torch.nn.Conv2d`.
    """
    stacked = factors.rows.mT @ factors.core @ factors.columns
    blocks = stacked.reshape(taps[0], len(factors.gain), taps[1], -1)
    return torch.einsum("om,ambj->ojab", factors.gain, blocks)


def lipkernel_margin(n_in: int, n_out: int, taps: Pair, dtype: torch.dtype) -> float:
    """Factor slightly below one that absorbs the rounding of [A B] to a dtype, as `conv_margin`.

    Args:
        n_in: Channels in.
        n_out: Channels out.
        taps: Size of the kernel (rows, columns).
        dtype: Dtype that the kernel is rounded to.

    Returns:
        The factor.
    """
    return conv_margin(n_out, (taps[0] + 1) * n_out + taps[1] * n_in, math.prod(taps), dtype)


def _confined(free: Tensor) -> Tensor:
    """Scale down a matrix whose Frobenius norm is above the limit."""
    return free * (RADIUS_LIMIT / frobenius_norm(free).clamp_min(RADIUS_LIMIT))
