"""Observations as one flat vector of numbers: Box, one-hot coded discrete spaces, and Dict of these."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.preprocessing import is_image_space

from robustnn.errors import ShapeError, UnsupportedSpaceError, check_finite, invalid

__all__ = [
    "check_observation",
    "check_start",
    "component_names",
    "flatten_observation",
    "is_one_hot",
    "parts",
    "size_of",
]


# What to do where an observation is finite and what is computed from it is not.
TOO_LARGE = (
    "The observation is too large for the network, or training diverged: check the sensors and weights."
)


def parts(space: spaces.Space) -> Iterator[tuple[str, spaces.Space]]:
    """Yield the spaces that an observation consists of, in the order in which policies concatenate them.

    Args:
        space: Box, Discrete, MultiDiscrete, MultiBinary, or a Dict of these.

    Yields:
        Key and space; the key is "" unless the space is a Dict.

    Raises:
        UnsupportedSpaceError: If there is an image, a nested or empty Dict, a Box without components, a discrete space
            that does not count from zero, or another kind of space.
    """
    entries = dict(space.spaces) if isinstance(space, spaces.Dict) else {"": space}
    if not entries:
        raise UnsupportedSpaceError("observation_space: expected at least one entry, got an empty Dict.")
    for key, part in entries.items():
        name = f"observation_space[{key!r}]" if key else "observation_space"
        supported = isinstance(part, (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)) or (
            isinstance(part, spaces.Box) and part.shape != () and 0 not in part.shape
        )
        if not supported:
            raise UnsupportedSpaceError(
                f"{name}: expected a Box of one axis or more, not empty, Discrete, MultiDiscrete, MultiBinary or a "
                f"flat Dict of these, got {part}. Flatten or encode the observation in the environment."
            )
        if is_image_space(part, check_channels=False):
            raise UnsupportedSpaceError(
                f"{name}: expected a vector, got the image {part}. A flat network is no policy for images."
            )
        if isinstance(part, spaces.MultiDiscrete) and len(part.nvec.shape) != 1:
            raise UnsupportedSpaceError(
                f"{name}: expected a MultiDiscrete with one axis, got {part}. Flatten it in the environment."
            )
        check_start(name, part)
        yield key, part


def check_start(name: str, space: spaces.Space) -> None:
    """Raise unless a discrete space counts from zero, which SB3 takes for granted.

    Args:
        name: Name of the space, for the message.
        space: Any space.

    Raises:
        UnsupportedSpaceError: If its first value is another.
    """
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)) and np.any(getattr(space, "start", 0)):
        raise UnsupportedSpaceError(
            f"{name}: expected values that start at 0, got {space}. Stable-Baselines3 counts from 0: subtract the "
            "start in the environment."
        )


def _size(part: spaces.Space) -> int:
    if isinstance(part, spaces.Discrete):
        return int(part.n)
    if isinstance(part, spaces.MultiDiscrete):
        return int(part.nvec.sum())
    return int(np.prod(part.shape or (1,)))


def size_of(space: spaces.Space) -> int:
    """Return the number of components of the flat observation, one-hot codes included."""
    return sum(_size(part) for _, part in parts(space))


def is_one_hot(space: spaces.Space) -> NDArray[np.bool_]:
    """Return for every component whether it codes a discrete quantity, shape (n_obs,).

    A change of such a quantity is a jump: of two one-hot components by one, or of one binary component by one.
    """
    return np.concatenate(
        [np.full(_size(part), not isinstance(part, spaces.Box), dtype=np.bool_) for _, part in parts(space)]
    )


def component_names(space: spaces.Space) -> tuple[str, ...]:
    """Return a name for every component, `key[i]` in a Dict and `o[i]` otherwise."""
    return tuple(f"{key or 'o'}[{k}]" for key, part in parts(space) for k in range(_size(part)))


def flatten_observation(space: spaces.Space, observation: Any) -> NDArray[np.float64]:
    """Return observations, as the environment or `predict` has them, as flat raw vectors.

    Args:
        space: The observation space.
        observation: One observation or a batch with a leading axis; a dict of arrays for a Dict.

    Returns:
        Shape (n_obs,) or (batch, n_obs).

    Raises:
        ShapeError: If a shape differs from that of the space.
        InvalidArgumentError: If keys differ from those of the space, or a discrete value is out of range.

    Example:
        >>> flatten_observation(spaces.Discrete(3), np.array(1))
        array([0., 1., 0.])
    """
    entries = _entries(space, observation)
    blocks = []
    for key, part in parts(space):
        values = _numbers(_name(key), entries[key], np.float64)
        shape = part.shape or ()
        batch = values.shape[: values.ndim - len(shape)]
        if values.shape[len(batch) :] != shape or len(batch) > 1:
            raise ShapeError(
                f"{_name(key)}: expected shape {shape} or (batch, ...), got {values.shape}. "
                "Pass what the environment returns."
            )
        _check_range(_name(key), part, values)
        if isinstance(part, (spaces.Discrete, spaces.MultiDiscrete)):
            columns = np.moveaxis(values.reshape(*batch, -1).astype(np.int64), -1, 0)
            counts = [part.n] if isinstance(part, spaces.Discrete) else part.nvec
            blocks += [np.eye(count)[column] for count, column in zip(counts, columns, strict=True)]
        else:
            blocks.append(values.reshape(*batch, -1))
    if len({block.shape[:-1] for block in blocks}) > 1:
        raise ShapeError(
            f"observation: expected one batch size, got {[block.shape[:-1] for block in blocks]}. "
            "Give every key the same leading axis."
        )
    return np.concatenate(blocks, axis=-1)


def check_observation(observation: Any, space: spaces.Space | None = None) -> None:
    """Raise unless an observation, or every entry of a dict, is an array of numbers that a policy can take.

    Args:
        observation: As given to `predict`.
        space: The observation space; None to look at the numbers only.

    Raises:
        InvalidArgumentError: If it is no array of numbers, keys differ from those of the space, or a discrete value
            is out of range.
        NonFiniteError: If it contains NaN or infinity, or does in float32.
    """
    if space is not None:
        _entries(space, observation)
    entries = observation if isinstance(observation, Mapping) else {"": observation}
    for key, entry in entries.items():
        with np.errstate(over="ignore"):
            values = _numbers(_name(key), entry, np.float32)  # what the network receives
        check_finite(_name(key), values, "Check the sensors or the environment's reset.")
        if space is not None:
            _check_range(_name(key), space[key] if isinstance(space, spaces.Dict) else space, values)


def _name(key: str) -> str:
    return f"observation[{key!r}]" if key else "observation"


def _entries(space: spaces.Space, observation: Any) -> Mapping[str, Any]:
    """The entries of a dict observation; another one under the key ""."""
    if isinstance(space, spaces.Dict):
        if isinstance(observation, Mapping) and set(observation) == set(space.spaces):
            return observation
        keys = sorted(observation) if isinstance(observation, Mapping) else type(observation).__name__
        expected = f"a dict with the keys {sorted(space.spaces)}"
        raise invalid("observation", expected, keys, "Pass what the environment returns.")
    if isinstance(observation, Mapping):
        raise invalid("observation", "an array of numbers", "a dict", "Pass what the environment returns.")
    return {"": observation}


def _numbers(name: str, values: Any, dtype: type[np.floating]) -> NDArray[Any]:
    try:
        return np.asarray(values, dtype=dtype)
    except (TypeError, ValueError) as error:
        raise invalid(
            name,
            "an array of numbers",
            type(values).__name__,
            "Pass what the environment returned, without its info.",
        ) from error


def _counts(part: spaces.Space) -> NDArray[np.int64] | None:
    """Number of values of each discrete quantity, or None for a Box."""
    if isinstance(part, spaces.Discrete):
        return np.array(part.n)
    if isinstance(part, spaces.MultiDiscrete):
        return np.asarray(part.nvec)
    return np.array(2) if isinstance(part, spaces.MultiBinary) else None


def _check_range(name: str, part: spaces.Space, values: NDArray[Any]) -> None:
    counts = _counts(part)
    if counts is None:
        return
    try:
        valid = (values >= 0) & (values < counts) & (values == np.floor(values))
    except ValueError:  # another number of quantities: SB3 says so
        return
    if not valid.all():
        wanted = f"integers from 0 to {(counts - 1).tolist()}"
        raise invalid(name, wanted, values.tolist(), "Check the environment.")
