"""Tables of results as aligned text and as Markdown, built from long-form rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from robustnn.errors import ShapeError, invalid
from robustnn.report.files import Scalar, plain_scalar
from robustnn.report.statistics import (
    FloatArray,
    Interval,
    aggregate,
    bootstrap_interval,
)


@dataclass(frozen=True)
class Table:
    """A header and rows of text cells.

    Args:
        header: column titles.
        rows: one tuple of cells per row, each as long as the header.

    Raises:
        ShapeError: a row is not as long as the header.

    Example:
        >>> print(Table(("model", "return"), (("MLP", "-163"), ("LBDN", "-9"))).text())
        model  return
        -----  ------
        MLP      -163
        LBDN       -9
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        """Check that the table is rectangular."""
        for number, row in enumerate(self.rows):
            if len(row) != len(self.header):
                raise ShapeError(
                    f"rows[{number}]: expected {len(self.header)} cells like header, got {len(row)}."
                )

    def text(self) -> str:
        """Return the table for a terminal: first column to the left, the others to the right."""
        widths = self._widths(self.rows)
        lines = [self.header, tuple("-" * width for width in widths), *self.rows]
        return "\n".join("  ".join(_align(line, widths)).rstrip() for line in lines)

    def markdown(self) -> str:
        """Return the table in Markdown, aligned in the source too; a ``|`` in a cell is escaped."""
        header, *rows = (tuple(cell.replace("|", r"\|") for cell in row) for row in (self.header, *self.rows))
        widths = [max(width, 3) for width in Table(header, tuple(rows))._widths(rows)]
        rule = tuple("-" * width if j == 0 else "-" * (width - 1) + ":" for j, width in enumerate(widths))
        return "\n".join(f"| {' | '.join(_align(line, widths))} |" for line in (header, rule, *rows))

    def _widths(self, rows: Iterable[tuple[str, ...]]) -> list[int]:
        return [max(map(len, column)) for column in zip(self.header, *rows, strict=True)]


def _align(line: Sequence[str], widths: Sequence[int]) -> list[str]:
    cells = zip(line, widths, strict=True)
    return [cell.ljust(width) if j == 0 else cell.rjust(width) for j, (cell, width) in enumerate(cells)]


def format_number(value: float | int, decimals: int = 0) -> str:
    """Return a number with fixed decimals, never as ``-0``.

    Args:
        value: the number.
        decimals: digits behind the point.
    """
    text = f"{value:.{decimals}f}"
    return text.removeprefix("-") if text.startswith("-") and not text.strip("-0.") else text


def format_interval(interval: Interval, decimals: int = 0) -> str:
    """Return an interval as ``estimate [low, high]``.

    Args:
        interval: estimate and ends.
        decimals: digits behind the point.

    Example:
        >>> format_interval(Interval(-163.2, -170.4, -157.9))
        '-163 [-170, -158]'
    """
    estimate, low, high = (format_number(value, decimals) for value in interval)
    return f"{estimate} [{low}, {high}]"


def score_arrays(
    rows: Iterable[Mapping[str, object]],
    *,
    by: Sequence[str] = ("model", "eps"),
    value: str = "return",
    seed: str = "seed",
    episode: str = "episode",
) -> dict[tuple[Scalar, ...], FloatArray]:
    """Collect long-form rows into one (n_seeds, n_episodes) array per group.

    Args:
        rows: one mapping per episode with the columns below; the order does not matter.
        by: columns that name the group.
        value: column of the score, any unit.
        seed: column of the training seed.
        episode: column of the episode; rows without it count as one episode per seed.

    Returns:
        For each group, in the order of first appearance, scores sorted by seed and episode.

    Raises:
        InvalidArgumentError: a column is missing, or a seed and episode appear twice in a group.
        ShapeError: the seeds of a group have different episodes.
    """
    groups: dict[tuple[Scalar, ...], dict[tuple[object, object], float]] = {}
    for number, row in enumerate(rows):
        missing = [name for name in (*by, value, seed) if name not in row]
        if missing:
            raise invalid(f"rows[{number}]", f"the columns {missing}", list(row), "Name the columns to use.")
        key = tuple(plain_scalar(f"rows[{number}][{name!r}]", row[name]) for name in by)
        group = groups.setdefault(key, {})
        cell = (row[seed], row.get(episode, 0))
        if cell in group:
            got = f"{seed} {cell[0]}, {episode} {cell[1]} of {dict(zip(by, key, strict=True))} twice"
            raise invalid(
                f"rows[{number}]", "each seed and episode once", got, "Select the rows of one attack."
            )
        group[cell] = float(row[value])  # type: ignore[arg-type]
    return {key: _regular(key, group) for key, group in groups.items()}


