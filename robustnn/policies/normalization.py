"""Observation normalisation by value: the statistics of a `VecNormalize`, wherever it sits among wrappers."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecNormalize, unwrap_vec_normalize
from stable_baselines3.common.vec_env.stacked_observations import StackedObservations
from torch import Tensor

from robustnn.errors import ShapeError, check_nonnegative, invalid
from robustnn.policies.observation import parts, size_of
from robustnn.policies.wrappers import check_spaces, drifts_inside, stack_of, wrappers_of

__all__ = ["Normalization", "check_frozen", "feeding_env", "image_env", "is_drifting", "normalization_of"]


@dataclass(frozen=True, eq=False)
class Normalization:
    """Observation normalisation by frozen statistics: clip((o - mean) / std, -clip, clip).

    Attributes:
        mean: Shape (n_obs,), raw units.
        std: Shape (n_obs,), raw units; already contains VecNormalize's epsilon.
        clip: Limit of the normalised value, a number for all components or shape (n_obs,); infinity for none.
    """

    mean: Tensor
    std: Tensor
    clip: float | Tensor = math.inf

    def __call__(self, observation: Tensor) -> Tensor:
        """Normalise observations of shape (..., n_obs)."""
        normalised = (observation - self.mean) / self.std
        if isinstance(self.clip, Tensor):
            return torch.minimum(torch.maximum(normalised, -self.clip), self.clip)
        return normalised.clamp(-self.clip, self.clip)

    @property
    def sha256(self) -> str:
        """SHA-256 of mean, standard deviation and clip by value, as 64 hexadecimal digits."""
        clip = torch.as_tensor(self.clip, dtype=self.std.dtype, device=self.std.device).expand_as(self.std)
        digest = hashlib.sha256(b"robustnn normalisation 1")
        for tensor in (self.mean, self.std, clip):
            digest.update(tensor.detach().cpu().double().contiguous().numpy().astype("<f8").tobytes())
        return digest.hexdigest()

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Normalization:
        """Return a copy on another device or in another dtype."""
        clip = self.clip.to(device=device, dtype=dtype) if isinstance(self.clip, Tensor) else self.clip
        return Normalization(
            self.mean.to(device=device, dtype=dtype), self.std.to(device=device, dtype=dtype), clip
        )


def normalization_of(vec_env: VecEnv | None, space: spaces.Space) -> Normalization | None:
    """Return the observation normalisation of a `VecNormalize` anywhere in a chain of wrappers, by value.

    Args:
        vec_env: A vector environment, a `VecNormalize`, or None.
        space: The observation space of the policy; a stacked one behind `VecFrameStack`.

    Returns:
        The present statistics of the flat observation in float64, or None when observations are not normalised.

    Raises:
        InvalidArgumentError: If vec_env is no vector environment, holds a wrapper whose effect on observations is
            not known, or normalises observations twice.
        ShapeError: If the statistics are of another size than the policy's observations.
    """
    check_spaces(vec_env, space)
    found = _find(vec_env)
    if found is None:
        return None
    wrapper, stack = found
    blocks = []
    for key, _ in parts(space):
        blocks.append([values.reshape(-1) for values in _statistics(wrapper, key, stack)])
    mean, std, clip = (np.concatenate(columns) for columns in zip(*blocks, strict=True))
    if not (np.isfinite(std).all() and np.isfinite(mean).all() and (std > 0.0).all()):
        raise invalid(
            "vec_env",
            "finite statistics with standard deviations > 0",
            f"mean {mean.tolist()}, std {std.tolist()}",
            "Collect observations first, and keep VecNormalize's epsilon above zero.",
        )
    limit: float | Tensor = float(clip[0]) if (clip == clip[0]).all() else torch.from_numpy(clip)
    return Normalization(torch.from_numpy(mean), torch.from_numpy(std), limit)


def feeding_env(owner: Any, vec_env: VecEnv | None) -> VecEnv | None:
    """Return the vector environment between the plant and a policy: the one given, or else the model's own.

    Args:
        owner: A policy or a model. A policy has no environment, so its raw observation is what `predict` receives.
            A model that was loaded without an environment has none either.
        vec_env: The one that the user gave, or None.

    Returns:
        The vector environment, or None.

    Raises:
        InvalidArgumentError: If the model's own normalises observations and the one given does not: a bound would speak
            of other units than those of the plant.
    """
    get_env = getattr(owner, "get_env", None)
    own = None if get_env is None else get_env()
    if vec_env is None:
        return own
    if own is not None and _find(vec_env) is None and _normalises(own):
        raise invalid(
            "vec_env", "the VecNormalize of the model", "an environment without it",
            "Pass vec_env=model.get_env(), or model.policy in the place of the model for the map from normalised "
            "observations.",
        )  # fmt: skip
    return vec_env


def image_env(owner: Any, vec_env: VecEnv | None) -> VecEnv | None:
    """Return the vector environment of a policy of images: the one given, or else the model's own.

    Args:
        owner: A policy, which has no environment, or a model.
        vec_env: The one that the user gave, or None.

    Returns:
        The vector environment, or None.
    """
    get_env = getattr(owner, "get_env", None)
    return get_env() if vec_env is None and get_env is not None else vec_env


def _normalises(vec_env: VecEnv) -> bool:
    normalizer = unwrap_vec_normalize(vec_env)
    return normalizer is not None and bool(normalizer.norm_obs)


def is_drifting(vec_env: VecEnv | None) -> bool:
    """Whether the statistics of a `VecNormalize` in the chain change with the next observation."""
    found = _find(vec_env)
    return found is not None and found[0].training


def check_frozen(vec_env: VecEnv | None) -> None:
    """Raise if statistics of the observations, in a `VecNormalize` or inside the environments, still change.

    Raises:
        InvalidArgumentError: If they do.
    """
    if is_drifting(vec_env):
        raise invalid(
            "vec_env", "VecNormalize with frozen statistics", "training=True",
            "Its next observation changes the map from observation to action: set vec_env.training = False.",
        )  # fmt: skip
    if drifts_inside(vec_env):
        raise invalid(
            "vec_env", "environments with frozen statistics", "gymnasium's NormalizeObservation that updates them",
            "What a sensor's error amounts to changes with every step: use VecNormalize, which the bound accounts for, "
            "or set update_running_mean = False on the wrapper of every environment.",
        )  # fmt: skip


def _find(vec_env: VecEnv | None) -> tuple[VecNormalize, StackedObservations | None] | None:
    """The VecNormalize of the observation, and the stacking that follows it."""
    stack: StackedObservations | None = None
    found: tuple[VecNormalize, StackedObservations | None] | None = None
    for wrapper in wrappers_of(vec_env):  # from the policy towards the plant
        if isinstance(wrapper, VecNormalize) and wrapper.norm_obs:
            if found is not None:
                raise invalid(
                    "vec_env", "at most one VecNormalize of the observation", "2 nested", "Remove one."
                )
            if not hasattr(wrapper, "obs_rms"):
                raise invalid(
                    "vec_env", "a VecNormalize made with norm_obs=True", "norm_obs switched on afterwards",
                    "It has no statistics: make a new one.",
                )  # fmt: skip
            found = wrapper, stack
        elif isinstance(wrapper, VecFrameStack) and found is None:
            stack = stack_of(wrapper)
    return found


def _statistics(
    wrapper: VecNormalize, key: str, stack: StackedObservations | None
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Mean, standard deviation and clip of one entry of the observation, stacked as the frames are."""
    inner = wrapper.observation_space
    part = inner[key] if key else inner  # type: ignore[index]
    if key and key not in (wrapper.norm_obs_keys or []):
        n = size_of(part)
        shape = (part.shape or ()) if isinstance(part, spaces.Box) else (n,)
        mean, std, clip = np.zeros(shape), np.ones(shape), np.full(shape, np.inf)
    else:
        rms: Any = wrapper.obs_rms[key] if key else wrapper.obs_rms
        shape = part.shape or ()
        limit = wrapper.clip_obs
        if np.ndim(limit) or limit != np.inf:
            limit = check_nonnegative("vec_env.clip_obs", limit)
        # The root in the dtype that VecNormalize takes it in.
        with np.errstate(invalid="ignore"):
            values = (rms.mean, np.sqrt(rms.var + wrapper.epsilon), limit)
        if any(np.shape(value) not in ((), shape) for value in values):
            raise ShapeError(
                f"vec_env: expected normalisation statistics of shape {shape}, got "
                f"{[np.shape(value) for value in values[:2]]}. Load those of this environment."
            )
        mean, std, clip = (np.broadcast_to(np.asarray(v, dtype=np.float64), shape) for v in values)
        if stack is not None and part.dtype not in (np.float32, np.float64):
            raise invalid(
                "vec_env", "float32 or float64 observations below a VecFrameStack of normalised ones", part,
                f"VecFrameStack would round normalised observations to {part.dtype}: put VecNormalize outside it.",
            )  # fmt: skip
    if stack is not None:
        one = stack.sub_stacked_observations[key] if key else stack
        mean, std, clip = (
            np.concatenate([a] * stack.n_stack, axis=one.repeat_axis) for a in (mean, std, clip)
        )
    return mean, std, clip
