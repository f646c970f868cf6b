"""A lower bound of a policy's gain around the observations that training has just seen."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor

from robustnn.bounds.lower import lower_bound
from robustnn.errors import UnsupportedSpaceError, invalid
from robustnn.policies.action_map import action_map
from robustnn.policies.networks import decider_of, image_policy
from robustnn.policies.normalization import normalization_of
from robustnn.policies.observation import flatten_observation, is_one_hot, parts

__all__ = ["empirical_lipschitz", "recent_observations"]

_PIXELS = 200_000


def recent_observations(model: BaseAlgorithm, count: int) -> NDArray[np.float64]:
    """Return observations that the training of a model has seen last, in raw units.

    On-policy algorithms keep the observations of one rollout as `VecNormalize` gave them; the present statistics take
    them back to raw units. Replay buffers hold raw observations.

    Args:
        model: A model that has collected at least one rollout.
        count: How many to return at most; they are spread evenly over the rollout, or over as many of the last
            transitions as 16 times this number.

    Returns:
        Flat raw observations, shape (n, n_obs), n <= count; images with their channels first.

    Raises:
        InvalidArgumentError: If nothing has been collected yet.
    """
    space = model.observation_space
    on_policy = getattr(model, "rollout_buffer", None)
    buffer: Any = getattr(model, "replay_buffer", None) if on_policy is None else on_policy
    if buffer is None or buffer.size() == 0:
        raise invalid(
            "model", "one that has collected observations", f"an empty buffer of {type(model).__name__}",
            "Call learn first.",
        )  # fmt: skip
    if on_policy is not None:
        # An update flattens the axes of steps and environments into the first one.
        entry = (
            next(iter(buffer.observations.values()))
            if isinstance(space, spaces.Dict)
            else buffer.observations
        )
        last = np.arange(len(entry) if buffer.full else buffer.pos)
    else:
        last = (buffer.pos - 1 - np.arange(min(buffer.size(), 16 * count))) % buffer.buffer_size
    steps = last[_spread(len(last), count)]

    def rows(array: NDArray[Any], part: spaces.Space) -> NDArray[Any]:
        return array[steps].reshape(-1, *(part.shape or ()))

    stored: Any = buffer.observations
    if image_policy(model) is not None:
        images = rows(stored, space).reshape(-1, math.prod(space.shape or ()))
        return images[_spread(len(images), count)].astype(np.float64)
    if isinstance(space, spaces.Dict):
        stored = {key: rows(stored[key], part) for key, part in parts(space)}
    else:
        stored = rows(stored, space)
    flat = flatten_observation(space, stored)
    flat = flat[_spread(len(flat), count)]
    normalization = normalization_of(model.get_env(), space) if on_policy is not None else None
    if normalization is not None:
        flat = flat * normalization.std.numpy() + normalization.mean.numpy()
    return flat


def empirical_lipschitz(
    model: BaseAlgorithm, *, starts: int = 64, iterations: int = 30, seed: int = 0
) -> float:
    r"""Return the largest gain $\|\Delta a\|_2 / \|\Delta o\|_2$ found near recently seen raw observations.

    Gradient ascent over the whole deterministic predict path, `VecNormalize`, clipping and squashing included
    (`robustnn.bounds.lower_bound`). Discrete parts of an observation stay as they were seen. The result does not
    exceed `policy_bound(...).plain` of the same moment, which holds everywhere; if it is far smaller, the policy does
    not use its bound where it goes. Of a policy of images so few images are taken that they have no more than 200,000
    pixels together.

    Args:
        model: A model that has collected observations.
        starts: Number of observations to start from.
        iterations: Steps of the ascent.
        seed: Seed of the first directions. Random numbers of the training are not touched.

    Returns:
        The gain, action (logit, Q-value) per raw observation.

    Raises:
        InvalidArgumentError: If nothing has been collected yet, or the policy is no feed-forward network.
        UnsupportedSpaceError: If no component of the observation is continuous.
    """
    if image_policy(model) is not None:
        return _of_images(model, starts, iterations, seed)
    env, space = model.get_env(), model.observation_space
    function, normalization = action_map(model, env), normalization_of(env, space)
    device = function.network.weights[0].device
    points = torch.as_tensor(recent_observations(model, starts), device=device)
    codes = torch.as_tensor(is_one_hot(space), device=device)
    if bool(codes.all()):
        raise UnsupportedSpaceError(
            f"observation_space: expected a continuous component, got {space}. No small change of it exists."
        )

    def path(observation: Tensor) -> Tensor:
        # Rounding takes discrete parts back to what was seen, and has no gradient.
        return function(torch.where(codes, observation.round(), observation))

    # One unit for all components keeps the gain a plain one; it is the change that counts for the finest of them.
    sizes = decider_of(model).scale().to(points)
    if normalization is not None:
        sizes = sizes * normalization.std.to(points)
    unit = float(sizes[~codes].min())
    # Pairs stay within ten radii of each other: too near to round to another code.
    found = lower_bound(
        path, points, input_scale=torch.full_like(sizes, unit), iterations=iterations,
        radius=min(0.05, 0.04 / unit), generator=torch.Generator(device=device).manual_seed(seed),
    )  # fmt: skip
    return found.value / unit


def _of_images(model: BaseAlgorithm, starts: int, iterations: int, seed: int) -> float:
    """As `empirical_lipschitz`, for a policy of images."""
    shape = model.observation_space.shape or ()
    few = max(1, min(starts, _PIXELS // math.prod(shape)))
    function = action_map(model, model.get_env())
    device = function.network.weights[0].device
    points = torch.as_tensor(recent_observations(model, few), device=device)
    # Steps and pairs of a few units of a uint8 pixel: what differs from frame to frame is larger.
    found = lower_bound(
        lambda flat: function(flat.unflatten(-1, shape)), points, iterations=iterations, lr=1.0, radius=2.0,
        generator=torch.Generator(device=device).manual_seed(seed),
    )  # fmt: skip
    return found.value


def _spread(size: int, count: int) -> NDArray[np.int64]:
    """At most `count` indices below a size, evenly spread."""
    return np.linspace(0, size - 1, min(count, size)).round().astype(np.int64)
