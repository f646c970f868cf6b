"""A pole on a cart: balancing it, and swinging it up."""

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

__all__ = ["CartPole", "CartPoleBalanceEnv", "CartPoleSwingUp", "CartPoleSwingUpEnv"]


@dataclass(frozen=True)
class CartPole(Plant):
    r"""A uniform pole hinged to a cart, to be held upright in the middle of a track.

    .. math::
        (M + m)\, \ddot x - m l \cos\theta\, \ddot\theta + m l \dot\theta^2 \sin\theta = F - c_x \dot x \\
        \tfrac43 m l^2\, \ddot\theta - m l \cos\theta\, \ddot x = m g l \sin\theta - c_\theta \dot\theta

    with l half the length of the pole, theta counter-clockwise from upright (the pole's centre is at
    `x - l sin(theta)`), and F the force on the cart; integrated by classical Runge-Kutta steps.

    **State** (n_x = 4):

    | Num | State | Unit |
    |-----|-------|------|
    | 0 | x, the position of the cart | m |
    | 1 | theta, 0 is upright, not wrapped | rad |
    | 2 | v, the velocity of the cart | m/s |
    | 3 | omega, the angular velocity | rad/s |

    **Observation** (n_y = 5): (x, cos theta, sin theta, v, omega). The limits on x, v and omega follow from the work
    that the force and gravity can do within one episode.

    **Action** (n_u = 1): a, the force over `max_force`, in [-1, 1]; larger values saturate.

    **Reward**, of the state after the step:
    `1 - (position_cost x^2 + angle_cost theta^2 + speed_cost v^2 + spin_cost omega^2 + force_cost F^2)` with theta
    wrapped to (-pi, pi]; 1 at rest upright in the middle.

    **Start**: x ~ U[-0.2, 0.2) m, theta ~ U[-0.1, 0.1) rad, v ~ U[-0.1, 0.1) m/s, omega ~ U[-0.1, 0.1) rad/s.

    **End**: terminated when |theta| exceeds `max_angle` or |x| exceeds `max_position`; truncated after `horizon` = 250
    steps (10 s).

    Args:
        cart_mass: M, kg.
        pole_mass: m, kg.
        half_length: l, m.
        gravity: Gravitational acceleration, m/s^2.
        cart_friction: c_x, N s/m.
        hinge_friction: c_theta, N m s/rad.
        max_force: Force at action 1, N.
        position_cost: Weight of the squared position, 1/m^2.
        angle_cost: Weight of the squared angle, 1/rad^2.
        speed_cost: Weight of the squared velocity, s^2/m^2.
        spin_cost: Weight of the squared angular velocity, s^2/rad^2.
        force_cost: Weight of the squared force, 1/N^2.
        max_position: Half the length of the track, m; leaving it ends an episode. Infinity for an endless track.
        max_angle: Largest angle, rad; a larger one ends an episode. Infinity for none.
        max_start_position: Start positions lie within plus and minus this, m.
        max_start_angle: Start angles lie within plus and minus this, rad, about `start_angle`.
        max_start_speed: Start velocities lie within plus and minus this, m/s and rad/s.
        start_angle: Middle of the start angles, rad; pi is hanging.
        dt: Sampling time, s.
        horizon: Steps per episode.

    Raises:
        ValueError: If a parameter is not a number, negative, infinite where it may not be, or zero where it divides.

    Example:
        >>> import numpy as np
        >>> plant = CartPole()
        >>> float(plant.reward(np.zeros(4), np.zeros(1), np.zeros(4)))
        1.0
    """

    n_x: ClassVar[int] = 4
    n_u: ClassVar[int] = 1
    n_y: ClassVar[int] = 5

    cart_mass: float = 1.0
    pole_mass: float = 0.1
    half_length: float = 0.5
    gravity: float = 9.81
    cart_friction: float = 0.0
    hinge_friction: float = 0.0
    max_force: float = 10.0
    position_cost: float = 0.1
    angle_cost: float = 1.0
    speed_cost: float = 0.01
    spin_cost: float = 0.01
    force_cost: float = 0.0001
    max_position: float = 2.4
    max_angle: float = 0.5
    max_start_position: float = 0.2
    max_start_angle: float = 0.1
    max_start_speed: float = 0.1
    start_angle: float = 0.0
    dt: float = 0.04
    horizon: int = 250

    def __post_init__(self) -> None:
        """Check the parameters."""
        check_parameters(
            self,
            positive=(
                "cart_mass", "pole_mass", "half_length", "max_position", "max_angle", "dt", "horizon",
            ),
            infinite=("max_position", "max_angle"),
        )  # fmt: skip

    @property
    def observation_space(self) -> spaces.Box:
        """Box of (x in m, cos theta, sin theta, v in m/s, omega in rad/s), float32."""
        # With the mass matrix H, |d sqrt(2 T)/dt| <= ||H^{-1/2} Q||, Q the force and the torque of gravity.
        coupling, pole = self.pole_mass * self.half_length, 4.0 / 3.0 * self.pole_mass * self.half_length**2
        inertia = np.array([[self.cart_mass + self.pole_mass, coupling], [coupling, pole]])
        least = float(np.linalg.eigvalsh(inertia)[0])  # over all angles the coupling is largest at 0
        drive = math.hypot(self.max_force, coupling * self.gravity)
        time = self.horizon * self.dt
        start = math.sqrt(2.0 * float(np.linalg.eigvalsh(inertia)[1])) * self.max_start_speed
        speed = (start + time * drive / math.sqrt(least)) / math.sqrt(least)
        position = min(self.max_position + self.dt * speed, self.max_start_position + time * speed)
        high = np.array([position, 1.0, 1.0, speed, speed], dtype=np.float32)
        return spaces.Box(-high, high, dtype=np.float32)

    @property
    def action_space(self) -> spaces.Box:
        """Box [-1, 1] of the force as a fraction of `max_force`, float32."""
        return spaces.Box(-1.0, 1.0, shape=(self.n_u,), dtype=np.float32)

    def initial(self, uniform: Array) -> Array:
        """Map samples of U[0, 1), shape (..., 4), to start states, shape (..., 4)."""
        xp = array_namespace(uniform)
        centred = 2.0 * uniform - 1.0
        return xp.stack(
            (
                self.max_start_position * centred[..., 0],
                self.start_angle + self.max_start_angle * centred[..., 1],
                self.max_start_speed * centred[..., 2],
                self.max_start_speed * centred[..., 3],
            ),
            axis=-1,
        )

    def force(self, action: Array) -> Array:
        """Map actions (..., 1) to forces on the cart (...), N, saturated at `max_force`."""
        xp = array_namespace(action)
        return self.max_force * xp.clip(action[..., 0], -1.0, 1.0)

    def transition(self, state: Array, action: Array) -> Array:
        """Advance states (..., 4) by one Runge-Kutta step under actions (..., 1)."""
        xp = array_namespace(state)
        force = self.force(action)
        mass, coupling = self.cart_mass + self.pole_mass, self.pole_mass * self.half_length
        pole = 4.0 / 3.0 * coupling * self.half_length

        def derivative(x: Array) -> Array:
            theta, v, omega = x[..., 1], x[..., 2], x[..., 3]
            sine, cross = xp.sin(theta), coupling * xp.cos(theta)
            push = force - self.cart_friction * v - coupling * omega**2 * sine
            turn = coupling * self.gravity * sine - self.hinge_friction * omega
            determinant = mass * pole - cross**2
            return xp.stack(
                (
                    v,
                    omega,
                    (pole * push + cross * turn) / determinant,
                    (cross * push + mass * turn) / determinant,
                ),
                axis=-1,
            )

        return runge_kutta(derivative, state, self.dt)

    def observation(self, state: Array) -> Array:
        """Map states (..., 4) to observations (x, cos theta, sin theta, v, omega), shape (..., 5)."""
        xp = array_namespace(state)
        theta = state[..., 1]
        return xp.stack((state[..., 0], xp.cos(theta), xp.sin(theta), state[..., 2], state[..., 3]), axis=-1)

    def reward(self, state: Array, action: Array, next_state: Array) -> Array:
        """Return one minus the cost of the states after the step (..., 4) and the force of the step."""
        theta = wrap_angle(next_state[..., 1])
        cost = (
            self.position_cost * next_state[..., 0] ** 2
            + self.angle_cost * theta**2
            + self.speed_cost * next_state[..., 2] ** 2
            + self.spin_cost * next_state[..., 3] ** 2
        )
        return 1.0 - cost - self.force_cost * self.force(action) ** 2

    def terminal(self, state: Array) -> Array:
        """Tell which states (..., 4) have left the track or the range of angles."""
        xp = array_namespace(state)
        return (xp.abs(state[..., 0]) > self.max_position) | (xp.abs(state[..., 1]) > self.max_angle)

    def render_image(self, state: np.ndarray, action: np.ndarray | None, size: int = 400) -> np.ndarray:
        """Draw the track, the cart, the pole in red, and the force as a blue line.

        Args:
            state: One state (4,).
            action: The last action (1,), or None.
            size: Height and width of the image in pixels.

        Returns:
            RGB image (size, size, 3), uint8; upright is up, positive angles turn counter-clockwise.
        """
        half = self.max_position if math.isfinite(self.max_position) else 3.0
        width = 1.1 * half
        canvas = Canvas(size, half_width=width)
        x, theta = float(np.clip(state[0], -half, half)), float(state[1])
        canvas.line((-half, 0.0), (half, 0.0), width=0.01 * width, color=(120, 120, 120))
        canvas.line((x - 0.08 * width, 0.0), (x + 0.08 * width, 0.0), width=0.1 * width, color=(60, 60, 60))
        length = 2.0 * self.half_length
        tip = (x - length * math.sin(theta), length * math.cos(theta))
        canvas.line((x, 0.0), tip, width=0.04 * width, color=(205, 75, 75))
        canvas.disc((x, 0.0), diameter=0.03 * width, color=(0, 0, 0))
        if action is not None:
            reach = 0.4 * width * float(np.clip(action[0], -1.0, 1.0))
            below = -0.12 * width
            canvas.line((x, below), (x + reach, below), width=0.03 * width, color=(40, 90, 170))
        return canvas.image()


