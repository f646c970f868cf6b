"""Tables and figure of the experiment on images, from its run folder alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from experiments.classification_study.config import LAYERS, Config, Model
from experiments.classification_study.published import BESIDE
from robustnn.report import (
    Interval,
    Table,
    atomic_write_text,
    bootstrap_interval,
    format_interval,
    save_figure,
    style,
)
from robustnn.runs import RunFolder

_LINES: dict[str, Any] = {"certified": "--", "attacked": "-"}
_WORDS = {"certified": "certified", "attacked": "correct after the attack"}


class Results:
    """Read access to the cells of a run.

    Args:
        run: A run folder in which all tasks are done.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self.config = Config.of(run.config)
        keys = {(m, s): cell_key(m, s) for m in self.config.models for s in self.config.training_seeds}
        self._cells: dict[tuple[Model, int], dict[str, Any]] = {
            who: run.cell(key) for who, key in keys.items()
        }

    def values(self, model: Model, name: str) -> NDArray[np.float64]:
        """Return an entry of `train.measure` per seed, (n_seeds,) or (n_seeds, n_eps); NaN for none."""
        cells = [self._cells[model, seed][name] for seed in self.config.training_seeds]
        return np.array([np.nan if cell is None else cell for cell in cells], dtype=np.float64)


def cell_key(model: Model, seed: int) -> str:
    """Return the key of one training in the run folder."""
    return f"{model.key}_seed={seed}"


def share_table(results: Results) -> Table:
    """Return accuracy, certified accuracy and accuracy after the attack in per cent, with intervals over seeds."""
    sizes = [f"{round(255 * eps)}" for eps in results.config.eps]
    header = (
        "network", "γ", "test", *(f"certified {size}" for size in sizes), *(f"attacked {size}" for size in sizes)
    )  # fmt: skip
    rows = []
    for model in results.config.models:
        columns = [results.values(model, "accuracy"), *results.values(model, "certified").T]
        columns += [*results.values(model, "attacked").T]
        gamma = "none" if model.gamma is None else f"{model.gamma:g}"
        rows.append((LAYERS[model.layer], gamma, *map(_per_cent, columns)))
    return Table(header, tuple(rows))


def bound_table(results: Results) -> Table:
    """Return parameters, bounds, what the declared bound alone certifies at the first eps, and the time of training."""
    size = round(255 * results.config.eps[0])
    header = ("network", "γ", "parameters", "proved bound", f"certified {size} by γ alone", "training [s]")
    rows = []
    for model in results.config.models:
        declared = results.values(model, "certified_declared")[:, 0]
        rows.append((
            LAYERS[model.layer],
            "none" if model.gamma is None else f"{model.gamma:g}",
            f"{int(results.values(model, 'parameters')[0]):,}",
            f"{results.values(model, 'proved_bound').max():.4g}",
            "-" if model.gamma is None else _per_cent(declared),
            f"{np.median(results.values(model, 'seconds')):.0f}",
        ))  # fmt: skip
    return Table(header, tuple(rows))


def autoattack_table(results: Results) -> Table | None:
    """Return accuracies after AutoAttack in per cent, or None if it did not run."""
    rows = []
    for model in results.config.models:
        values = results.values(model, "autoattack")
        if values.ndim == 2 and np.isfinite(values).all():
            rows.append((model.label, *map(_per_cent, values.T)))
    header = ("network", *(f"AutoAttack {round(255 * eps)}" for eps in results.config.eps))
    return Table(header, tuple(rows)) if rows else None


