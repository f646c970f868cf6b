"""Figures that compare methods: what robustness costs, and how many episodes succeed as errors grow."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike

from robustnn.errors import check_finite
from robustnn.report import _draw as draw
from robustnn.report.robustness import performance_profile
from robustnn.report.statistics import bootstrap_interval
from robustnn.report.style import Appearance, axes_or_new

__all__ = ["profile_against_eps", "robustness_frontier"]

Looks = Mapping[str, Appearance]

_REFERENCE = "#d55e00"


def robustness_frontier(
    nominal: Mapping[str, ArrayLike],
    attacked: Mapping[str, ArrayLike],
    *,
    reference: float | None = None,
    reference_label: str = "physical limit",
    ax: Axes | None = None,
    statistic: str = "mean",
    level: float = 0.95,
    looks: Looks | None = None,
    names: bool = False,
    legend: bool = True,
    xlabel: str = "nominal return per episode",
    ylabel: str = "return per episode\nunder the strongest attack",
) -> Axes:
    """Draw each method by its return without errors and under attack, with intervals over seeds both ways.

    Up is more robust, right is better without errors. On the grey diagonal an attack does nothing; methods that no
    other one beats in both are joined by a step line.

    Args:
        nominal: for each method (n_seeds,) or (n_seeds, n_episodes), in the unit of the reward.
        attacked: for each method, the same under attack.
        reference: return under attack that no controller can exceed; None for none.
        reference_label: its name in the legend.
        ax: axes to draw in; a new figure if None.
        statistic: "mean", "iqm", "median" or "worst_decile" over seeds and episodes.
        level: probability content of the intervals.
        looks: appearance of each method; by default that of the methods given.
        names: write the methods beside their markers.
        legend: draw a legend under the axes.
        xlabel: label of the horizontal axis, with its unit.
        ylabel: label of the vertical axis, with its unit.

    Returns:
        The axes.

    Raises:
        InvalidArgumentError: the methods of the two differ.
        ShapeError: fewer than two seeds.
        NonFiniteError: a return is NaN or infinite.
    """
    draw.same_models("nominal", draw.some("nominal", nominal), "attacked", attacked)
    draw.same_models("attacked", attacked, "nominal", nominal)
    shown = draw.looks_of(nominal, looks)
    with axes_or_new(ax, (6.4, 5.2)) as target:
        places = []
        for label in nominal:
            x = bootstrap_interval(nominal[label], statistic, level=level)
            y = bootstrap_interval(attacked[label], statistic, level=level)
            look = shown[label]
            target.plot(x[1:], [y.estimate] * 2, "|-", color=look.color, linewidth=1.4, markersize=9)
            target.plot([x.estimate] * 2, y[1:], "_-", color=look.color, linewidth=1.4, markersize=9)
            target.plot(
                x.estimate, y.estimate, look.marker, color=look.color, markersize=6.5, label=label, zorder=3
            )
            if names:
                target.annotate(
                    label, (x.estimate, y.estimate), xytext=(6, 6), textcoords="offset points", fontsize=9
                )
            places.append((x.estimate, y.estimate))
        target.margins(0.12)
        _frontier(target, np.array(places))
        left, right = target.get_xlim()
        bottom, top = target.get_ylim()
        extra = []
        if reference is not None:
            check_finite("reference", np.asarray(reference, dtype=np.float64))
            target.axhline(reference, color=_REFERENCE, linestyle=(0, (1, 1.2)), linewidth=1.6)
            extra.append(
                Line2D(
                    [], [], color=_REFERENCE, linestyle=(0, (1, 1.2)), linewidth=1.6, label=reference_label
                )
            )
            top = max(top, reference + 0.05 * (top - bottom))
        ends = np.array([min(left, bottom), max(right, top)])
        target.plot(ends, ends, color="0.7", linewidth=1.0, zorder=1)
        extra.append(Line2D([], [], color="0.7", linewidth=1.0, label="no loss under attack"))
        target.set(xlabel=xlabel, ylabel=ylabel, xlim=(left, right), ylim=(bottom, top))
        if legend:
            draw.legend_below(target, extra)
    return target


def profile_against_eps(
    eps: ArrayLike,
    returns: Mapping[str, ArrayLike],
    threshold: float,
    *,
    ax: Axes | None = None,
    level: float = 0.95,
    looks: Looks | None = None,
    legend: bool = True,
    xlabel: str = r"perturbation size $\varepsilon$ [raw observation units]",
    ylabel: str | None = None,
) -> Axes:
    """Draw the fraction of episodes with a return above a threshold against the perturbation size.

    Args:
        eps: (n_eps,) perturbation sizes, in the unit of the observation.
        returns: for each model (n_seeds, n_eps, n_episodes), in the unit of the reward.
        threshold: what counts as a success, in the same unit.
        ax: axes to draw in; a new figure if None.
        level: probability content of the shaded intervals over training seeds.
        looks: appearance of each model; by default that of the models given.
        legend: draw a legend under the axes.
        xlabel: label of the horizontal axis, with its unit.
        ylabel: label of the vertical axis; names the threshold if None.

    Returns:
        The axes.

    Raises:
        ShapeError: an array does not fit ``eps``, or holds fewer than two seeds.
        NonFiniteError: a return or the threshold is NaN or infinite.
    """
    sizes = draw.grid("eps", eps)
    shown = draw.looks_of(draw.some("returns", returns), looks)
    with axes_or_new(ax) as target:
        for label, values in returns.items():
            scores, look = draw.seeds_by_grid(f"returns[{label!r}]", values, sizes), shown[label]
            by_size = [scores[:, j] for j in range(len(sizes))]
            bands = np.array(performance_profile(by_size, sizes, threshold, level=level))
            target.fill_between(sizes, bands[:, 1], bands[:, 2], color=look.color, alpha=0.16, linewidth=0)
            target.plot(
                sizes,
                bands[:, 0],
                color=look.color,
                linestyle=look.linestyle,
                marker=look.marker,
                label=label,
            )
        target.margins(x=0.02)
        target.set_ylim(-0.02, 1.04)
        words = f"fraction of episodes\nwith a return above {threshold:g}"
        target.set(xlabel=xlabel, ylabel=words if ylabel is None else ylabel)
        if legend:
            draw.legend_below(target)
    return target


def _frontier(ax: Axes, places: np.ndarray) -> None:
    """Join the methods that no other one beats in both coordinates."""
    order = places[np.argsort(-places[:, 0], kind="stable")]
    best = [order[0]]
    for place in order[1:]:
        if place[1] > best[-1][1]:
            best.append(place)
    if len(best) > 1:
        line = np.array(best)
        ax.step(line[:, 0], line[:, 1], where="post", color="0.55", linewidth=1.0, linestyle=":", zorder=2)
