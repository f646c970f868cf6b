"""Linear algebra of the sandwich layer: Cayley map, its inverse, safe norms. Pure tensor functions."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import get_lapack_funcs
from torch import Tensor

__all__ = [
    "accretive_inverse",
    "cayley",
    "frobenius_norm",
    "inverse_cayley",
    "lapack_inverse",
    "polish",
    "spectral_norm",
]

# Below this size one LAPACK call is faster than two half-size inverses and five products.
_LEAF = 48
_LEAF_LAPACK = 128


def accretive_inverse(s: Tensor, *, use_lapack: bool = False) -> Tensor:
    r"""Invert a matrix with $S + S^H \ge 2I$ by 2 x 2 block elimination, without pivoting.

    Every leading block and every Schur complement of such a matrix again satisfies $S + S^H \ge 2I$, so all
    intermediate inverses have norm at most one and no pivot is needed. Nearly all the work is matrix products.

    Args:
        s: Shape (..., n, n).
        use_lapack: Call LAPACK by way of scipy for small blocks, which takes a third of the time of torch's
            solver; only for real matrices on the CPU whose gradient nobody asks for.

    Returns:
        The inverse, shape (..., n, n). NaN where s is not finite.
    """
    n = s.shape[-1]
    if n == 1:
        return s.reciprocal()
    if use_lapack and n <= _LEAF_LAPACK:
        return _lapack_inverse(s)
    if n <= _LEAF:
        return torch.linalg.inv_ex(s).inverse
    h = (n + 1) // 2
    a_inv = accretive_inverse(s[..., :h, :h], use_lapack=use_lapack)
    right = a_inv @ s[..., :h, h:]
    left = s[..., h:, :h] @ a_inv
    d_inv = accretive_inverse(s[..., h:, h:] - s[..., h:, :h] @ right, use_lapack=use_lapack)
    upper = right @ d_inv
    return torch.cat(
        (torch.cat((a_inv + upper @ left, -upper), dim=-1), torch.cat((-(d_inv @ left), d_inv), dim=-1)),
        dim=-2,
    )


def _lapack_inverse(s: Tensor) -> Tensor:
    n = s.shape[-1]
    if s.ndim == 2:
        return torch.from_numpy(lapack_inverse(s.numpy()))
    inverses = [lapack_inverse(matrix) for matrix in s.reshape(-1, n, n).numpy()]
    return torch.from_numpy(np.reshape(inverses, s.shape))


def lapack_inverse(s: NDArray[Any]) -> NDArray[Any]:
    """Invert one small matrix by LAPACK.

    Args:
        s: Shape (n, n), float32 or float64.

    Returns:
        The inverse, shape (n, n), contiguous. NaN where LAPACK finds s singular.
    """
    if len(s) == 1:
        return 1.0 / s
    # To solve for the unit matrix takes down to a third of the time of LAPACK's own inverse.
    _, _, inverse, failed = _SOLVE[s.dtype.char](s.T, _identity(len(s), s.dtype.char))
    if failed:
        inverse.fill(np.nan)
    return inverse.T


@lru_cache(maxsize=64)
def _identity(n: int, kind: str) -> NDArray[Any]:
    identity = np.eye(n, dtype=kind, order="F")
    identity.flags.writeable = False
    return identity


_SOLVE = {kind: get_lapack_funcs("gesv", dtype=kind) for kind in "fd"}


def cayley(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    r"""Map free matrices X, Y to the factors of a semi-orthogonal matrix.

    With $S = I + X - X^H + Y^H Y$ and $M = S^{-1}$,

    $$\begin{bmatrix} A^H \\ B^H \end{bmatrix} = \begin{bmatrix} 2 M - I \\ -2 Y M \end{bmatrix},
      \qquad A A^H + B B^H = I,$$

    which is the Cayley transform of Wang & Manchester (ICML 2023), equation (9), written with a single
    inverse. The symmetric part of S is at least I, so M exists and has norm at most one for every X and Y;
    the textbook form $(I + Z)^{-1}(I - Z)$ loses up to a third of the bound in float32 when Z is large.

    Args:
        x: Square block, shape (..., n, n), real or complex.
        y: Lower block, shape (..., m, n), m >= 0.

    Returns:
        The pair ($A^H$, $B^H$) with shapes (..., n, n) and (..., m, n): the stacked columns are orthonormal.

    Example:
        >>> a_t, b_t = cayley(torch.zeros(2, 2), torch.zeros(3, 2))
        >>> bool((a_t == torch.eye(2)).all() and (b_t == 0).all())
        True
    """
    identity = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    m = accretive_inverse(identity + (x - x.mH) + y.mH @ y)
    return 2 * m - identity, -2 * (y @ m)


def polish(a_t: Tensor, b_t: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return the factors after one Newton-Schulz step towards orthonormal columns.

    $Q^+ = Q (3I - Q^H Q)/2$ takes every singular value $s < \sqrt3$ to $s (3 - s^2)/2 \le 1$, so an error of
    size e in the norm becomes at most $3 e^2/2$, from below.

    Args:
        a_t: $A^H$, shape (..., n, n).
        b_t: $B^H$, shape (..., m, n).

    Returns:
        The polished pair, of the same shapes.
    """
    excess = a_t.mH @ a_t + b_t.mH @ b_t - torch.eye(a_t.shape[-1], dtype=a_t.dtype, device=a_t.device)
    return a_t - a_t @ excess / 2, b_t - b_t @ excess / 2


