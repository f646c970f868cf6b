"""Tables and figure of the experiment on policies of images, from its run folder alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from experiments.atari_pong_study.config import Config, Model
from robustnn.report import (
    Interval,
    Table,
    appearances,
    atomic_write_text,
    bootstrap_interval,
    format_interval,
    save_figure,
    style,
)
from robustnn.runs import RunFolder

SHARES = {"certified": "certified", "unchanged": "not changed by the attack"}
_LINES: dict[str, Any] = {"certified": "--", "unchanged": "-"}


class Results:
    """Read access to the cells of a run.

    Args:
        run: A run folder in which all tasks are done.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self.config = Config.of(run.config)

    def cells(self, model: Model) -> list[dict[str, Any]]:
        """What `train_and_measure` returned, one entry per training seed."""
        return [self.run.cell(cell_key(model, seed)) for seed in self.config.training_seeds]

    def values(self, model: Model, name: str) -> NDArray[np.float64]:
        """One entry of the cells, the first axis over training seeds."""
        return np.array([cell[name] for cell in self.cells(model)], dtype=np.float64)

    def intervals(self, model: Model, which: str) -> list[Interval]:
        """Mean share over training seeds with its 95 % interval, one entry per eps."""
        return [bootstrap_interval(column) for column in self.values(model, which).T]


def cell_key(model: Model, seed: int) -> str:
    """Return the key of one training run in the run folder."""
    return f"{model.key}_seed={seed}"


def policy_table(results: Results) -> Table:
    """Returns, bounds and certified radii."""
    header = ("policy", "parameters", "return", "proved bound", "median certified radius")
    rows = []
    for model in results.config.models:
        returns = results.values(model, "returns").mean(axis=1)
        proved = results.values(model, "proved_bound")
        rows.append(
            (
                model.label,
                f"{results.cells(model)[0]['parameters']:,}",
                format_interval(bootstrap_interval(returns), 2),
                f"{proved.min():.4g} to {proved.max():.4g}",
                format_interval(bootstrap_interval(results.values(model, "radius")[:, 1]), 2),
            )
        )
    return Table(header, tuple(rows))


def share_table(results: Results) -> Table:
    """Share of the decisions in per cent: certified, and not changed by the attack."""
    header = ("decisions", "policy", *(f"eps {eps:g}" for eps in results.config.eps))
    rows = [
        (
            title,
            model.label,
            *(
                format_interval(Interval(*(100.0 * value for value in one)), 0)
                for one in results.intervals(model, which)
            ),
        )
        for which, title in SHARES.items()
        for model in results.config.models
    ]
    return Table(header, tuple(rows))


def write(run: RunFolder) -> tuple[str, Path]:
    """Write tables and figure of a finished run into its folder.

    Args:
        run: The run folder.

    Returns:
        The tables as text, and the path of the figure.
    """
    results = Results(run)
    config = results.config
    note = (
        f"PPO on {config.env_id}, {config.timesteps:,} steps, {len(config.training_seeds)} training seeds, "
        f"{config.frames} stacked frames, {config.episodes} episodes of the greedy policy. CnnPolicy has the same "
        "layers without a bound. eps and the certified radius are l2 norms of the error of the whole stack of raw "
        "frames, in units of a uint8 pixel; bounds are logits per pixel from black to white. The certified radius is "
        "255 (z1 - z2) / (sqrt(2) gamma) in float64; that of CnnPolicy uses the product of the proved norms of its "
        f"layers. Shares are of {config.attacked} visited observations per policy. Means over training seeds with 95 % "
        "bootstrap intervals. The attack lowers the margin by projected gradients within [0, 255]."
    )
    cells = [cell for model in config.models for cell in results.cells(model)]
    found = (
        f"Certified decisions that the attack changed: none, or the run would have stopped. Actions of predict "
        f"(float32) that are not the greedy ones in float64: {sum(cell['disagreements'] for cell in cells)} of "
        f"{sum(cell['observations'] for cell in cells):,}."
    )
    sections = (
        f"# {run.name}\n\n{note}",
        f"## Policies\n\n{policy_table(results).markdown()}",
        f"## Share of the decisions [%]\n\n{share_table(results).markdown()}\n\n{found}",
    )
    atomic_write_text(run.path / "tables.md", "\n\n".join(sections) + "\n")
    with style():
        figure = _figure(results)
    return f"{policy_table(results).text()}\n\n{share_table(results).text()}\n{found}", figure


def _figure(results: Results) -> Path:
    config = results.config
    looks = appearances([model.label for model in config.models])
    fig, (left, right) = plt.subplots(1, 2, figsize=(11.5, 4.8))
    for model in config.models:
        color = looks[model.label].color
        for which, line in _LINES.items():
            _draw_share(results, model, which, line, color, left)
        radii = results.cells(model)[0]["episode"]
        right.plot(range(len(radii)), radii, color=color, label=model.label, linewidth=1.0)
    left.set(
        xscale="log",
        xlabel=r"size of the error $\varepsilon$, l2 [unit of a uint8 pixel]",
        ylabel="share of the decisions [%]",
        ylim=(-3.0, 103.0),
        title="Certified below attacked",
    )
    keys = [Line2D([], [], color="0.35", linestyle=_LINES[which], label=SHARES[which]) for which in SHARES]
    left.legend(handles=keys, loc="lower left", fontsize="small")
    right.set(
        xlabel="step of an episode [-]",
        ylabel="certified radius, l2 [unit of a uint8 pixel]",
        yscale="log",
        title="Certified radius along an episode, first seed",
    )
    handles, labels = right.get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    path = results.run.figure("atari_pong.png")
    save_figure(fig, path)
    plt.close(fig)
    return path


def _draw_share(results: Results, model: Model, which: str, line: str, color: str, ax: Axes) -> None:
    intervals = results.intervals(model, which)
    low, middle, high = (
        [100.0 * getattr(one, name) for one in intervals] for name in ("low", "estimate", "high")
    )
    ax.plot(results.config.eps, middle, line, color=color)
    ax.fill_between(results.config.eps, low, high, color=color, alpha=0.12, linewidth=0)
