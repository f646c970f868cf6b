"""A dynamics model in one file: numpy's .npz without pickle, with a JSON header and a digest of all it holds.

The digest finds damage and edits. It is no signature: anybody can compute it.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustnn.dynamics.base import StateSpaceModel
from robustnn.dynamics.channels import Channels
from robustnn.dynamics.registry import MODELS, model_name
from robustnn.errors import CheckpointError, NonFiniteError, RobustNNError, invalid
from robustnn.files import atomic_write_bytes

__all__ = ["load_model", "save_model"]

Array = NDArray[np.float64]
_FORMAT, _VERSION = "robustnn dynamics model", 1
_FIELDS = {"format", "version", "class", "settings", "channels", "sha256"}


def save_model(model: StateSpaceModel, path: str | os.PathLike[str]) -> Path:
    """Write a model into a file, in one step; `load_model` returns it bit for bit.

    Args:
        model: Of one of the classes in `robustnn.dynamics.registry.MODELS`.
        path: File name, to which .npz is added if it has another suffix. Missing folders are made.

    Returns:
        Path of the file.

    Raises:
        InvalidArgumentError: If the class is not registered.
        NonFiniteError: If a parameter is NaN or infinite.

    Example:
        >>> load_model(save_model(model, "tanks.npz")).simulate(u)  # doctest: +SKIP
    """
    name = model_name(model)
    if name is None:
        raise invalid(
            "model", f"one of {', '.join(one.__name__ for one in MODELS.values())}", type(model).__name__,
            "Register the class in robustnn.dynamics.registry.MODELS.",
        )  # fmt: skip
    arrays = {key: value.detach().cpu().numpy() for key, value in _tensors(model).items()}
    for key, array in arrays.items():
        if not np.isfinite(array).all():
            raise NonFiniteError(
                f"model.{key}: expected finite parameters, got NaN or infinity. Save the best model of the fit, not a "
                "diverged one."
            )
    header = {
        "format": _FORMAT, "version": _VERSION, "class": name, "settings": model.settings(),
        "channels": model.channels.to_dict(),
    }  # fmt: skip
    header["sha256"] = _digest(header, arrays)
    buffer = io.BytesIO()
    members: dict[str, Any] = {f"parameter:{key}": array for key, array in arrays.items()}
    np.savez(buffer, allow_pickle=False, header=np.array(json.dumps(header)), **members)
    target = Path(path)
    target = target if target.suffix == ".npz" else target.with_name(target.name + ".npz")
    target.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(target, buffer.getvalue())
    return target


def load_model(path: str | os.PathLike[str]) -> StateSpaceModel:
    """Read a model from a file that `save_model` has written.

    Nothing in the file is executed, and nothing is accepted unchecked: format, digest, settings, names, shapes and
    dtypes of all arrays, and that they are finite.

    Args:
        path: The file.

    Returns:
        The model.

    Raises:
        CheckpointError: If the file is missing, damaged, changed, or no model file.
    """
    header, arrays = _read(Path(path))
    cls = MODELS.get(header["class"]) if isinstance(header["class"], str) else None
    if cls is None:
        raise _refuse(path, f"a model of a class in {', '.join(MODELS)}", repr(header["class"]))
    try:
        channels = _checked(Channels.from_dict(header["channels"]))
        with torch.random.fork_rng(devices=[]):  # what is drawn is overwritten at once
            model = cls(channels, **header["settings"])
    except (RobustNNError, TypeError, ValueError, KeyError, RuntimeError) as error:
        raise _refuse(path, "settings of a model", f"{type(error).__name__}: {error}") from error
    expected = {key: tuple(value.shape) for key, value in _tensors(model).items()}
    found = {key: array.shape for key, array in arrays.items()}
    if found != expected:
        raise _refuse(path, f"parameters of shapes {expected}", f"{found}")
    for key, array in arrays.items():
        if array.dtype != np.float64 or not np.isfinite(array).all():
            raise _refuse(
                path, f"finite float64 parameters {key}", f"dtype {array.dtype}, or NaN or infinity"
            )
    model.load_state_dict(
        {**model.state_dict(), **{key: torch.from_numpy(array) for key, array in arrays.items()}}
    )
    return model


def _checked(channels: Channels) -> Channels:
    """Return channels whose labels are strings, and whose scaling has an entry for each and divides by no zero."""
    for letter, names, units in (
        ("u", channels.u_names, channels.u_units),
        ("y", channels.y_names, channels.y_units),
    ):
        offset, scale = (getattr(channels.scaling, f"{letter}_{kind}") for kind in ("offset", "scale"))
        fits = offset.shape == scale.shape == (len(names),) and len(names) == len(units) > 0
        if not fits or not all(isinstance(label, str) for label in (*names, *units)):
            raise invalid(
                f"channels of {letter}", "a name, a unit, an offset and a scale for each",
                f"{names}, {units}, {offset}, {scale}", "Write the file anew.",
            )  # fmt: skip
        if not (np.isfinite(offset).all() and np.isfinite(scale).all() and (scale > 0.0).all()):
            raise invalid(
                f"scaling of {letter}",
                "finite offsets and positive scales",
                f"{offset}, {scale}",
                "Write it anew.",
            )
    return channels


def _tensors(model: StateSpaceModel) -> dict[str, Tensor]:
    """What of the state dict is no setting."""
    return {key: value for key, value in model.state_dict().items() if isinstance(value, Tensor)}


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Array]]:
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as content:
            header = json.loads(str(content["header"]))
            members = {name: np.array(content[name]) for name in content.files if name != "header"}
    except (
        OSError, ValueError, KeyError, AttributeError, TypeError, EOFError, RecursionError, NotImplementedError,
        RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error,
    ) as error:  # fmt: skip
        raise _refuse(path, "a readable file", f"{type(error).__name__}: {error}") from error
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
        raise _refuse(path, f"a file of format {_FORMAT!r}", "another one")
    if header.get("version") != _VERSION:
        raise _refuse(path, f"version {_VERSION}", repr(header.get("version")))
    if set(header) != _FIELDS or not all(name.startswith("parameter:") for name in members):
        raise _refuse(
            path, f"the fields {sorted(_FIELDS)} and parameters", f"{sorted(header)}, {sorted(members)}"
        )
    arrays = {name.removeprefix("parameter:"): array for name, array in members.items()}
    if header["sha256"] != _digest(header, arrays):
        raise _refuse(path, "the digest that it was written with", "another one")
    return header, arrays


def _digest(header: Mapping[str, Any], arrays: Mapping[str, Array]) -> str:
    content = {key: value for key, value in header.items() if key != "sha256"}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for key in sorted(arrays):
        array = np.ascontiguousarray(arrays[key])
        digest.update(json.dumps([key, str(array.dtype), list(arrays[key].shape)]).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _refuse(path: str | os.PathLike[str], expected: str, got: str) -> CheckpointError:
    return CheckpointError(
        f"{Path(path).name}: expected {expected}, got {got}. The file is damaged, was changed, or is no model file; "
        "write a new one with save_model."
    )
