"""The state of a running fit in one file, replaced in one step."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from robustnn.dynamics.data import Dataset
from robustnn.dynamics.models import StateSpaceModel
from robustnn.errors import CheckpointError
from robustnn.files import atomic_write_bytes

__all__ = ["Checkpoint", "Saved"]

Array = NDArray[np.float64]
_FORMAT = "robustnn fit 1"


class Saved(NamedTuple):
    """What a checkpoint holds: plain values, parameters of the best model by name, and the state of the method."""

    header: dict[str, Any]
    arrays: dict[str, Array]
    engine: dict[str, Array]


class Checkpoint:
    """A checkpoint file of one start of a fit.

    Args:
        path: The file; its folder is made.
        identity: Settings of the fit, as JSON values.
        model: The model that is fitted, at its start.
        data: All data that the fit uses.
    """

    def __init__(
        self, path: Path, identity: Mapping[str, Any], model: StateSpaceModel, data: Sequence[Dataset]
    ) -> None:
        self._path = path
        self._shapes = {name: tuple(one.shape) for name, one in model.named_parameters()}
        digest = hashlib.sha256(json.dumps([type(model).__name__, model.settings(), dict(identity)]).encode())
        for parameter in model.parameters():
            digest.update(parameter.detach().numpy().tobytes())
        for one in data:
            digest.update(f"{one.dt!r} {one.n_init}".encode())
            for experiment in one:
                digest.update(np.ascontiguousarray(experiment.u).tobytes())
                digest.update(np.ascontiguousarray(experiment.y).tobytes())
        self._identity = digest.hexdigest()

    def save(
        self, header: Mapping[str, Any], arrays: Mapping[str, Array], engine: Mapping[str, Array]
    ) -> None:
        """Replace the file."""
        content = {"format": _FORMAT, "identity": self._identity, **header}
        members = {f"best:{name}": array for name, array in arrays.items()}
        members |= {f"engine:{name}": array for name, array in engine.items()}
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, header=np.array(json.dumps(content)), **members)
        data = buffer.getvalue()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_bytes(self._path, data)

    def load(self, fields: Collection[str]) -> Saved | None:
        """Return what the file holds, None if there is none.

        Args:
            fields: Names of the plain values.

        Raises:
            CheckpointError: If it is damaged or belongs to another fit.
        """
        if not self._path.exists():
            return None
        try:
            with np.load(io.BytesIO(self._path.read_bytes()), allow_pickle=False) as content:
                header = json.loads(str(content["header"]))
                members = {name: content[name] for name in content.files if name != "header"}
            kind, identity = header.pop("format"), header.pop("identity")
        except (OSError, ValueError, KeyError, AttributeError, EOFError, zipfile.BadZipFile) as error:
            raise CheckpointError(
                f"{self._path}: expected the checkpoint of a fit, got {type(error).__name__}: {error}. Delete it to "
                "start anew."
            ) from error
        if kind != _FORMAT or identity != self._identity:
            raise CheckpointError(
                f"{self._path}: expected the checkpoint of this fit, got one of other data, another model or other "
                "settings. Delete it, or choose another folder."
            )
        groups: dict[str, dict[str, Array]] = {"best": {}, "engine": {}}
        for name, array in members.items():
            group, _, key = name.partition(":")
            groups.setdefault(group, {})[key] = array
        best = groups["best"]
        fits = {name: array.shape for name, array in best.items()} == self._shapes
        if len(groups) > 2 or set(header) != set(fields) or not fits:
            raise CheckpointError(
                f"{self._path}: expected the fields {sorted(fields)} and the parameters {self._shapes}, got "
                f"{sorted(header)} and {sorted(members)}. It was changed; delete it to start anew."
            )
        if not all(np.isfinite(array).all() for array in best.values()):
            raise CheckpointError(
                f"{self._path}: expected finite parameters, got NaN or infinity. It was changed; delete it to start "
                "anew."
            )
        return Saved(header, groups["best"], groups["engine"])