def inverse_cayley(a_t: Tensor, b_t: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return X, Y with `cayley(X, Y) == (a_t, b_t)`.

    From $A^H = 2 M - I$: $M = (A^H + I)/2$, $Y = -B^H M^{-1}/2$, and X is a quarter of the skew part of
    $(I - A^H)(I + A^H)^{-1}$, doubled. X is skew-symmetric, so it is the representative of least norm.

    Args:
        a_t: $A^H$, shape (..., n, n), without eigenvalue -1.
        b_t: $B^H$, shape (..., m, n), with $A A^H + B B^H = I$.

    Returns:
        The pair (X, Y) with shapes (..., n, n) and (..., m, n).

    Raises:
        torch.linalg.LinAlgError: If $A$ has the eigenvalue -1 (outside the range of the Cayley map).
    """
    identity = torch.eye(a_t.shape[-1], dtype=a_t.dtype, device=a_t.device)
    m_inverse = torch.linalg.inv(a_t + identity)
    z = (identity - a_t) @ m_inverse
    return (z - z.mH) / 4, -(b_t @ m_inverse)


def frobenius_norm(w: Tensor) -> Tensor:
    """Frobenius norm of the last two axes that neither overflows, underflows, nor has a NaN gradient at zero.

    Args:
        w: Shape (..., m, n).

    Returns:
        Shape (...): the norm; its gradient at w = 0 is zero.
    """
    peak = w.detach().abs().amax(dim=(-2, -1), keepdim=True) if w.numel() else w.new_zeros((1, 1))
    safe = torch.where(peak > 0, peak, torch.ones_like(peak))
    squares = (w / safe).abs().square().sum(dim=(-2, -1))
    zero = peak.squeeze((-2, -1)) == 0
    norm = torch.where(zero, torch.ones_like(squares), squares).sqrt() * safe.squeeze((-2, -1))
    return torch.where(zero, torch.zeros_like(norm), norm)


def spectral_norm(w: Tensor) -> Tensor:
    """Largest singular value of the last two axes, computed in float64.

    Args:
        w: Shape (..., m, n).

    Returns:
        Shape (...), float64 (zero when m or n is zero).
    """
    if w.shape[-1] == 0 or w.shape[-2] == 0:
        return torch.zeros(w.shape[:-2], dtype=torch.float64, device=w.device)
    wide = w.to(torch.complex128 if w.is_complex() else torch.float64)
    return torch.linalg.matrix_norm(wide, ord=2)
