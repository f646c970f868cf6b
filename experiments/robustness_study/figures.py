"""Figures of the robustness study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from experiments.robustness_study.results import COMMON, Results
from robustnn.report import appearances, return_against_eps, robustness_frontier, save_figure

# A method solves the task if its nominal return is not more than this share of the best one's below it.
_SOLVED = 0.6
# Returns that lie further below the best one than this multiple of its size are cut off.
_CUT = 6.0


def curves_figure(results: Results) -> Path:
    """Draw the compared methods against the size of the errors."""
    methods = [results.config.methods[k] for k in (results.config.recipe, *results.config.controls)]
    methods += [results.config.methods[k] for k in results.config.twins]
    curves = {method.label: results.curve(method) for method in methods}
    fig, ax = plt.subplots(figsize=(8.6, 5.4))
    return_against_eps(
        (0.0, *results.config.eps), curves, ax=ax, looks=appearances(curves), legend=False,
        ylabel="return per episode, worst of all attacks",
    )  # fmt: skip
    best = max(float(results.returns(method).mean()) for method in methods)
    floor = best - _CUT * abs(best)
    cut = ax.get_ylim()[0] < floor
    if cut:
        ax.set_ylim(bottom=floor)
    ax.set_title(
        f"{results.config.plant}: mean and 95 % interval over training seeds"
        + (f" (cut at {floor:.0f})" if cut else "")
    )
    handles, labels = ax.get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=2, fontsize="small")
    return _save(results, fig, "returns")


def frontier_figure(results: Results) -> Path:
    """Draw the methods that solve the task by nominal return and return under the worst attack."""
    config = results.config
    sizes = [eps for eps in config.eps if eps >= config.claimed_from][:3]
    looks = appearances([method.label for method in config.methods])
    nominal = {method: float(results.returns(method).mean()) for method in config.methods}
    best = max(nominal.values())
    shown = [method for method, mean in nominal.items() if mean >= best - _SOLVED * abs(best)]
    fig, axes = plt.subplots(1, len(sizes), figsize=(4.9 * len(sizes), 5.6), sharey=True, squeeze=False)
    for ax, eps in zip(axes[0], sizes, strict=True):
        robustness_frontier(
            {m.label: results.returns(m) for m in shown},
            {m.label: results.returns(m, COMMON, eps) for m in shown},
            ax=ax, looks=looks, legend=False,
        )  # fmt: skip
        ax.set_title(f"eps {eps:g}")
    low = min(results.interval(m, COMMON, eps).low for m in shown for eps in sizes)
    axes[0, 0].set_ylim(low - 0.05 * abs(low), best + 0.4 * abs(best))
    for ax in axes[0, 1:]:
        ax.set_ylabel("")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=4, fontsize="x-small")
    fig.suptitle(
        f"{config.plant}: return without errors and under the worst of the common attacks, methods that solve it"
    )
    return _save(results, fig, "frontier")


def gamma_figure(results: Results) -> None:
    """Draw the returns of LBDN policies against their bound, beside those of the MLP."""
    config = results.config
    methods = sorted((m for m in config.bounded if not m.normalised), key=lambda m: m.lipschitz or 0.0)
    control = next(m for m in config.methods if m.network == "mlp" and not m.training and m.steps == 1.0)
    gammas = [m.lipschitz or 0.0 for m in methods]
    sizes = (0.0, *config.eps)
    colors = plt.get_cmap("viridis")(np.linspace(0.0, 0.9, len(sizes)))
    fig, ax = plt.subplots(figsize=(7.4, 5.0))
    for eps, color in zip(sizes, colors, strict=True):
        estimate, low, high = np.array([results.interval(m, COMMON, eps) for m in methods]).T
        ax.plot(gammas, estimate, "o-", color=color, label=f"eps {eps:g}" if eps else "no perturbation")
        ax.fill_between(gammas, low, high, color=color, alpha=0.15, linewidth=0)
        ax.axhline(results.interval(control, COMMON, eps).estimate, color=color, linestyle=":", linewidth=1.2)
    ax.set(
        xscale="log",
        xlabel="Lipschitz bound γ [action per scaled observation unit]",
        ylabel="return per episode, worst of the common attacks",
        title="LBDN, PPO alone; dotted: MLP, PPO alone",
    )
    ax.set_xticks(gammas, [f"{gamma:g}" for gamma in gammas])
    ax.minorticks_off()
    handles, labels = ax.get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    _save(results, fig, "gamma")


def _save(results: Results, fig: Any, name: str) -> Path:
    path = results.run.figure(f"{name}.png")
    save_figure(fig, path)
    plt.close(fig)
    return path
