"""What several figures share: checks of the data, curves with bands, and legends outside the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import ScaledTranslation
from numpy.typing import ArrayLike

from robustnn.errors import InvalidArgumentError, NonFiniteError, ShapeError
from robustnn.report.statistics import FloatArray, bootstrap_interval
from robustnn.report.style import Appearance, appearances


def all_finite(name: str, array: FloatArray) -> None:
    """Raise `NonFiniteError` if an entry is NaN or infinite."""
    n_bad = int(np.count_nonzero(~np.isfinite(array)))
    if n_bad:
        raise NonFiniteError(
            f"{name}: expected finite numbers, got {n_bad} NaN or infinite of {array.size}. "
            "Look for the run that diverged."
        )


def all_positive(name: str, array: FloatArray) -> None:
    """Raise an error if an entry is not a finite number above zero."""
    all_finite(name, array)
    if np.any(array <= 0.0):
        raise InvalidArgumentError(f"{name}: expected numbers > 0, got {array.min():g}. Leave the model out.")


def grid(name: str, values: ArrayLike) -> FloatArray:
    """Return the points of a horizontal axis, (n,), checked to be finite and ascending."""
    points = np.asarray(values, dtype=np.float64)
    if points.ndim != 1 or points.size == 0:
        raise ShapeError(
            f"{name}: expected shape (n,), n >= 1, got {points.shape}. Pass one value per column."
        )
    all_finite(name, points)
    if np.any(np.diff(points) <= 0.0):
        raise InvalidArgumentError(
            f"{name}: expected ascending values, got {points.tolist()}. Sort the data."
        )
    return points


def seeds_by_grid(name: str, values: ArrayLike, points: FloatArray) -> FloatArray:
    """Return scores as (n_seeds, n_grid, n_episodes), checked against the points of the horizontal axis."""
    array = np.asarray(values, dtype=np.float64)
    ok = array.ndim in (2, 3) and array.shape[0] >= 2 and array.shape[1] == len(points) and array.size > 0
    if not ok:
        raise ShapeError(
            f"{name}: expected shape (n_seeds, {len(points)}) or (n_seeds, {len(points)}, n_episodes) with "
            f"n_seeds >= 2, got {array.shape}. Put training seeds first; their spread is always drawn."
        )
    all_finite(name, array)
    return array.reshape(array.shape[0], len(points), -1)


def some(name: str, data: Mapping[str, ArrayLike]) -> Mapping[str, ArrayLike]:
    """Return ``data`` after checking that it holds a model."""
    if not data:
        raise InvalidArgumentError(f"{name}: expected at least one model, got none. Pass label -> array.")
    return data


def same_models(name: str, data: Mapping[str, Any], other_name: str, other: Mapping[str, Any]) -> None:
    """Raise an error if ``other`` speaks of models that ``data`` lacks."""
    unknown = [label for label in other if label not in data]
    if unknown:
        raise InvalidArgumentError(
            f"{other_name}: expected models of {name} {list(data)}, got also {unknown}. Use the same labels."
        )


def looks_of(labels: Mapping[str, Any], looks: Mapping[str, Appearance] | None) -> Mapping[str, Appearance]:
    """Return the appearance of each model, that of the labels at hand if none is given."""
    if looks is None:
        return appearances(labels)
    missing = [label for label in labels if label not in looks]
    if missing:
        raise InvalidArgumentError(
            f"looks: expected an appearance for every model, got none for {missing}. "
            "Call appearances() with all labels of the report."
        )
    return looks


def curves(
    ax: Axes,
    points: FloatArray,
    name: str,
    data: Mapping[str, ArrayLike],
    statistic: str,
    episodes: str,
    level: float,
    looks: Mapping[str, Appearance],
    *,
    markers: bool,
) -> None:
    """Draw one curve per model with its bootstrap band."""
    for label, values in data.items():
        scores, look = seeds_by_grid(f"{name}[{label!r}]", values, points), looks[label]
        bands = np.array(
            [
                bootstrap_interval(scores[:, j], statistic, episodes=episodes, level=level)
                for j in range(len(points))
            ]
        )
        ax.fill_between(points, bands[:, 1], bands[:, 2], color=look.color, alpha=0.16, linewidth=0)
        ax.plot(
            points,
            bands[:, 0],
            color=look.color,
            linestyle=look.linestyle,
            marker=look.marker if markers else "",
            label=label,
        )
    ax.margins(x=0.02)


def legend_below(ax: Axes, extra: Sequence[Line2D] = (), *, drop: float = 42.0, columns: int = 3) -> None:
    """Put the legend under the axis label, where it hides no data and leaves room for a title.

    Args:
        ax: axes whose labelled lines are listed.
        extra: further keys, last.
        drop: distance from the axes to the legend, points.
        columns: number of columns at most.
    """
    figure = ax.get_figure(root=True)
    handles = [*ax.get_legend_handles_labels()[0], *extra]
    if not handles or not isinstance(figure, Figure):
        return
    below = ax.transAxes + ScaledTranslation(0.0, -drop / 72.0, figure.dpi_scale_trans)
    ax.legend(
        handles=handles,
        loc="upper center",
        bbox_to_anchor=(0.5, 0.0),
        bbox_transform=below,
        ncols=min(len(handles), columns),
        frameon=False,
        borderaxespad=0.0,
        columnspacing=1.4,
        handlelength=2.4,
    )


def wrapped(x: FloatArray, period: float | None) -> FloatArray:
    """Return ``x`` moved by whole periods into [-period/2, period/2)."""
    return x if period is None else (x + period / 2.0) % period - period / 2.0


def segments(x: FloatArray, y: FloatArray, period: float | None) -> tuple[FloatArray, FloatArray]:
    """Cut trajectories into line segments that never cross the plane where the coordinate wraps.

    A step over the border is drawn twice, leaving at one edge and arriving at the other; the axes clip it.

    Args:
        x: (E, T) coordinate that may wrap.
        y: (E, T) other coordinate.
        period: period of ``x``, or None.

    Returns:
        Segments (N, 2, 2), last axis (x, y), and the step (N,) at which each begins.
    """
    start = wrapped(x[:, :-1], period)
    end = start + wrapped(np.diff(x, axis=1), period)
    lines = np.stack([np.stack([start, y[:, :-1]], -1), np.stack([end, y[:, 1:]], -1)], -2).reshape(-1, 2, 2)
    steps = np.broadcast_to(np.arange(x.shape[1] - 1, dtype=np.float64), start.shape).reshape(-1)
    if period is None:
        return lines, steps
    over = np.abs(lines[:, 1, 0]) > period / 2.0
    copies = lines[over]
    copies[:, :, 0] -= period * np.sign(copies[:, 1:, 0])
    return np.concatenate([lines, copies]), np.concatenate([steps, steps[over]])
