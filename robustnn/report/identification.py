"""Figures on identified models: simulation and its error, residual correlations, error against the horizon."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike

from robustnn.errors import ShapeError, invalid
from robustnn.report import _draw as draw
from robustnn.report.statistics import FloatArray
from robustnn.report.style import Appearance, axes_or_new

Looks = Mapping[str, Appearance]

MEASURED = "#9ecae1"
BAND = "0.88"


def simulated_output(
    time: ArrayLike,
    measured: ArrayLike,
    simulated: Mapping[str, ArrayLike],
    *,
    ax: Axes | None = None,
    looks: Looks | None = None,
    legend: bool = True,
    span: tuple[float, float] | None = None,
    xlabel: str = "time [s]",
    ylabel: str = "output",
) -> Axes:
    """Draw a measured output and what models simulate, with the range over seeds where there are several.

    Args:
        time: (T,) ascending, seconds.
        measured: (T,) output, in its unit.
        simulated: for each model (T,), or (n_seeds, T) of which the median is drawn and the range shaded. NaN and
            infinite samples, of a simulation that diverged, are left out; the axis shows the measured range.
        ax: axes to draw in; a new figure if None.
        looks: appearance of each model; by default that of the models given.
        legend: draw a legend under the axes.
        span: part of the time that is shown; all of it if None.
        xlabel: label of the horizontal axis, with its unit.
        ylabel: label of the vertical axis, with its unit.

    Returns:
        The axes.

    Raises:
        ShapeError: an array does not fit ``time``.
        NonFiniteError: a measured sample is NaN or infinite.
    """
    t, y, runs, shown = signals(time, measured, simulated, looks)
    with axes_or_new(ax, (8.0, 3.4)) as target:
        target.plot(t, y, color=MEASURED, linewidth=3.2, label="measured")
        for label, values in runs.items():
            _seeds(target, t, values, shown[label], label)
        part = _show(target, t, span)
        low, high = float(y[part].min()), float(y[part].max())
        _limit(target, low, high, [values[:, part] for values in runs.values()])
        target.set(xlabel=xlabel, ylabel=ylabel)
        if legend:
            draw.legend_below(target, columns=4)
    return target


def simulation_error(
    time: ArrayLike,
    measured: ArrayLike,
    simulated: Mapping[str, ArrayLike],
    *,
    ax: Axes | None = None,
    looks: Looks | None = None,
    legend: bool = True,
    span: tuple[float, float] | None = None,
    xlabel: str = "time [s]",
    ylabel: str = "measured - simulated",
) -> Axes:
    """Draw measured less simulated output; arguments as in `simulated_output`.

    Args:
        time: (T,) ascending, seconds.
        measured: (T,) output, in its unit.
        simulated: for each model (T,) or (n_seeds, T).
        ax: axes to draw in; a new figure if None.
        looks: appearance of each model.
        legend: draw a legend under the axes.
        span: part of the time that is shown.
        xlabel: label of the horizontal axis, with its unit.
        ylabel: label of the vertical axis, with its unit.

    Returns:
        The axes; where an error exceeds the range of the measured output, it is cut off there.

    Raises:
        ShapeError: an array does not fit ``time``.
        NonFiniteError: a measured sample is NaN or infinite.
    """
    t, y, runs, shown = signals(time, measured, simulated, looks)
    with axes_or_new(ax, (8.0, 2.6)) as target:
        target.axhline(0.0, color="0.6", linewidth=0.8)
        errors = {label: y - values for label, values in runs.items()}
        for label, values in errors.items():
            _seeds(target, t, values, shown[label], label)
        part = _show(target, t, span)
        _limit(target, 0.0, 0.0, [values[:, part] for values in errors.values()], float(np.ptp(y)))
        target.set(xlabel=xlabel, ylabel=ylabel)
        if legend:
            draw.legend_below(target, columns=4)
    return target


def residual_correlation(
    lags: ArrayLike,
    correlation: Mapping[str, ArrayLike],
    band: float,
    *,
    ax: Axes | None = None,
    looks: Looks | None = None,
    legend: bool = True,
    xlabel: str = "lag [samples]",
    ylabel: str = "residual auto-correlation",
) -> Axes:
    """Draw a correlation of residuals against the lag, with the band that 99 % of the lags of white ones lie in.

    Args:
        lags: (n_lags,) ascending, samples.
        correlation: for each model (n_lags,), or (n_seeds, n_lags) of which the median is drawn and the range
            shaded; models whose correlation is NaN throughout, because they diverged, are left out.
        band: half width of the band.
        ax: axes to draw in; a new figure if None.
        looks: appearance of each model; by default that of the models given.
        legend: draw a legend under the axes.
        xlabel: label of the horizontal axis, with its unit.
        ylabel: label of the vertical axis.

    Returns:
        The axes.

    Raises:
        ShapeError: an array does not fit ``lags``.
        InvalidArgumentError: ``band`` is not positive.
    """
    points = draw.grid("lags", lags)
    draw.all_positive("band", np.asarray([band], dtype=np.float64))
    shown = draw.looks_of(draw.some("correlation", correlation), looks)
    with axes_or_new(ax) as target:
        target.axhspan(-band, band, color=BAND, linewidth=0, zorder=0.5)
        target.axhline(0.0, color="0.6", linewidth=0.8)
        width = 0.8 / len(correlation)
        for j, (label, values) in enumerate(correlation.items()):
            runs = _runs(f"correlation[{label!r}]", values, len(points))
            middle, low, high = _range(runs)
            at = points + width * (j - 0.5 * (len(correlation) - 1))
            target.vlines(at, 0.0, middle, color=shown[label].color, linewidth=1.0, alpha=0.6)
            target.plot(
                at, middle, linestyle="none", marker=shown[label].marker, markersize=3.5,
                color=shown[label].color, label=label,
            )  # fmt: skip
            if len(runs) > 1:
                target.vlines(at, low, high, color=shown[label].color, linewidth=2.6, alpha=0.3)
        target.set(xlabel=xlabel, ylabel=ylabel)
        if legend:
            key = Line2D([], [], color=BAND, linewidth=6, label="99 % band")
            draw.legend_below(target, [key], columns=4)
    return target


def error_against_horizon(
    horizons: ArrayLike,
    errors: Mapping[str, ArrayLike],
    *,
    ax: Axes | None = None,
    looks: Looks | None = None,
    legend: bool = True,
    xlabel: str = "prediction horizon [samples]",
    ylabel: str = "RMSE",
) -> Axes:
    """Draw the error of predictions against how far they look ahead, with the range over seeds.

    Args:
        horizons: (n_horizons,) ascending, samples.
        errors: for each model (n_horizons,), or (n_seeds, n_horizons) of which the median is drawn and the range
            shaded; infinite ones are left out.
        ax: axes to draw in; a new figure if None.
        looks: appearance of each model; by default that of the models given.
        legend: draw a legend under the axes.
        xlabel: label of the horizontal axis, with its unit.
        ylabel: label of the vertical axis, with its unit.

    Returns:
        The axes; horizons over more than a factor of 20 are on a logarithmic scale.

    Raises:
        ShapeError: an array does not fit ``horizons``.
    """
    points = draw.grid("horizons", horizons)
    shown = draw.looks_of(draw.some("errors", errors), looks)
    with axes_or_new(ax) as target:
        for label, values in errors.items():
            runs = _runs(f"errors[{label!r}]", values, len(points))
            _seeds(target, points, runs, shown[label], label, marker=shown[label].marker)
        if points[0] > 0.0 and points[-1] > 20.0 * points[0]:
            target.set_xscale("log")
            if len(points) <= 8:
                target.set_xticks(points, [f"{k:g}" for k in points])
                target.minorticks_off()
        target.set_ylim(bottom=0.0)
        target.set(xlabel=xlabel, ylabel=ylabel)
        if legend:
            draw.legend_below(target, columns=4)
    return target


def signals(
    time: ArrayLike, measured: ArrayLike, simulated: Mapping[str, ArrayLike], looks: Looks | None
) -> tuple[FloatArray, FloatArray, dict[str, FloatArray], Looks]:
    """Return checked times, measured and simulated outputs, the latter with one row per seed, and appearances."""
    t = draw.grid("time", time)
    y = np.asarray(measured, dtype=np.float64)
    if y.shape != t.shape:
        raise ShapeError(
            f"measured: expected shape {t.shape} like time, got {y.shape}. Draw one output at a time."
        )
    draw.all_finite("measured", y)
    shown = draw.looks_of(draw.some("simulated", simulated), looks)
    runs = {label: _runs(f"simulated[{label!r}]", values, len(t)) for label, values in simulated.items()}
    return t, y, runs, shown


def _runs(name: str, values: ArrayLike, n: int) -> FloatArray:
    """One row per seed, NaN in place of what is not finite."""
    array = np.asarray(values, dtype=np.float64)
    array = array[None] if array.ndim == 1 else array
    if array.ndim != 2 or array.shape[1] != n or not len(array):
        raise ShapeError(
            f"{name}: expected shape ({n},) or (n_seeds, {n}), got {array.shape}. Seeds come first."
        )
    return np.where(np.isfinite(array), array, np.nan)


def _range(runs: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Median, least and largest value over the seeds; NaN where no seed has one."""
    some = np.isfinite(runs).any(axis=0)
    result = np.full((3, runs.shape[1]), np.nan)
    kept = runs[:, some]
    result[:, some] = np.nanmedian(kept, axis=0), np.nanmin(kept, axis=0), np.nanmax(kept, axis=0)
    return result[0], result[1], result[2]


