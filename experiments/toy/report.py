"""Tables and figure of the toy tightness experiment, from its run folder alone."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from experiments.toy.config import INITS, TITLES, Config, Model
from robustnn.report import (
    Table,
    atomic_write_text,
    bootstrap_interval,
    format_interval,
    format_number,
    save_figure,
    style,
)
from robustnn.runs import RunFolder

# Tightness in per cent at gamma: (paper, Table 1; an independent run of the published method), and its test error.
REFERENCE_TIGHTNESS = {
    "aol": {1.0: (77.2, 85.9), 5.0: (45.2, 44.6), 10.0: (47.9, 47.0)},
    "cayley": {1.0: (74.1, 76.6), 5.0: (72.8, 74.4), 10.0: (64.5, 63.8)},
    "sll": {1.0: (99.9, 99.9), 5.0: (90.5, 90.4), 10.0: (67.9, 67.7)},
    "sandwich": {1.0: (99.9, 100.0), 5.0: (99.3, 99.1), 10.0: (94.0, 94.3)},
}
REFERENCE_MSE = {
    "aol": {1.0: 0.095, 5.0: 0.032, 10.0: 0.0146},
    "cayley": {1.0: 0.0885, 5.0: 0.025, 10.0: 0.0142},
    "sll": {1.0: 0.064, 5.0: 0.017, 10.0: 0.0151},
    "sandwich": {1.0: 0.064, 5.0: 0.013, 10.0: 0.0073},
}
# Fields of a cell that say how steep a network is.
GAINS = ("gain", "constant")
# Colours for all kinds of colour vision (Okabe & Ito); the sandwich layer stands out.
COLORS = {"aol": "#e69f00", "cayley": "#56b4e9", "sll": "#009e73", "sandwich": "#d55e00"}
LINES: dict[str, Any] = {
    "aol": (0, (1, 1.2)),
    "cayley": (0, (4, 1.5, 1, 1.5)),
    "sll": (0, (5, 1.5)),
    "sandwich": "-",
}


class Results:
    """Read access to the cells of a run.

    Args:
        run: A run folder in which all tasks are done.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in run.config.items()}
        self.config = Config(**fields)

    def values(self, model: Model, name: str) -> np.ndarray:
        """One field of the cells of a model, seeds first."""
        return np.array([self.run.cell(f"{model.key}_seed={seed}")[name] for seed in self.config.seeds])

    def tightness(self, model: Model, name: str = "constant") -> np.ndarray:
        """Lipschitz constant ("constant"), gain found ("gain") or LipSDP bound ("lipsdp") in per cent of the bound."""
        return 100.0 * self.values(model, name) / model.gamma

    def gradient_factors(self, init: str) -> np.ndarray:
        """Gradient factor per layer before training, shape (n_seeds,)."""
        cells = [self.run.cell(f"gradient_init={init}_seed={seed}") for seed in self.config.seeds]
        return np.array([cell["factor"] for cell in cells])


def tightness_table(results: Results) -> Table:
    """Table 1 of the paper: one row per layer; paper, an earlier run, and this run at every bound."""
    gammas = results.config.gammas
    header = ["layer"]
    for gamma in gammas:
        header += [f"γ={gamma:g}: paper", "re-run", "search", "exact"]
    rows = []
    for layer in results.config.layers:
        row = [TITLES[layer]]
        for gamma in gammas:
            model = Model(layer, gamma)
            row += [_number(value, 1) for value in REFERENCE_TIGHTNESS[layer].get(gamma, (None, None))]
            row += [format_interval(bootstrap_interval(results.tightness(model, n)), 1) for n in GAINS]
        rows.append(tuple(row))
    return Table(tuple(header), tuple(rows))


def lipsdp_table(results: Results) -> Table:
    """LipSDP bound of the same networks in per cent of the bound they were trained with; none for SLL."""
    rows = []
    for layer in results.config.layers:
        models = [Model(layer, gamma) for gamma in results.config.gammas]
        values = [None if layer == "sll" else results.tightness(model, "lipsdp") for model in models]
        cells = ["-" if v is None else format_interval(bootstrap_interval(v), 1) for v in values]
        rows.append((TITLES[layer], *cells))
    return Table(("layer", *(f"γ={gamma:g}" for gamma in results.config.gammas)), tuple(rows))


