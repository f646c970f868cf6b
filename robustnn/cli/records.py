"""Records of inputs and outputs in files: the options that name their channels, and what reads and writes them."""

from __future__ import annotations

import argparse
import csv
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.io.matlab import MatReadError

from robustnn.dynamics.data import Dataset
from robustnn.dynamics.readers import from_csv, from_mat
from robustnn.errors import CheckpointError, invalid
from robustnn.report.files import write_csv

__all__ = [
    "TIME", "check_delimiter", "column_header", "labelled", "read_columns", "read_record", "sample_rows",
    "sampling_option", "write_rows",
]  # fmt: skip

Array = NDArray[np.float64]
TIME = "time [s]"
_UNIT = re.compile(r"(.*\S)\s*\[([^\[\]]*)\]\s*")


def read_record(path: Path, arguments: argparse.Namespace) -> Dataset:
    """Read one experiment from a table of text or, by its ending, from a MATLAB file.

    Columns may be named as in the file, or without the unit that stands in brackets behind their name there.

    Args:
        path: The file.
        arguments: Options of `options.add_record_options`.

    Returns:
        The data set.

    Raises:
        CheckpointError: If the file cannot be read.
        InvalidArgumentError: If channels or sampling time are not named, not there, or not acceptable.
    """
    u, y = _channels(arguments)
    if (arguments.ts is None) == (arguments.time is None):
        raise invalid(
            "--ts, --time", "one of the two", f"{arguments.ts}, {arguments.time}",
            "Give the sampling time in s, or the column of times.",
        )  # fmt: skip
    if path.suffix.lower() == ".mat":
        return _from_mat(path, u, y, arguments)
    delimiter = check_delimiter(arguments.delimiter)
    header = _header(path, delimiter)
    columns, names, units = labelled([*u, *y], header)
    time = None if arguments.time is None else labelled([arguments.time], header)[0][0]
    n = len(u)
    data = from_csv(
        path, columns[:n], columns[n:], dt=sampling_option(arguments.ts), time=time, delimiter=delimiter,
        u_units=arguments.units_u, y_units=arguments.units_y, n_init=arguments.n_init,
    )  # fmt: skip
    return replace(
        data, u_names=names[:n], y_names=names[n:],
        u_units=data.u_units if arguments.units_u else units[:n],
        y_units=data.y_units if arguments.units_y else units[n:],
    )  # fmt: skip


def _from_mat(path: Path, u: Sequence[str], y: Sequence[str], arguments: argparse.Namespace) -> Dataset:
    if arguments.ts is None:
        raise invalid(
            "--time",
            "--ts for a MATLAB file",
            arguments.time,
            "Give --ts, in s or the variable that holds it.",
        )
    try:
        dt: float | str = float(arguments.ts)
    except ValueError:
        dt = arguments.ts
    try:
        return from_mat(
            path, u, y, dt, u_units=arguments.units_u, y_units=arguments.units_y, n_init=arguments.n_init
        )
    except MatReadError as error:
        raise CheckpointError(
            f"DATA: expected a MATLAB file up to version 7, got {path} ({error}). Check the file."
        ) from error


def _channels(arguments: argparse.Namespace) -> tuple[list[str], list[str]]:
    for name, given in (("--u", arguments.u), ("--y", arguments.y)):
        if not given:
            raise invalid(name, "at least one column", "none", f"Name the columns: {name} COL [COL ...].")
    both = [*arguments.u, *arguments.y]
    if len(set(both)) < len(both):
        raise invalid(
            "--u, --y", "every column once", both, "Name a column as an input or as an output, not as both."
        )
    return arguments.u, arguments.y


def check_delimiter(text: str) -> str:
    """Return a delimiter after checking that it is one character; "tab" means a tabulator."""
    found = "\t" if text in ("tab", "\\t") else text
    if len(found) != 1 or found in '"\r\n':
        raise invalid("--delimiter", "one character, or tab", repr(text), "Use ',' or ';'.")
    return found


def sampling_option(text: str | None) -> float | None:
    """Return the sampling time that --ts gives, in s."""
    try:
        found = None if text is None else float(text)
    except ValueError as error:
        raise invalid("--ts", "a sampling time in s", repr(text), "Write --ts 0.01.") from error
    if found is not None and not (math.isfinite(found) and found > 0.0):
        raise invalid("--ts", "a sampling time > 0 in s", repr(text), "Write --ts 0.01.")
    return found