@dataclass(frozen=True)
class CartPoleSwingUp(CartPole):
    """The cart-pole of `CartPole`, started hanging, on an endless track and with a weaker motor.

    The reward `1 / (1 + cost)`, with the cost of `CartPole`, lies in (0, 1], so that a fast cart far away does not
    outweigh everything else; episodes are not terminated. **Start**: theta ~ U[pi - 0.5, pi + 0.5) rad.

    Args:
        max_force: Force at action 1, N.
        max_position: As in `CartPole`; infinity.
        max_angle: As in `CartPole`; infinity.
        max_start_angle: As in `CartPole`.
        start_angle: As in `CartPole`; hanging.
    """

    max_force: float = 5.0
    max_position: float = math.inf
    max_angle: float = math.inf
    max_start_angle: float = 0.5
    start_angle: float = math.pi

    def reward(self, state: Array, action: Array, next_state: Array) -> Array:
        """Return 1 / (1 + cost) of the states after the step (..., 4) and the force of the step."""
        return 1.0 / (2.0 - super().reward(state, action, next_state))


class CartPoleBalanceEnv(PlantEnv):
    """Balancing as a gymnasium environment, id "robustnn/CartPoleBalance-v0".

    Args:
        plant: The cart-pole; None for the default parameters.
        render_mode: None, "rgb_array" or "human".
    """

    def __init__(self, plant: CartPole | None = None, render_mode: str | None = None) -> None:
        """Wrap the cart-pole."""
        super().__init__(CartPole() if plant is None else plant, render_mode)


class CartPoleSwingUpEnv(PlantEnv):
    """Swing-up as a gymnasium environment, id "robustnn/CartPoleSwingUp-v0".

    Args:
        plant: The cart-pole; None for the default parameters.
        render_mode: None, "rgb_array" or "human".
    """

    def __init__(self, plant: CartPoleSwingUp | None = None, render_mode: str | None = None) -> None:
        """Wrap the cart-pole."""
        super().__init__(CartPoleSwingUp() if plant is None else plant, render_mode)