def seed_table(results: Results) -> Table:
    """Every seed of the sandwich network at `init_gamma`: the constant between its bounds."""
    model = Model("sandwich", results.config.init_gamma)
    columns = [results.values(model, name) for name in (*GAINS, "lipsdp", "pieces", "test_mse")]
    rows = [
        (str(seed), *(_number(v, 4) for v in values[:3]), f"{int(values[3])}", _number(values[4], 4))
        for seed, *values in zip(results.config.seeds, *columns, strict=True)
    ]
    header = ("seed", "gain found", "Lipschitz constant", "LipSDP bound", "linear pieces", "test MSE")
    return Table(header, tuple(rows))


def form_table(results: Results) -> Table:
    """The sandwich network at `init_gamma` trained as this package does and layer by layer: the spread over seeds."""
    gamma = results.config.init_gamma
    paper = REFERENCE_TIGHTNESS["sandwich"][gamma][0]
    rows = []
    for layerwise, title in ((False, "as one function"), (True, "layer by layer")):
        values = results.tightness(Model("sandwich", gamma, layerwise=layerwise))
        rows.append(
            (
                title,
                format_interval(bootstrap_interval(values), 1),
                *(_number(value, 1) for value in (values.std(ddof=1), values.min(), values.max())),
                f"{int((values >= paper).sum())} of {len(values)}",
            )
        )
    header = (
        "trained",
        "tightness % (exact)",
        "s.d. over seeds",
        "least",
        "largest",
        f"at least {paper:g} %",
    )
    return Table(header, tuple(rows))


def error_table(results: Results) -> Table:
    """Test error of the same networks beside the reference, with the number of their parameters."""
    gammas = results.config.gammas
    header = ["layer", "parameters"]
    for gamma in gammas:
        header += [f"γ={gamma:g}: reference", "here"]
    rows = []
    for layer in results.config.layers:
        row = [TITLES[layer], f"{int(results.values(Model(layer, gammas[0]), 'parameters')[0]):,}"]
        for gamma in gammas:
            row.append(_number(REFERENCE_MSE[layer].get(gamma), 4))
            row.append(
                format_interval(bootstrap_interval(results.values(Model(layer, gamma), "test_mse")), 4)
            )
        rows.append(tuple(row))
    return Table(tuple(header), tuple(rows))


def init_table(results: Results) -> Table:
    """Initialisations of the sandwich network: gradient factor before training, and what training makes of it."""
    config = results.config
    rows = []
    for init in config.inits:
        model = Model("sandwich", config.init_gamma, init)
        rows.append(
            (
                INITS[init],
                format_interval(bootstrap_interval(results.gradient_factors(init)), 3),
                format_interval(bootstrap_interval(results.values(model, "train_mse")), 4),
                format_interval(bootstrap_interval(results.values(model, "test_mse")), 4),
                format_interval(bootstrap_interval(results.tightness(model)), 1),
            )
        )
    return Table(
        ("initialisation", "gradient factor per layer", "training MSE", "test MSE", "tightness % (exact)"),
        tuple(rows),
    )


def _number(value: float | None, decimals: int) -> str:
    return "-" if value is None else format_number(value, decimals)


