"""The feature extractor that divides an observation by a fixed scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor

from robustnn.errors import CheckpointError, ShapeError, check_positive, invalid
from robustnn.policies.observation import parts, size_of

__all__ = ["ObservationScale", "as_observation_scale", "as_scale", "rounded"]

ScaleArgument = Sequence[float] | Mapping[str, Sequence[float]]


def rounded(values: Sequence[float] | NDArray[np.float64], *, up: bool) -> Tensor:
    """Return numbers in torch's default dtype, rounded so that no bound that is stated in them is exceeded.

    Args:
        values: Positive numbers in float64.
        up: Whether to round up (what is divided by) or down (what is multiplied by).
    """
    exact = torch.as_tensor(np.asarray(values, dtype=np.float64))
    result = exact.to(torch.get_default_dtype())
    beyond = torch.tensor(torch.inf if up else 0.0, dtype=result.dtype)
    wrong = result.double() < exact if up else result.double() > exact
    return torch.where(wrong, torch.nextafter(result, beyond), result)


class ObservationScale(BaseFeaturesExtractor):
    """Flatten an observation to one vector and divide each component by a fixed positive number.

    Unlike `VecNormalize` the scale does not drift, so a bound stated in it stays true. It also serves SB3's
    own policies: `policy_kwargs=dict(features_extractor_class=ObservationScale,
    features_extractor_kwargs=dict(scale=(1.0, 1.0, 8.0)))`.

    Args:
        observation_space: Box (no image), Discrete, MultiDiscrete, MultiBinary, or a Dict of these. Discrete
            quantities arrive one-hot coded, as SB3 does it; the entries of a Dict are concatenated in its order.
        scale: One positive number per flattened component, in its unit; for a Dict a dict with such a sequence for
            every key that is to be scaled; None for ones.

    Raises:
        UnsupportedSpaceError: If the observation space is of another kind.
        ShapeError: If the number of scales differs from the number of components.
    """

    scale: Tensor

    def __init__(self, observation_space: spaces.Space, scale: ScaleArgument | None = None) -> None:
        n_obs = size_of(observation_space)
        super().__init__(observation_space, n_obs)
        values = (1.0,) * n_obs if scale is None else as_observation_scale(scale, observation_space)
        self.register_buffer("scale", rounded(values, up=True))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        scale = state_dict.get(prefix + "scale")
        if isinstance(scale, Tensor) and not bool(((scale > 0) & scale.isfinite()).all()):
            raise CheckpointError(
                f"state dict: expected positive numbers in {prefix}scale, got {scale.tolist()}. "
                "The checkpoint is damaged."
            )
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, observations: Tensor | dict[str, Tensor]) -> Tensor:
        """Return scaled observations of shape (batch, n_obs)."""
        if isinstance(observations, dict):
            observations = torch.cat(
                [observations[key].flatten(start_dim=1) for key in self._observation_space.spaces],  # type: ignore[attr-defined]
                dim=1,
            )
        return observations.flatten(start_dim=1) / self.scale


def as_observation_scale(scale: Any, space: spaces.Space) -> tuple[float, ...]:
    """Return the scale of a flat observation as a tuple of positive floats.

    Args:
        scale: A sequence with one number per component, or for a Dict a mapping from keys to such sequences.
        space: The observation space.

    Returns:
        One number per flattened component; keys that are not mentioned have ones.

    Raises:
        ShapeError: If a number of entries is wrong.
        InvalidArgumentError: If a key is unknown, or an entry is not a positive number that float32 can hold.
    """
    if not isinstance(scale, Mapping):
        return as_scale("observation_scale", scale, size_of(space))
    keys = list(space.spaces) if isinstance(space, spaces.Dict) else []
    unknown = [key for key in scale if key not in keys]
    if unknown or not keys:
        raise invalid(
            "observation_scale",
            f"keys of the observation space, {keys}" if keys else "a sequence, as the observation is no Dict",
            unknown or scale,
            "Name the keys that are to be scaled.",
        )
    values: list[float] = []
    for key, part in parts(space):
        size = size_of(part)
        one = scale.get(key)
        values += (1.0,) * size if one is None else as_scale(f"observation_scale[{key!r}]", one, size)
    return tuple(values)


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
