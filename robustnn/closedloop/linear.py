r"""The linear view of a plant: Jacobians about a point, and the H-infinity norm of a sampled system."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from robustnn.errors import ShapeError, check_finite, check_positive, invalid

if TYPE_CHECKING:
    from robustnn.envs.plant import Plant

__all__ = ["Linearization", "hinf_norm", "linearize"]

Matrix = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Linearization:
    r"""$\delta x_{t+1} = A\,\delta x_t + B\,\delta u_t$, $\delta y_t = C\,\delta x_t$ about a point.

    Attributes:
        a: Shape (n_x, n_x).
        b: Shape (n_x, n_u).
        c: Shape (n_y, n_x).
        state: The point, shape (n_x,).
        action: Shape (n_u,).
        drift: $f(x, u) - x$, shape (n_x,); zero at an equilibrium.
    """

    a: Matrix
    b: Matrix
    c: Matrix
    state: Matrix
    action: Matrix
    drift: Matrix


def linearize(
    plant: Plant, state: Sequence[float] | ArrayLike, action: Sequence[float] | ArrayLike
) -> Linearization:
    """Differentiate a plant's transition and observation about a point, by automatic differentiation.

    Args:
        plant: The plant.
        state: Shape (n_x,).
        action: Shape (n_u,); inside the limits, where the actuator does not saturate.

    Returns:
        The Jacobians in float64.

    Raises:
        ShapeError: If a size is wrong.
        NonFiniteError: If the point is not finite.

    Example:
        >>> from robustnn.envs import DoubleIntegrator
        >>> linearize(DoubleIntegrator(), [0.0, 0.0], [0.0]).a
        array([[1. , 0.1],
               [0. , 1. ]])
    """
    x = _vector("state", state, plant.n_x)
    u = _vector("action", action, plant.n_u)
    a, b = torch.func.jacrev(plant.transition, argnums=(0, 1))(x, u)
    c = torch.func.jacrev(plant.observation)(x)
    drift = plant.transition(x, u) - x
    return Linearization(*(t.detach().numpy() for t in (a, b, c, x, u, drift)))


def _vector(name: str, value: Sequence[float] | ArrayLike, size: int) -> Tensor:
    vector = torch.as_tensor(np.array(value, dtype=np.float64))
    if vector.shape != (size,):
        raise ShapeError(
            f"{name}: expected shape ({size},), got {tuple(vector.shape)}. Give one number per component."
        )
    check_finite(name, vector)
    return vector


def hinf_norm(
    a: ArrayLike, b: ArrayLike, c: ArrayLike, d: ArrayLike | None = None, *, tolerance: float = 1e-10
) -> float:
    r"""The H-infinity norm of $x_{t+1} = A x_t + B u_t$, $y_t = C x_t + D u_t$: its largest l2 gain.

    $$\|G\|_\infty = \max_\omega \sigma_{max}\left(C (e^{i\omega} I - A)^{-1} B + D\right)$$

    by the two-step method of Bruinsma and Steinbuch (Systems & Control Letters 14, 1990) for sampled systems: a
    level is above the norm when the symplectic pencil of that level has no eigenvalue on the unit circle.

    Args:
        a: Shape (n_x, n_x), all eigenvalues inside the unit circle.
        b: Shape (n_x, n_u).
        c: Shape (n_y, n_x).
        d: Shape (n_y, n_u); zeros if None.
        tolerance: Relative accuracy; the value returned is an upper bound, at most so much above the norm.

    Returns:
        The norm.

    Raises:
        InvalidArgumentError: If the system is not asymptotically stable.
        ShapeError: If the sizes do not fit.

    Example:
        >>> round(hinf_norm([[0.5]], [[1.0]], [[1.0]]), 9)
        2.0
    """
    a, b, c = (np.atleast_2d(np.asarray(m, dtype=np.float64)) for m in (a, b, c))
    d = np.zeros((len(c), b.shape[1])) if d is None else np.atleast_2d(np.asarray(d, dtype=np.float64))
    n = len(a)
    if a.shape != (n, n) or len(b) != n or c.shape[1] != n or d.shape != (len(c), b.shape[1]):
        raise ShapeError(
            "a, b, c, d: expected (n_x, n_x), (n_x, n_u), (n_y, n_x), (n_y, n_u), got "
            f"{a.shape}, {b.shape}, {c.shape}, {d.shape}. Pass the matrices of one system."
        )
    for name, matrix in zip("abcd", (a, b, c, d), strict=True):
        check_finite(name, matrix)
    check_positive("tolerance", tolerance)
    radius = float(np.abs(np.linalg.eigvals(a)).max())
    if radius >= 1.0:
        raise invalid(
            "a", "eigenvalues inside the unit circle", f"a spectral radius of {radius:.6g}",
            "The gain of an unstable system is infinite; close the loop first.",
        )  # fmt: skip

    def gain(angle: float) -> float:
        response = c @ np.linalg.solve(np.exp(1j * angle) * np.eye(n) - a, b) + d
        return float(np.linalg.norm(response, 2))

    poles = np.angle(np.linalg.eigvals(a))
    angles = np.unique(np.concatenate([[0.0, math.pi], np.abs(poles)]))
    level = max(gain(float(angle)) for angle in angles)
    if level == 0.0:
        angles = np.linspace(0.0, math.pi, 64)
        level = max(gain(float(angle)) for angle in angles)
        if level == 0.0:
            return 0.0
    while True:
        tried = level * (1.0 + 2.0 * tolerance)
        crossings = _unit_circle(a, b, c, d, tried)
        if len(crossings) == 0:
            return tried
        ends = np.sort(np.concatenate([crossings, -crossings, [0.0, math.pi]]))
        middles = np.concatenate([0.5 * (ends[1:] + ends[:-1]), crossings])
        best = max(gain(float(angle)) for angle in middles)
        if best <= tried:
            return tried
        level = best


def _unit_circle(a: Matrix, b: Matrix, c: Matrix, d: Matrix, level: float) -> Matrix:
    """Angles in [0, pi] at which a singular value of the response equals a level."""
    from scipy.linalg import eigvals

    n = len(a)
    r = level**2 * np.eye(b.shape[1]) - d.T @ d
    gain = np.linalg.solve(r, d.T @ c)
    closed = a + b @ gain
    weight = c.T @ (c + d @ gain)
    spread = b @ np.linalg.solve(r, b.T)
    left = np.block([[closed, np.zeros((n, n))], [-weight, np.eye(n)]])
    right = np.block([[np.eye(n), -spread], [np.zeros((n, n)), closed.T]])
    roots = eigvals(left, right)
    roots = roots[np.isfinite(roots)]
    on_circle = np.abs(np.abs(roots) - 1.0) < 1e-7
    return np.unique(np.abs(np.angle(roots[on_circle])))