def note(results: Results) -> str:
    """Return in words what was done."""
    config = results.config
    many = len(config.training_seeds)
    pieces = [
        f"Data set `{config.dataset}`, network {config.network}, {config.epochs} epochs, batch {config.batch}, "
        f"loss `{config.loss}`, {many} training seed{'s' if many > 1 else ''}"
        + (", widths scaled to equal numbers of parameters." if config.equal_parameters else "."),
        "Sizes are l2 norms in 255ths of the range of a pixel, shares of the test images in per cent"
        + (", with 95 % bootstrap intervals over seeds." if many > 1 else "."),
        "Certified: by the smaller of γ and the bound proved from the float32 weights, in float64. Attacked: projected "
        f"gradients, {config.attack_iterations} steps, up to {config.attack_restarts} starts, on images that are not "
        "certified; certified ones are attacked once, and none of them changed.",
    ]
    return " ".join(pieces)


def sections(results: Results) -> list[tuple[str, str]]:
    """Return titles and texts of all tables, those of other programs last."""
    found = [
        ("Test accuracy, certified and attacked [%]", share_table(results).markdown()),
        ("Bounds and cost", bound_table(results).markdown()),
    ]
    automatic = autoattack_table(results)
    if automatic is not None:
        found.append(("AutoAttack, first 1,000 test images [%]", automatic.markdown()))
    beside = BESIDE.get(results.config.dataset, ())
    found += [("Published [%]", table.markdown()) for table in beside]
    return found


def write(run: RunFolder) -> tuple[str, Path]:
    """Write tables and figure of a finished run into its folder.

    Args:
        run: The run folder.

    Returns:
        The tables as text, and the path of the figure.
    """
    results = Results(run)
    parts = [f"# {run.name}\n\n{note(results)}"]
    parts += [f"## {title}\n\n{text}" for title, text in sections(results)]
    atomic_write_text(run.path / "tables.md", "\n\n".join(parts) + "\n")
    with style():
        figure = _figure(results)
    return f"{share_table(results).text()}\n\n{bound_table(results).text()}", figure


def _figure(results: Results) -> Path:
    config = results.config
    gammas = config.gammas or (None,)
    colors = {layer: f"C{k}" for k, layer in enumerate(LAYERS)}
    fig, axes = plt.subplots(1, len(gammas), figsize=(6.0 * len(gammas), 4.8), squeeze=False, sharey=True)
    for gamma, ax in zip(gammas, axes[0], strict=True):
        for model in config.models:
            if model.gamma in (None, gamma):
                _draw(results, model, colors[model.layer], ax)
        ax.set(
            xlabel=r"size of the perturbation $\varepsilon$, l2 [1/255]", ylabel="share of the test images [%]",
            ylim=(-3.0, 103.0), title=f"bound γ = {gamma:g}" if gamma is not None else "no bound",
        )  # fmt: skip
    keys = [Line2D([], [], color="0.35", linestyle=_LINES[which], label=_WORDS[which]) for which in _LINES]
    axes[0, 0].legend(handles=keys, loc="lower left", fontsize="small")
    colours = [Line2D([], [], color=colors[layer], label=LAYERS[layer]) for layer in config.layers]
    fig.legend(handles=colours, loc="outside lower center", ncols=min(4, len(colours)))
    path = results.run.figure("classification.png")
    save_figure(fig, path)
    plt.close(fig)
    return path


def _draw(results: Results, model: Model, color: str, ax: Axes) -> None:
    sizes = [0.0, *(255 * eps for eps in results.config.eps)]
    for which, line in _LINES.items():
        columns = [results.values(model, "accuracy"), *results.values(model, which).T]
        intervals = [_interval(100.0 * column) for column in columns]
        ax.plot(sizes, [one.estimate for one in intervals], line, color=color)
        low, high = ([getattr(one, name) for one in intervals] for name in ("low", "high"))
        ax.fill_between(sizes, low, high, color=color, alpha=0.12, linewidth=0)


def _interval(values: NDArray[np.float64]) -> Interval:
    if len(values) == 1:
        return Interval(float(values[0]), float(values[0]), float(values[0]))
    return bootstrap_interval(values)


def _per_cent(values: NDArray[np.float64]) -> str:
    interval = _interval(100.0 * values)
    return f"{interval.estimate:.1f}" if len(values) == 1 else format_interval(interval, 1)
