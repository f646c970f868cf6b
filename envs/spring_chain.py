"""A chain of masses, springs and dampers: the linear plant."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from array_api_compat import array_namespace
from gymnasium import spaces

from robustnn.envs.gym_env import PlantEnv
from robustnn.envs.plant import Array, Plant, check_parameters
from robustnn.envs.rendering import Canvas

__all__ = ["Matrices", "SpringChain", "SpringChainEnv"]


class Matrices(NamedTuple):
    """x_{t+1} = A x_t + B u_t, y_t = C x_t, as float64 arrays."""

    a: np.ndarray
    b: np.ndarray
    c: np.ndarray


@dataclass(frozen=True)
class SpringChain(Plant):
    r"""Equal masses in a row, tied to a wall and to each other, to be calmed by a force on the last one.

    .. math:: m \ddot p_i = k (p_{i-1} - p_i) + d (\dot p_{i-1} - \dot p_i) + k (p_{i+1} - p_i)
        + d (\dot p_{i+1} - \dot p_i), \quad p_0 = 0, \quad \text{plus } F_{max}\, a \text{ on mass } n

    sampled exactly for a force that is constant between samples (zero-order hold). The plant is linear up to the limit
    of the force, asymptotically stable for d > 0, and `matrices()` returns it, so that gains can be computed exactly.

    **State** (n_x = 2 n) and **observation** (n_y = 2 n), the same numbers: positions p_1 ... p_n from rest (m), then
    velocities (m/s). The limits follow from the energy that the force can supply within one episode.

    **Action** (n_u = 1): a, the force over `max_force`, in [-1, 1]; larger values saturate.

    **Reward**, of the state after the step: `-(position_cost p'p + speed_cost v'v + force_cost F^2)`; 0 at rest.

    **Start**: positions ~ U[-1, 1) m, velocities ~ U[-1, 1) m/s, independent.

    **End**: never terminated; truncated after `horizon` = 200 steps (20 s).

    Args:
        masses: n, number of masses.
        mass: m, kg.
        stiffness: k, N/m.
        damping: d, N s/m.
        max_force: Force at action 1, N.
        position_cost: Weight of the squared positions, 1/m^2.
        speed_cost: Weight of the squared velocities, s^2/m^2.
        force_cost: Weight of the squared force, 1/N^2.
        max_start_position: Start positions lie within plus and minus this, m.
        max_start_speed: Start velocities lie within plus and minus this, m/s.
        dt: Sampling time, s.
        horizon: Steps per episode.

    Raises:
        ValueError: If a parameter is not finite, negative, or zero where it divides.

    Example:
        >>> import numpy as np
        >>> plant = SpringChain(masses=2)
        >>> plant.n_x, plant.transition(np.zeros(4), np.zeros(1))
        (4, array([0., 0., 0., 0.]))
    """

    n_u = 1

    masses: int = 3
    mass: float = 1.0
    stiffness: float = 4.0
    damping: float = 0.1
    max_force: float = 2.0
    position_cost: float = 1.0
    speed_cost: float = 0.1
    force_cost: float = 0.01
    max_start_position: float = 1.0
    max_start_speed: float = 1.0
    dt: float = 0.1
    horizon: int = 200

    def __post_init__(self) -> None:
        """Check the parameters."""
        check_parameters(self, positive=("masses", "mass", "stiffness", "dt", "horizon"))

    @property
    def n_x(self) -> int:  # type: ignore[override]
        """Number of states, 2 n."""
        return 2 * int(self.masses)

    @property
    def n_y(self) -> int:  # type: ignore[override]
        """Number of observations, 2 n."""
        return 2 * int(self.masses)

    def _laplacian(self) -> np.ndarray:
        """Stiffness matrix over k: a path whose first end is held."""
        n = int(self.masses)
        matrix = 2.0 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1)
        matrix[-1, -1] = 1.0
        return matrix

    def continuous(self) -> Matrices:
        """Return dx/dt = A x + B a, y = C x, with the action a in [-1, 1]."""
        n = int(self.masses)
        path = self._laplacian() / self.mass
        a = np.block([[np.zeros((n, n)), np.eye(n)], [-self.stiffness * path, -self.damping * path]])
        b = np.zeros((2 * n, 1))
        b[-1, 0] = self.max_force / self.mass
        return Matrices(a, b, np.eye(2 * n))

    def matrices(self) -> Matrices:
        """Return the sampled plant x_{t+1} = A x_t + B a_t, y_t = C x_t, with the action a in [-1, 1]."""
        return _sampled(self)

    @property
    def observation_space(self) -> spaces.Box:
        """Box of (positions in m, velocities in m/s), float32."""
        # sqrt of twice the energy grows by at most F / sqrt(m) per second.
        n = int(self.masses)
        eigenvalues = self.stiffness * np.linalg.eigvalsh(self._laplacian())
        start = math.sqrt(
            n * (eigenvalues[-1] * self.max_start_position**2 + self.mass * self.max_start_speed**2)
        )
        root = start + self.horizon * self.dt * self.max_force / math.sqrt(self.mass)
        position, speed = root / math.sqrt(eigenvalues[0]), root / math.sqrt(self.mass)
        high = np.array([position] * n + [speed] * n, dtype=np.float32) * np.float32(1.0 + 1e-6)
        return spaces.Box(-high, high, dtype=np.float32)

    @property
    def action_space(self) -> spaces.Box:
        """Box [-1, 1] of the force as a fraction of `max_force`, float32."""
        return spaces.Box(-1.0, 1.0, shape=(self.n_u,), dtype=np.float32)

    def initial(self, uniform: Array) -> Array:
        """Map samples of U[0, 1), shape (..., n_x), to start states (m, m/s), shape (..., n_x)."""
        xp = array_namespace(uniform)
        n = int(self.masses)
        centred = 2.0 * uniform - 1.0
        parts = (self.max_start_position * centred[..., :n], self.max_start_speed * centred[..., n:])
        return xp.concat(parts, axis=-1)

    def transition(self, state: Array, action: Array) -> Array:
        """Advance states (..., n_x) by one sampling time under actions (..., 1)."""
        xp = array_namespace(state)
        a, b, _ = self.matrices()
        kwargs = {"dtype": state.dtype}
        if hasattr(state, "device") and not isinstance(state, np.ndarray):
            kwargs["device"] = state.device
        left, right = xp.asarray(a.T.copy(), **kwargs), xp.asarray(b[:, 0].copy(), **kwargs)
        return state @ left + xp.clip(action, -1.0, 1.0) * right

    def observation(self, state: Array) -> Array:
        """Return the states (..., n_x) themselves."""
        return state

    def reward(self, state: Array, action: Array, next_state: Array) -> Array:
        """Return minus the cost of the states after the step (..., n_x) and the force of the step."""
        xp = array_namespace(next_state)
        n = int(self.masses)
        force = self.max_force * xp.clip(action[..., 0], -1.0, 1.0)
        return -(
            self.position_cost * xp.sum(next_state[..., :n] ** 2, axis=-1)
            + self.speed_cost * xp.sum(next_state[..., n:] ** 2, axis=-1)
            + self.force_cost * force**2
        )

    def terminal(self, state: Array) -> Array:
        """Return False for every state (..., n_x): episodes end at the horizon only."""
        xp = array_namespace(state)
        return xp.zeros_like(state[..., 0], dtype=xp.bool)

    def render_image(self, state: np.ndarray, action: np.ndarray | None, size: int = 400) -> np.ndarray:
        """Draw the wall, the springs as grey lines, the masses in red, and the force as a blue line.

        Args:
            state: One state (n_x,).
            action: The last action (1,), or None.
            size: Height and width of the image in pixels.

        Returns:
            RGB image (size, size, 3), uint8.
        """
        n = int(self.masses)
        width = 0.55 * (n + 1)
        canvas = Canvas(size, half_width=width)
        wall = -0.5 * (n + 1)
        places = [wall, *(wall + 1.0 + k + 0.3 * float(np.clip(state[k], -3.0, 3.0)) for k in range(n))]
        canvas.line((wall, -0.6), (wall, 0.6), width=0.08, color=(60, 60, 60))
        for left, right in zip(places, places[1:], strict=False):
            canvas.line((left, 0.0), (right, 0.0), width=0.04, color=(150, 150, 150))
        for place in places[1:]:
            canvas.disc((place, 0.0), diameter=0.35, color=(205, 75, 75))
        if action is not None:
            reach = 0.6 * float(np.clip(action[0], -1.0, 1.0))
            canvas.line((places[-1], 0.4), (places[-1] + reach, 0.4), width=0.08, color=(40, 90, 170))
        return canvas.image()


@lru_cache(maxsize=64)
def _sampled(plant: SpringChain) -> Matrices:
    a, b, c = plant.continuous()
    n = len(a)
    block = np.zeros((n + 1, n + 1))
    block[:n, :n], block[:n, n:] = plant.dt * a, plant.dt * b
    exponential = _exponential(block)
    return Matrices(exponential[:n, :n], exponential[:n, n:], c)


def _exponential(matrix: np.ndarray) -> np.ndarray:
    """Matrix exponential by scaling, Taylor's series and squaring; plants depend on numpy only."""
    halvings = max(0, math.ceil(math.log2(max(float(np.linalg.norm(matrix, 1)), 1e-300)))) + 4
    small = matrix / 2.0**halvings
    term = result = np.eye(len(matrix))
    for k in range(1, 19):
        term = term @ small / k
        result = result + term
    for _ in range(halvings):
        result = result @ result
    return result


class SpringChainEnv(PlantEnv):
    """The chain as a gymnasium environment, id "robustnn/SpringChain-v0".

    Args:
        plant: The chain; None for the default parameters.
        render_mode: None, "rgb_array" or "human".
    """

    def __init__(self, plant: SpringChain | None = None, render_mode: str | None = None) -> None:
        """Wrap the chain."""
        super().__init__(SpringChain() if plant is None else plant, render_mode)
