"""Run folder: what an experiment was, on what it ran, and its results, safe against interrupts.

Layout of a folder::

    config.json        format, name, seeds and the fields of the configuration
    environment.json   one record per start: versions, platform, git commit, command line
    metrics.csv        progress rows, appended as they come
    cells/<key>.json   finished parts of a sweep, each written in one step
    figures/           whatever the experiment draws

The JSON files name neither the machine nor a path outside the working directory, so a folder can be
committed.
"""

from __future__ import annotations

import enum
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np

from robustnn.errors import CheckpointError, check_positive_int, invalid
from robustnn.files import atomic_write_bytes as atomic_write_bytes
from robustnn.files import atomic_write_text as atomic_write_text
from robustnn.report.environment import environment, relative_paths
from robustnn.report.files import csv_line, header_line, parse_csv

_FORMAT = "robustnn run folder"
_VERSION = 1
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+,-]{0,149}")


class RunFolder:
    """A folder that holds one run; made by `RunFolder.create`, read back by `RunFolder.open`.

    One process at a time may write metrics; cells may be recorded by several.

    Attributes:
        path: the folder.
        name: name of the run.
        config: fields of the configuration as JSON values.
        seeds: seeds of the run.

    Example:
        >>> run = RunFolder.create("runs", "smoke", config, seeds=[0, 1], resume=True)  # doctest: +SKIP
        >>> for seed in run.seeds:  # doctest: +SKIP
        ...     if not run.done(f"seed={seed}"):
        ...         run.record(f"seed={seed}", train_and_evaluate(seed))
    """

    def __init__(self, path: Path, name: str, config: dict[str, Any], seeds: tuple[int, ...]) -> None:
        """Hold a checked folder; users call `create` or `open`."""
        self.path = path
        self.name = name
        self.config = config
        self.seeds = seeds
        self._columns: list[str] | None = None

    @classmethod
    def create(
        cls,
        root: str | os.PathLike[str],
        name: str,
        config: Any,
        *,
        seeds: Sequence[SupportsIndex] = (),
        resume: bool = False,
        repository: str | os.PathLike[str] = ".",
        packages: Iterable[str] = (),
    ) -> RunFolder:
        """Make the folder ``root/name``, whole or not at all, or continue it.

        Args:
            root: folder of runs; made if missing.
            name: name of the run, of letters, digits and ``. _ = + , -``.
            config: a dataclass of JSON-like values (numbers, text, paths, sequences, mappings, dataclasses).
            seeds: integer seeds of the run, >= 0.
            resume: continue an existing run with the same configuration and seeds; a new one is made if there
                is none. Every start adds a record to ``environment.json``, and removes what killed writers
                left; so let no other process write meanwhile.
            repository: a folder in the git checkout whose commit is recorded.
            packages: further distributions whose versions are recorded, besides the dependencies.

        Raises:
            InvalidArgumentError: an argument cannot be stored.
            CheckpointError: the folder exists and ``resume`` is False, or it holds something else, or another
                configuration.
        """
        path = Path(root) / _checked_key("name", name)
        header = {
            "format": _FORMAT,
            "version": _VERSION,
            "name": name,
            "seeds": [check_positive_int("seeds", seed, minimum=0) for seed in seeds],
            "config": _config(config),
        }
        start = environment(repository=repository, packages=packages)
        if path.exists() and resume:
            return cls._continue(path, header, start)
        if path.exists():
            raise CheckpointError(
                f"{path}: expected no such folder, got an existing one. Pass resume=True to continue that "
                "run, or choose another name."
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{name}.{secrets.token_hex(6)}.tmp")
        try:
            for folder in (temporary, temporary / "cells", temporary / "figures"):
                folder.mkdir()
            atomic_write_text(temporary / "environment.json", _dumps({"starts": [start]}))
            atomic_write_text(temporary / "config.json", _dumps(header))
            temporary.rename(path)
        except OSError as error:
            raise CheckpointError(
                f"{path}: expected to make the folder, got {error}. Check the path."
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return cls.open(path)

    @classmethod
    def _continue(cls, path: Path, header: Mapping[str, Any], start: Mapping[str, Any]) -> RunFolder:
        run = cls.open(path)
        stored = _read_json(path / "config.json")
        wanted = json.loads(_dumps(header))
        old, new = stored["config"], wanted["config"]
        different = [
            f"config.{key}" for key in {**old, **new} if _dumps(old.get(key)) != _dumps(new.get(key))
        ]
        if stored["seeds"] != wanted["seeds"]:
            different.append("seeds")
        if different:
            raise CheckpointError(
                f"{path}: expected the configuration of the existing run, got another value of {different}. "
                "Resume with the same configuration and seeds, or choose another name."
            )
        for stale in path.rglob(".*.tmp"):
            stale.unlink()
        starts = _read_json(path / "environment.json")["starts"]
        atomic_write_text(path / "environment.json", _dumps({"starts": [*starts, start]}))
        return run

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> RunFolder:
        """Open an existing run folder.

        Args:
            path: the folder.

        Raises:
            CheckpointError: there is no folder, or it is not one of ours, or a file in it is corrupted.
        """
        folder = Path(path)
        header = _read_json(folder / "config.json")
        if not isinstance(header, dict) or header.get("format") != _FORMAT:
            raise CheckpointError(f"{folder}: expected a {_FORMAT}, got a config.json of another program.")
        if header.get("version") != _VERSION:
            raise CheckpointError(
                f"{folder}: expected version {_VERSION} of the format, got {header.get('version')!r}. "
                "Read it with the release that wrote it."
            )
        name, config, seeds = header.get("name"), header.get("config"), header.get("seeds")
        integers = isinstance(seeds, list) and all(type(seed) is int for seed in seeds)
        if not (isinstance(name, str) and isinstance(config, dict) and isinstance(seeds, list) and integers):
            raise CheckpointError(
                f"{folder}: expected name, config and seeds in config.json. Restore the file."
            )
        starts = _read_json(folder / "environment.json")
        if not isinstance(starts, dict) or not isinstance(starts.get("starts"), list):
            raise CheckpointError(
                f"{folder}: expected a list 'starts' in environment.json. Restore the file."
            )
        run = cls(folder, name, config, tuple(seeds))
        run.metrics()
        return run

    @property
    def environments(self) -> list[dict[str, Any]]:
        """Records of the starts of the run, first to last."""
        starts: list[dict[str, Any]] = _read_json(self.path / "environment.json")["starts"]
        return starts

    def figure(self, name: str) -> Path:
        """Return the path of a figure in the folder of figures, which is made if missing.

        Args:
            name: file name, for example ``"returns.png"``.
        """
        folder = self.path / "figures"
        folder.mkdir(exist_ok=True)
        return folder / _checked_key("name", name)

    def log(self, row: Mapping[str, object]) -> None:
        """Append a row to ``metrics.csv``, where it survives the end of this process.

        Args:
            row: column name to scalar; the first row of the run fixes the columns.

        Raises:
            InvalidArgumentError: other columns than those of the first row, or a value that is not a scalar.
        """
        if self._columns is None:
            self._columns = self._repaired_columns()
        columns = self._columns or list(row)
        line = csv_line(columns, row)
        text = line if self._columns else header_line(columns) + line
        # One write in append mode: a killed process leaves whole lines, or one torn tail, dropped later.
        with open(self.path / "metrics.csv", "ab", buffering=0) as stream:
            stream.write(text.encode("utf-8"))
        self._columns = columns

    def _repaired_columns(self) -> list[str]:
        """Cut a line that a killed writer left unfinished, and return the columns of the file."""
        file = self.path / "metrics.csv"
        if not file.exists():
            return []
        data = file.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) != len(data):
            os.truncate(file, len(whole))
        rows = parse_csv(whole.decode("utf-8"), os.fspath(file)) if whole else []
        if not rows:
            os.truncate(file, 0)
        return list(rows[0]) if rows else []

    def metrics(self) -> list[dict[str, Any]]:
        """Return the rows of ``metrics.csv``; a line that a killed writer left unfinished is skipped.

        Raises:
            CheckpointError: the file is corrupted elsewhere.
        """
        file = self.path / "metrics.csv"
        if not file.exists():
            return []
        data = file.read_bytes()
        try:
            text = data[: data.rfind(b"\n") + 1].decode("utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{file}: expected text, got {error}. Restore the file.") from error
        return parse_csv(text, os.fspath(file)) if text else []

    def done(self, key: str) -> bool:
        """Tell whether a cell of the sweep has been recorded.

        Args:
            key: name of the cell, for example ``"LBDN-5_seed=0"``.

        Raises:
            CheckpointError: the cell is there and corrupted.
        """
        exists = self._file(key).exists()
        if exists:
            self.cell(key)
        return exists

    def record(self, key: str, value: Any) -> None:
        """Store the result of a cell in one step: afterwards it is there whole, before it is not there.

        Args:
            key: name of the cell, of letters, digits and ``. _ = + , -``.
            value: a JSON value, usually a list of rows; numpy scalars and arrays become numbers and lists. An
                earlier value under the key is replaced.

        Raises:
            InvalidArgumentError: the value cannot be written as JSON, or the key is no file name.
        """
        file = self._file(key)
        text = _dumps({"key": key, "value": _jsonable("value", value)}, indent=None)
        file.parent.mkdir(exist_ok=True)
        atomic_write_text(file, text)

    def cell(self, key: str) -> Any:
        """Return the value recorded under a key; floats come back exactly.

        Raises:
            CheckpointError: the cell is missing or corrupted.
        """
        stored = _read_json(self._file(key))
        if not isinstance(stored, dict) or stored.get("key") != key or "value" not in stored:
            raise CheckpointError(
                f"{self._file(key)}: expected the cell {key!r}, got something else. Delete it."
            )
        return stored["value"]

    def keys(self) -> list[str]:
        """Return the keys of the recorded cells, sorted."""
        return sorted(file.stem for file in (self.path / "cells").glob("[!.]*.json"))

    def _file(self, key: str) -> Path:
        return self.path / "cells" / f"{_checked_key('key', key)}.json"


def _checked_key(name: str, key: str) -> str:
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        expected = "1 to 150 letters, digits or . _ = + , - that begin with a letter or digit"
        raise invalid(name, expected, repr(key), "Replace other characters by _.")
    return key


def _config(config: Any) -> dict[str, Any]:
    if not is_dataclass(config) or isinstance(config, type):
        raise invalid(
            "config", "a dataclass instance", type(config).__name__, "Declare the options in a dataclass."
        )
    values: dict[str, Any] = _jsonable("config", config)
    return values


def _jsonable(name: str, value: Any) -> Any:
    """Return ``value`` as JSON types; ``name`` tells where it stands."""
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str):
        return relative_paths(value)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, Mapping):
        bad = [key for key in value if not isinstance(key, str)]
        if bad:
            raise invalid(name, "text as keys of a mapping", bad[0], "Write the keys as text.")
        return {key: _jsonable(f"{name}.{key}", item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(f"{name}[{i}]", item) for i, item in enumerate(value)]
    fix = "Store a number, text, sequence, mapping or dataclass; call .tolist() on a tensor."
    raise invalid(name, "a value that JSON can hold", type(value).__name__, fix)


def _dumps(value: Any, indent: int | None = 2) -> str:
    return json.dumps(value, indent=indent, ensure_ascii=False) + "\n"


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes().decode("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{file}: expected a JSON file of a run folder, got {error}. Check the path, or restore the file."
        ) from error
