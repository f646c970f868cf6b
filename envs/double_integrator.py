"""A mass on a frictionless track, moved by a limited force."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from array_api_compat import array_namespace
from gymnasium import spaces

from robustnn.envs.gym_env import PlantEnv
from robustnn.envs.plant import Array, Plant, check_parameters
from robustnn.envs.rendering import Canvas

__all__ = ["DoubleIntegrator", "DoubleIntegratorEnv"]


@dataclass(frozen=True)
class DoubleIntegrator(Plant):
    r"""A mass that is to be brought to rest at the origin by a force of limited size.

    .. math:: m \ddot p = F_{max}\, a

    sampled exactly for a force that is constant between samples (zero-order hold). Open loop it is neither stable nor
    contracting; its gain from a constant force to the position is infinite.

    **State** (n_x = 2) and **observation** (n_y = 2), the same numbers:

    | Num | State | Unit | Limit of the observation (defaults) |
    |-----|-------|------|-----|
    | 0 | p, the position | m | 72.0 |
    | 1 | v, the velocity | m/s | 11.0 |

    The limits cannot be exceeded within one episode from the starts below.

    **Action** (n_u = 1): a, the force over `max_force`, in [-1, 1]; larger values saturate.

    **Reward**, of the state after the step: `-(position_cost * p^2 + speed_cost * v^2 + force_cost * F^2)`,
    between 0 at rest at the origin and about -5300 at the limits.

    **Start**: p ~ U[-2, 2) m, v ~ U[-1, 1) m/s, independent.

    **End**: never terminated; truncated after `horizon` = 100 steps (10 s).

    Args:
        mass: Mass, kg.
        max_force: Force at action 1, N.
        position_cost: Weight of the squared position, 1/m^2.
        speed_cost: Weight of the squared velocity, s^2/m^2.
        force_cost: Weight of the squared force, 1/N^2.
        max_start_position: Start positions lie within plus and minus this, m.
        max_start_speed: Start velocities lie within plus and minus this, m/s.
        dt: Sampling time, s.
        horizon: Steps per episode.

    Raises:
        ValueError: If a parameter is not finite, negative, or zero where it divides.

    Example:
        >>> import numpy as np
        >>> DoubleIntegrator().transition(np.array([1.0, 0.0]), np.array([-1.0]))
        array([ 0.995, -0.1  ])
    """

    n_x: ClassVar[int] = 2
    n_u: ClassVar[int] = 1
    n_y: ClassVar[int] = 2

    mass: float = 1.0
    max_force: float = 1.0
    position_cost: float = 1.0
    speed_cost: float = 0.1
    force_cost: float = 0.01
    max_start_position: float = 2.0
    max_start_speed: float = 1.0
    dt: float = 0.1
    horizon: int = 100

    def __post_init__(self) -> None:
        """Check the parameters."""
        check_parameters(self, positive=("mass", "dt", "horizon"))

    @property
    def observation_space(self) -> spaces.Box:
        """Box of (position in m, velocity in m/s), float32."""
        time = self.horizon * self.dt
        acceleration = self.max_force / self.mass
        speed = self.max_start_speed + time * acceleration
        position = self.max_start_position + time * self.max_start_speed + 0.5 * time**2 * acceleration
        high = np.array([position, speed], dtype=np.float32) * np.float32(1.0 + 1e-6)
        return spaces.Box(-high, high, dtype=np.float32)

    @property
    def action_space(self) -> spaces.Box:
        """Box [-1, 1] of the force as a fraction of `max_force`, float32."""
        return spaces.Box(-1.0, 1.0, shape=(self.n_u,), dtype=np.float32)

    def initial(self, uniform: Array) -> Array:
        """Map samples of U[0, 1), shape (..., 2), to start states (m, m/s), shape (..., 2)."""
        xp = array_namespace(uniform)
        position = self.max_start_position * (2.0 * uniform[..., 0] - 1.0)
        speed = self.max_start_speed * (2.0 * uniform[..., 1] - 1.0)
        return xp.stack((position, speed), axis=-1)

    def force(self, action: Array) -> Array:
        """Map actions (..., 1) to forces (...), N, saturated at `max_force`."""
        xp = array_namespace(action)
        return self.max_force * xp.clip(action[..., 0], -1.0, 1.0)

    def transition(self, state: Array, action: Array) -> Array:
        """Advance states (..., 2), m and m/s, by one sampling time under actions (..., 1)."""
        xp = array_namespace(state)
        position, speed = state[..., 0], state[..., 1]
        acceleration = self.force(action) / self.mass
        position = position + self.dt * speed + 0.5 * self.dt**2 * acceleration
        return xp.stack((position, speed + self.dt * acceleration), axis=-1)

    def observation(self, state: Array) -> Array:
        """Return the states (..., 2) themselves, m and m/s."""
        return state

    def reward(self, state: Array, action: Array, next_state: Array) -> Array:
        """Return minus the cost of the states after the step (..., 2) and the force of the step."""
        position, speed = next_state[..., 0], next_state[..., 1]
        return -(
            self.position_cost * position**2
            + self.speed_cost * speed**2
            + self.force_cost * self.force(action) ** 2
        )

    def terminal(self, state: Array) -> Array:
        """Return False for every state (..., 2): episodes end at the horizon only."""
        xp = array_namespace(state)
        return xp.zeros_like(state[..., 0], dtype=xp.bool)

    def render_image(self, state: np.ndarray, action: np.ndarray | None, size: int = 400) -> np.ndarray:
        """Draw the mass on its track, the origin as a dot, and the force as a blue line.

        Args:
            state: One state (2,), m and m/s.
            action: The last action (1,), or None.
            size: Height and width of the image in pixels.

        Returns:
            RGB image (size, size, 3), uint8.
        """
        width = 1.5 * self.max_start_position
        canvas = Canvas(size, half_width=width)
        position = float(np.clip(state[0], -width, width))
        canvas.line((-width, 0.0), (width, 0.0), width=0.01 * width, color=(120, 120, 120))
        canvas.disc((0.0, 0.0), diameter=0.05 * width, color=(0, 0, 0))
        canvas.line(
            (position - 0.05 * width, 0.08 * width), (position + 0.05 * width, 0.08 * width),
            width=0.12 * width, color=(205, 75, 75),
        )  # fmt: skip
        if action is not None:
            reach = 0.4 * width * float(np.clip(action[0], -1.0, 1.0))
            canvas.line(
                (position, 0.25 * width),
                (position + reach, 0.25 * width),
                width=0.03 * width,
                color=(40, 90, 170),
            )
        return canvas.image()


class DoubleIntegratorEnv(PlantEnv):
    """The double integrator as a gymnasium environment, id "robustnn/DoubleIntegrator-v0".

    Args:
        plant: The plant; None for the default parameters.
        render_mode: None, "rgb_array" or "human".
    """

    def __init__(self, plant: DoubleIntegrator | None = None, render_mode: str | None = None) -> None:
        """Wrap the plant."""
        super().__init__(DoubleIntegrator() if plant is None else plant, render_mode)
