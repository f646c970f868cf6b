"""A small task of images: move a dot to the middle of a picture. For tests and quick studies of image policies."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

__all__ = ["DotImageEnv", "dot_frame"]

_SIZE = 12
_WHITE = 255


def dot_frame(column: int) -> NDArray[np.uint8]:
    """Return the picture of the dot, two white pixels in the middle rows of a column.

    Args:
        column: From 0 to 11.

    Returns:
        Shape (12, 12, 1), uint8: channels last.

    Example:
        >>> dot_frame(3)[5:7, 3, 0].tolist(), int(dot_frame(3).sum())
        ([255, 255], 510)
    """
    image = np.zeros((_SIZE, _SIZE, 1), dtype=np.uint8)
    image[_SIZE // 2 - 1 : _SIZE // 2 + 1, column] = _WHITE
    return image


class DotImageEnv(gymnasium.Env[np.ndarray, Any]):
    r"""A dot on 12 x 12 pixels that is to be moved to the middle, 5.5.

    ===============  ==============================================================================================
    observation      uint8, (12, 12, 1), channels last: `dot_frame` of the present column
    action           Discrete(2): left, right. With another space the dot goes right if the first component is positive
    reward           how much nearer to the middle the dot came, in pixels: 1, -1, or 0 at the border and the middle
    start            a column from 0 to 11, all equally probable
    end              truncated after `horizon` steps
    ===============  ==============================================================================================

    Going to the middle is optimal from everywhere, so the best return from column c is min(|c - 5.5| - 0.5, horizon).

    Args:
        actions: The action space; None for Discrete(2).
        horizon: Steps of an episode.

    Example:
        >>> env = DotImageEnv()
        >>> env.reset(seed=0)[0].shape
        (12, 12, 1)
    """

    def __init__(self, actions: spaces.Space | None = None, horizon: int = 4) -> None:
        """Set the spaces; the first reset draws a column."""
        self.observation_space = spaces.Box(0, _WHITE, (_SIZE, _SIZE, 1), np.uint8)
        self.action_space = spaces.Discrete(2) if actions is None else actions
        self.horizon = horizon
        self._column = self._time = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Start an episode.

        Args:
            seed: Seed of the start columns; None continues the generator.
            options: Not used.

        Returns:
            The picture, and an empty dict.
        """
        super().reset(seed=seed)
        self._column, self._time = int(self.np_random.integers(_SIZE)), 0
        return dot_frame(self._column), {}

    def step(self, action: Any) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """Move the dot by one pixel.

        Args:
            action: An action of the space.

        Returns:
            Picture, reward, whether the episode is terminated (never) or truncated, and an empty dict.
        """
        right = float(np.asarray(action).reshape(-1)[0]) > 0.0
        middle = 0.5 * (_SIZE - 1)
        before = abs(self._column - middle)
        self._column = min(max(self._column + (1 if right else -1), 0), _SIZE - 1)
        self._time += 1
        reward = before - abs(self._column - middle)
        return dot_frame(self._column), reward, False, self._time >= self.horizon, {}