def _regular(key: tuple[Scalar, ...], group: Mapping[tuple[object, object], float]) -> FloatArray:
    seeds = sorted({seed for seed, _ in group}, key=_order)
    episodes = sorted({episode for _, episode in group}, key=_order)
    if len(group) != len(seeds) * len(episodes):
        raise ShapeError(
            f"rows of {key}: expected the same episodes for every seed, got {len(group)} rows for "
            f"{len(seeds)} seeds and {len(episodes)} different episodes. Evaluate the missing ones."
        )
    return np.array([[group[seed, episode] for episode in episodes] for seed in seeds], dtype=np.float64)


def _order(value: object) -> tuple[int, float, str]:
    """Return a sort key: numbers by value, then text by the alphabet."""
    return (0, float(value), "") if isinstance(value, (int, float, np.number)) else (1, 0.0, str(value))


def model_eps_table(
    rows: Iterable[Mapping[str, object]],
    *,
    model: str = "model",
    eps: str = "eps",
    value: str = "return",
    seed: str = "seed",
    episode: str = "episode",
    statistic: str = "mean",
    episodes: str = "fixed",
    level: float = 0.95,
    decimals: int = 0,
    eps_label: str = "eps",
) -> Table:
    """Return the table of models (rows) against perturbation sizes (columns) from one row per episode.

    Each cell is ``estimate [low, high]`` over the training seeds; with a single seed it is the estimate
    alone, and a combination without data is ``n/a``.

    Args:
        rows: long-form rows, of one attack.
        model: column of the model's name.
        eps: column of the perturbation size, in the unit of the observation.
        value: column of the score.
        seed: column of the training seed.
        episode: column of the episode.
        statistic: "mean", "iqm" or "worst_decile".
        episodes: how episodes are resampled, as in `bootstrap_interval`.
        level: probability content of the intervals, in (0, 1).
        decimals: digits behind the point.
        eps_label: what stands before each perturbation size in the header.

    Returns:
        Models in the order of first appearance, perturbation sizes ascending.

    Raises:
        InvalidArgumentError: no rows, or as in `score_arrays`.
        ShapeError: as in `score_arrays`.
    """
    arrays = score_arrays(rows, by=(model, eps), value=value, seed=seed, episode=episode)
    if not arrays:
        raise invalid("rows", "at least one row", "none", "Check the selection of the attack.")
    models = list(dict.fromkeys(key[0] for key in arrays))
    sizes = sorted({key[1] for key in arrays}, key=_order)

    def cell(name: Scalar, size: Scalar) -> str:
        scores = arrays.get((name, size))
        if scores is None:
            return "n/a"
        if len(scores) == 1:
            return format_number(aggregate(scores, statistic), decimals)
        interval = bootstrap_interval(scores, statistic, episodes=episodes, level=level)
        return format_interval(interval, decimals)

    titles = (f"{size:g}" if isinstance(size, float) else str(size) for size in sizes)
    header = (model, *(f"{eps_label} {title}" for title in titles))
    return Table(header, tuple((str(name), *(cell(name, size) for size in sizes)) for name in models))
