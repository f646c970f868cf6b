"""Tables and figure of the experiment on certified decisions, from its run folder alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from experiments.algorithms_study.config import Model
from experiments.decisions_study.config import Config
from robustnn.report import (
    Interval,
    Table,
    appearances,
    atomic_write_text,
    bootstrap_interval,
    format_interval,
    return_against_eps,
    save_figure,
    style,
)
from robustnn.runs import RunFolder

SHARES = {
    "certified": "certified, for all observations at once",
    "local": "certified, over the ball around the state",
    "unchanged": "not changed by the attack",
}
_LINES: dict[str, Any] = {"certified": ":", "local": "--", "unchanged": "-"}


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

    def share(self, model: Model, which: str) -> NDArray[np.float64]:
        """Shares of the sampled states of a key of `SHARES`, shape (n_seeds, n_eps)."""
        if which == "unchanged":
            return np.array([cell["unchanged"] for cell in self.cells(model)])
        kind = {"certified": "global", "local": "local"}[which]
        return np.array([cell["certified"][kind] for cell in self.cells(model)])

    def intervals(self, model: Model, which: str) -> list[Interval]:
        """Mean share over training seeds with its 95 % interval, one entry per eps."""
        return [bootstrap_interval(column) for column in self.share(model, which).T]

    def returns(self, model: Model) -> NDArray[np.float64]:
        """Returns without error, then under the attack, shape (n_seeds, 1 + n_eps, n_episodes)."""
        return np.array([cell["returns"] for cell in self.cells(model)])

    def contradictions(self) -> int:
        """Number of certified decisions that an attack changed."""
        return sum(cell["contradictions"] for model in self.config.models for cell in self.cells(model))


def cell_key(model: Model, seed: int) -> str:
    """Return the key of one training run in the run folder."""
    return f"{model.key}_seed={seed}"


def share_table(results: Results) -> Table:
    """Share of the states in per cent: certified in both ways, and not changed by the attack."""
    header = ("states", "policy", *(f"eps {eps:g}" for eps in results.config.eps))
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


def return_table(results: Results) -> Table:
    """Mean return under the attack of every decision."""
    header = ("policy", "eps 0", *(f"eps {eps:g}" for eps in results.config.eps))
    rows = []
    for model in results.config.models:
        columns = results.returns(model).swapaxes(0, 1)
        rows.append((model.label, *(format_interval(bootstrap_interval(column), 0) for column in columns)))
    return Table(header, tuple(rows))


def note(results: Results) -> str:
    """Say what was done."""
    config = results.config
    return (
        f"DQN on CartPole-v1, {len(config.training_seeds)} training seeds, the best policy of each learning curve, "
        f"{config.episodes} episodes. eps is the l2 norm of the error of the scaled observation (scale "
        f"{', '.join(f'{s:g}' for s in config.task.observation_scale)} in m, m/s, rad, rad/s), in every step anew. "
        f"Shares are of {config.attacked} visited states per policy, means over training seeds with 95 % bootstrap "
        "intervals. The certificate of the MLP is its LipSDP bound. The attack lowers the margin of the decision by "
        "projected gradients."
    )


def write(run: RunFolder) -> tuple[str, Path]:
    """Write tables and figure of a finished run into its folder.

    Args:
        run: The run folder.

    Returns:
        The tables as text, and the path of the figure.
    """
    results = Results(run)
    found = f"Certified decisions that the attack changed: {results.contradictions()}."
    sections = (
        f"# {run.name}\n\n{note(results)}",
        f"## Share of the states [%]\n\n{share_table(results).markdown()}\n\n{found}",
        f"## Return under attack, mean\n\n{return_table(results).markdown()}",
    )
    atomic_write_text(run.path / "tables.md", "\n\n".join(sections) + "\n")
    with style():
        figure = _figure(results)
    return f"{share_table(results).text()}\n{found}\n\n{return_table(results).text()}", figure


def _figure(results: Results) -> Path:
    config = results.config
    looks = appearances([model.label for model in config.models])
    fig, (left, right) = plt.subplots(1, 2, figsize=(11.5, 4.8))
    for model in config.models:
        for which, line in _LINES.items():
            _draw_share(results, model, which, line, looks[model.label].color, left)
    left.set(
        xscale="log",
        xlabel=r"size of the error $\varepsilon$ [scaled observation units]",
        ylabel="share of the decisions [%]",
        ylim=(-3.0, 103.0),
        title="Certified below attacked",
    )
    keys = [Line2D([], [], color="0.35", linestyle=_LINES[which], label=SHARES[which]) for which in SHARES]
    left.legend(handles=keys, loc="upper right", fontsize="small")
    curves = {model.label: results.returns(model) for model in config.models}
    return_against_eps((0.0, *config.eps), curves, ax=right, looks=looks, legend=False)
    right.set(
        xlabel=r"size of the error $\varepsilon$ [scaled observation units]",
        title="Return when every decision is attacked",
    )
    handles, labels = right.get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    path = results.run.figure("decisions.png")
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
