"""A quadrotor in the vertical plane."""

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

__all__ = ["PlanarQuadrotor", "PlanarQuadrotorEnv"]


@dataclass(frozen=True)
class PlanarQuadrotor(Plant):
    r"""A rigid body with two rotors, to be brought to hover at the origin.

    .. math:: m \ddot x = -(T_1 + T_2) \sin\phi - c \dot x, \quad m \ddot z = (T_1 + T_2) \cos\phi - m g - c \dot z,
        \quad J \ddot\phi = d\, (T_2 - T_1)

    with phi counter-clockwise, T_1 the thrust of the left rotor and T_2 that of the right one,
    `T_i = (m g / 2) (1 + authority a_i)`; integrated by classical Runge-Kutta steps.

    **State** (n_x = 6): x, z (m), phi (rad, 0 is level, not wrapped), their rates (m/s, m/s, rad/s).

    **Observation** (n_y = 7): (x, z, cos phi, sin phi, dx/dt, dz/dt, dphi/dt). The limits follow from the largest
    accelerations within one episode.

    **Action** (n_u = 2): a_1, a_2 in [-1, 1], thrusts about half the weight; larger values saturate.

    **Reward**, of the state after the step, in (0, 1]: `1 / (1 + cost)` with
    `cost = position_cost (x^2 + z^2) + angle_cost phi^2 + speed_cost (dx/dt^2 + dz/dt^2) + spin_cost dphi/dt^2 +
    action_cost (a_1^2 + a_2^2)` and phi wrapped to (-pi, pi].

    **Start**: x, z ~ U[-1, 1) m, phi ~ U[-0.5, 0.5) rad, rates ~ U[-0.5, 0.5).

    **End**: terminated beyond `max_position` from the origin in x or z; truncated after `horizon` = 200 steps (8 s).

    Args:
        mass: m, kg.
        arm: d, distance of a rotor from the centre, m.
        inertia: J, kg m^2.
        gravity: Gravitational acceleration, m/s^2.
        drag: c, N s/m.
        authority: Largest change of a thrust over half the weight, at most 1 for thrusts that stay positive.
        position_cost: Weight of the squared distance, 1/m^2.
        angle_cost: Weight of the squared angle, 1/rad^2.
        speed_cost: Weight of the squared speed, s^2/m^2.
        spin_cost: Weight of the squared angular velocity, s^2/rad^2.
        action_cost: Weight of the squared actions.
        max_position: Distance in x or z that ends an episode, m.
        max_start_position: Start positions lie within plus and minus this, m.
        max_start_angle: Start angles lie within plus and minus this, rad.
        max_start_speed: Start rates lie within plus and minus this, m/s and rad/s.
        dt: Sampling time, s.
        horizon: Steps per episode.

    Raises:
        ValueError: If a parameter is not finite, negative, or zero where it divides.

    Example:
        >>> import numpy as np
        >>> PlanarQuadrotor().transition(np.zeros(6), np.zeros(2))  # hovers
        array([0., 0., 0., 0., 0., 0.])
    """

    n_x: ClassVar[int] = 6
    n_u: ClassVar[int] = 2
    n_y: ClassVar[int] = 7

    mass: float = 0.5
    arm: float = 0.2
    inertia: float = 0.01
    gravity: float = 9.81
    drag: float = 0.0
    authority: float = 0.5
    position_cost: float = 1.0
    angle_cost: float = 0.2
    speed_cost: float = 0.1
    spin_cost: float = 0.01
    action_cost: float = 0.01
    max_position: float = 4.0
    max_start_position: float = 1.0
    max_start_angle: float = 0.5
    max_start_speed: float = 0.5
    dt: float = 0.04
    horizon: int = 200

    def __post_init__(self) -> None:
        """Check the parameters."""
        check_parameters(self, positive=("mass", "arm", "inertia", "max_position", "dt", "horizon"))

    @property
    def observation_space(self) -> spaces.Box:
        """Box of (x, z in m, cos phi, sin phi, rates in m/s, m/s and rad/s), float32."""
        time = self.horizon * self.dt
        speed = self.max_start_speed + time * self.gravity * (2.0 + self.authority)
        spin = (
            self.max_start_speed + time * self.arm * self.mass * self.gravity * self.authority / self.inertia
        )
        position = self.max_position + self.dt * speed
        high = np.array([position, position, 1.0, 1.0, speed, speed, spin], dtype=np.float32)
        return spaces.Box(-high, high, dtype=np.float32)

    @property
    def action_space(self) -> spaces.Box:
        """Box [-1, 1]^2 of the thrusts about half the weight, float32."""
        return spaces.Box(-1.0, 1.0, shape=(self.n_u,), dtype=np.float32)

    def initial(self, uniform: Array) -> Array:
        """Map samples of U[0, 1), shape (..., 6), to start states, shape (..., 6)."""
        xp = array_namespace(uniform)
        centred = 2.0 * uniform - 1.0
        sizes = (self.max_start_position,) * 2 + (self.max_start_angle,) + (self.max_start_speed,) * 3
        return xp.stack(tuple(size * centred[..., k] for k, size in enumerate(sizes)), axis=-1)

    def thrusts(self, action: Array) -> tuple[Array, Array]:
        """Map actions (..., 2) to the thrusts of the left and the right rotor (...), N."""
        xp = array_namespace(action)
        half = 0.5 * self.mass * self.gravity
        thrust = half * (1.0 + self.authority * xp.clip(action, -1.0, 1.0))
        return thrust[..., 0], thrust[..., 1]

    def transition(self, state: Array, action: Array) -> Array:
        """Advance states (..., 6) by one Runge-Kutta step under actions (..., 2)."""
        xp = array_namespace(state)
        left, right = self.thrusts(action)
        lift = (left + right) / self.mass
        turn = self.arm * (right - left) / self.inertia
        drag = self.drag / self.mass

        def derivative(x: Array) -> Array:
            phi, vx, vz, omega = x[..., 2], x[..., 3], x[..., 4], x[..., 5]
            return xp.stack(
                (
                    vx, vz, omega,
                    -lift * xp.sin(phi) - drag * vx,
                    lift * xp.cos(phi) - self.gravity - drag * vz,
                    turn + 0.0 * omega,
                ),
                axis=-1,
            )  # fmt: skip

        return runge_kutta(derivative, state, self.dt)

    def observation(self, state: Array) -> Array:
        """Map states (..., 6) to observations (x, z, cos phi, sin phi, rates), shape (..., 7)."""
        xp = array_namespace(state)
        phi = state[..., 2]
        parts = (
            state[..., 0],
            state[..., 1],
            xp.cos(phi),
            xp.sin(phi),
            state[..., 3],
            state[..., 4],
            state[..., 5],
        )
        return xp.stack(parts, axis=-1)

    def reward(self, state: Array, action: Array, next_state: Array) -> Array:
        """Return 1 / (1 + cost) of the states after the step (..., 6) and the actions of the step."""
        xp = array_namespace(next_state)
        a = xp.clip(action, -1.0, 1.0)
        phi = wrap_angle(next_state[..., 2])
        cost = (
            self.position_cost * (next_state[..., 0] ** 2 + next_state[..., 1] ** 2)
            + self.angle_cost * phi**2
            + self.speed_cost * (next_state[..., 3] ** 2 + next_state[..., 4] ** 2)
            + self.spin_cost * next_state[..., 5] ** 2
            + self.action_cost * (a[..., 0] ** 2 + a[..., 1] ** 2)
        )
        return 1.0 / (1.0 + cost)

    def terminal(self, state: Array) -> Array:
        """Tell which states (..., 6) are beyond `max_position` in x or z."""
        xp = array_namespace(state)
        return (xp.abs(state[..., 0]) > self.max_position) | (xp.abs(state[..., 1]) > self.max_position)

    def render_image(self, state: np.ndarray, action: np.ndarray | None, size: int = 400) -> np.ndarray:
        """Draw the body, the origin as a dot, and the thrusts as blue lines.

        Args:
            state: One state (6,).
            action: The last action (2,), or None.
            size: Height and width of the image in pixels.

        Returns:
            RGB image (size, size, 3), uint8.
        """
        width = 1.5 * self.max_start_position
        canvas = Canvas(size, half_width=width)
        canvas.disc((0.0, 0.0), diameter=0.04 * width, color=(0, 0, 0))
        x, z = (float(v) for v in np.clip(state[:2], -width, width))
        phi = float(state[2])
        across = (0.25 * width * math.cos(phi), 0.25 * width * math.sin(phi))
        rotors = ((x - across[0], z - across[1]), (x + across[0], z + across[1]))
        canvas.line(rotors[0], rotors[1], width=0.08 * width, color=(205, 75, 75))
        if action is not None:
            thrusts = self.thrusts(np.asarray(action, dtype=np.float64))
            for (px, pz), thrust in zip(rotors, thrusts, strict=True):
                reach = 0.15 * width * float(thrust) / (0.5 * self.mass * max(self.gravity, 1e-9))
                tip = (px - reach * math.sin(phi), pz + reach * math.cos(phi))
                canvas.line((px, pz), tip, width=0.02 * width, color=(40, 90, 170))
        return canvas.image()


class PlanarQuadrotorEnv(PlantEnv):
    """The quadrotor as a gymnasium environment, id "robustnn/PlanarQuadrotor-v0".

    Args:
        plant: The quadrotor; None for the default parameters.
        render_mode: None, "rgb_array" or "human".
    """

    def __init__(self, plant: PlanarQuadrotor | None = None, render_mode: str | None = None) -> None:
        """Wrap the quadrotor."""
        super().__init__(PlanarQuadrotor() if plant is None else plant, render_mode)