def _seeds(
    ax: Axes, points: FloatArray, runs: FloatArray, look: Appearance, label: str, *, marker: str = ""
) -> None:
    middle, low, high = _range(runs)
    if len(runs) > 1:
        ax.fill_between(points, low, high, color=look.color, alpha=0.25, linewidth=0)
    ax.plot(
        points, middle, color=look.color, linestyle=look.linestyle, linewidth=1.3, marker=marker, label=label
    )


def _show(ax: Axes, t: FloatArray, span: tuple[float, float] | None) -> slice:
    """Limit the horizontal axis to a part of the time; the samples in it."""
    low, high = (t[0], t[-1]) if span is None else span
    first, last = np.searchsorted(t, low, "left"), np.searchsorted(t, high, "right")
    if last - first < 2:
        raise invalid("span", f"a part of {t[0]:g} ... {t[-1]:g} with samples", span, "Pass (begin, end).")
    ax.set_xlim(float(low), float(high))
    return slice(int(first), int(last))


def _limit(ax: Axes, low: float, high: float, runs: Sequence[FloatArray], room: float | None = None) -> None:
    """Limit the vertical axis to the measured range and what lies within one such range beside it."""
    room = high - low if room is None else room
    bottom, top = low - room, high + room
    inside = [values[np.isfinite(values)].clip(bottom, top) for values in runs]
    inside = [values for values in inside if len(values)]
    low, high = (
        min([low, *(values.min() for values in inside)]),
        max([high, *(values.max() for values in inside)]),
    )
    margin = 0.05 * (high - low) or 1.0
    ax.set_ylim(low - margin, high + margin)


def tenth_around(t: FloatArray, y: FloatArray, runs: FloatArray, start: float | None) -> tuple[float, float]:
    """Return the tenth of the time around the largest error of the runs, (n_seeds, T), from `start` on.

    Errors beyond the range of the measured output are alike: of a simulation that diverges, the first one counts.
    """
    size = np.nan_to_num(np.abs(y - runs), nan=np.inf).max(axis=0).clip(max=float(np.ptp(y)))
    if start is not None:
        size[t < start] = 0.0
    half = 0.05 * (t[-1] - t[0])
    centre = min(max(float(t[size.argmax()]), t[0] + half), t[-1] - half)
    return float(centre - half), float(centre + half)
