"""A robot arm with two links and a motor in each joint."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from array_api_compat import array_namespace
from gymnasium import spaces

from robustnn.envs.angles import wrap_angle
from robustnn.envs.gym_env import PlantEnv
from robustnn.envs.plant import Array, Plant, check_parameters, runge_kutta
from robustnn.envs.rendering import Canvas

__all__ = ["TwoLinkArm", "TwoLinkArmEnv"]


@dataclass(frozen=True)
class TwoLinkArm(Plant):
    r"""Two uniform rods in a plane, whose joints are to be brought to given angles.

    .. math:: H(q)\, \ddot q + C(q, \dot q)\, \dot q + c\, \dot q + G(q) = \tau, \qquad \tau_i = \tau_{max,i}\, a_i

    with the mass matrix of two rods (masses m_i, lengths l_i, centres in their middle), joint friction c, and gravity
    G for an arm in a vertical plane; integrated by classical Runge-Kutta steps. The arm lies in a horizontal plane
    unless `gravity` is given.

    **State** (n_x = 4): q_1, the angle of the first link, counter-clockwise from the x-axis (from the horizontal, with
    gravity); q_2, the angle of the second link relative to the first (rad, not wrapped); their rates (rad/s).

    **Observation** (n_y = 6): (cos q_1, sin q_1, cos q_2, sin q_2, dq_1/dt, dq_2/dt). The limit on the rates follows
    from the work that motors and gravity can do within one episode.

    **Action** (n_u = 2): a_1, a_2, the torques over `max_torque_1` and `max_torque_2`, in [-1, 1]; larger values
    saturate.

    **Reward**, of the state after the step: `-(angle_cost e'e + speed_cost dq'dq + torque_cost tau'tau)` with the
    error e of the angles, wrapped to (-pi, pi]; 0 at rest at the target.

    **Start**: angles ~ U[-pi, pi) rad, rates ~ U[-0.5, 0.5) rad/s, independent.

    **End**: never terminated; truncated after `horizon` = 150 steps (6 s).

    Args:
        mass_1: Mass of the first link, kg.
        mass_2: Mass of the second link, kg.
        length_1: Length of the first link, m.
        length_2: Length of the second link, m.
        gravity: Gravitational acceleration in the plane of the arm, m/s^2.
        friction: c, N m s/rad.
        max_torque_1: Torque of the first motor at action 1, N m.
        max_torque_2: Torque of the second motor at action 1, N m.
        target_1: Target of q_1, rad, >= 0.
        target_2: Target of q_2, rad, >= 0.
        angle_cost: Weight of the squared errors, 1/rad^2.
        speed_cost: Weight of the squared rates, s^2/rad^2.
        torque_cost: Weight of the squared torques, 1/(N m)^2.
        max_start_angle: Start angles lie within plus and minus this, rad.
        max_start_speed: Start rates lie within plus and minus this, rad/s.
        dt: Sampling time, s.
        horizon: Steps per episode.

    Raises:
        ValueError: If a parameter is not finite, negative, or zero where it divides.

    Example:
        >>> import numpy as np
        >>> TwoLinkArm().mass_matrix(np.array(0.5 * np.pi)).round(3)
        array([[1.667, 0.333],
               [0.333, 0.333]])
    """

    n_x: ClassVar[int] = 4
    n_u: ClassVar[int] = 2
    n_y: ClassVar[int] = 6

    mass_1: float = 1.0
    mass_2: float = 1.0
    length_1: float = 1.0
    length_2: float = 1.0
    gravity: float = 0.0
    friction: float = 0.1
    max_torque_1: float = 5.0
    max_torque_2: float = 3.0
    target_1: float = 0.5 * math.pi
    target_2: float = 0.0
    angle_cost: float = 1.0
    speed_cost: float = 0.1
    torque_cost: float = 0.001
    max_start_angle: float = math.pi
    max_start_speed: float = 0.5
    dt: float = 0.04
    horizon: int = 150

    def __post_init__(self) -> None:
        """Check the parameters."""
        check_parameters(self, positive=("mass_1", "mass_2", "length_1", "length_2", "dt", "horizon"))

    def _inertias(self) -> tuple[float, float, float]:
        """Coefficients of the mass matrix, kg m^2: of link 1 with link 2 at its tip, of link 2, and the coupling."""
        first = (self.mass_1 / 3.0 + self.mass_2) * self.length_1**2
        return first, self.mass_2 * self.length_2**2 / 3.0, 0.5 * self.mass_2 * self.length_1 * self.length_2

    def mass_matrix(self, q_2: Array) -> Array:
        """Map angles of the second joint (...), rad, to mass matrices H (..., 2, 2), kg m^2."""
        xp = array_namespace(q_2)
        first, second, coupling = self._inertias()
        cross = coupling * xp.cos(q_2)
        h12 = second + cross
        h22 = second + 0.0 * cross
        rows = (xp.stack((first + second + 2.0 * cross, h12), axis=-1), xp.stack((h12, h22), axis=-1))
        return xp.stack(rows, axis=-2)

    def _weights(self) -> tuple[float, float]:
        """Largest torques of gravity of link 1 (with link 2 at its tip) and of link 2, N m."""
        first = (0.5 * self.mass_1 + self.mass_2) * self.gravity * self.length_1
        return first, 0.5 * self.mass_2 * self.gravity * self.length_2

    @property
    def observation_space(self) -> spaces.Box:
        """Box of (cos q_1, sin q_1, cos q_2, sin q_2, rates in rad/s), float32."""
        angles = np.linspace(0.0, math.pi, 361)
        eigenvalues = np.linalg.eigvalsh(self.mass_matrix(angles))
        least, most = 0.999 * float(eigenvalues.min()), float(eigenvalues.max())
        first, second = self._weights()
        drive = math.hypot(self.max_torque_1 + first + second, self.max_torque_2 + second)
        start = math.sqrt(2.0 * most) * self.max_start_speed
        speed = (start + self.horizon * self.dt * drive / math.sqrt(least)) / math.sqrt(least)
        high = np.array([1.0, 1.0, 1.0, 1.0, speed, speed], dtype=np.float32)
        return spaces.Box(-high, high, dtype=np.float32)

    @property
    def action_space(self) -> spaces.Box:
        """Box [-1, 1]^2 of the torques as fractions of the largest ones, float32."""
        return spaces.Box(-1.0, 1.0, shape=(self.n_u,), dtype=np.float32)

    def initial(self, uniform: Array) -> Array:
        """Map samples of U[0, 1), shape (..., 4), to start states, shape (..., 4)."""
        xp = array_namespace(uniform)
        centred = 2.0 * uniform - 1.0
        sizes = (self.max_start_angle,) * 2 + (self.max_start_speed,) * 2
        return xp.stack(tuple(size * centred[..., k] for k, size in enumerate(sizes)), axis=-1)

    def torques(self, action: Array) -> tuple[Array, Array]:
        """Map actions (..., 2) to the torques of both motors (...), N m, saturated."""
        xp = array_namespace(action)
        a = xp.clip(action, -1.0, 1.0)
        return self.max_torque_1 * a[..., 0], self.max_torque_2 * a[..., 1]

    def transition(self, state: Array, action: Array) -> Array:
        """Advance states (..., 4) by one Runge-Kutta step under actions (..., 2)."""
        xp = array_namespace(state)
        tau_1, tau_2 = self.torques(action)
        first, second, coupling = self._inertias()
        weight_1, weight_2 = self._weights()

        def derivative(x: Array) -> Array:
            q_1, q_2, w_1, w_2 = x[..., 0], x[..., 1], x[..., 2], x[..., 3]
            cross, sine = coupling * xp.cos(q_2), coupling * xp.sin(q_2)
            h11, h12 = first + second + 2.0 * cross, second + cross
            tip = weight_2 * xp.cos(q_1 + q_2)
            right_1 = (
                tau_1 + sine * (2.0 * w_1 + w_2) * w_2 - self.friction * w_1 - weight_1 * xp.cos(q_1) - tip
            )
            right_2 = tau_2 - sine * w_1**2 - self.friction * w_2 - tip
            determinant = h11 * second - h12**2
            return xp.stack(
                (
                    w_1, w_2,
                    (second * right_1 - h12 * right_2) / determinant,
                    (h11 * right_2 - h12 * right_1) / determinant,
                ),
                axis=-1,
            )  # fmt: skip

        return runge_kutta(derivative, state, self.dt)

    def observation(self, state: Array) -> Array:
        """Map states (..., 4) to observations (cosines and sines of the angles, rates), shape (..., 6)."""
        xp = array_namespace(state)
        q_1, q_2 = state[..., 0], state[..., 1]
        return xp.stack(
            (xp.cos(q_1), xp.sin(q_1), xp.cos(q_2), xp.sin(q_2), state[..., 2], state[..., 3]), axis=-1
        )

    def reward(self, state: Array, action: Array, next_state: Array) -> Array:
        """Return minus the cost of the states after the step (..., 4) and the torques of the step."""
        e_1 = wrap_angle(next_state[..., 0] - self.target_1)
        e_2 = wrap_angle(next_state[..., 1] - self.target_2)
        tau_1, tau_2 = self.torques(action)
        return -(
            self.angle_cost * (e_1**2 + e_2**2)
            + self.speed_cost * (next_state[..., 2] ** 2 + next_state[..., 3] ** 2)
            + self.torque_cost * (tau_1**2 + tau_2**2)
        )

    def terminal(self, state: Array) -> Array:
        """Return False for every state (..., 4): episodes end at the horizon only."""
        xp = array_namespace(state)
        return xp.zeros_like(state[..., 0], dtype=xp.bool)

    def render_image(self, state: np.ndarray, action: np.ndarray | None, size: int = 400) -> np.ndarray:
        """Draw both links in red, the target in grey, and the torque of the first motor as a blue arrow.

        Args:
            state: One state (4,).
            action: The last action (2,), or None.
            size: Height and width of the image in pixels.

        Returns:
            RGB image (size, size, 3), uint8.
        """
        reach = self.length_1 + self.length_2
        canvas = Canvas(size, half_width=1.1 * reach)
        for angles, color in (((self.target_1, self.target_2), (205, 205, 205)), (state[:2], (205, 75, 75))):
            q_1, q_12 = float(angles[0]), float(angles[0] + angles[1])
            elbow = (self.length_1 * math.cos(q_1), self.length_1 * math.sin(q_1))
            hand = (elbow[0] + self.length_2 * math.cos(q_12), elbow[1] + self.length_2 * math.sin(q_12))
            canvas.line((0.0, 0.0), elbow, width=0.05 * reach, color=color)
            canvas.line(elbow, hand, width=0.035 * reach, color=color)
        canvas.disc((0.0, 0.0), diameter=0.03 * reach, color=(0, 0, 0))
        if action is not None:
            sweep = 0.75 * math.pi * float(np.clip(action[0], -1.0, 1.0))
            if abs(sweep) > 0.02:
                canvas.turn_arrow(0.12 * reach, sweep, width=0.012 * reach, color=(40, 90, 170))
        return canvas.image()


class TwoLinkArmEnv(PlantEnv):
    """The arm as a gymnasium environment, id "robustnn/TwoLinkArm-v0".

    Args:
        plant: The arm; None for the default parameters.
        render_mode: None, "rgb_array" or "human".
    """

    def __init__(self, plant: TwoLinkArm | None = None, render_mode: str | None = None) -> None:
        """Wrap the arm."""
        super().__init__(TwoLinkArm() if plant is None else plant, render_mode)