def labelled(
    wanted: Sequence[str], header: Sequence[str]
) -> tuple[list[str], tuple[str, ...], tuple[str, ...]]:
    """Find columns by their names, with or without their units.

    Args:
        wanted: Names as in the header, "level [V]", or without the unit, "level".
        header: Columns of the file.

    Returns:
        The columns in the file, the names without units, and the units, "" where there is none. What is not in the
        file is returned as it is.

    Example:
        >>> labelled(["level"], ["time [s]", "level [V]"])
        (['level [V]'], ('level',), ('V',))
    """
    parts = {column: _UNIT.fullmatch(column) for column in header}
    bare: dict[str, list[str]] = {}
    for column, match in parts.items():
        if match:
            bare.setdefault(match[1], []).append(column)
    columns = [
        name if name in parts or len(bare.get(name, [])) != 1 else bare[name][0] for name in wanted
    ]  # fmt: skip
    matches = [parts.get(column) for column in columns]
    names = tuple(m[1] if m else column for m, column in zip(matches, columns, strict=True))
    if len(set(names)) < len(names):
        names = tuple(columns)
    return columns, names, tuple(m[2].strip() if m else "" for m in matches)


def _header(path: Path, delimiter: str) -> list[str]:
    """The columns of a table; none if it cannot be read, which its reader will explain."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            return next(csv.reader(stream, delimiter=delimiter, strict=True), [])
    except (OSError, UnicodeDecodeError, csv.Error):
        return []


def read_columns(
    path: Path, delimiter: str, wanted: Sequence[str], optional: Sequence[str] = ()
) -> dict[str, Array]:
    """Read columns of a table of text, which need not vary, unlike those that a model is fitted to.

    Args:
        path: The file, with a header line.
        delimiter: Between two cells.
        wanted: Names, with or without units.
        optional: Names of columns that may be missing.

    Returns:
        Finite values by name, as far as the columns are there.

    Raises:
        CheckpointError: If the file cannot be read.
        InvalidArgumentError: If a column is missing, or a cell is no finite number.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, delimiter=delimiter, strict=True)
            header = next(reader, [])
            rows = [(reader.line_num, row) for row in reader if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CheckpointError(
            f"DATA: expected a table of text with a header line, got {path} ({error}). Check the file."
        ) from error
    names = [*wanted, *optional]
    found = {name: column for name, column in zip(names, labelled(names, header)[0], strict=True)}
    missing = [name for name in wanted if found[name] not in header]
    if missing:
        raise invalid(
            "--u, --y, --time", f"columns of {header}", missing, "Correct the names or --delimiter."
        )
    result = {}
    for name, column in found.items():
        if column in header:
            at = header.index(column)
            result[name] = np.array([_finite(row, at, column, line) for line, row in rows])
    if not rows:
        raise invalid("DATA", "at least one line of numbers", f"none in {path}", "Check the file.")
    return result


def _finite(row: Sequence[str], at: int, column: str, line: int) -> float:
    cell = row[at] if at < len(row) else ""
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise invalid(
            f"column {column!r}, line {line}", "a finite number", repr(cell),
            "Correct the cell, or set --delimiter.",
        )  # fmt: skip
    return value


def column_header(name: str, unit: str, kind: str = "") -> str:
    """Return the name of a column with its unit in brackets, as `labelled` finds it."""
    return " ".join(part for part in (name, kind, f"[{unit}]" if unit else "") if part)


def sample_rows(
    data: Dataset, index: int, simulated: Array, *, measured: bool = True, time: Array | None = None
) -> Iterable[dict[str, float]]:
    """Yield one row per sample: time, inputs, outputs if they were measured, simulated outputs.

    Args:
        data: The data set.
        index: Of the experiment.
        simulated: Its simulated outputs, shape (T, n_y).
        measured: Whether the data set holds measured outputs.
        time: Shape (T,), s; None for counting from zero.
    """
    one = data.experiments[index]
    inputs = [column_header(*label) for label in _with_units(data.u_names, data.u_units)]
    outputs = list(_with_units(data.y_names, data.y_units))
    names = [TIME, *inputs]
    columns = [data.dt * np.arange(len(one)) if time is None else time, *one.u.T]
    if measured:
        names += [column_header(*label) for label in outputs]
        columns += [*one.y.T]
    names += [column_header(*label, "simulated") for label in outputs]
    columns += [*simulated.T]
    if len(set(names)) < len(names):
        raise invalid("names of the channels", "different ones", names, "Rename columns of the file.")
    for values in zip(*(column.tolist() for column in columns), strict=True):
        yield dict(zip(names, values, strict=True))


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as CSV; missing folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_csv(path, rows)


def _with_units(names: Sequence[str], units: Sequence[str]) -> Iterable[tuple[str, str]]:
    return zip(names, units or ("",) * len(names), strict=True)
