"""Metrics of the state space: coordinates for a search over them, and where to start one."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import LinAlgWarning, matrix_balance, solve_discrete_lyapunov
from torch import Tensor

from robustnn.dynamics.slope_form import SlopeForm

__all__ = ["MetricSpace", "condition_penalty", "linearised", "lyapunov", "scale_to_one"]

Array = NDArray[np.float64]
# Weight of log(tr P tr P^-1 / n^2), which keeps P away from singular ones where the rest is indifferent.
_CONDITION_WEIGHT = 1e-4


class MetricSpace:
    """Cholesky factors of metrics around one, L = L_0 T with T lower triangular and a positive diagonal.

    Args:
        metric: The one in the centre, positive definite.

    Attributes:
        size: Number of coordinates.
    """

    def __init__(self, metric: Tensor) -> None:
        self._base = torch.linalg.cholesky(metric.detach())
        n = len(metric)
        self._rows = torch.tril_indices(n, n, -1)
        self._n = n
        self.size = n * (n + 1) // 2

    def factor(self, x: Tensor) -> Tensor:
        """Return the Cholesky factor of coordinates (size,); that of the metric in the centre for zero."""
        triangle = torch.diag_embed(x[: self._n].exp())
        below = torch.zeros_like(triangle).index_put((self._rows[0], self._rows[1]), x[self._n :])
        return self._base @ (triangle + below)


def condition_penalty(factor: Tensor) -> Tensor:
    """Return a small penalty of the condition of the metric with Cholesky factor `factor`."""
    inverse = torch.linalg.solve_triangular(factor, torch.eye(len(factor), dtype=factor.dtype), upper=False)
    return _CONDITION_WEIGHT * (factor.square().sum().log() + inverse.square().sum().log())


def scale_to_one(p: Tensor) -> tuple[Tensor, float]:
    """Return a metric with largest eigenvalue one, and the factor that it was multiplied with."""
    scale = 1.0 / (float(torch.linalg.eigvalsh(p)[-1]) * (1.0 + 1e-14 * len(p)))
    p = scale * p
    return (p + p.mT) / 2.0, scale


def linearised(form: SlopeForm) -> list[Array]:
    """Return the matrices of a map linearised at the smallest, mean and largest slopes of all units at once."""
    n = form.n_in
    found = []
    for share in (0.0, 0.5, 1.0) if form.n_z else (0.0,):
        slopes = ((1.0 - share) * form.alpha + share * form.beta).unsqueeze(-1)
        inner = torch.eye(form.n_z, dtype=torch.float64) - slopes * form.v[:, n:]
        found.append(
            (form.g[:, :n] + form.g[:, n:] @ torch.linalg.solve(inner, slopes * form.v[:, :n])).numpy()
        )
    return found


def lyapunov(a: Array, drive: Array | None = None) -> Tensor | None:
    """Solve P = A^T P A + Q in balanced states, which may differ by many orders of magnitude.

    Args:
        a: Shape (n, n).
        drive: Q, shape (n, n); the identity in balanced states if None.

    Returns:
        P; None where it does not exist or is ill-conditioned in balanced states.
    """
    _, (scale, _) = matrix_balance(a, permute=False, separate=True)
    balanced = a * scale / scale[:, None]
    q = np.eye(len(a)) if drive is None else drive * scale * scale[:, None]
    with warnings.catch_warnings():
        warnings.simplefilter("error", LinAlgWarning)
        try:
            p = np.asarray(solve_discrete_lyapunov(balanced.T, q))
        except (LinAlgWarning, np.linalg.LinAlgError):
            return None
    p = (p + p.T) / 2.0
    if not np.isfinite(p).all():
        return None
    values = np.linalg.eigvalsh(p)
    if not values[0] > 1e-9 * values[-1]:
        return None
    return torch.from_numpy(p / scale / scale[:, None])
