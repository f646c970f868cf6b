r"""A linear model in the coordinates and units in which a nonlinear one starts from it.

In the coordinates $z = \Sigma^{-1/2} x$ of the weighted controllability Gramian

$$\Sigma = \rho^{-2} A \Sigma A^T + B B^T$$

the matrix $[A / \rho \;\; B]$ has orthonormal rows: the map is bounded by $\rho$ in the state and one in the input,
the least that a model with this A can have in the input for a given scale of the states.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_discrete_lyapunov

from robustnn.dynamics.channels import Channels
from robustnn.dynamics.data import Dataset
from robustnn.dynamics.linear import LinearStateSpace, stable_projection

__all__ = ["STABLE_RATE", "NormalForm", "normal_form"]

Array = NDArray[np.float64]
# How far the eigenvalues of A stay within the rate, relative to it, where the data put them beyond; and at most.
_LEAST_SLACK, _SLACK = 1e-3, 0.02
# The rate for models without a bound: it leaves every stable A as it is.
STABLE_RATE = 1.0 / (1.0 - _LEAST_SLACK)


@dataclass(frozen=True, eq=False)
class NormalForm:
    r"""x+ = A x + B u + e, y = C x + D u + c in scaled inputs and outputs, with states of about unit variance.

    Attributes:
        a: Shape (n_x, n_x); its norm is below the rate.
        b: Shape (n_x, n_u).
        c: Shape (n_y, n_x).
        d: Shape (n_y, n_u).
        state_constant: e, shape (n_x,).
        output_constant: c, shape (n_y,).
        input_gain: A number with $\|[A / \rho \;\; B / g]\|_2 < 1$.
    """

    a: Array
    b: Array
    c: Array
    d: Array
    state_constant: Array
    output_constant: Array
    input_gain: float


def normal_form(linear: LinearStateSpace, channels: Channels, data: Dataset, rate: float) -> NormalForm:
    """Return a linear model in scaled units and normalised coordinates.

    Args:
        linear: In the units of the data.
        channels: Scaling.
        data: Its inputs set the scale of the states.
        rate: rho; eigenvalues of A beyond it are shrunk.

    Returns:
        The model; equal to the given one in its outputs unless eigenvalues were shrunk.
    """
    scaling = channels.scaling
    offset = scaling.u_offset - linear.u_offset
    b = linear.b * scaling.u_scale
    c = linear.c / scaling.y_scale[:, None]
    d = linear.d * scaling.u_scale / scaling.y_scale[:, None]
    constant = (linear.y_offset + linear.d @ offset - scaling.y_offset) / scaling.y_scale
    a = stable_projection(linear.a, rate * (1.0 - _LEAST_SLACK))
    radius = float(np.abs(np.linalg.eigvals(a)).max(initial=0.0))
    if radius > rate * (1.0 - _LEAST_SLACK):  # the projection of some matrices has larger eigenvalues
        a = a * (rate * (1.0 - _LEAST_SLACK) / radius)
        radius = rate * (1.0 - _LEAST_SLACK)
    slack = min(_SLACK, 0.5 * (1.0 - radius / rate))
    drive = b @ b.T
    # A state that no input reaches has no scale of its own: it gets a small one.
    drive = drive + 1e-6 * (np.trace(drive) / len(a) + 1e-12) * np.eye(len(a))
    gramian = solve_discrete_lyapunov(a / (rate * (1.0 - slack)), drive)
    values, vectors = np.linalg.eigh(0.5 * (gramian + gramian.T))
    root = np.sqrt(np.maximum(values, 1e-14 * values[-1]))
    there, back = (vectors / root).T, vectors * root
    a, b, c, e = there @ a @ back, there @ b, c @ back, there @ (linear.b @ offset)
    size = max(_state_size(a, b, e, channels, data), 1e-8)
    return NormalForm(a, b / size, c * size, d, e / size, constant, 1.0 / (size * (1.0 - slack)))


def _state_size(a: Array, b: Array, e: Array, channels: Channels, data: Dataset) -> float:
    """Root mean square of the states over all samples and components."""
    total, count = 0.0, 0
    for one in data:
        state = np.zeros(len(a))
        for drive in channels.scaled_u(one.u) @ b.T + e:
            state = a @ state + drive
            total += float(state @ state)
        count += len(one) * len(a)
    return float(np.sqrt(total / count))
