"""Figures that put a certificate beside what an attack achieves; a certificate below the attack is an error."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter
from numpy.typing import ArrayLike

from robustnn.errors import CertificateError, ShapeError
from robustnn.report import _draw as draw
from robustnn.report.statistics import FloatArray, bootstrap_interval
from robustnn.report.style import Appearance, axes_or_new

__all__ = ["certification_against_eps", "certified_action_change", "loop_gains"]

Looks = Mapping[str, Appearance]


def certified_action_change(
    eps: ArrayLike,
    certified: Mapping[str, ArrayLike],
    found: Mapping[str, ArrayLike],
    *,
    ax: Axes | None = None,
    statistic: str = "mean",
    level: float = 0.95,
    looks: Looks | None = None,
    legend: bool = True,
    xlabel: str = r"perturbation size $\varepsilon$ [raw observation units]",
    ylabel: str = "change of the action\n" + r"$\|\Delta a\|$ [action units]",
) -> Axes:
    """Draw the certified change of the action above the largest that an attack achieves.

    Dashed lines are certificates, lines with markers attacks, with hatched and filled intervals over training seeds.
    Intervals may overlap; a seed's own certificate lies above its attack at every state.

    Args:
        eps: (n_eps,) perturbation sizes, in the unit of the observation.
        certified: for each model (n_seeds, n_eps) or (n_seeds, n_eps, n_states), in the unit of the action.
        found: for each model, of the same shape, entry by entry for the same seeds and states.
        ax: axes to draw in; a new figure if None.
        statistic: "mean", "iqm", "median" or "worst_decile" over seeds and states.
        level: probability content of the intervals.
        looks: appearance of each model; by default that of the models given.
        legend: draw a legend under the axes.
        xlabel: label of the horizontal axis, with its unit.
        ylabel: label of the vertical axis, with its unit.

    Returns:
        The axes.

    Raises:
        CertificateError: an attack lies above its certificate.
        ShapeError: shapes differ, or there are fewer than two seeds.
        NonFiniteError: an array holds NaN or infinity.
    """
    sizes = draw.grid("eps", eps)
    shown = draw.looks_of(draw.some("certified", certified), looks)
    upper, lower = _paired("certified", certified, "found", found, sizes)
    for label in upper:
        _below(f"found[{label!r}]", lower[label], upper[label], "action change")
    with axes_or_new(ax, (6.4, 4.8)) as target:
        for label in upper:
            _pair(target, sizes, upper[label], lower[label], statistic, level, shown[label], label)
        target.set_xlim(left=0.0)
        target.set_ylim(bottom=0.0)
        target.set(xlabel=xlabel, ylabel=ylabel)
        if legend:
            draw.legend_below(target, [_dashed("certified"), _solid("strongest attack")])
    return target


def certification_against_eps(
    eps: ArrayLike,
    certified: Mapping[str, ArrayLike],
    unchanged: Mapping[str, ArrayLike],
    *,
    ax: Axes | None = None,
    level: float = 0.95,
    looks: Looks | None = None,
    legend: bool = True,
    xlabel: str = r"perturbation size $\varepsilon$ [raw observation units]",
    ylabel: str = "fraction of visited states",
) -> Axes:
    """Draw the fraction of states whose decision is certified below the fraction that no attack changed.

    Args:
        eps: (n_eps,) perturbation sizes, in the unit of the observation.
        certified: for each model (n_seeds, n_eps) fractions of the states.
        unchanged: for each model, of the same shape, for the same seeds and states.
        ax: axes to draw in; a new figure if None.
        level: probability content of the intervals.
        looks: appearance of each model; by default that of the models given.
        legend: draw a legend under the axes.
        xlabel: label of the horizontal axis, with its unit.
        ylabel: label of the vertical axis.

    Returns:
        The axes.

    Raises:
        CertificateError: fewer states are unchanged than certified.
        ShapeError: shapes differ, or there are fewer than two seeds.
        NonFiniteError: an array holds NaN or infinity.
    """
    sizes = draw.grid("eps", eps)
    shown = draw.looks_of(draw.some("certified", certified), looks)
    lower, upper = _paired("certified", certified, "unchanged", unchanged, sizes)
    for label in lower:
        _below(f"certified[{label!r}]", lower[label], upper[label], "fraction")
    with axes_or_new(ax, (6.4, 4.8)) as target:
        for label in lower:
            _pair(target, sizes, lower[label], upper[label], "mean", level, shown[label], label)
        target.set_xlim(left=0.0)
        target.set_ylim(-0.02, 1.04)
        target.set(xlabel=xlabel, ylabel=ylabel)
        if legend:
            draw.legend_below(target, [_dashed("certified"), _solid("unchanged by the attack")])
    return target


def loop_gains(
    values: ArrayLike,
    certified: Mapping[str, ArrayLike],
    found: Mapping[str, ArrayLike],
    *,
    limit: float | None = None,
    limit_label: str = r"$\mathrm{H}_\infty$ limit of all controllers",
    ax: Axes | None = None,
    level: float = 0.95,
    looks: Looks | None = None,
    log: bool = True,
    legend: bool = True,
    xlabel: str = r"Lipschitz bound $\gamma$ of the policy [action per observation unit]",
    ylabel: str = "gain of the closed loop\n"
    + r"$\|z\|_2\,/\,\|d\|_2$ [$\sqrt{\mathrm{cost}}$ per unit of error]",
) -> Axes:
    """Draw certified gains of closed loops above the worst gains found, with the limit of all controllers.

    Args:
        values: (n,) what the policies differ in, ascending, such as their Lipschitz bounds.
        certified: for each model (n_seeds, n); NaN where a loop has no certificate. Its curve is drawn where every seed
            has one.
        found: for each model (n_seeds, n), of the same seeds.
        limit: least gain of any controller; None for none.
        limit_label: name of the limit in the legend.
        ax: axes to draw in; a new figure if None.
        level: probability content of the intervals.
        looks: appearance of each model; by default that of the models given.
        log: logarithmic vertical axis.
        legend: draw a legend under the axes.
        xlabel: label of the horizontal axis, with its unit.
        ylabel: label of the vertical axis, with its unit.

    Returns:
        The axes.

    Raises:
        CertificateError: a gain found lies above its certificate.
        ShapeError: shapes differ, or there are fewer than two seeds.
        NonFiniteError: a gain found is NaN or infinite.
    """
    points = draw.grid("values", values)
    shown = draw.looks_of(draw.some("found", found), looks)
    draw.same_models("found", found, "certified", certified)
    with axes_or_new(ax, (6.4, 4.8)) as target:
        for label, gains in found.items():
            lower, look = draw.seeds_by_grid(f"found[{label!r}]", gains, points), shown[label]
            draw.curves(
                target, points, "found", {label: gains}, "mean", "fixed", level, {label: look}, markers=True
            )
            if label not in certified:
                continue
            upper = np.asarray(certified[label], dtype=np.float64)
            if upper.shape != lower.shape[:2]:
                raise ShapeError(
                    f"certified[{label!r}]: expected shape {lower.shape[:2]}, got {upper.shape}. One per gain found."
                )
            known = ~np.isnan(upper)
            _below(f"found[{label!r}]", lower[..., 0][known], upper[known], "gain")
            there = np.isfinite(upper).all(0)
            if there.any():
                bands = np.array(
                    [bootstrap_interval(upper[:, j], level=level) for j in np.flatnonzero(there)]
                )
                target.fill_between(
                    points[there], bands[:, 1], bands[:, 2], facecolor="none",
                    edgecolor=to_rgba(look.color, 0.45), hatch="////", linewidth=0.5,
                )  # fmt: skip
                target.plot(points[there], bands[:, 0], color=look.color, linestyle="--", linewidth=1.3)
            for j in np.flatnonzero(~there):
                target.annotate(
                    "none", (points[j], 1.0), xycoords=("data", "axes fraction"), color=look.color,
                    ha="center", va="bottom", fontsize=8,
                )  # fmt: skip
        extra = [_dashed("certified"), _solid("worst found")]
        if limit is not None:
            draw.all_positive("limit", np.asarray([limit], dtype=np.float64))
            target.axhline(limit, color="#d55e00", linestyle=(0, (1, 1.2)), linewidth=1.6)
            extra.append(
                Line2D([], [], color="#d55e00", linestyle=(0, (1, 1.2)), linewidth=1.6, label=limit_label)
            )
        if log:
            target.set_yscale("log")
            target.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            target.yaxis.set_major_formatter("{x:g}")
            target.yaxis.set_minor_formatter(NullFormatter())
        else:
            target.set_ylim(bottom=0.0)
        target.set(xlabel=xlabel, ylabel=ylabel)
        if legend:
            draw.legend_below(target, extra)
    return target


def _paired(
    name: str,
    first: Mapping[str, ArrayLike],
    other_name: str,
    second: Mapping[str, ArrayLike],
    points: FloatArray,
) -> tuple[dict[str, FloatArray], dict[str, FloatArray]]:
    """Both sides as (n_seeds, n_points, n_states), of the same models and shapes."""
    draw.same_models(name, first, other_name, second)
    draw.same_models(other_name, second, name, first)
    a = {label: draw.seeds_by_grid(f"{name}[{label!r}]", one, points) for label, one in first.items()}
    b = {label: draw.seeds_by_grid(f"{other_name}[{label!r}]", second[label], points) for label in first}
    for label in a:
        if a[label].shape != b[label].shape:
            raise ShapeError(
                f"{other_name}[{label!r}]: expected the shape of {name}, {a[label].shape}, got {b[label].shape}. "
                "Both sides belong to the same seeds and states."
            )
    return a, b


def _below(name: str, lower: FloatArray, upper: FloatArray, what: str) -> None:
    wrong = int(np.count_nonzero(lower > upper))
    if wrong:
        worst = float((lower - upper).max())
        raise CertificateError(
            f"{name}: expected no {what} above the other side's, got {wrong} of {lower.size}, by up to {worst:.3g}. "
            "A certificate is violated: find out why before drawing it."
        )


def _pair(
    ax: Axes,
    points: FloatArray,
    certified: FloatArray,
    found: FloatArray,
    statistic: str,
    level: float,
    look: Appearance,
    label: str,
) -> None:
    """One model: certificate dashed with a hatched band, attack with markers and a filled one."""
    for values, line, marker, name in ((certified, "--", "", "_certified"), (found, "-", look.marker, label)):
        bands = np.array(
            [bootstrap_interval(values[:, j], statistic, level=level) for j in range(len(points))]
        )
        if marker:
            ax.fill_between(points, bands[:, 1], bands[:, 2], color=look.color, alpha=0.22, linewidth=0)
        else:
            edge = to_rgba(look.color, 0.45)
            ax.fill_between(
                points,
                bands[:, 1],
                bands[:, 2],
                facecolor="none",
                edgecolor=edge,
                hatch="////",
                linewidth=0.5,
            )
        ax.plot(points, bands[:, 0], color=look.color, linestyle=line, marker=marker, label=name)


def _dashed(label: str) -> Line2D:
    return Line2D([], [], color="0.35", linestyle="--", label=label)


def _solid(label: str) -> Line2D:
    return Line2D([], [], color="0.35", linestyle="-", marker="o", label=label)
