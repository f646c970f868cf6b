"""Gymnasium spaces as JSON and back, for files that must not need pickle."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from gymnasium import spaces

from robustnn.errors import CheckpointError, UnsupportedSpaceError

__all__ = ["space_from_json", "space_to_json"]

_INFINITE = {"inf": math.inf, "-inf": -math.inf}


def space_to_json(space: spaces.Space) -> dict[str, Any]:
    """Return a space as numbers, strings, lists and dictionaries; infinite limits are the strings inf and -inf.

    Args:
        space: Box, Discrete, MultiDiscrete, MultiBinary, or a Dict of these.

    Returns:
        The description, from which `space_from_json` makes an equal space.

    Raises:
        UnsupportedSpaceError: If the space is of another kind.

    Example:
        >>> space_to_json(spaces.Discrete(3))
        {'kind': 'Discrete', 'n': 3, 'start': 0, 'dtype': 'int64'}
    """
    dtype = str(space.dtype)
    if isinstance(space, spaces.Box):
        low, high = (_numbers(limit) for limit in (space.low, space.high))
        return {"kind": "Box", "shape": list(space.shape), "low": low, "high": high, "dtype": dtype}
    if isinstance(space, spaces.Discrete):
        return {"kind": "Discrete", "n": int(space.n), "start": int(space.start), "dtype": dtype}
    if isinstance(space, spaces.MultiDiscrete):
        nvec, start = np.asarray(space.nvec), np.asarray(space.start)
        return {"kind": "MultiDiscrete", "nvec": nvec.tolist(), "start": start.tolist(), "dtype": dtype}
    if isinstance(space, spaces.MultiBinary):
        return {"kind": "MultiBinary", "shape": list(space.shape)}
    if isinstance(space, spaces.Dict):
        return {"kind": "Dict", "entries": [[key, space_to_json(part)] for key, part in space.spaces.items()]}
    raise UnsupportedSpaceError(
        f"space: expected Box, Discrete, MultiDiscrete, MultiBinary or a Dict of these, got {space}. "
        "Flatten or encode it in the environment."
    )


def space_from_json(content: Any) -> spaces.Space:
    """Return the space that `space_to_json` described.

    Args:
        content: The description.

    Returns:
        The space.

    Raises:
        CheckpointError: If it describes no space.
    """
    try:
        return _space(content)
    except (KeyError, TypeError, ValueError, AssertionError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"space: expected the description of a space, got {str(content)[:200]} ({error!r}). "
            "The file is damaged or was changed."
        ) from error


def _space(content: Any) -> spaces.Space:
    kind = content["kind"]
    if kind == "Box":
        dtype, shape = np.dtype(content["dtype"]), tuple(int(n) for n in content["shape"])
        low, high = (
            np.array([_INFINITE.get(v, v) for v in content[key]], dtype=dtype).reshape(shape)
            for key in ("low", "high")
        )
        return spaces.Box(low, high, dtype=dtype.type)
    if kind == "Discrete":
        return spaces.Discrete(
            int(content["n"]), start=int(content["start"]), dtype=np.dtype(content["dtype"]).type
        )
    if kind == "MultiDiscrete":
        return spaces.MultiDiscrete(
            np.array(content["nvec"]), start=np.array(content["start"]), dtype=np.dtype(content["dtype"]).type
        )
    if kind == "MultiBinary":
        sizes = [int(n) for n in content["shape"]]
        return spaces.MultiBinary(sizes[0] if len(sizes) == 1 else sizes)
    if kind == "Dict":
        return spaces.Dict([(str(key), _space(part)) for key, part in content["entries"]])
    raise ValueError(f"kind {kind!r}")


def _numbers(limit: np.ndarray) -> list[Any]:
    """Entries as Python numbers, which hold any of them exactly, or strings where they are infinite."""
    return [v if math.isfinite(v) else str(v) for v in np.asarray(limit).reshape(-1).tolist()]
