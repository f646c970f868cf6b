r"""Linear controllers of a linearised plant under sensor errors: LQR, LQG, and the least gain that any of them has.

A controller acts on the observation of the same step, as a policy does. The gain from the disturbances $(w, \delta)$ to
the cost output z of `ControlProblem` is the H-infinity norm of the closed loop: the cost of an episode that starts at
rest is at most its square times the energy of the disturbances.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import ArrayLike

from robustnn.closedloop.linear import hinf_norm
from robustnn.closedloop.problem import ControlProblem, Matrix, check_poles, root
from robustnn.errors import ShapeError, check_finite, invalid

__all__ = [
    "LinearController",
    "close_loop",
    "loop_gain",
    "lqg",
    "lqr",
    "sensor_error_limit",
    "static_controller",
]

Array = Any


@dataclass(frozen=True, eq=False)
class LinearController:
    r"""$\xi_{t+1} = A \xi_t + B (y_t - y_0)$, $u_t = u_0 + C \xi_t + D (y_t - y_0)$, started at $\xi_0 = 0$.

    Attributes:
        a: Shape (n_xi, n_xi); n_xi = 0 for a static controller.
        b: Shape (n_xi, n_y).
        c: Shape (n_u, n_xi).
        d: Shape (n_u, n_y).
        observation: y_0, shape (n_y,).
        action: u_0, shape (n_u,).
    """

    a: Matrix
    b: Matrix
    c: Matrix
    d: Matrix
    observation: Matrix
    action: Matrix

    @property
    def n_xi(self) -> int:
        """Number of states of the controller."""
        return len(self.a)

    def step(self, xi: Array, observation: Array) -> tuple[Array, Array]:
        """Return the action and the next state of the controller.

        Args:
            xi: Its state, shape (..., n_xi).
            observation: Shape (..., n_y).

        Returns:
            Shapes (..., n_u) and (..., n_xi), arrays of the kind given.
        """
        xp = array_namespace(observation)
        kwargs = {"dtype": observation.dtype}
        if not isinstance(observation, np.ndarray):
            kwargs["device"] = observation.device
        a, b, c, d, y_0, u_0 = (
            xp.asarray(m, **kwargs)
            for m in (self.a.T, self.b.T, self.c.T, self.d.T, self.observation, self.action)
        )
        error = observation - y_0
        return u_0 + xi @ c + error @ d, xi @ a + error @ b


def lqr(problem: ControlProblem) -> tuple[Matrix, Matrix]:
    r"""Return the state feedback $u = -K x$ of least cost $\sum x'Qx + u'Ru$, and its cost matrix.

    Args:
        problem: The plant and its costs.

    Returns:
        K, shape (n_u, n_x), and P, shape (n_x, n_x): the cost from x is x'P x.

    Raises:
        InvalidArgumentError: If no stabilising feedback was found.

    Example:
        >>> from robustnn.closedloop.problem import control_problem
        >>> from robustnn.envs import DoubleIntegrator
        >>> lqr(control_problem(DoubleIntegrator(), [0.0, 0.0], [0.0]))[0].shape
        (1, 2)
    """
    p = _riccati("lqr", problem.a, problem.b, problem.state_cost, problem.action_cost)
    weight = problem.action_cost + problem.b.T @ p @ problem.b
    return np.linalg.solve(weight, problem.b.T @ p @ problem.a), p


def lqg(problem: ControlProblem) -> LinearController:
    r"""Return the controller of least mean cost when w and $\delta$ are white noise of unit variance.

    LQR on the estimate of a Kalman filter that has seen the observation of the same step. Without process noise the
    filter keeps only what the unstable poles need.

    Args:
        problem: The plant, its costs and the sizes of the noise.

    Returns:
        The controller, n_xi = n_x.

    Raises:
        InvalidArgumentError: If a Riccati equation has no stabilising solution, as for a pole on the unit circle
            without process noise.
    """
    k, _ = lqr(problem)
    a, b, c = problem.a, problem.b, problem.c
    noise = problem.sensor @ problem.sensor.T
    sigma = _riccati("filter", a.T, c.T, problem.process @ problem.process.T, noise)
    gain = np.linalg.solve(noise + c @ sigma @ c.T, c @ sigma).T
    rest = np.eye(len(a)) - gain @ c
    closed = a - b @ k
    return LinearController(
        closed @ rest, closed @ gain, -k @ rest, -k @ gain, problem.observation, problem.action
    )


def static_controller(problem: ControlProblem, gain: ArrayLike) -> LinearController:
    r"""Return $u = u_0 + K (y - y_0)$.

    Args:
        problem: Has the equilibrium.
        gain: K, shape (n_u, n_y).

    Returns:
        The controller, n_xi = 0.

    Raises:
        ShapeError: If the gain does not fit.
    """
    d = np.asarray(gain, dtype=np.float64)
    n_u, n_y = problem.b.shape[1], len(problem.c)
    if d.shape != (n_u, n_y):
        raise ShapeError(f"gain: expected shape ({n_u}, {n_y}), got {d.shape}. One column per observation.")
    check_finite("gain", d)
    empty = np.zeros((0, 0)), np.zeros((0, n_y)), np.zeros((n_u, 0))
    return LinearController(*empty, d, problem.observation, problem.action)


def close_loop(
    problem: ControlProblem, controller: LinearController
) -> tuple[Matrix, Matrix, Matrix, Matrix]:
    r"""Return the closed loop from $(w, \delta)$ to z in deviations from the equilibrium.

    Args:
        problem: The plant.
        controller: The controller.

    Returns:
        A, B, C, D of the states (x, xi).
    """
    a, b, c, v = problem.a, problem.b, problem.c, problem.sensor
    k = controller
    root_q, root_r = problem.state_weight, problem.action_weight
    n_w = problem.process.shape[1]
    closed = np.block([[a + b @ k.d @ c, b @ k.c], [k.b @ c, k.a]])
    inputs = np.block([[problem.process, b @ k.d @ v], [np.zeros((k.n_xi, n_w)), k.b @ v]])
    outputs = np.block([[root_q, np.zeros((len(a), k.n_xi))], [root_r @ k.d @ c, root_r @ k.c]])
    direct = np.zeros((len(outputs), inputs.shape[1]))
    direct[len(a) :, n_w:] = root_r @ k.d @ v
    return closed, inputs, outputs, direct


def loop_gain(problem: ControlProblem, controller: LinearController) -> float:
    r"""Return the largest l2 gain of the closed loop from $(w, \delta)$ to z, the root of cost per energy.

    Args:
        problem: The plant.
        controller: A stabilising controller.

    Returns:
        The H-infinity norm.

    Raises:
        InvalidArgumentError: If the controller does not stabilise the plant.
    """
    return hinf_norm(*close_loop(problem, controller))


def sensor_error_limit(problem: ControlProblem) -> float:
    r"""Return the least gain from sensor errors to z of all controllers, whatever their order: a physical limit.

    With the LQR gain K, $R_e = R + B'PB$, and the unstable part $A_u$ of the plant with its modes $T_u$,

    $$\gamma^2 = \lambda_{max}(S_C^{-1} S_K), \quad A_u' S_K A_u - S_K = T_u' K' R_e K T_u, \quad
      A_u' S_C A_u - S_C = T_u' C' (VV')^{-1} C T_u$$

    Closed loops obey interpolation conditions at the unstable poles only, and the best function that obeys them has
    this norm (Nevanlinna and Pick). Stable plants have the limit zero: the controller that does nothing. Disturbances
    of the state are left out; with them see `hinf_controller`.

    Args:
        problem: The plant, its costs, and the sizes of the sensor errors.

    Returns:
        The limit.

    Raises:
        InvalidArgumentError: If a pole lies on the unit circle, or the plant cannot be stabilised.

    Example:
        >>> from robustnn.closedloop.problem import control_problem
        >>> from robustnn.envs import Pendulum
        >>> round(sensor_error_limit(control_problem(Pendulum(), [0.0, 0.0], [0.0])), 4)
        0.7202
    """
    from scipy.linalg import eigh, schur, solve_discrete_lyapunov

    k, p = lqr(problem)
    check_poles(problem)
    upper, basis, n_unstable = schur(problem.a, output="real", sort="ouc")
    if n_unstable == 0:
        return 0.0
    inverse = np.linalg.inv(upper[:n_unstable, :n_unstable])
    modes = basis[:, :n_unstable]

    def gramian(rows: Matrix) -> Matrix:
        seen = rows @ modes @ inverse
        return np.asarray(solve_discrete_lyapunov(inverse.T, seen.T @ seen))

    weight = root(problem.action_cost + problem.b.T @ p @ problem.b)
    cost, heard = gramian(weight @ k), gramian(np.asarray(np.linalg.solve(problem.sensor, problem.c)))
    try:
        return float(np.sqrt(eigh(cost, heard, eigvals_only=True)[-1]))
    except np.linalg.LinAlgError as error:
        fix = "Add the sensor that sees it."
        raise invalid("problem.c", "sensors that see every unstable mode", "one unseen", fix) from error


def _riccati(name: str, a: Matrix, b: Matrix, q: Matrix, r: Matrix) -> Matrix:
    from scipy.linalg import solve_discrete_are

    fix = "Check that actions reach and sensors see every unstable mode; poles on the unit circle need `process`."
    expected = f"a stabilising solution of the {name} equation"
    try:
        solution = np.asarray(solve_discrete_are(a, b, q, r))
    except (np.linalg.LinAlgError, ValueError) as error:
        raise invalid("problem", expected, error, fix) from error
    solution = 0.5 * (solution + solution.T)
    gain = np.linalg.solve(r + b.T @ solution @ b, b.T @ solution @ a)
    radius = float(np.abs(np.linalg.eigvals(a - b @ gain)).max())
    if radius >= 1.0:
        raise invalid("problem", expected, f"a closed loop of spectral radius {radius:.6g}", fix)
    return solution
