"""CSV tables whose floats come back bit for bit."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robustnn.errors import CheckpointError, invalid
from robustnn.files import atomic_write_text

Scalar = bool | int | float | str

_INTEGER = re.compile(r"[+-]?\d+")
_REAL = re.compile(r"[+-]?(\d+\.?\d*([eE][+-]?\d+)?|\.\d+([eE][+-]?\d+)?|inf|nan)")


def plain_scalar(name: str, value: object) -> Scalar:
    """Return ``value`` as a Python bool, int, float or str.

    Args:
        name: what the value is, for the error message.
        value: a Python scalar, or a numpy scalar or array of one element without axes.

    Raises:
        InvalidArgumentError: the value is of another kind.
    """
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        value = value.item()
    if isinstance(value, (bool, int, float, str)):
        return value
    fix = "Call .item() on a tensor, and write nan for a missing number."
    raise invalid(name, "a bool, int, float or str", type(value).__name__, fix)


def csv_line(columns: Sequence[str], row: Mapping[str, object]) -> str:
    """Return one CSV line, with its line end, of the values of ``row`` in the order of ``columns``.

    Floats are written with ``repr``, the shortest text that reads back as the same float64.

    Args:
        columns: column names.
        row: a value for each column and no others.

    Raises:
        InvalidArgumentError: the names of ``row`` are not those of ``columns``, or a value is not a scalar or
            holds a line end.
    """
    missing = [name for name in columns if name not in row]
    extra = [name for name in row if name not in columns]
    if missing or extra:
        got = f"{list(row)} (missing {missing}, unknown {extra})"
        raise invalid(
            "row", f"the columns {list(columns)}", got, "The first row fixes the columns of a table."
        )
    cells = []
    for name in columns:
        value = plain_scalar(f"row[{name!r}]", row[name])
        cell = repr(value) if isinstance(value, float) else str(value)
        if "\n" in cell or "\r" in cell:
            raise invalid(f"row[{name!r}]", "one line of text", repr(cell), "Remove the line ends.")
        cells.append(cell)
    return _line(cells)


def header_line(columns: Sequence[str]) -> str:
    """Return the first line of a CSV file with these column names.

    Raises:
        InvalidArgumentError: no columns, or a name that is empty, repeated or longer than a line.
    """
    names = list(columns)
    bad = [c for c in names if not isinstance(c, str) or not c.strip() or "\n" in c or "\r" in c]
    if not names or bad or len(set(names)) != len(names):
        raise invalid("columns", "different, non-empty, one-line names", names, "Rename them.")
    return _line(names)


def _line(cells: Sequence[str]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(cells)
    return buffer.getvalue()


def write_csv(path: str | os.PathLike[str], rows: Iterable[Mapping[str, object]]) -> None:
    """Write rows as a CSV file, atomically; the first row fixes the columns.

    Args:
        path: file to write; its folder must exist.
        rows: at least one mapping of column name to scalar, all with the same names.

    Raises:
        InvalidArgumentError: no rows, different columns, or a value that is not a scalar.

    Example:
        >>> write_csv("returns.csv", [{"model": "MLP", "eps": 0.1, "return": -163.2}])  # doctest: +SKIP
    """
    table = list(rows)
    if not table:
        raise invalid("rows", "at least one row", "none", "The first row names the columns.")
    columns = list(table[0])
    atomic_write_text(path, header_line(columns) + "".join(csv_line(columns, row) for row in table))


def read_csv(
    path: str | os.PathLike[str], types: Mapping[str, Callable[[str], Any]] | None = None
) -> list[dict[str, Any]]:
    """Read a CSV file written by `write_csv`; floats come back exactly.

    A column is read as bool, int or float if every cell of it is one, else as text.

    Args:
        path: file to read.
        types: converters of single columns that are not to be guessed, for example ``{"model": str}``.

    Returns:
        One dict per row, with the columns in the order of the file.

    Raises:
        CheckpointError: the file is missing, is not text, or has a line with too few or too many cells.
        InvalidArgumentError: ``types`` names a column that is not in the file.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{os.fspath(path)}: expected a readable CSV file, got {error}. Check or restore the file."
        ) from error
    return parse_csv(text, os.fspath(path), types)


def parse_csv(
    text: str, source: str, types: Mapping[str, Callable[[str], Any]] | None = None
) -> list[dict[str, Any]]:
    """Return the rows of a CSV text, as `read_csv` does; ``source`` names it in error messages."""
    lines = [line for line in csv.reader(io.StringIO(text)) if line]
    if not lines or len(set(lines[0])) != len(lines[0]):
        raise CheckpointError(
            f"{source}: expected a first line of different column names, got {lines[:1]}. Restore the file."
        )
    columns, cells = lines[0], lines[1:]
    for number, line in enumerate(cells, start=2):
        if len(line) != len(columns):
            raise CheckpointError(
                f"{source}, row {number}: expected {len(columns)} cells, got {len(line)}. Restore the file."
            )
    unknown = sorted(set(types or ()) - set(columns))
    if unknown:
        raise invalid("types", f"columns of {source}, {columns}", f"also {unknown}", "Correct the names.")
    converters = [(types or {}).get(c) or _guess([line[j] for line in cells]) for j, c in enumerate(columns)]
    return [
        {name: convert(cell) for name, convert, cell in zip(columns, converters, line, strict=True)}
        for line in cells
    ]


def _guess(cells: Sequence[str]) -> Callable[[str], Any]:
    if all(cell in ("True", "False") for cell in cells):
        return lambda cell: cell == "True"
    if all(_INTEGER.fullmatch(cell) for cell in cells):
        return int
    if all(_REAL.fullmatch(cell) for cell in cells):
        return float
    return str
