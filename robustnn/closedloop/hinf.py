r"""H-infinity output feedback of a sampled plant: two Riccati equations and bisection over the gain.

The sampled problem is carried to continuous time by the bilinear transform, which preserves stability and the norm, and
solved there by the formulas of Glover and Doyle (Systems & Control Letters 11, 1988) in the form of Zhou, Doyle and
Glover, "Robust and Optimal Control", theorem 17.1, with all direct terms that the transform makes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from robustnn.closedloop.problem import ControlProblem, Matrix, check_poles
from robustnn.closedloop.synthesis import LinearController, loop_gain, lqg
from robustnn.errors import CertificateError, InvalidArgumentError, check_positive, invalid

__all__ = ["HinfDesign", "hinf_controller"]

# Relative accuracy to which a solution of a Riccati equation must satisfy it and be positive.
_ACCURACY = 1e-7


@dataclass(frozen=True, eq=False)
class HinfDesign:
    """An H-infinity controller and the optimum it was made for.

    Attributes:
        controller: The central controller for the level `level`.
        gain: H-infinity norm of its closed loop, at most the level.
        level: (1 + margin) times `upper`.
        lower: A level that no controller attains: a condition of the theorem fails there.
        upper: A level that one attains. The optimum lies between the two.
    """

    controller: LinearController
    gain: float
    level: float
    lower: float
    upper: float


def hinf_controller(problem: ControlProblem, *, margin: float = 1e-3, tolerance: float = 1e-6) -> HinfDesign:
    r"""Return a controller with the least gain from disturbances to z, up to a margin, and the optimum itself.

    At the optimum the controller degenerates; a margin keeps its numbers moderate. The gain of what is returned is
    computed from the closed loop, not taken from the theorem.

    Args:
        problem: The plant, its costs, and the sizes of the disturbances.
        margin: Relative distance of the controller from the optimum, positive.
        tolerance: Relative width of the interval of the optimum.

    Returns:
        The controller, its gain, and both sides of the optimum.

    Raises:
        InvalidArgumentError: If the problem is not regular; for a stable plant without process noise, where doing
            nothing has the gain zero.
        CertificateError: If the closed loop does not keep the level, for badly conditioned problems.

    Example:
        >>> from robustnn.envs import Pendulum
        >>> from robustnn.closedloop.problem import control_problem
        >>> design = hinf_controller(control_problem(Pendulum(), [0.0, 0.0], [0.0]))
        >>> round(design.upper, 4)
        0.7202
    """
    check_positive("margin", margin)
    check_positive("tolerance", tolerance)
    check_poles(problem)
    poles = np.abs(np.linalg.eigvals(problem.a))
    if problem.process.shape[1] == 0 and (poles < 1.0).all():
        raise invalid(
            "problem", "an unstable plant, or process noise", "a stable plant with sensor errors only",
            "Doing nothing has the gain zero there: give `process`, the disturbance of the state per step.",
        )  # fmt: skip
    normal = _normalise(problem)
    upper = loop_gain(problem, lqg(problem)) * (1.0 + 1e-6)
    lower = 0.0
    while upper - lower > tolerance * upper:
        middle = 0.5 * (lower + upper)
        if normal.solve(middle) is None:
            lower = middle
        else:
            upper = middle
    level = upper * (1.0 + margin)
    solution = normal.solve(level)
    if solution is None:
        raise CertificateError(
            f"problem: expected a controller at the level {level:.6g}, got none though {upper:.6g} has one. "
            "Scale states, actions and observations to similar sizes."
        )
    controller = normal.controller(level, *solution)
    scaling = "Scale states, actions and observations to similar sizes, or raise the margin."
    try:
        gain = loop_gain(problem, controller)
    except InvalidArgumentError as error:
        raise CertificateError(f"problem: expected a stable closed loop, got {error} {scaling}") from error
    if gain > level * (1.0 + 1e-6):
        raise CertificateError(
            f"problem: expected a closed loop of gain at most {level:.6g}, got {gain:.6g}. {scaling}"
        )
    return HinfDesign(controller, gain, level, lower, upper)


@dataclass(frozen=True, eq=False)
class _Normal:
    """The continuous-time problem with D12 = (0, I)' and D21 = (0, I), and the way back."""

    a: Matrix
    b1: Matrix
    b2: Matrix
    c1: Matrix
    c2: Matrix
    d11: Matrix
    d12: Matrix
    d21: Matrix
    d22: Matrix
    action: Matrix
    sensor: Matrix
    problem: ControlProblem

    def solve(self, level: float) -> tuple[Matrix, Matrix] | None:
        """Return the solutions of both equations, or None if a condition of the theorem fails."""
        m1, m2 = self.b1.shape[1], self.b2.shape[1]
        p1, p2 = len(self.c1), len(self.c2)
        top, left = self.d11[: p1 - m2], self.d11[:, : m1 - p2]
        if max(_norm(top), _norm(left)) >= level:
            return None
        row, column = np.hstack([self.d11, self.d12]), np.vstack([self.d11, self.d21])
        r = row.T @ row - np.diag([level**2] * m1 + [0.0] * m2)
        r_dual = column @ column.T - np.diag([level**2] * p1 + [0.0] * p2)
        b, c = np.hstack([self.b1, self.b2]), np.vstack([self.c1, self.c2])
        x = _riccati(self.a, b, self.c1.T @ self.c1, r, self.c1.T @ row)
        y = _riccati(self.a.T, c.T, self.b1 @ self.b1.T, r_dual, self.b1 @ column.T)
        if x is None or y is None:
            return None
        return (x, y) if np.abs(np.linalg.eigvals(x @ y)).max() < level**2 else None

    def controller(self, level: float, x: Matrix, y: Matrix) -> LinearController:
        """Return the central controller, carried back to sampled time and the units of the problem."""
        m1, m2 = self.b1.shape[1], self.b2.shape[1]
        p1, p2 = len(self.c1), len(self.c2)
        k, q, g2 = m1 - p2, p1 - m2, level**2
        row, column = np.hstack([self.d11, self.d12]), np.vstack([self.d11, self.d21])
        b, c = np.hstack([self.b1, self.b2]), np.vstack([self.c1, self.c2])
        r = row.T @ row - np.diag([g2] * m1 + [0.0] * m2)
        r_dual = column @ column.T - np.diag([g2] * p1 + [0.0] * p2)
        f = -np.linalg.solve(r, row.T @ self.c1 + b.T @ x)
        gain = -np.linalg.solve(r_dual, column @ self.b1.T + c @ y).T
        d = self.d11
        inside = np.linalg.inv(g2 * np.eye(q) - d[:q, :k] @ d[:q, :k].T)
        outside = np.linalg.inv(g2 * np.eye(k) - d[:q, :k].T @ d[:q, :k])
        h11 = -d[q:, :k] @ d[:q, :k].T @ inside @ d[:q, k:] - d[q:, k:]
        h12 = np.linalg.cholesky(np.eye(m2) - d[q:, :k] @ outside @ d[q:, :k].T)
        h21 = np.linalg.cholesky(np.eye(p2) - d[:q, k:].T @ inside @ d[:q, k:]).T
        z = np.linalg.inv(np.eye(len(self.a)) - y @ x / g2)
        b_2 = z @ (self.b2 + gain[:, q:p1]) @ h12
        c_2 = -h21 @ (self.c2 + f[k:m1])
        b_1 = -z @ gain[:, p1:] + b_2 @ np.linalg.solve(h12, h11)
        c_1 = f[m1:] + h11 @ np.linalg.solve(h21, c_2)
        a_k = self.a + b @ f + b_1 @ np.linalg.solve(h21, c_2)
        b_k, c_k, d_k = b_1 @ self.sensor, self.action @ c_1, self.action @ h11 @ self.sensor
        around = np.linalg.inv(np.eye(m2) + d_k @ self.d22)  # u = K (y - D22 u)
        a_k, b_k, c_k, d_k = (
            a_k - b_k @ self.d22 @ around @ c_k,
            b_k - b_k @ self.d22 @ around @ d_k,
            around @ c_k,
            around @ d_k,
        )
        half = 0.5 * self.problem.dt
        inverse = np.linalg.inv(np.eye(len(a_k)) - half * a_k)
        root = math.sqrt(2.0 * half)
        return LinearController(
            inverse @ (np.eye(len(a_k)) + half * a_k),
            root * inverse @ b_k,
            root * c_k @ inverse,
            d_k + half * c_k @ inverse @ b_k,
            self.problem.observation,
            self.problem.action,
        )


