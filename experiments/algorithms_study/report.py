"""Tables and figures of the comparison of algorithms, from its run folder alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray

from experiments.algorithms_study.config import Config, Model, Task
from robustnn.report import (
    Interval,
    Table,
    appearances,
    atomic_write_text,
    bootstrap_interval,
    format_interval,
    format_number,
    paired_difference,
    return_against_eps,
    save_figure,
    style,
)
from robustnn.runs import RunFolder

# What is compared: keys of `Results.returns`, and their titles.
COLUMNS = {"half": "second half of training", "best": "best policy", "last": "last policy"}


class Results:
    """Read access to the cells of a run.

    Args:
        run: A run folder in which all tasks are done.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self.config = Config.of(run.config)

    def cells(self, task: Task, model: Model) -> list[dict[str, Any]]:
        """What `train` returned, one entry per training seed."""
        return [self.run.cell(cell_key(task, model, seed)) for seed in self.config.training_seeds]

    def curve(self, task: Task, model: Model) -> NDArray[np.float64]:
        """Returns along training, shape (n_seeds, n_points, n_episodes)."""
        return np.array([cell["curve"] for cell in self.cells(task, model)])

    def returns(self, task: Task, model: Model, which: str) -> NDArray[np.float64]:
        """Returns of a key of `COLUMNS`, shape (n_seeds, n_episodes)."""
        if which == "half":
            curve = self.curve(task, model)
            half = curve[:, curve.shape[1] // 2 :]
            return half.reshape(len(half), -1)
        return np.array([cell[which] for cell in self.cells(task, model)])

    def difference(self, task: Task, model: Model, which: str) -> Interval:
        """IQM of the return of a policy minus that of the MLP, with its 95 % interval over training seeds."""
        first, second = (self.returns(task, m, which) for m in (model, task.models[0]))
        return paired_difference(first, second, "iqm")


def cell_key(task: Task, model: Model, seed: int) -> str:
    """Return the key of one training run in the run folder."""
    return f"{task.key}_{model.key}_seed={seed}"


def return_table(results: Results, statistic: str) -> Table:
    """Return of every policy, with its 95 % interval over training seeds."""
    rows = []
    for task in results.config.tasks:
        for model in task.models:
            returns = [results.returns(task, model, which) for which in COLUMNS]
            cells = [format_interval(bootstrap_interval(r, statistic), 1) for r in returns]
            rows.append((task.label, model.label, *cells))
    return Table(("task", "policy", *COLUMNS.values()), tuple(rows))


def difference_table(results: Results) -> Table:
    """IQM of the return of the bounded policies minus that of the MLP; "below" where the interval says so."""
    rows = []
    for task in results.config.tasks:
        for model in task.models[1:]:
            found = [results.difference(task, model, which) for which in COLUMNS]
            cells = [format_interval(d, 1) + (" below" if d.high < 0.0 else "") for d in found]
            rows.append((task.label, model.label, *cells))
    return Table(("task", "policy", *COLUMNS.values()), tuple(rows))


def bound_table(results: Results) -> Table:
    """Bounds of the trained policies and wall times, means over seeds."""
    header = ("task", "policy", "bound, scaled obs.", "bound, raw obs.", "training time [s]")
    rows = []
    for task in results.config.tasks:
        for model in task.models:
            cells = results.cells(task, model)
            kind = "LipSDP" if model.lipschitz is None else "gamma"
            scaled, raw, seconds = (
                format_number(float(np.mean([cell[name] for cell in cells])), 1)
                for name in ("bound", "bound_raw", "seconds")
            )
            rows.append((task.label, model.label, f"{scaled} ({kind})", raw, seconds))
    return Table(header, tuple(rows))


def write(run: RunFolder) -> tuple[str, Path]:
    """Write tables and figures of a finished run into its folder.

    Args:
        run: The run folder.

    Returns:
        The tables as text, and the path of the figure.
    """
    results = Results(run)
    config = results.config
    widths = ", ".join(str(width) for width in config.hidden)
    note = (
        f"Networks ({widths}), {len(config.training_seeds)} training seeds, deterministic policies, the same start "
        f"states for every policy. Second half of training: all evaluations of the learning curve "
        f"({config.curve_episodes} episodes each) in that half. Best policy: the best of the learning curve, as "
        f"`EvalCallback` of SB3 would keep it, on {config.episodes} other episodes. Last policy: after training, on "
        f"the same {config.episodes} episodes. Intervals are 95 % bootstrap intervals over training seeds (percentile "
        "intervals of few seeds tend to be narrow). Bounds, and the learning rate of DQN, were chosen in a pilot with "
        "other training seeds."
    )
    difference, bounds = difference_table(results), bound_table(results)
    sections = (
        f"# {run.name}\n\n{note}",
        f"## Return, interquartile mean\n\n{return_table(results, 'iqm').markdown()}",
        f"## Return, mean\n\n{return_table(results, 'mean').markdown()}",
        '## Return minus that of the MLP, interquartile mean\n\n"below" marks an interval wholly below zero.\n\n'
        f"{difference.markdown()}",
        "## Lipschitz bound of the last policy, and time\n\nOf the action, the logits or the Q-values per scaled and "
        "per raw observation (plain l2). Times are those of two processes on one machine at once, without the "
        f"evaluations.\n\n{bounds.markdown()}",
    )
    atomic_write_text(run.path / "tables.md", "\n\n".join(sections) + "\n")
    with style():
        figure = _curves_figure(results)
    shown = (
        f"Return, interquartile mean\n{return_table(results, 'iqm').text()}",
        f"Return minus that of the MLP\n{difference.text()}",
        bounds.text(),
    )
    return "\n\n".join(shown), figure


def _curves_figure(results: Results) -> Path:
    tasks = results.config.tasks
    rows = -(-len(tasks) // 2)
    fig, axes = plt.subplots(rows, 2, figsize=(11.0, 4.2 * rows), squeeze=False)
    for ax, task in zip(axes.flat, tasks, strict=False):
        curves = {model.label: results.curve(task, model) for model in task.models}
        thousands = [point / 1000 for point in task.points]
        return_against_eps(
            thousands, curves, ax=ax, statistic="iqm", looks=appearances(curves), legend=False,
            xlabel="environment steps [thousands]", ylabel="return per episode, IQM",
        )  # fmt: skip
        ax.legend(loc="lower right")
        ax.set_title(task.label)
    for ax in axes.flat[len(tasks) :]:
        ax.remove()
    fig.suptitle(
        f"Learning curves, {len(results.config.training_seeds)} training seeds: interquartile mean and 95 % interval"
    )
    path = results.run.figure("learning_curves.png")
    save_figure(fig, path)
    plt.close(fig)
    return path
