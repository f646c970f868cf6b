"""Swing-up of a rod pendulum with a weak motor."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from array_api_compat import array_namespace
from gymnasium import spaces

from robustnn.envs.angles import wrap_angle
from robustnn.envs.gym_env import PlantEnv
from robustnn.envs.plant import Array, Plant, check_parameters
from robustnn.envs.rendering import Canvas

__all__ = ["Pendulum", "PendulumSwingUpEnv"]


@dataclass(frozen=True)
class Pendulum(Plant):
    r"""A uniform rod on a pivot, to be swung up and held upright by a motor too weak to lift it directly.

    The pendulum of Barbara, Wang and Manchester (arXiv 2405.11432):

    .. math:: J \ddot\theta = m g \tfrac{l}{2} \sin\theta + \tau, \qquad
        J = m \tfrac{l^2}{4} + \tfrac{m}{12} (3 r^2 + l^2), \qquad \tau = \tau_{max}\, a

    integrated by semi-implicit Euler steps: `omega += dt * acceleration`, then `theta += dt * omega`. There
    is no friction and no speed limit.

    **State** (n_x = 2), angles counter-clockwise, not wrapped, so that full turns are counted:

    | Num | State | Unit |
    |-----|-------|------|
    | 0 | theta, 0 is upright | rad |
    | 1 | omega, the angular velocity | rad/s |

    **Observation** (n_y = 3). No motion that starts as below leaves these limits within one episode: omega
    grows by at most `dt (m g l/2 + max_torque) / J` per step, hence the limit on it.

    | Num | Observation | Min | Max (defaults) |
    |-----|-------------|-----|-----|
    | 0 | cos(theta) | -1 | 1 |
    | 1 | sin(theta) | -1 | 1 |
    | 2 | omega, rad/s | -210.6 | 210.6 |

    **Action** (n_u = 1). Larger values saturate at the limits, in the dynamics and in the reward:

    | Num | Action | Min | Max |
    |-----|--------|-----|-----|
    | 0 | a: torque / max_torque | -1 | 1 |

    **Reward**, of the state after the step and the torque of the step:
    `-(angle_cost * theta^2 + speed_cost * omega^2 + torque_cost * tau^2)` with theta wrapped to (-pi, pi]. It
    is 0 at rest upright, about -9.87 at rest hanging, and never below `-(angle_cost pi^2 + speed_cost
    omega_limit^2 + torque_cost max_torque^2)`, about -4445 with the speed limit above. A good policy
    collects about -156 per episode, the mean over random starts.

    **Start**: theta ~ U[-pi, pi), omega ~ U[-1, 1) rad/s, independent.

    **End**: never terminated; truncated after `horizon` = 200 steps (10 s).

    Args:
        mass: Mass of the rod, kg.
        length: Length of the rod, m; its centre of mass lies at half of it.
        radius: Radius of the rod, m.
        gravity: Gravitational acceleration, m/s^2.
        max_torque: Torque of the motor at action 1, N m.
        angle_cost: Weight of the squared angle, 1/rad^2.
        speed_cost: Weight of the squared angular velocity, s^2/rad^2.
        torque_cost: Weight of the squared torque, 1/(N m)^2.
        max_start_angle: Start angles lie within plus and minus this, rad.
        max_start_speed: Start velocities lie within plus and minus this, rad/s.
        dt: Sampling time, s.
        horizon: Steps per episode.

    Raises:
        ValueError: If a parameter is not finite, negative, or zero where it divides.

    Example:
        >>> import numpy as np
        >>> plant = Pendulum()
        >>> hanging = np.array([np.pi, 0.0])
        >>> float(plant.reward(hanging, np.zeros(1), hanging))
        -9.869604401089358
    """

    n_x: ClassVar[int] = 2
    n_u: ClassVar[int] = 1
    n_y: ClassVar[int] = 3

    mass: float = 1.0
    length: float = 1.0
    radius: float = 0.05
    gravity: float = 10.0
    max_torque: float = 2.0
    angle_cost: float = 1.0
    speed_cost: float = 0.1
    torque_cost: float = 0.001
    max_start_angle: float = math.pi
    max_start_speed: float = 1.0
    dt: float = 0.05
    horizon: int = 200

    def __post_init__(self) -> None:
        """Check the parameters."""
        check_parameters(self, positive=("mass", "length", "dt", "horizon"))

    @property
    def inertia(self) -> float:
        """Moment of inertia about the pivot, kg m^2."""
        about_centre = self.mass * (3.0 * self.radius**2 + self.length**2) / 12.0
        return self.mass * (0.5 * self.length) ** 2 + about_centre

    @property
    def gravity_torque(self) -> float:
        """Torque of gravity on the horizontal rod, N m."""
        return self.mass * self.gravity * 0.5 * self.length

    @property
    def observation_space(self) -> spaces.Box:
        """Box of (cos theta, sin theta, omega in rad/s), float32."""
        acceleration = (self.gravity_torque + self.max_torque) / self.inertia
        speed = self.max_start_speed + self.horizon * self.dt * acceleration
        high = np.array([1.0, 1.0, speed], dtype=np.float32)
        return spaces.Box(-high, high, dtype=np.float32)

    @property
    def action_space(self) -> spaces.Box:
        """Box [-1, 1] of the torque as a fraction of `max_torque`, float32."""
        return spaces.Box(-1.0, 1.0, shape=(self.n_u,), dtype=np.float32)

    def initial(self, uniform: Array) -> Array:
        """Map samples of U[0, 1), shape (..., 2), to start states (rad, rad/s), shape (..., 2)."""
        xp = array_namespace(uniform)
        theta = self.max_start_angle * (2.0 * uniform[..., 0] - 1.0)
        omega = self.max_start_speed * (2.0 * uniform[..., 1] - 1.0)
        return xp.stack((theta, omega), axis=-1)

    def torque(self, action: Array) -> Array:
        """Map actions (..., 1) to motor torques (...), N m, saturated at `max_torque`."""
        xp = array_namespace(action)
        return self.max_torque * xp.clip(action[..., 0], -1.0, 1.0)

    def transition(self, state: Array, action: Array) -> Array:
        """Advance states (..., 2), rad and rad/s, by one semi-implicit Euler step under actions (..., 1)."""
        xp = array_namespace(state)
        theta, omega = state[..., 0], state[..., 1]
        acceleration = (self.gravity_torque * xp.sin(theta) + self.torque(action)) / self.inertia
        omega = omega + self.dt * acceleration
        theta = theta + self.dt * omega
        return xp.stack((theta, omega), axis=-1)

    def observation(self, state: Array) -> Array:
        """Map states (..., 2) to observations (cos theta, sin theta, omega in rad/s), shape (..., 3)."""
        xp = array_namespace(state)
        theta, omega = state[..., 0], state[..., 1]
        return xp.stack((xp.cos(theta), xp.sin(theta), omega), axis=-1)

    def reward(self, state: Array, action: Array, next_state: Array) -> Array:
        """Return minus the cost of the states after the step (..., 2) and the torque of the step."""
        theta, omega = wrap_angle(next_state[..., 0]), next_state[..., 1]
        torque = self.torque(action)
        return -(self.angle_cost * theta**2 + self.speed_cost * omega**2 + self.torque_cost * torque**2)

    def terminal(self, state: Array) -> Array:
        """Return False for every state (..., 2): episodes end at the horizon only."""
        xp = array_namespace(state)
        return xp.zeros_like(state[..., 0], dtype=xp.bool)

    def render_image(self, state: np.ndarray, action: np.ndarray | None, size: int = 400) -> np.ndarray:
        """Draw the rod in red and the motor torque as a blue arrow about the pivot.

        Args:
            state: One state (2,), rad and rad/s.
            action: The last action (1,), or None.
            size: Height and width of the image in pixels.

        Returns:
            RGB image (size, size, 3), uint8; upright is up, positive angles turn counter-clockwise.
        """
        canvas = Canvas(size, half_width=1.25 * self.length)
        theta = float(state[0])
        tip = (-self.length * math.sin(theta), self.length * math.cos(theta))
        canvas.line((0.0, 0.0), tip, width=max(2.0 * self.radius, 0.08 * self.length), color=(205, 75, 75))
        canvas.disc((0.0, 0.0), diameter=0.05 * self.length, color=(0, 0, 0))
        if action is not None:
            sweep = 0.75 * math.pi * float(np.clip(action[0], -1.0, 1.0))
            if abs(sweep) > 0.02:
                blue = (40, 90, 170)
                canvas.turn_arrow(0.25 * self.length, sweep, width=0.02 * self.length, color=blue)
        return canvas.image()


class PendulumSwingUpEnv(PlantEnv):
    """The pendulum as a gymnasium environment, id "robustnn/PendulumSwingUp-v0".

    Args:
        plant: The pendulum; None for the default parameters.
        render_mode: None, "rgb_array" or "human".

    Example:
        >>> import gymnasium
        >>> env = gymnasium.make("robustnn.envs:robustnn/PendulumSwingUp-v0", plant=Pendulum(mass=1.1))
    """

    def __init__(self, plant: Pendulum | None = None, render_mode: str | None = None) -> None:
        """Wrap the pendulum."""
        super().__init__(Pendulum() if plant is None else plant, render_mode)
