"""The range that squashed actions are rescaled to, as Stable-Baselines3 computes it."""

from __future__ import annotations

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from robustnn.errors import UnsupportedSpaceError

__all__ = ["half_range"]


def half_range(space: spaces.Box) -> NDArray[np.float64]:
    """Return half the range of every action component, in the units of the action.

    Args:
        space: Action space of a policy that squashes its actions.

    Returns:
        Shape (n_act,).

    Raises:
        UnsupportedSpaceError: If a limit is not finite, a component cannot move, or integers overflow.

    Example:
        >>> half_range(spaces.Box(-2.0, 4.0, (1,)))
        array([3.])
    """
    low, high = (np.asarray(limit).reshape(-1) for limit in (space.low, space.high))
    with np.errstate(over="ignore", invalid="ignore"):
        # The difference in the dtype of the space, as SB3 takes it.
        half = 0.5 * (high - low).astype(np.float64)
    if np.issubdtype(space.dtype, np.integer) and (2.0 * half != high.astype(np.float64) - low).any():
        raise UnsupportedSpaceError(
            f"action_space: expected a range that its dtype can hold where actions are squashed, got {space}. SB3 "
            "rescales in this dtype, and integers overflow: use float32."
        )
    if not (np.isfinite(half) & (half > 0.0)).all():
        raise UnsupportedSpaceError(
            f"action_space: expected a Box with finite limits low < high where actions are squashed, got {space}. "
            "Bound the actions, and leave out components that cannot move."
        )
    return half