def _normalise(problem: ControlProblem) -> _Normal:
    n, m, p = len(problem.a), problem.b.shape[1], len(problem.c)
    n_w = problem.process.shape[1]
    p1, m1 = n + m, n_w + p
    inputs = np.hstack([problem.process, np.zeros((n, p)), problem.b])
    outputs = np.vstack([problem.state_weight, np.zeros((m, n)), problem.c])
    direct = np.zeros((p1 + p, m1 + m))
    direct[n:p1, m1:] = problem.action_weight
    direct[p1:, n_w:m1] = problem.sensor
    if np.linalg.cond(problem.a + np.eye(n)) > 1e12:
        raise invalid("problem.a", "no pole at -1", "one", "Change the sampling time.")
    inverse = np.linalg.inv(problem.a + np.eye(n))  # z = (1 + s dt/2) / (1 - s dt/2)
    root = 2.0 / math.sqrt(problem.dt)
    a = 2.0 / problem.dt * (problem.a - np.eye(n)) @ inverse
    b, c, d = root * inverse @ inputs, root * outputs @ inverse, direct - outputs @ inverse @ inputs
    u, s, vt = np.linalg.svd(d[:p1, m1:])
    v, t, wt = np.linalg.svd(d[p1:, :m1])
    rows = np.hstack([u[:, m:], u[:, :m]]).T
    columns = np.vstack([wt[p:], wt[:p]]).T
    action, sensor = vt.T / s, (v / t).T
    return _Normal(
        a,
        b[:, :m1] @ columns,
        b[:, m1:] @ action,
        rows @ c[:p1],
        sensor @ c[p1:],
        rows @ d[:p1, :m1] @ columns,
        rows @ d[:p1, m1:] @ action,
        sensor @ d[p1:, :m1] @ columns,
        d[p1:, m1:],
        action,
        sensor,
        problem,
    )


def _riccati(a: Matrix, b: Matrix, q: Matrix, r: Matrix, s: Matrix) -> Matrix | None:
    """The stabilising positive semi-definite solution, or None."""
    from scipy.linalg import solve_continuous_are

    try:
        x = np.asarray(solve_continuous_are(a, b, q, r, s=s))
    except (np.linalg.LinAlgError, ValueError):
        return None
    x = 0.5 * (x + x.T)
    gain = np.linalg.solve(r, b.T @ x + s.T)
    residual = a.T @ x + x @ a + q - (x @ b + s) @ gain
    scale = np.abs(a.T @ x).max() + np.abs(q).max() + np.abs((x @ b + s) @ gain).max()
    stable = np.linalg.eigvals(a - b @ gain).real.max() < 0.0
    positive = np.linalg.eigvalsh(x).min() >= -_ACCURACY * np.abs(x).max()
    return x if stable and positive and np.abs(residual).max() <= _ACCURACY * scale else None


def _norm(matrix: Matrix) -> float:
    return float(np.linalg.norm(matrix, 2)) if matrix.size else 0.0
