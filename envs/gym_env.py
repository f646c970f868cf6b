"""Any plant as a gymnasium environment: one copy, numpy, float64 inside."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium
import numpy as np

from robustnn.envs.plant import DrawablePlant, Plant
from robustnn.envs.rendering import Window

__all__ = ["PlantEnv"]


class PlantEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """One copy of a plant behind gymnasium's interface.

    The state is kept in float64; observations are float32, as the space declares. The episode is truncated
    here, after `plant.horizon` steps, and the registered ids add no time limit of their own: an environment
    built directly and one from `gymnasium.make` behave alike.

    Args:
        plant: The plant.
        render_mode: None, "rgb_array" (`render()` returns an image) or "human" (a window; needs pygame). Only
            plants with a `render_image` method can be drawn.

    Raises:
        ValueError: If `render_mode` is unknown or the plant cannot be drawn.

    Example:
        >>> from robustnn.envs import Pendulum
        >>> env = PlantEnv(Pendulum())
        >>> observation, info = env.reset(seed=0)
        >>> observation.shape
        (3,)
    """

    metadata: dict[str, Any] = {"render_modes": ["human", "rgb_array"], "render_fps": 20}
    _reset_options: ClassVar[tuple[str, ...]] = ("state",)

    def __init__(self, plant: Plant, render_mode: str | None = None) -> None:
        """Keep the plant; no state exists before the first reset."""
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ValueError(
                f"render_mode: expected None or one of {self.metadata['render_modes']}, got {render_mode!r}. "
                "Pass one of these."
            )
        if render_mode is not None and not isinstance(plant, DrawablePlant):
            raise ValueError(
                f"render_mode: expected None, got {render_mode!r}, because {type(plant).__name__} has no "
                "render_image method. Leave render_mode out or write that method."
            )
        self.plant = plant
        self.render_mode = render_mode
        self.metadata = {**self.metadata, "render_fps": round(1.0 / plant.dt)}
        self.observation_space = plant.observation_space
        self.action_space = plant.action_space
        self._state: np.ndarray | None = None
        self._action: np.ndarray | None = None
        self._steps = 0
        self._window: Window | None = None

    @property
    def state(self) -> np.ndarray:
        """Copy of the state, shape (n_x,), float64.

        Raises:
            RuntimeError: Before the first reset.
        """
        return self._current_state().copy()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode.

        Args:
            seed: Seed of the start states; None continues the generator.
            options: `{"state": (n_x,) array}` starts there instead of at a random state.

        Returns:
            The first observation (n_y,), float32, and an empty dictionary.

        Raises:
            ValueError: If an option is unknown, or the state has a wrong shape or is not finite.
        """
        super().reset(seed=seed)
        options = options or {}
        unknown = sorted(set(options) - set(self._reset_options))
        if unknown:
            raise ValueError(f"options: expected only {self._reset_options}, got {unknown}. Remove them.")
        uniform = self.np_random.random(self.plant.n_x)
        if "state" in options:
            self._state = _checked("options['state']", options["state"], self.plant.n_x)
        else:
            self._state = self.plant.initial(uniform)
        self._action = None
        self._steps = 0
        if self.render_mode == "human":
            self.render()
        return self._observe(self._state), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Apply one action for one sampling time.

        Args:
            action: Shape (n_u,); values outside the action space saturate in the plant.

        Returns:
            Observation (n_y,), reward, terminated, truncated, empty dictionary.

        Raises:
            ValueError: If the action has a wrong shape or is not finite.
            RuntimeError: Before the first reset.
        """
        state = self._current_state()
        action = _checked("action", action, self.plant.n_u)
        next_state = self.plant.transition(state, action)
        reward = float(self.plant.reward(state, action, next_state))
        terminated = bool(self.plant.terminal(next_state))
        self._state, self._action = next_state, action
        self._steps += 1
        truncated = self._steps >= self.plant.horizon
        if self.render_mode == "human":
            self.render()
        return self._observe(next_state), reward, terminated, truncated, {}

    def render(self) -> np.ndarray | None:
        """Draw the present state.

        Returns:
            An RGB image (height, width, 3), uint8, in mode "rgb_array"; None in mode "human", which shows it.

        Raises:
            RuntimeError: Before the first reset.
            gymnasium.error.DependencyNotInstalled: In mode "human" without pygame.
        """
        if self.render_mode is None or not isinstance(self.plant, DrawablePlant):
            gymnasium.logger.warn(
                "render() was called without a render mode; build the environment with "
                "render_mode='rgb_array' or 'human'."
            )
            return None
        image = self.plant.render_image(self._current_state(), self._action)
        if self.render_mode == "rgb_array":
            return image
        if self._window is None:
            self._window = Window(type(self.plant).__name__, self.metadata["render_fps"])
        self._window.show(image)
        return None

    def close(self) -> None:
        """Close the window, if there is one."""
        if self._window is not None:
            self._window.close()
            self._window = None

    def _current_state(self) -> np.ndarray:
        """State without copy."""
        if self._state is None:
            raise RuntimeError("The environment has no state yet: call reset() before step() and render().")
        return self._state

    def _observe(self, state: np.ndarray) -> np.ndarray:
        """Observation in the dtype of the space."""
        return np.asarray(self.plant.observation(state), dtype=self.observation_space.dtype)


def _checked(name: str, value: Any, size: int) -> np.ndarray:
    """Return `value` as a float64 vector of the right size, or say what is wrong with it."""
    vector = np.array(value, dtype=np.float64)
    if vector.shape != (size,):
        raise ValueError(f"{name}: expected shape ({size},), got {vector.shape}. Pass one per component.")
    if not np.isfinite(vector).all():
        raise ValueError(f"{name}: expected finite numbers, got {vector}. Check what computed them.")
    return vector
