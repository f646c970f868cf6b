"""The forced oscillator of Van der Pol."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from array_api_compat import array_namespace
from gymnasium import spaces

from robustnn.envs.gym_env import PlantEnv
from robustnn.envs.plant import Array, Plant, check_parameters, runge_kutta
from robustnn.envs.rendering import Canvas

__all__ = ["VanDerPol", "VanDerPolEnv"]


@dataclass(frozen=True)
class VanDerPol(Plant):
    r"""A self-excited oscillator that is to be brought to rest at its unstable equilibrium.

    .. math:: \ddot p = \mu (1 - p^2)\, \dot p - \omega^2 p + b\, u, \qquad u = u_{max}\, a

    integrated by classical Runge-Kutta steps. Without input every motion but rest tends to a limit cycle of
    amplitude 2 (small mu).

    **State** (n_x = 2) and **observation** (n_y = 2), the same numbers, both dimensionless position and its rate:

    | Num | State | Unit | Limit of the observation |
    |-----|-------|------|-----|
    | 0 | p | 1 | 20 |
    | 1 | dp/dt | 1/s | 50 |

    The limits are wide: motions from the starts below stay within about 3 and 4.

    **Action** (n_u = 1): a, the input over `max_input`, in [-1, 1]; larger values saturate.

    **Reward**, of the state after the step:
    `-(position_cost * p^2 + speed_cost * (dp/dt)^2 + input_cost * u^2)`; 0 at rest.

    **Start**: p ~ U[-2, 2), dp/dt ~ U[-2, 2) 1/s, independent.

    **End**: never terminated; truncated after `horizon` = 200 steps (10 s).

    Args:
        damping: mu, strength of the self-excitation, 1/s.
        frequency: omega of the linear part, rad/s.
        gain: b, effect of the input, 1/s^2.
        max_input: Input at action 1.
        position_cost: Weight of the squared position.
        speed_cost: Weight of the squared rate, s^2.
        input_cost: Weight of the squared input.
        max_start_position: Start positions lie within plus and minus this.
        max_start_speed: Start rates lie within plus and minus this, 1/s.
        dt: Sampling time, s.
        horizon: Steps per episode.

    Raises:
        ValueError: If a parameter is not finite, negative, or zero where it divides.

    Example:
        >>> import numpy as np
        >>> VanDerPol().transition(np.zeros(2), np.zeros(1))
        array([0., 0.])
    """

    n_x: ClassVar[int] = 2
    n_u: ClassVar[int] = 1
    n_y: ClassVar[int] = 2

    damping: float = 1.0
    frequency: float = 1.0
    gain: float = 1.0
    max_input: float = 3.0
    position_cost: float = 1.0
    speed_cost: float = 0.1
    input_cost: float = 0.01
    max_start_position: float = 2.0
    max_start_speed: float = 2.0
    dt: float = 0.05
    horizon: int = 200

    def __post_init__(self) -> None:
        """Check the parameters."""
        check_parameters(self, positive=("dt", "horizon"))

    @property
    def observation_space(self) -> spaces.Box:
        """Box of (p, dp/dt in 1/s), float32."""
        high = np.array([20.0, 50.0], dtype=np.float32)
        return spaces.Box(-high, high, dtype=np.float32)

    @property
    def action_space(self) -> spaces.Box:
        """Box [-1, 1] of the input as a fraction of `max_input`, float32."""
        return spaces.Box(-1.0, 1.0, shape=(self.n_u,), dtype=np.float32)

    def initial(self, uniform: Array) -> Array:
        """Map samples of U[0, 1), shape (..., 2), to start states, shape (..., 2)."""
        xp = array_namespace(uniform)
        position = self.max_start_position * (2.0 * uniform[..., 0] - 1.0)
        speed = self.max_start_speed * (2.0 * uniform[..., 1] - 1.0)
        return xp.stack((position, speed), axis=-1)

    def input(self, action: Array) -> Array:
        """Map actions (..., 1) to inputs (...), saturated at `max_input`."""
        xp = array_namespace(action)
        return self.max_input * xp.clip(action[..., 0], -1.0, 1.0)

    def transition(self, state: Array, action: Array) -> Array:
        """Advance states (..., 2) by one Runge-Kutta step under actions (..., 1)."""
        xp = array_namespace(state)
        drive = self.gain * self.input(action)

        def derivative(x: Array) -> Array:
            position, speed = x[..., 0], x[..., 1]
            rate = self.damping * (1.0 - position**2) * speed - self.frequency**2 * position + drive
            return xp.stack((speed, rate), axis=-1)

        return runge_kutta(derivative, state, self.dt)

    def observation(self, state: Array) -> Array:
        """Return the states (..., 2) themselves."""
        return state

    def reward(self, state: Array, action: Array, next_state: Array) -> Array:
        """Return minus the cost of the states after the step (..., 2) and the input of the step."""
        position, speed = next_state[..., 0], next_state[..., 1]
        return -(
            self.position_cost * position**2
            + self.speed_cost * speed**2
            + self.input_cost * self.input(action) ** 2
        )

    def terminal(self, state: Array) -> Array:
        """Return False for every state (..., 2): episodes end at the horizon only."""
        xp = array_namespace(state)
        return xp.zeros_like(state[..., 0], dtype=xp.bool)

    def render_image(self, state: np.ndarray, action: np.ndarray | None, size: int = 400) -> np.ndarray:
        """Draw the phase plane: axes, the state in red, the input as a blue line.

        Args:
            state: One state (2,).
            action: The last action (1,), or None.
            size: Height and width of the image in pixels.

        Returns:
            RGB image (size, size, 3), uint8; p to the right, dp/dt upwards.
        """
        canvas = Canvas(size, half_width=4.0)
        grey = (120, 120, 120)
        canvas.line((-4.0, 0.0), (4.0, 0.0), width=0.03, color=grey)
        canvas.line((0.0, -4.0), (0.0, 4.0), width=0.03, color=grey)
        x, y = (float(v) for v in np.clip(state, -4.0, 4.0))
        if action is not None:
            reach = 1.5 * float(np.clip(action[0], -1.0, 1.0))
            canvas.line((x, y), (x, y + reach), width=0.1, color=(40, 90, 170))
        canvas.disc((x, y), diameter=0.3, color=(205, 75, 75))
        return canvas.image()


class VanDerPolEnv(PlantEnv):
    """The oscillator as a gymnasium environment, id "robustnn/VanDerPol-v0".

    Args:
        plant: The oscillator; None for the default parameters.
        render_mode: None, "rgb_array" or "human".
    """

    def __init__(self, plant: VanDerPol | None = None, render_mode: str | None = None) -> None:
        """Wrap the oscillator."""
        super().__init__(VanDerPol() if plant is None else plant, render_mode)
