"""The two files of a certificate: JSON for what a person reads, safetensors for the tensors. No pickle.

Both carry digests, so that a damaged or edited pair is refused at once. A digest proves nothing, since anybody
can compute it: that a certificate is true is found out by `Certificate.verify` alone.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustnn.errors import CheckpointError, RobustNNError
from robustnn.files import atomic_write_bytes, atomic_write_text

__all__ = ["read_certificate", "write_certificate"]

_HEADER = {"format": "robustnn certificate", "version": 1}


def write_certificate(
    path: str | os.PathLike[str], fields: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> tuple[Path, Path]:
    """Write both files, each in one step.

    Args:
        path: Path without suffix; one of the two suffixes is taken off. Missing folders are made.
        fields: Numbers, strings and lists.
        tensors: Tensors on the CPU.

    Returns:
        Paths of the .json and the .safetensors file.

    Raises:
        RobustNNError: If safetensors is not installed.
    """
    description, storage = _paths(path)
    data: bytes = _safetensors().save({name: tensor.contiguous() for name, tensor in tensors.items()})
    content = {**_HEADER, **fields, "tensors_sha256": hashlib.sha256(data).hexdigest()}
    content["sha256"] = _digest(content)
    description.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(storage, data)
    atomic_write_text(description, json.dumps(content, indent=2) + "\n")
    return description, storage


def read_certificate(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read both files and compare them with their digests.

    Args:
        path: As given to `write_certificate`, or either of the files.

    Returns:
        The fields and the tensors.

    Raises:
        CheckpointError: If a file is missing, damaged, changed, or was not written by `write_certificate`.
        RobustNNError: If safetensors is not installed.
    """
    description, storage = _paths(path)
    try:
        content = json.loads(description.read_text(encoding="utf-8"))
        data = storage.read_bytes()
    except (OSError, ValueError, RecursionError) as error:
        raise refuse(
            description, f"a readable .json file beside a .safetensors file, got: {error}"
        ) from error
    if not isinstance(content, dict) or any(content.get(key) != value for key, value in _HEADER.items()):
        raise refuse(description, f"{_HEADER['format']}, version {_HEADER['version']}")
    if content.get("sha256") != _digest(content):
        raise refuse(description, "the fields that it was written with")
    if content.get("tensors_sha256") != hashlib.sha256(data).hexdigest():
        raise refuse(storage, "the tensors that belong to the .json file")
    try:
        tensors: dict[str, Tensor] = _safetensors().load(data)
    except Exception as error:  # safetensors has an exception class of its own, derived from Exception
        raise refuse(storage, f"tensors, got: {error}") from error
    if any(tensor.dtype != torch.float64 for tensor in tensors.values()):
        raise refuse(storage, "tensors of dtype torch.float64")
    return content, tensors


def refuse(path: str | os.PathLike[str], expected: str) -> CheckpointError:
    """Return the error for a file that is no certificate of ours."""
    return CheckpointError(
        f"{Path(path).name}: expected {expected}. The file is damaged, was changed, or is not a certificate; "
        "make a new one: certify(net).save(path)."
    )


def _paths(path: str | os.PathLike[str]) -> tuple[Path, Path]:
    stem = Path(path)
    if stem.suffix in (".json", ".safetensors"):
        stem = stem.with_suffix("")
    return stem.with_name(stem.name + ".json"), stem.with_name(stem.name + ".safetensors")


def _digest(content: Mapping[str, Any]) -> str:
    fields = {key: value for key, value in content.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _safetensors() -> Any:
    try:
        return importlib.import_module("safetensors.torch")
    except ImportError as error:
        raise RobustNNError(
            f"safetensors: expected it to be installed, got: {error}. "
            "Install the extra: pip install 'robustnn[export]'."
        ) from error
