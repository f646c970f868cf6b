"""The feature extractor that divides an observation by a fixed scale."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor

from robustnn.errors import ShapeError, UnsupportedSpaceError, check_positive

__all__ = ["ObservationScale"]


class ObservationScale(BaseFeaturesExtractor):
    """Flatten a Box observation and divide each component by a fixed positive number.

    Unlike `VecNormalize` the scale does not drift, so a bound stated in it stays true. It also serves SB3's
    own policies: `policy_kwargs=dict(features_extractor_class=ObservationScale,
    features_extractor_kwargs=dict(scale=(1.0, 1.0, 8.0)))`.

    Args:
        observation_space: A Box of any shape that is not an image.
        scale: One positive number per flattened component, in its unit; None for ones.

    Raises:
        UnsupportedSpaceError: If the observation space is not a Box.
        ShapeError: If the number of scales differs from the number of components.
    """

    scale: Tensor

    def __init__(self, observation_space: spaces.Space, scale: Sequence[float] | None = None) -> None:
        if not isinstance(observation_space, spaces.Box):
            raise UnsupportedSpaceError(
                f"observation_space: expected a Box, got {observation_space}. "
                "Flatten the observation, for example with gymnasium.wrappers.FlattenObservation."
            )
        n_obs = int(spaces.flatdim(observation_space))
        super().__init__(observation_space, n_obs)
        values = (1.0,) * n_obs if scale is None else tuple(scale)
        if len(values) != n_obs:
            raise ShapeError(
                f"observation_scale: expected shape ({n_obs},), got ({len(values)},). "
                "Give one positive number per observation component."
            )
        values = tuple(check_positive(f"observation_scale[{k}]", v) for k, v in enumerate(values))
        self.register_buffer("scale", torch.tensor(values))

    def forward(self, observations: Tensor) -> Tensor:
        """Return scaled observations of shape (batch, n_obs)."""
        return observations.flatten(start_dim=1) / self.scale
