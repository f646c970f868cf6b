"""Figures of the experiment on identified models."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator

from experiments.identification_study.config import Model
from experiments.identification_study.published import PUBLISHED
from experiments.identification_study.results import Array, Results, quartiles, record_name
from robustnn.report import appearances, save_figure, validation_page

_LINEAR, _NOISE, _PUBLISHED = "#2ca02c", "#8c564b", "0.55"
# Errors above so many times the largest reference or median are drawn at the upper edge.
_ROOM = 3.0


def bound_figure(results: Results) -> Path:
    """Draw test errors over seeds against the bound, with the twin and published errors beside."""
    panels = results.panels()
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    size = (8.0 if columns == 1 else 5.8 * columns, 5.2 * rows)
    fig, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for ax, (record, k, title) in zip(axes.flat, panels, strict=False):
        data = {model.label: results.errors(model, record, k) for model in results.config.models}
        lines = reference_lines(results, record, k)
        _strips(ax, data, lines, _limits(data, lines))
        names = [
            "none" if model.lipschitz is None else f"{model.lipschitz:g}" for model in results.config.models
        ]
        ax.set_xticks(range(len(names)), names)
        ax.set(xlabel=r"bound $L_x$ of the state map", title=title)
        ax.set_ylabel(f"test RMSE [{results.page()['unit']}]")
    for ax in list(axes.flat)[len(panels) :]:
        ax.remove()
    _legend(fig, results)
    fig.suptitle(
        f"{results.config.title}: error against the bound, {len(results.config.training_seeds)} seeds"
    )
    return _save(results, fig, "bound")


def spread_figure(results: Results) -> Path:
    """Draw test errors after every start beside those of the models that validation has chosen."""
    record, k, title = results.panels()[0]
    models = results.config.models
    fig, (left, right) = plt.subplots(1, 2, figsize=(11.5, 5.2), sharey=True, layout="constrained")
    lines = reference_lines(results, record, k)
    single = {model.label: results.start_errors(model, record, k).reshape(-1) for model in models}
    chosen = {model.label: results.errors(model, record, k) for model in models}
    limits = _limits(single, lines)
    _strips(left, single, lines, limits, names=False)
    _strips(right, chosen, lines, limits)
    names = ["no bound" if model.lipschitz is None else rf"$L_x$ = {model.lipschitz:g}" for model in models]
    for ax in (left, right):
        ax.set_xticks(range(len(names)), names)
    left.set_ylabel(f"RMSE, {title} [{results.page()['unit']}]")
    n_seeds, n_starts = results.start_errors(models[0], record, k).shape
    left.set_title(f"every one of {n_seeds * n_starts} starts")
    right.set_title(f"{n_seeds} seeds, each the best of {n_starts} starts by validation")
    _legend(fig, results)
    fig.suptitle(f"{results.config.title}: spread of the test error with and without contraction")
    return _save(results, fig, "spread")


def page_figures(results: Results) -> list[Path]:
    """Draw the validation page of every output, of the models that validation has chosen."""
    content = results.page()
    paths = []
    for k, arrays in enumerate(content["pages"]):
        if not arrays["simulated"]:
            continue
        looks = appearances([model.label for model in results.config.models])
        shown = len(arrays["time"])
        part = "" if shown == content["samples"] else f", first {shown} samples"
        fig = validation_page(
            **arrays, looks=looks,
            title=f"{results.config.title}, {record_name(content['records'][0])}{part}: best models by validation",
        )  # fmt: skip
        paths.append(
            _save(results, fig, "simulation" if len(content["pages"]) == 1 else f"simulation_{k + 1}")
        )
    return paths


def reference_lines(results: Results, record: str, output: int) -> list[tuple[str, float, str]]:
    """Label, error and colour of what models are compared with on a test record."""
    content = results.page()
    lines = [
        (one.method, one.errors[record], _PUBLISHED)
        for one in PUBLISHED.get(results.config.task, ())
        if record in one.errors
    ]
    linear = content["linear"][record][output]
    if linear is not None:
        lines.append(("linear start", linear, _LINEAR))
    if content["noise"] is not None:
        lines.append(("noise", content["noise"][output], _NOISE))
    return lines


def _limits(data: dict[str, Array], lines: list[tuple[str, float, str]]) -> tuple[float, float]:
    """Ends of the vertical axis: with all references and medians, without errors far above them."""
    known = [value for _, value, _ in lines]
    medians = [float(np.median(values)) for values in data.values()]
    room = _ROOM * max([*known, *(one for one in medians if np.isfinite(one))])
    values = np.concatenate(list(data.values()))
    inside = values[values < room]
    ends = [*inside, *known]
    return min(ends) / 1.12, max(ends) * (1.12 if len(inside) == len(values) else 1.5)


def _strips(
    ax: Axes,
    data: dict[str, Array],
    lines: list[tuple[str, float, str]],
    limits: tuple[float, float],
    *,
    names: bool = True,
) -> None:
    """Draw one column of dots per model with median and quartiles; what is above the axis, as triangles at its edge."""
    looks = appearances(data)
    bottom, top = limits
    edge = ax.get_xaxis_transform()
    for k, (label, values) in enumerate(data.items()):
        color, over = looks[label].color, values > top
        places = k + 0.45 * ((np.argsort(np.argsort(values, kind="stable")) * 0.618) % 1.0 - 0.5)
        ax.plot(places[~over], values[~over], "o", color=color, alpha=0.55, markersize=4.5, mew=0)
        if over.any():
            ax.plot(k, 0.975, "^", color=color, markersize=8, transform=edge)
            ax.text(
                k + 0.1, 0.975, f"{over.sum()} above", fontsize=8, va="center", transform=edge, color=color
            )
        low, high = quartiles(values)
        if low < top:
            ax.vlines(k, low, min(high, top), color=color, linewidth=3.0)
        if np.median(values) < top:
            ax.hlines(float(np.median(values)), k - 0.3, k + 0.3, color=color, linewidth=2.2)
    ax.set_ylim(bottom, top)
    if top > 4.0 * bottom:
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter("{x:g}")
        digits = (2.0, 3.0, 5.0, 7.0) if top < 10.0 * bottom else (2.0, 5.0)
        ax.yaxis.set_minor_locator(LogLocator(subs=tuple(range(2, 10))))
        ax.yaxis.set_minor_formatter(partial(_some_digits, digits=digits))
    ax.set_xlim(-0.6, len(data) - 0.4)
    for _, value, color in lines:
        ax.axhline(value, color=color, linewidth=1.0, linestyle=(0, (4, 2)), zorder=0.8)
    if names:
        _name_lines(ax, lines)


def _some_digits(value: float, position: int | None = None, *, digits: tuple[float, ...] = ()) -> str:
    """Label a tick of a logarithmic axis if its first digit is among those given."""
    digit = round(value / 10.0 ** np.floor(np.log10(value)), 6)
    return f"{value:g}" if digit in digits else ""


def _name_lines(ax: Axes, lines: list[tuple[str, float, str]], gap: float = 0.045) -> None:
    """Write the names of horizontal lines to the right of the axes, moved apart where they would overlap."""
    log = ax.get_yscale() == "log"
    low, high = (np.log(v) if log else v for v in ax.get_ylim())
    order = sorted(lines, key=lambda one: one[1])
    want = np.array([((np.log(v) if log else v) - low) / (high - low) for _, v, _ in order])
    at = want.copy()
    for _ in range(200):
        close = np.diff(at) < gap
        if not close.any():
            break
        for k in np.flatnonzero(close):
            middle = 0.5 * (at[k] + at[k + 1])
            at[k], at[k + 1] = middle - 0.501 * gap, middle + 0.501 * gap
    for (name, value, color), place, true in zip(order, at, want, strict=True):
        ax.plot([1.0, 1.03], [true, place], color=color, linewidth=0.8, transform=ax.transAxes, clip_on=False)
        ax.text(
            1.035, place, f"{name} {value:.3g}", color=color if color != _PUBLISHED else "0.35", fontsize=8,
            va="center", transform=ax.transAxes,
        )  # fmt: skip


def _legend(fig: Figure, results: Results) -> None:
    dark = appearances([Model(None).label])[Model(None).label].color
    handles: list[Any] = [
        Line2D(
            [],
            [],
            color=dark,
            marker="o",
            linestyle="",
            alpha=0.55,
            markersize=4.5,
            label="one seed or start",
        ),
        Line2D([], [], color=dark, linewidth=2.2, label="median"),
        Line2D([], [], color=dark, linestyle="", marker="|", markersize=13, mew=3.0, label="quartiles"),
    ]
    dashed: dict[str, Any] = {"linestyle": (0, (4, 2)), "linewidth": 1.0}
    if results.config.task in PUBLISHED:
        handles.append(Line2D([], [], color=_PUBLISHED, label="published", **dashed))
    handles.append(Line2D([], [], color=_LINEAR, label="linear model of the same order", **dashed))
    if results.page()["noise"] is not None:
        handles.append(Line2D([], [], color=_NOISE, label="noise: a perfect model", **dashed))
    columns = len(handles) if fig.get_figwidth() > 11.0 else 3
    fig.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize="small")


def _save(results: Results, fig: Figure, name: str) -> Path:
    path = results.run.figure(f"{name}.png")
    save_figure(fig, path)
    plt.close(fig)
    return path
