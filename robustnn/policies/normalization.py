"""Observation normalisation by value: the statistics of a `VecNormalize`, wherever it sits among wrappers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from stable_baselines3.common.vec_env import (
    VecCheckNan,
    VecEnv,
    VecEnvWrapper,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecVideoRecorder,
)
from torch import Tensor

from robustnn.errors import ShapeError, UnsupportedSpaceError, check_nonnegative, invalid

__all__ = ["Normalization", "normalization_of"]


@dataclass(frozen=True, eq=False)
class Normalization:
    """Observation normalisation by frozen statistics: clip((o - mean) / std, -clip, clip).

    Attributes:
        mean: Shape (n_obs,), raw units.
        std: Shape (n_obs,), raw units; already contains VecNormalize's epsilon.
        clip: Limit of the normalised value.
    """

    mean: Tensor
    std: Tensor
    clip: float

    def __call__(self, observation: Tensor) -> Tensor:
        """Normalise observations of shape (..., n_obs)."""
        return ((observation - self.mean) / self.std).clamp(-self.clip, self.clip)


def normalization_of(vec_env: VecEnv | None, n_obs: int) -> Normalization | None:
    """Return the observation normalisation of a `VecNormalize` anywhere in a chain of wrappers, by value.

    Args:
        vec_env: A vector environment, a `VecNormalize`, or None.
        n_obs: Number of (flattened) observation components expected.

    Returns:
        The present statistics in float64, or None when observations are not normalised.

    Raises:
        InvalidArgumentError: If vec_env is no vector environment, or normalises observations twice.
        UnsupportedSpaceError: If the statistics are not those of one Box observation.
        ShapeError: If the number of components differs.
    """
    if vec_env is None:
        return None
    if not isinstance(vec_env, VecEnv):
        raise invalid("vec_env", "a VecEnv or None", type(vec_env).__name__, "Pass model.get_env().")
    chain = _wrappers(vec_env)
    unknown = [type(w).__name__ for w in chain if type(w) not in _TRANSPARENT]
    if unknown:
        raise invalid(
            "vec_env",
            "wrappers whose effect on observations is known (VecNormalize, VecMonitor, VecFrameStack, ...)",
            ", ".join(unknown),
            "Pass the VecNormalize over the bare environments, and account for other wrappers yourself.",
        )
    wrappers = [w for w in chain if isinstance(w, VecNormalize) and w.norm_obs]
    if not wrappers:
        return None
    if len(wrappers) > 1:
        raise invalid(
            "vec_env", "at most one VecNormalize of the observation", f"{len(wrappers)} nested", "Remove one."
        )
    wrapper = wrappers[0]
    if isinstance(wrapper.obs_rms, dict):
        raise UnsupportedSpaceError(
            "vec_env: expected VecNormalize over a Box observation, got one over a Dict. Flatten the observation first."
        )
    mean = np.array(wrapper.obs_rms.mean, dtype=np.float64).reshape(-1)
    std = np.sqrt(np.asarray(wrapper.obs_rms.var, dtype=np.float64).reshape(-1) + wrapper.epsilon)
    if mean.shape != (n_obs,):
        raise ShapeError(
            f"vec_env: expected normalisation statistics of {n_obs} components, got {mean.shape[0]}. "
            "Pass the VecNormalize that the policy was trained with."
        )
    if not (np.isfinite(std).all() and np.isfinite(mean).all() and (std > 0.0).all()):
        raise invalid(
            "vec_env",
            "finite statistics with standard deviations > 0",
            f"mean {mean.tolist()}, std {std.tolist()}",
            "Collect observations first, and keep VecNormalize's epsilon above zero.",
        )
    clip = math.inf
    if wrapper.clip_obs != math.inf:
        clip = check_nonnegative("vec_env.clip_obs", wrapper.clip_obs)
    return Normalization(torch.from_numpy(mean), torch.from_numpy(std), clip)


# Wrappers that pass observations on unchanged, VecNormalize itself, and VecFrameStack: behind the normalisation its
# shape is refused, in front of it the bound is per component of the stacked observation.
_TRANSPARENT = {VecNormalize, VecMonitor, VecCheckNan, VecVideoRecorder, VecFrameStack}


def _wrappers(vec_env: VecEnv) -> list[VecEnvWrapper]:
    found = []
    while isinstance(vec_env, VecEnvWrapper):
        found.append(vec_env)
        vec_env = vec_env.venv
    return found
