"""From what a policy returns to what an environment takes: limits of actions, and choices by scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from robustnn.errors import UnsupportedSpaceError

__all__ = ["Decision"]


@dataclass(frozen=True, eq=False)
class Decision:
    """The actions of an environment, from those of a policy or from its scores of discrete actions.

    Args:
        space: Action space of one environment: Box, Discrete, MultiDiscrete or MultiBinary, the latter with one axis.

    Raises:
        UnsupportedSpaceError: If the space is another.

    Example:
        >>> Decision(spaces.Discrete(3))(torch.tensor([[0.1, 0.7, 0.2]]))
        array([1])
    """

    space: gymnasium.Space[Any]

    def __post_init__(self) -> None:
        """Check the space."""
        space = self.space
        flat = isinstance(space, (spaces.MultiDiscrete, spaces.MultiBinary)) and len(space.shape) == 1
        if not (isinstance(space, (spaces.Box, spaces.Discrete)) or flat):
            raise UnsupportedSpaceError(
                f"action_space: expected Box, Discrete, MultiDiscrete or MultiBinary, got {space}. "
                "Choose one of these action spaces."
            )

    @property
    def choices(self) -> tuple[int, ...]:
        """Numbers of scores that belong together, ones for MultiBinary; empty for continuous actions."""
        if isinstance(self.space, spaces.Discrete):
            return (int(self.space.n),)
        if isinstance(self.space, spaces.MultiDiscrete):
            return tuple(int(n) for n in self.space.nvec)
        return (1,) * int(self.space.shape[0]) if isinstance(self.space, spaces.MultiBinary) else ()

    @property
    def n_u(self) -> int:
        """Number of components that the policy returns."""
        return sum(self.choices) or int(np.prod(self.space.shape or (1,)))

    def __call__(self, output: Tensor) -> NDArray[Any]:
        """Return actions for the environment, clipped to its limits, or the choices of the highest scores.

        Args:
            output: What the policy returned, shape (E, n_u).

        Returns:
            Shape (E, ...) in the dtype of the space.
        """
        space, values = self.space, output.detach().cpu()
        if isinstance(space, spaces.Box):
            action = values.double().numpy().reshape(len(values), *space.shape)
            return np.clip(action.astype(space.dtype), space.low, space.high)
        if isinstance(space, spaces.MultiBinary):
            return (values > 0.0).numpy().astype(space.dtype)
        picked = torch.stack([group.argmax(-1) for group in values.split(self.choices, dim=-1)], dim=-1)
        chosen = picked.numpy() + np.asarray(space.start)  # type: ignore[attr-defined]
        chosen = chosen[:, 0] if isinstance(space, spaces.Discrete) else chosen
        return np.asarray(chosen, dtype=space.dtype)
