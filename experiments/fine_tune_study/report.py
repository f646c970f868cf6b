"""Tables and the figure of the study of fine-tuning, from its run folder alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.lines import Line2D

from experiments.fine_tune_study.config import PLAYED, START, lowered
from experiments.fine_tune_study.results import Results
from experiments.robustness_study.config import ATTACKS, Method
from experiments.robustness_study.results import WORST
from robustnn.report import (
    Appearance,
    Table,
    atomic_write_text,
    bootstrap_interval,
    format_interval,
    format_number,
    robustness_frontier,
    save_figure,
    style,
)
from robustnn.runs import RunFolder

NAME = "fine_tune"
_BLOCKS = ("fine-tune", "fine-tune-attacks", "fine-tune-course")
_NONE = "No results are committed; `python -m experiments.fine_tune` makes them."
_LOWERED, _GAME = "LBDN, bound lowered by PPO", "the same, then gradients through the plant"
_LOOKS = {
    "MLP agent": Appearance("#000000", "s"),
    "MLP agent, trained on": Appearance("#7a7a7a", "D"),
    "LBDN at its first bound, gradients through the plant": Appearance("#009e73", "P"),
    _LOWERED: Appearance("#0072b2", "o"),
    _GAME: Appearance("#d55e00", "^"),
}


def trade_table(results: Results) -> Table:
    """One row per policy: bound, returns, and what was bought for what was lost."""
    rows = []
    sizes = results.config.eps
    for method in results.config.methods:
        cells = [_bound_text(results, method), format_interval(results.interval(method), 1)]
        for eps in sizes:
            cells.append(format_interval(results.interval(method, WORST, eps), 0))
        cells.append("" if method == START else format_interval(results.trade(method, sizes[0]).lost, 1))
        for eps in sizes:
            cells.append("" if method == START else _trade_text(results, method, eps))
        rows.append((_title(method), *cells))
    header = (
        "policy", "bound, median", "nominal", *(f"attacked, eps {eps:g}" for eps in sizes), "nominal lost",
        *(f"bought, eps {eps:g} (per unit lost)" for eps in sizes),
    )  # fmt: skip
    return Table(header, tuple(rows))


def attack_table(results: Results, eps: float) -> Table:
    """Mean return under every attack at one size."""
    attacks = (*results.config.attacks, WORST)
    rows = [
        (_title(method), *(format_number(float(results.returns(method, a, eps).mean())) for a in attacks))
        for method in results.config.methods
    ]
    titles = (*(ATTACKS[attack] for attack in results.config.attacks), "strongest, per episode")
    return Table(("policy", *titles), tuple(rows))


def course_table(results: Results) -> Table:
    """Constants of the policies, of the action per raw observation, by proof and by ascent."""
    rows = []
    for method in results.config.methods:
        facts = results.facts(method)
        certified, empirical = (bootstrap_interval(facts[name]) for name in ("certified", "empirical"))
        rows.append((_title(method), format_interval(certified, 1), format_interval(empirical, 1)))
    return Table(("policy", "certified constant", "found by ascent"), tuple(rows))


def note(results: Results) -> str:
    """Say what was done."""
    config, study = results.tuning, results.config
    seconds = [sum(chain["seconds"].values()) for chain in results.chains()]
    return (
        f"{study.plant}: {len(config.training_seeds)} agents x {study.episodes} episodes, the same start states for "
        f"all policies, 95 % bootstrap intervals over agents. PPO for {study.timesteps} steps, then "
        f"{config.level_steps} from one bound to the next, the bound falling over the first "
        f"{100 * config.fall:g} % of them (step size {config.learning_rate:g} instead of "
        f"{study.ppo['learning_rate']:g}). Bounds are of the action per observation in units of "
        f"{', '.join(f'{s:g}' for s in study.observation_scale)}. Attacked: the least return of each episode over "
        f"{', '.join(ATTACKS[a] for a in study.attacks)}, errors of l2 size eps of the raw observation at every step. "
        "Lost and bought are paired differences to the MLP agent that a policy came from; the rate is given where the "
        f"interval of the loss lies above zero. Training of one agent through all bounds: {np.mean(seconds):.0f} s."
    )


def blocks(folder: Path) -> dict[str, str]:
    """Return the blocks of the document by name.

    Args:
        folder: Where the run folder `fine_tune` is, if there is one.

    Returns:
        Markdown text of every block.
    """
    if not (folder / NAME / "tables.md").exists():
        return dict.fromkeys(_BLOCKS, _NONE)
    results = Results(RunFolder.open(folder / NAME))
    picture = f"![Returns along the falling bound](../experiments/results/{NAME}/figures/frontier.png)"
    return {
        "fine-tune": f"{note(results)}\n\n{trade_table(results).markdown()}\n\n{picture}",
        "fine-tune-attacks": attack_table(results, results.config.eps[-1]).markdown(),
        "fine-tune-course": course_table(results).markdown(),
    }


def write(run: RunFolder) -> tuple[str, Path]:
    """Write tables and the figure of a finished run into its folder.

    Args:
        run: The run folder.

    Returns:
        The main table as text, and the path of the figure.
    """
    results = Results(run)
    trade = trade_table(results)
    sections = [
        f"# {run.name}\n\n{note(results)}",
        f"## What was bought, and what it cost\n\n{trade.markdown()}",
        *(
            f"## Mean return under every attack, eps {eps:g}\n\n{attack_table(results, eps).markdown()}"
            for eps in results.config.eps
        ),
        f"## Constants, per raw observation\n\n{course_table(results).markdown()}",
    ]
    atomic_write_text(run.path / "tables.md", "\n\n".join(sections) + "\n")
    with style():
        figure = frontier_figure(results)
    return trade.text(), figure


def frontier_figure(results: Results) -> Path:
    """Draw nominal and attacked return of all policies, in the order of their bounds."""
    config = results.tuning
    groups = dict(
        zip(
            _LOOKS,
            (
                [START],
                [config.longer],
                [PLAYED],
                [lowered(gamma) for gamma in config.levels],
                [lowered(gamma, game=True) for gamma in config.played],
            ),
            strict=True,
        )
    )
    sizes = results.config.eps
    fig, axes = plt.subplots(1, len(sizes), figsize=(max(8.0, 6.2 * len(sizes)), 6.0), squeeze=False)
    for ax, eps in zip(axes[0], sizes, strict=True):
        _panel(ax, results, groups, eps)
    fig.suptitle(f"{results.config.plant}: trained agents under a falling bound, mean and 95 % interval")
    handles = [
        Line2D([], [], color=look.color, marker=look.marker, linestyle=":", label=label)
        for label, look in _LOOKS.items()
    ]
    fig.legend(handles=handles, loc="outside lower center", ncols=2, fontsize="small")
    path = results.run.figure("frontier.png")
    save_figure(fig, path)
    plt.close(fig)
    return path


def _panel(ax: Any, results: Results, groups: dict[str, list[Method]], eps: float) -> None:
    methods = [method for group in groups.values() for method in group]
    looks = {_title(m): _LOOKS[label] for label, group in groups.items() for m in group}
    robustness_frontier(
        {_title(m): results.returns(m) for m in methods},
        {_title(m): results.returns(m, WORST, eps) for m in methods},
        ax=ax, looks=looks, legend=False,
    )  # fmt: skip
    for label, group in groups.items():
        places = [(results.interval(m).estimate, results.interval(m, WORST, eps).estimate) for m in group]
        x, y = zip(*places, strict=True)
        ax.plot(x, y, linestyle=":", linewidth=1.2, color=_LOOKS[label].color)
        for method, place in zip(group, places, strict=True):
            if method.lipschitz is not None:
                ax.annotate(
                    f"{method.lipschitz:g}", place, xytext=(6, 5), textcoords="offset points", fontsize=9
                )
    ax.set_title(f"eps {eps:g}; numbers are bounds γ")


def _title(method: Method) -> str:
    """Name of a policy in tables."""
    if method == START:
        return "MLP agent"
    if method.network == "mlp":
        return f"MLP agent, {method.steps:g}× steps"
    bound = "first bound" if method.lipschitz is None else f"γ={method.lipschitz:g}"
    return f"LBDN, {bound}" + (", then game" if method.training else "")


def _bound_text(results: Results, method: Method) -> str:
    if method.network == "mlp":
        return "-"
    if method.lipschitz is not None:
        return f"{method.lipschitz:g}"
    return f"{np.median([chain['first'] for chain in results.chains()]):.3g}"


def _trade_text(results: Results, method: Method, eps: float) -> str:
    trade = results.trade(method, eps)
    rate = trade.rate
    return format_interval(trade.bought, 0) + ("" if rate is None else f" ({format_number(rate, 1)})")