def write(run: RunFolder) -> str:
    """Write tables and the figure of a finished run into its folder.

    Args:
        run: The run folder.

    Returns:
        The tables as text.
    """
    results = Results(run)
    config = results.config
    largest = max(results.tightness(model).max() for model in config.models)
    note = (
        f"After {config.epochs} epochs: mean over {len(config.seeds)} seeds (data, weights, batches, search) with the "
        "95 % bootstrap interval over seeds. Tightness is a share of the bound. Search: largest gain found by gradient "
        f"ascent, {config.restarts} x {config.pairs} pairs, {config.ascent_steps} Adam steps. Exact: the Lipschitz "
        "constant, from the slopes of all linear pieces. Both are of the float32 weights, evaluated in float64. The "
        f"largest exact value of all runs is {largest:.4f} %. Paper, re-run and reference (independent runs of the "
        "published method) are for 200 epochs."
    )
    sections = [
        ("Tightness in per cent (Table 1)", tightness_table(results)),
        ("LipSDP bound in per cent of γ", lipsdp_table(results)),
        (
            f"Sandwich network at γ={config.init_gamma:g}, every seed (output per input unit)",
            seed_table(results),
        ),
        ("Mean squared error on the test grid", error_table(results)),
        (
            f"Initialisation of the sandwich network (γ={config.init_gamma:g}; gradient factor at "
            f"{config.init_depth} hidden layers, before training)",
            init_table(results),
        ),
    ]
    if config.layerwise:
        sections.append(
            (f"Sandwich network at γ={config.init_gamma:g}: spread over seeds", form_table(results))
        )
    markdown = "\n\n".join(f"## {title}\n\n{table.markdown()}" for title, table in sections)
    atomic_write_text(run.path / "tables.md", f"# {run.name}\n\n{note}\n\n{markdown}\n")
    with style():
        _figure(results)
    return "\n\n".join(f"{title}\n{table.text()}" for title, table in sections)


def _figure(results: Results) -> None:
    gammas = results.config.gammas
    fig, axes = plt.subplots(
        2,
        len(gammas),
        figsize=(max(4.3 * len(gammas), 6.4), 6.8),
        sharey="row",
        squeeze=False,
        height_ratios=(1.5, 1.0),
    )
    for column, gamma in zip(axes.T, gammas, strict=True):
        draw_fits(results, gamma, column[0])
        draw_tightness(results, gamma, column[1])
    axes[0, 0].set_ylabel("y")
    axes[1, 0].set_ylabel("tightness [%]")
    fig.suptitle(
        "Fits of a step function (mean and range over seeds)\nand the share of the bound in use (each seed, mean)"
    )
    handles: list[Any] = []
    labels: list[str] = []
    for ax in axes[:, 0]:
        own_handles, own_labels = ax.get_legend_handles_labels()
        handles += own_handles
        labels += own_labels
    fig.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    save_figure(fig, results.run.figure("fits.png"))
    plt.close(fig)


def draw_fits(results: Results, gamma: float, ax: Axes) -> None:
    """Draw the outputs of all layers at one bound over x: mean and range over seeds, and the target."""
    x = np.linspace(-2.0, 2.0, results.config.n_test)
    ax.plot([-2, -1, -1, 0, 0, 1, 1, 2], [1, 1, 0, 0, 1, 1, 0, 0], color="0.2", linewidth=1.0, label="target")
    for layer in results.config.layers:
        outputs = results.values(Model(layer, gamma), "prediction")
        ax.fill_between(x, outputs.min(0), outputs.max(0), color=COLORS[layer], alpha=0.16, linewidth=0)
        ax.plot(x, outputs.mean(0), color=COLORS[layer], linestyle=LINES[layer], label=TITLES[layer])
    ax.set(title=f"γ = {gamma:g}", xlabel="x")


def draw_tightness(results: Results, gamma: float, ax: Axes) -> None:
    """Draw the tightness of all layers at one bound: every seed, the mean, the LipSDP bound, and the bound itself."""
    ax.axhline(100.0, color="0.2", linewidth=1.0)
    label = "LipSDP bound (mean)"
    for place, layer in enumerate(results.config.layers):
        values = results.tightness(Model(layer, gamma))
        ax.bar(place, values.mean(), width=0.62, color=COLORS[layer], alpha=0.45)
        if layer != "sll":
            mean = results.tightness(Model(layer, gamma), "lipsdp").mean()
            ax.plot([place - 0.31, place + 0.31], [mean, mean], color="0.2", linestyle="--", label=label)
            label = "_"
        offsets = np.linspace(-0.18, 0.18, len(values))
        ax.plot(place + offsets, values, "o", color=COLORS[layer], markersize=4.0)
    ax.set_xticks(
        range(len(results.config.layers)), [TITLES[layer].split(" ")[0] for layer in results.config.layers]
    )
    ax.grid(axis="x", visible=False)
    ax.set_xlim(-0.6, len(results.config.layers) - 0.4)
    ax.set_ylim(0.0, 108.0)
