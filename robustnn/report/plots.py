"""Figures of a robustness report: arrays in, Axes out; the spread over training seeds is always drawn."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter
from numpy.typing import ArrayLike

from robustnn.errors import ShapeError, invalid
from robustnn.files import atomic_write_bytes
from robustnn.report import _draw as draw
from robustnn.report.statistics import bootstrap_interval
from robustnn.report.style import Appearance, axes_or_new, style

Looks = Mapping[str, Appearance]

_END = "#d55e00"  # vermilion: stands out against viridis for all kinds of colour vision


def return_against_eps(
    eps: ArrayLike,
    returns: Mapping[str, ArrayLike],
    *,
    ax: Axes | None = None,
    statistic: str = "mean",
    episodes: str = "fixed",
    level: float = 0.95,
    looks: Looks | None = None,
    legend: bool = True,
    xlabel: str = r"perturbation size $\varepsilon$ [raw observation units]",
    ylabel: str = "return per episode",
) -> Axes:
    """Draw the return of each model against the perturbation size, with shaded intervals over training seeds.

    Args:
        eps: (n_eps,) perturbation sizes, in the unit of the observation.
        returns: for each model (n_seeds, n_eps) or (n_seeds, n_eps, n_episodes), in the unit of the reward.
        ax: axes to draw in; a new figure if None.
        statistic: "mean", "iqm" or "worst_decile" over seeds and episodes.
        episodes: how episodes are resampled, as in `bootstrap_interval`.
        level: probability content of the shaded intervals.
        looks: appearance of each model; by default that of the models given.
        legend: draw a legend under the axes.
        xlabel: label of the horizontal axis, with its unit.
        ylabel: label of the vertical axis, with its unit.

    Returns:
        The axes.

    Raises:
        ShapeError: an array does not fit ``eps``, or holds fewer than two seeds.
        NonFiniteError: an array holds NaN or infinity.
    """
    sizes = draw.grid("eps", eps)
    shown = draw.looks_of(draw.some("returns", returns), looks)
    with axes_or_new(ax) as target:
        draw.curves(target, sizes, "returns", returns, statistic, episodes, level, shown, markers=True)
        target.set(xlabel=xlabel, ylabel=ylabel)
        if legend:
            draw.legend_below(target)
    return target


def attack_convergence(
    returns: Mapping[str, ArrayLike],
    *,
    iterations: ArrayLike | None = None,
    noise: Mapping[str, ArrayLike] | None = None,
    ax: Axes | None = None,
    statistic: str = "mean",
    episodes: str = "fixed",
    level: float = 0.95,
    looks: Looks | None = None,
    legend: bool = True,
    xlabel: str = "attack iteration",
    ylabel: str = "return per episode under attack",
) -> Axes:
    """Draw the return an attack has reached against its iterations; one still falling was stopped too early.

    Args:
        returns: for each model (n_seeds, n_iterations) or (n_seeds, n_iterations, n_episodes), in the unit of
            the reward.
        iterations: (n_iterations,) iteration numbers; 0, 1, 2, ... if None.
        noise: for some models, returns under random noise of the same size, (n_seeds,) or
            (n_seeds, n_episodes): what an attack has to beat, drawn as a dotted line with its interval.
        ax: axes to draw in; a new figure if None.
        statistic: "mean", "iqm" or "worst_decile" over seeds and episodes.
        episodes: how episodes are resampled, as in `bootstrap_interval`.
        level: probability content of the shaded intervals.
        looks: appearance of each model; by default that of the models given.
        legend: draw a legend under the axes.
        xlabel: label of the horizontal axis, with its unit.
        ylabel: label of the vertical axis, with its unit.

    Returns:
        The axes.

    Raises:
        InvalidArgumentError: ``noise`` names a model that ``returns`` lacks.
        ShapeError: an array does not fit ``iterations``, or holds fewer than two seeds.
        NonFiniteError: an array holds NaN or infinity.
    """
    draw.same_models("returns", returns, "noise", noise or {})
    if iterations is None:
        first = np.asarray(next(iter(draw.some("returns", returns).values())))
        iterations = np.arange(first.shape[1] if first.ndim > 1 else 0)
    steps = draw.grid("iterations", iterations)
    shown = draw.looks_of(returns, looks)
    with axes_or_new(ax) as target:
        draw.curves(target, steps, "returns", returns, statistic, episodes, level, shown, markers=False)
        for label, scores in (noise or {}).items():
            floor = bootstrap_interval(scores, statistic, episodes=episodes, level=level)
            target.axhline(floor.estimate, color=shown[label].color, linestyle=":", linewidth=1.2)
            target.axhspan(floor.low, floor.high, color=shown[label].color, alpha=0.1, linewidth=0)
        extra = [_key(":", "random noise")] if noise else []
        target.set(xlabel=xlabel, ylabel=ylabel)
        if legend:
            draw.legend_below(target, extra)
    return target


def lipschitz_bars(
    empirical: Mapping[str, ArrayLike],
    certified: Mapping[str, ArrayLike | float],
    *,
    ax: Axes | None = None,
    log: bool = True,
    level: float = 0.95,
    looks: Looks | None = None,
    legend: bool = True,
    ylabel: str = "Lipschitz constant\n[action per raw observation unit]",
) -> Axes:
    """Draw the empirical Lipschitz constant of each model beside the certified one.

    Small points are training seeds, the large marker their mean with its bootstrap interval, the thick bar
    the certificate: no point may lie above it. A certificate that differs between seeds has a bar for each.

    Args:
        empirical: for each model (n_seeds,) lower bounds, found by gradient ascent.
        certified: for some of the models one upper bound or (n_seeds,) of them.
        ax: axes to draw in; a new figure if None.
        log: logarithmic vertical axis, for product bounds of unbounded networks.
        level: probability content of the intervals.
        looks: appearance of each model; by default that of the models given.
        legend: draw a legend under the axes.
        ylabel: label of the vertical axis, with its unit.

    Returns:
        The axes.

    Raises:
        InvalidArgumentError: ``certified`` names a model that ``empirical`` lacks, or a value is not above 0.
        ShapeError: fewer than two seeds.
        NonFiniteError: an empirical constant is NaN or infinite.
    """
    draw.same_models("empirical", empirical, "certified", certified)
    shown = draw.looks_of(draw.some("empirical", empirical), looks)
    with axes_or_new(ax, (max(6.4, 1.6 + 1.1 * len(empirical)), 4.4)) as target:
        for position, (label, values) in enumerate(empirical.items()):
            look, constants = shown[label], np.asarray(values, dtype=np.float64).reshape(-1)
            draw.all_positive(f"empirical[{label!r}]", constants)
            interval = bootstrap_interval(constants, level=level)
            places = position - 0.14 + np.linspace(-0.1, 0.1, len(constants))
            target.plot(places, constants, ".", color=look.color, alpha=0.55)
            target.plot(
                [position + 0.14] * 2, interval[1:], "_-", color=look.color, linewidth=1.4, markersize=9
            )
            target.plot(position + 0.14, interval.estimate, look.marker, color=look.color)
            bounds = np.unique(np.asarray(certified.get(label, ()), dtype=np.float64))
            draw.all_positive(f"certified[{label!r}]", bounds)
            width = 3.0 if len(bounds) < 2 else 1.5
            target.hlines(bounds, position - 0.32, position + 0.32, color=look.color, linewidth=width)
        if log:
            target.set_yscale("log")
            target.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            target.yaxis.set_major_formatter("{x:g}")
            target.yaxis.set_minor_formatter(NullFormatter())
        else:
            target.set_ylim(bottom=0.0)
        target.margins(y=0.12)
        target.set_xlim(-0.6, len(empirical) - 0.4)
        target.set_xticks(range(len(empirical)), [label.replace(" ", "\n", 1) for label in empirical])
        target.grid(False, axis="x")
        keys = [
            Line2D([], [], color="0.35", linewidth=3.0, label="certified upper bound"),
            Line2D([], [], color="0.35", marker="o", label=f"empirical, mean and {100 * level:g} % interval"),
            Line2D(
                [], [], color="0.35", marker=".", linestyle="none", alpha=0.6, label="empirical, one seed"
            ),
        ]
        target.set_ylabel(ylabel)
        if legend:
            draw.legend_below(target, keys, drop=42.0, columns=2)
    return target


def action_sensitivity(
    eps: ArrayLike,
    changes: Mapping[str, ArrayLike],
    certified: Mapping[str, float | int],
    *,
    ax: Axes | None = None,
    action_span: float | int | None = None,
    looks: Looks | None = None,
    legend: bool = True,
    xlabel: str = r"perturbation size $\varepsilon$ [raw observation units]",
    ylabel: str = "largest action change found\n" + r"$|\Delta a|$ [action units]",
) -> Axes:
    r"""Draw the largest action change found against the perturbation size, below the line of the certificate.

    The line is the mean over training seeds and the shade runs from the least to the most sensitive seed. The
    dashed line of the same colour is the guarantee $|a(o + d) - a(o)| \le \gamma |d|$.

    Args:
        eps: (n_eps,) perturbation sizes, in the unit of the observation.
        changes: for each model (n_seeds, n_eps) or (n_seeds, n_eps, n_points), action units; of the points
            (observations tried) the largest counts.
        certified: for some of the models, the bound gamma in action units per observation unit.
        ax: axes to draw in; a new figure if None.
        action_span: width of the action range, action units: no change can exceed it; drawn as a line.
        looks: appearance of each model; by default that of the models given.
        legend: draw a legend under the axes.
        xlabel: label of the horizontal axis, with its unit.
        ylabel: label of the vertical axis, with its unit.

    Returns:
        The axes.

    Raises:
        InvalidArgumentError: ``certified`` names a model that ``changes`` lacks, or a bound is not positive.
        ShapeError: an array does not fit ``eps``, or holds fewer than two seeds.
        NonFiniteError: an array holds NaN or infinity.
    """
    sizes = draw.grid("eps", eps)
    draw.same_models("changes", changes, "certified", certified)
    shown = draw.looks_of(draw.some("changes", changes), looks)
    with axes_or_new(ax, (6.4, 4.8)) as target:
        top = 0.0
        for label, values in changes.items():
            found, look = draw.seeds_by_grid(f"changes[{label!r}]", values, sizes).max(axis=2), shown[label]
            top = max(top, float(found.max()))
            least, most = found.min(axis=0), found.max(axis=0)
            target.fill_between(sizes, least, most, color=look.color, alpha=0.18, linewidth=0)
            line = target.plot(sizes, found.mean(axis=0), color=look.color, label=label)[0]
            line.set(marker=look.marker, linestyle=look.linestyle)
            if label in certified:
                gamma = np.asarray([certified[label]], dtype=np.float64)
                draw.all_positive(f"certified[{label!r}]", gamma)
                ends = np.array([0.0, sizes.max()])
                target.plot(ends, gamma * ends, color=look.color, linestyle="--", linewidth=1.2)
        extra = [_key("--", r"certified $\gamma\,\varepsilon$")] if certified else []
        if action_span is not None:
            draw.all_positive("action_span", np.asarray([action_span], dtype=np.float64))
            target.axhline(action_span, color="0.35", linestyle=":", linewidth=1.2)
            extra.append(_key(":", "width of the action range"))
            top = max(top, action_span)
        target.set_xlim(left=0.0)
        target.set_ylim(0.0, 1.12 * top if top > 0.0 else 1.0)
        target.set(xlabel=xlabel, ylabel=ylabel)
        if legend:
            draw.legend_below(target, extra)
    return target


def phase_portrait(
    angle: ArrayLike,
    rate: ArrayLike,
    *,
    ax: Axes | None = None,
    dt: float | None = None,
    color: str | None = None,
    label: str | None = None,
    period: float | None = 2.0 * np.pi,
    legend: bool = True,
    xlabel: str = r"angle $\theta$ [rad]",
    ylabel: str = r"angular velocity $\dot\theta$ [rad/s]",
) -> Axes:
    """Draw trajectories in the phase plane, without jumps where the angle wraps.

    A circle marks each start and a cross each end. Without ``color`` the lines are coloured by time; with
    one the trajectories form one condition, and further calls on the same axes add others.

    Args:
        angle: (..., T) angles, radians, wrapped or not; leading axes are trajectories.
        rate: (..., T) angular velocities, radians per second.
        ax: axes to draw in; a new figure if None.
        dt: sampling time, seconds, for the time scale; steps if None.
        color: colour of all trajectories, or None to colour by time.
        label: name of the condition in the legend; needs ``color``.
        period: period of the horizontal coordinate, or None for one that does not wrap.
        legend: draw a legend under the axes.
        xlabel: label of the horizontal axis, with its unit.
        ylabel: label of the vertical axis, with its unit.

    Returns:
        The axes.

    Raises:
        ShapeError: the shapes differ, or a trajectory has fewer than two samples.
        NonFiniteError: a sample is NaN or infinite.
        InvalidArgumentError: ``period`` or ``dt`` is not positive, or a label comes without a colour.
    """
    x, y = np.asarray(angle, dtype=np.float64), np.asarray(rate, dtype=np.float64)
    if x.shape != y.shape or x.ndim < 1 or x.shape[-1] < 2 or x.size == 0:
        raise ShapeError(
            f"angle and rate: expected the same shape (..., T) with T >= 2, got {x.shape} and {y.shape}. "
            "Put time on the last axis of both."
        )
    draw.all_finite("angle", x)
    draw.all_finite("rate", y)
    if label is not None and color is None:
        raise invalid(
            "color", f"a colour for the condition {label!r}", None, "Pass color, or leave label out."
        )
    for name, value in (("period", period), ("dt", dt)):
        if value is not None:
            draw.all_positive(name, np.asarray([value], dtype=np.float64))
    x, y = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
    segments, times = draw.segments(x, y, period)
    with axes_or_new(ax, (6.4, 4.6)) as target:
        scale = Normalize(0.0, (x.shape[1] - 1) * (dt or 1.0))
        lines = LineCollection(list(segments), linewidths=1.1, alpha=0.75, zorder=2)
        if color is None:
            cmap = matplotlib.colormaps["viridis"]
            lines.set(array=times * (dt or 1.0), cmap=cmap, norm=scale)
            bar_label = "time [s]" if dt else "time [steps]"
            target.figure.colorbar(ScalarMappable(scale, cmap), ax=target, label=bar_label, pad=0.02)
        else:
            lines.set_color(color)
        target.add_collection(lines)
        x = draw.wrapped(x, period)
        start, end = color or "0.15", color or _END
        target.plot(x[:, 0], y[:, 0], "o", color=start, markerfacecolor="white", markersize=4.5, zorder=3)
        target.plot(x[:, -1], y[:, -1], "x", color=end, markersize=6, markeredgewidth=1.8, zorder=4)
        if period is not None:
            target.set_xlim(-period / 2, period / 2)
        if period is not None and np.isclose(period, 2.0 * np.pi):
            ticks = [r"$-\pi$", r"$-\pi/2$", "0", r"$\pi/2$", r"$\pi$"]
            target.set_xticks(np.linspace(-np.pi, np.pi, 5), ticks)
        target.autoscale_view(scalex=period is None)
        target.set(xlabel=xlabel, ylabel=ylabel)
        if label is not None:
            target.plot([], [], color=color, label=label)
        if legend:
            draw.legend_below(target, _ends("0.35" if color else _END))
    return target


def save_figure(fig: Figure, path: str | os.PathLike[str], *, pdf: bool = False, dpi: int = 150) -> None:
    """Write a figure as PNG, and as PDF beside it if asked, atomically and without time stamps.

    Args:
        fig: the figure.
        path: file ending in ``.png``; its folder must exist.
        pdf: also write the same name with ``.pdf``.
        dpi: resolution of the PNG, dots per inch.

    Raises:
        InvalidArgumentError: the path does not end in ``.png``.
    """
    target = Path(path)
    if target.suffix.lower() != ".png":
        raise invalid(
            "path", "a name ending in .png", repr(target.name), "Pass pdf=True for a PDF beside it."
        )
    formats = [("png", target, {"Software": None})]
    if pdf:
        formats.append(
            ("pdf", target.with_suffix(".pdf"), {"CreationDate": None, "Producer": None, "Creator": None})
        )
    for kind, file, metadata in formats:
        buffer = io.BytesIO()
        with style():
            fig.savefig(buffer, format=kind, dpi=dpi, metadata=metadata)
        atomic_write_bytes(file, buffer.getvalue())


def _key(linestyle: Literal["--", ":"], label: str) -> Line2D:
    return Line2D([], [], color="0.35", linestyle=linestyle, linewidth=1.2, label=label)


def _ends(color: str) -> list[Line2D]:
    start = Line2D([], [], color="0.35", marker="o", markerfacecolor="white", linestyle="none", label="start")
    end = Line2D([], [], color=color, marker="x", markeredgewidth=1.8, linestyle="none", label="end")
    return [start, end]
