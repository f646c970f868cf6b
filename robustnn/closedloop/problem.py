r"""A control problem: a plant linearised about an equilibrium, its costs, and the sizes of its disturbances.

The sensors are in error, and the cost is what the reward weighs (the state after the step costs what the state before
it does, one step later):

$$x_{t+1} = A x_t + B u_t + W w_t, \quad y_t = C x_t + V \delta_t, \quad z_t = (Q^{1/2} x_t, R^{1/2} u_t)$$
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from robustnn.closedloop.linear import linearize
from robustnn.errors import ShapeError, check_finite, invalid

if TYPE_CHECKING:
    from robustnn.envs.plant import Plant

__all__ = ["ControlProblem", "check_poles", "control_problem", "root"]

Matrix = NDArray[np.float64]

# A pole so close to the unit circle counts as on it.
_ON_CIRCLE = 1e-9


@dataclass(frozen=True, eq=False)
class ControlProblem:
    r"""A sampled linear plant with its costs and the sizes of its disturbances.

    Attributes:
        a: A, shape (n_x, n_x).
        b: B, shape (n_x, n_u).
        c: C, shape (n_y, n_x).
        state_cost: Q, shape (n_x, n_x), positive semi-definite: cost of the states, in units of the reward.
        action_cost: R, shape (n_u, n_u), positive definite.
        sensor: V, shape (n_y, n_y), invertible: the error of the observation that counts as one.
        process: W, shape (n_x, n_w): disturbances of the state; n_w = 0 for none.
        observation: Observation at the equilibrium, shape (n_y,).
        action: Action at the equilibrium, shape (n_u,).
        dt: Sampling time, s.
    """

    a: Matrix
    b: Matrix
    c: Matrix
    state_cost: Matrix
    action_cost: Matrix
    sensor: Matrix
    process: Matrix
    observation: Matrix
    action: Matrix
    dt: float = 1.0

    def __post_init__(self) -> None:
        """Check sizes and definiteness."""
        names = ("a", "b", "c", "state_cost", "action_cost", "sensor", "process")
        for name in (*names, "observation", "action"):
            matrix = np.asarray(getattr(self, name), dtype=np.float64)
            check_finite(name, matrix)
            object.__setattr__(self, name, matrix)
        n_x, n_u, n_y = len(self.a), self.b.shape[-1], len(self.c)
        sizes: dict[str, tuple[int, ...]] = {
            "a": (n_x, n_x), "b": (n_x, n_u), "c": (n_y, n_x), "state_cost": (n_x, n_x),
            "action_cost": (n_u, n_u), "sensor": (n_y, n_y), "process": (n_x, self.process.shape[-1]),
            "observation": (n_y,), "action": (n_u,),
        }  # fmt: skip
        for name, shape in sizes.items():
            if getattr(self, name).shape != shape:
                got = getattr(self, name).shape
                raise ShapeError(
                    f"{name}: expected shape {shape}, got {got}. Pass the matrices of one plant."
                )
        for name, strict in (("state_cost", False), ("action_cost", True)):
            matrix = getattr(self, name)
            values = np.linalg.eigvalsh(0.5 * (matrix + matrix.T))
            low = values.min() - (0.0 if not strict else 1e-14 * abs(values).max())
            symmetric = np.allclose(matrix, matrix.T, rtol=1e-9, atol=0.0)
            if not symmetric or low < -1e-12 * abs(values).max() or (strict and low <= 0.0):
                kind = "positive definite" if strict else "positive semi-definite"
                fix = "A reward must fall with the square of the state and of the action."
                raise invalid(name, f"a symmetric {kind} matrix", f"eigenvalues {values.tolist()}", fix)
        if np.linalg.cond(self.sensor) > 1e12:
            fix = "Give every sensor an error; use a small one for a good sensor."
            raise invalid("sensor", "an invertible matrix", self.sensor.tolist(), fix)

    @property
    def state_weight(self) -> Matrix:
        """Q^(1/2), shape (n_x, n_x)."""
        return root(self.state_cost)

    @property
    def action_weight(self) -> Matrix:
        """R^(1/2), shape (n_u, n_u)."""
        return root(self.action_cost)


def control_problem(
    plant: Plant,
    state: Sequence[float] | ArrayLike,
    action: Sequence[float] | ArrayLike,
    *,
    sensor: ArrayLike | None = None,
    process: ArrayLike | None = None,
) -> ControlProblem:
    r"""Linearise a plant about an equilibrium and take the costs from the curvature of its reward.

    Args:
        plant: The plant.
        state: Equilibrium, shape (n_x,).
        action: Its action, shape (n_u,), inside the limits.
        sensor: V, shape (n_y, n_y), or its diagonal (n_y,), in the units of the observation; ones if None.
        process: W, shape (n_x, n_w), or its diagonal (n_x,), in the units of the state per step; none if None.

    Returns:
        The problem.

    Raises:
        InvalidArgumentError: If the point is no equilibrium, or the reward is not a quadratic cost about it.

    Example:
        >>> from robustnn.envs import Pendulum
        >>> control_problem(Pendulum(), [0.0, 0.0], [0.0]).state_cost.round(12)
        array([[1. , 0. ],
               [0. , 0.1]])
    """
    linear = linearize(plant, state, action)
    if np.abs(linear.drift).max() > 1e-9 * (1.0 + np.abs(linear.state).max()):
        fix = "Linear controllers are made about a point that the plant can rest in."
        raise invalid("state, action", "an equilibrium", f"a drift of {linear.drift.tolist()} per step", fix)
    n_x, n_u, n_y = plant.n_x, plant.n_u, plant.n_y
    x, u = torch.from_numpy(linear.state), torch.from_numpy(linear.action)
    observation = plant.observation(x).detach().numpy()
    weight = _curvature(plant, x, u)
    joint = weight[n_x:, n_x:]
    if np.abs(weight[:n_x]).max() > 0.0 or np.abs(joint[:n_u, n_u:]).max() > 0.0:
        fix = "Write the costs yourself: ControlProblem(...)."
        raise invalid("plant.reward", "a cost of the next state and one of the action", "mixed terms", fix)
    v = np.eye(n_y) if sensor is None else _square("sensor", sensor)
    w = np.zeros((n_x, 0)) if process is None else _square("process", process)
    return ControlProblem(
        linear.a, linear.b, linear.c, joint[n_u:, n_u:], joint[:n_u, :n_u], v, w, observation, linear.action,
        float(plant.dt),
    )  # fmt: skip


def check_poles(problem: ControlProblem) -> None:
    """Raise unless the filter problem is regular: no pole on the unit circle that no disturbance moves.

    Args:
        problem: The problem.

    Raises:
        InvalidArgumentError: If there is one.
    """
    for pole in np.linalg.eigvals(problem.a):
        moved = np.hstack([problem.a - pole * np.eye(len(problem.a)), problem.process])
        smallest = np.linalg.svd(moved, compute_uv=False)[-1]
        if abs(abs(pole) - 1.0) < _ON_CIRCLE and smallest < _ON_CIRCLE * max(1.0, np.abs(problem.a).max()):
            raise invalid(
                "problem.a", "no pole on the unit circle without process noise", f"the pole {pole:.6g}",
                "Give `process`, the disturbance of the state per step; the smaller, the nearer the limit.",
            )  # fmt: skip


def _curvature(plant: Plant, state: torch.Tensor, action: torch.Tensor) -> Matrix:
    """Half of minus the Hessian of the reward in (state, action, next state)."""
    n_x, n_u = len(state), len(action)

    def cost(joint: torch.Tensor) -> torch.Tensor:
        before, used, after = joint.split((n_x, n_u, n_x))
        return -plant.reward(before, used, after)

    joint = torch.cat([state, action, state])
    slope = torch.func.jacrev(cost)(joint)
    if bool(slope.abs().max() > 1e-9):
        fix = "Choose the point of largest reward."
        raise invalid("plant.reward", "a reward that is stationary at the point", slope.tolist(), fix)
    return np.asarray(0.5 * torch.func.jacrev(torch.func.jacrev(cost))(joint).detach().numpy())


def _square(name: str, value: ArrayLike) -> Matrix:
    matrix = np.asarray(value, dtype=np.float64)
    return np.diag(matrix) if matrix.ndim == 1 else matrix


def root(matrix: Matrix) -> Matrix:
    """Return the symmetric root of a positive semi-definite matrix (n, n)."""
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray((vectors * np.sqrt(values.clip(min=0.0))) @ vectors.T)
