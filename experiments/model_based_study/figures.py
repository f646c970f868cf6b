"""The figure of the experiment on model-based training."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from experiments.model_based_study.config import Config, Source
from experiments.model_based_study.results import Results

_ATTACKS: dict[str, Any] = {"uniform": ":", "model": "--", "plant": "-"}


def draw(results: Results) -> Figure:
    """Draw returns by what policies were trained on, certified and found sensitivity, and attacks."""
    fig, axes = plt.subplots(1, 3, figsize=(15.0, 4.8))
    _returns(results, axes[0])
    _sensitivity(results, axes[1])
    _attacks(results, axes[2])
    return fig


def _colors(config: Config) -> dict[Source, Any]:
    """Grey for the plant, one colour map for the bounds, another colour for the model without one."""
    shades = colormaps["viridis"](np.linspace(0.1, 0.75, len(config.bounds)))
    bounded = [source for source in config.models if source.bound is not None]
    return {Source("plant"): "0.4", Source("twin"): "#d55e00", **dict(zip(bounded, shades, strict=True))}


def _returns(results: Results, ax: Axes) -> None:
    config = results.config
    labels = [source.label for source in config.sources]
    colors = _colors(config)
    for place, source in enumerate(config.sources):
        color = colors[source]
        plant = results.returns(source, "plant").mean(1)
        spread = np.linspace(-0.12, 0.12, len(plant))
        ax.plot(place + spread, plant, "o", color=color)
        if source.kind != "plant":
            own = results.returns(source, "model").mean(1)
            ax.plot(place + spread, own, "o", color=color, fillstyle="none")
    ax.set_xticks(
        range(len(labels)), [label.replace(", ", ",\n").replace(" model", "\nmodel") for label in labels]
    )
    ax.set(ylabel="mean return per episode", title="One dot per policy")
    _returns_axis(ax)
    keys = [
        Line2D([], [], color="0.35", marker="o", linestyle="", label="on the true plant"),
        Line2D([], [], color="0.35", marker="o", linestyle="", fillstyle="none", label="on its own model"),
    ]
    ax.legend(handles=keys, fontsize="small", loc="lower right")


def _returns_axis(ax: Axes) -> None:
    """Logarithms of costs: a policy that leaves the data of its model behind loses a thousand times what others do."""
    ax.set_yscale("symlog", linthresh=100.0)
    ax.set_ylim(top=-100.0)
    ax.set_ylim(bottom=4.0 * ax.get_ylim()[0])  # room for the legend


def _sensitivity(results: Results, ax: Axes) -> None:
    config = results.config
    colors = _colors(config)
    steps = np.arange(config.sensitivity_steps + 1)
    for source in config.models:
        color = colors[source]
        for name, line in (("tube", "--"), ("found", "-")):
            values = results.tube(source, name)[:, 1:]
            ax.plot(steps[1:], values.mean(0), line, color=color)
            ax.fill_between(steps[1:], values.min(0), values.max(0), color=color, alpha=0.15, linewidth=0)
    ax.set(
        yscale="log",
        xlabel="steps of 50 ms",
        ylabel="distance of two trajectories [scaled observations]",
        title=f"Learned loop under observation errors of {config.sensitivity_eps:g}",
    )
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    keys = [Line2D([], [], color=colors[s], label=s.label) for s in config.models]
    keys += [
        Line2D([], [], color="0.35", linestyle="--", label="proved"),
        Line2D([], [], color="0.35", linestyle="-", label="found"),
    ]
    ax.set_ylim(top=500.0 * ax.get_ylim()[1])  # room for the legend
    ax.legend(handles=keys, fontsize="small", ncols=2, loc="upper left")


def _attacks(results: Results, ax: Axes) -> None:
    config = results.config
    sizes = (0.0, *config.attack_eps)
    colors = _colors(config)
    for attack, line in _ATTACKS.items():
        for source in config.models:
            curves = np.stack([results.attacked(source, attack, eps) for eps in sizes], axis=1).mean(-1)
            color = colors[source]
            ax.plot(sizes, curves.mean(0), line, color=color, marker="o", markersize=3)
            ax.fill_between(sizes, curves.min(0), curves.max(0), color=color, alpha=0.06, linewidth=0)
    ax.set(
        xlabel=r"size of the error $\varepsilon$ [scaled observations]",
        ylabel="mean return per episode",
        title="Attacks on the true plant",
    )
    _returns_axis(ax)
    ax.set_xticks(sizes)
    words = {
        "uniform": "noise in the ball",
        "model": "planned through the model",
        "plant": "planned through the plant",
    }
    keys = [
        Line2D([], [], color="0.35", linestyle=_ATTACKS[name], label=text) for name, text in words.items()
    ]
    ax.legend(handles=keys, fontsize="small", loc="lower left")
