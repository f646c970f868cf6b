"""The feature extractor that divides an observation by a fixed scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor

from robustnn.errors import CheckpointError, ShapeError, UnsupportedSpaceError, check_positive, invalid

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
        values = (1.0,) * n_obs if scale is None else as_scale("observation_scale", scale, n_obs)
        self.register_buffer("scale", torch.tensor(values))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        scale = state_dict.get(prefix + "scale")
        if isinstance(scale, Tensor) and not bool(((scale > 0) & scale.isfinite()).all()):
            raise CheckpointError(
                f"state dict: expected positive numbers in {prefix}scale, got {scale.tolist()}. "
                "The checkpoint is damaged."
            )
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, observations: Tensor) -> Tensor:
        """Return scaled observations of shape (batch, n_obs)."""
        return observations.flatten(start_dim=1) / self.scale


def as_scale(name: str, scale: Any, size: int) -> tuple[float, ...]:
    """Return a diagonal scale as a tuple of positive floats.

    Args:
        name: Name of the argument, for the message.
        scale: A sequence, array or tensor with one number per component.
        size: Number of components.

    Returns:
        The scale; the tuple can be compared, as SB3 does with `policy_kwargs`.

    Raises:
        ShapeError: If the number of entries differs from `size`, or there is more than one axis.
        InvalidArgumentError: If an entry is not a positive number that float32 can hold.
    """
    fix = "Give one positive number per component."
    if isinstance(scale, (str, bytes)) or not hasattr(scale, "__len__"):
        raise invalid(name, f"a sequence of {size} positive numbers", repr(scale), fix)
    shape = tuple(scale.shape) if hasattr(scale, "shape") else (len(scale),)
    if shape != (size,):
        raise ShapeError(f"{name}: expected shape ({size},), got {shape}. {fix}")
    values = tuple(check_positive(f"{name}[{k}]", value, fix) for k, value in enumerate(scale))
    limits = torch.finfo(torch.float32)
    for k, value in enumerate(values):
        if not limits.tiny <= value <= limits.max:
            raise invalid(
                f"{name}[{k}]",
                "a size that float32 can hold",
                value,
                "Choose a unit in which it is moderate.",
            )
    return values
