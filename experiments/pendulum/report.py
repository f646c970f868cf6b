"""Tables and figures of the pendulum robustness experiment, from its run folder alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from experiments.pendulum.config import ATTACK_TITLES, Config, Model
from robustnn.report import (
    Table,
    action_sensitivity,
    appearances,
    atomic_write_text,
    attack_convergence,
    bootstrap_interval,
    format_interval,
    format_number,
    lipschitz_bars,
    paired_difference,
    phase_portrait,
    return_against_eps,
    save_figure,
    style,
)
from robustnn.runs import RunFolder

ACTION_RANGE = 2.0
FAILED = -500.0
# A pendulum that hangs still collects -1974: curves and intervals below this are cut, and the tables have them.
AXIS_FLOOR = -2000.0
WORST = "worst"
TITLES = {**ATTACK_TITLES, WORST: "worst of all, per episode"}


class Results:
    """Read access to the cells of a run.

    Args:
        run: A run folder in which all tasks are done.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in run.config.items()}
        self.config = Config(**fields)
        self.looks = appearances([model.label for model in self.config.models])

    def returns(self, model: Model, steps: int, attack: str, eps: float) -> np.ndarray:
        """Returns, shape (n_seeds, n_episodes); of the attack `WORST`, the least return of each episode."""
        if attack == WORST:
            return np.min([self.returns(model, steps, name, eps) for name in self.config.attacks], axis=0)
        key = f"returns_{model.key}_steps={steps}_{attack}_eps={eps:g}"
        return np.array(self.run.cell(key)["returns"])

    def curve(self, model: Model, steps: int, attack: str) -> np.ndarray:
        """Returns from eps = 0 on, shape (n_seeds, 1 + n_eps, n_episodes)."""
        parts = [self.returns(model, steps, "none", 0.0)]
        parts += [self.returns(model, steps, attack, eps) for eps in self.config.eps]
        return np.stack(parts, axis=1)

    def constants(self, model: Model, steps: int) -> dict[str, Any]:
        """Certified and empirical constants and action changes."""
        cell: dict[str, Any] = self.run.cell(f"constants_{model.key}_steps={steps}")
        return cell

    def convergence(self, model: Model, steps: int, eps: float) -> np.ndarray:
        """Mean window return against iterations of the strong attack, shape (n_seeds, iterations + 1)."""
        key = f"returns_{model.key}_steps={steps}_strong_eps={eps:g}"
        return np.array(self.run.cell(key)["convergence"]).T


def budget(steps: int) -> str:
    """Write a number of environment steps shortly: 0.5M, 4M, 300k."""
    return f"{steps / 1e6:g}M" if steps >= 500_000 else f"{steps / 1e3:g}k"


def return_table(results: Results, steps: int, attacks: Sequence[str], statistic: str = "mean") -> Table:
    """Return with its 95 % interval: one row per attack and model, one column per eps."""
    config = results.config
    header = ("attack", "policy", "eps 0", *(f"eps {eps:g}" for eps in config.eps))
    rows = []
    for attack in attacks:
        for model in config.models:
            curve = results.curve(model, steps, attack)
            cells = [
                format_interval(bootstrap_interval(curve[:, k], statistic), 0) for k in range(curve.shape[1])
            ]
            rows.append((TITLES[attack], model.label, *cells))
    return Table(header, tuple(rows))


def constant_table(results: Results) -> Table:
    """Certified and empirical Lipschitz constants, raw observation to action, means over seeds."""
    rows = []
    for steps in results.config.timesteps:
        for model in results.config.models:
            cell = results.constants(model, steps)
            kind = "LipSDP" if model.lipschitz is None else "gamma"
            certified = format_number(float(np.mean(cell["certified"])), 1)
            empirical = format_interval(bootstrap_interval(cell["empirical"]), 2)
            rows.append((budget(steps), model.label, f"{certified} ({kind})", empirical))
    return Table(("training", "policy", "certified", "found by gradient ascent"), tuple(rows))


def failed_seeds(results: Results) -> list[str]:
    """Training runs whose policy collects less than `FAILED` without perturbation, in words."""
    found = []
    for steps in results.config.timesteps:
        for model in results.config.models:
            means = results.returns(model, steps, "none", 0.0).mean(axis=1)
            found += [
                f"{model.label}, seed {seed}, {budget(steps)} steps: {mean:.0f}"
                for seed, mean in zip(results.config.training_seeds, means, strict=True)
                if mean < FAILED
            ]
    return found


def attack_check_table(results: Results) -> Table:
    """Sanity of the attacks: below the random-noise floor, and monotone in eps, judged by paired intervals.

    A violation is a 95 % interval of the paired difference (over training seeds, same episodes) that lies
    wholly on the wrong side of zero.
    """
    config = results.config
    rows = []
    for attack in config.attacks:
        above_noise, rising, comparisons, steps_up = 0, 0, 0, 0
        for steps in config.timesteps:
            for model in config.models:
                curve = results.curve(model, steps, attack)
                floor = results.curve(model, steps, "uniform") if "uniform" in config.attacks else None
                for k in range(1, curve.shape[1]):
                    rising += paired_difference(curve[:, k], curve[:, k - 1]).low > 0.0
                    steps_up += 1
                    if floor is not None and attack not in ("uniform", "gaussian"):
                        above_noise += paired_difference(curve[:, k], floor[:, k]).low > 0.0
                        comparisons += 1
        against_noise = f"{above_noise} of {comparisons}" if comparisons else "-"
        rows.append((TITLES[attack], against_noise, f"{rising} of {steps_up}"))
    return Table(("attack", "weaker than uniform noise", "return rises with eps"), tuple(rows))


def write(run: RunFolder) -> tuple[str, Path]:
    """Write tables and figures of a finished run into its folder.

    Args:
        run: The run folder.

    Returns:
        The main table as text, and the path of the summary figure.
    """
    results = Results(run)
    config = results.config
    sections = []
    attacks = (*config.attacks, WORST)
    for statistic, name in (
        ("mean", "Mean return"),
        ("iqm", "Interquartile mean of the return"),
        ("worst_decile", "Mean return of the worst tenth of the episodes"),
    ):
        for steps in config.timesteps:
            table = return_table(results, steps, attacks, statistic)
            sections.append(f"## {name} after {budget(steps)} training steps\n\n{table.markdown()}")
    failed = "; ".join(failed_seeds(results)) or "none"
    sections.append(
        f"## Failed training runs\n\nMean return below {FAILED:.0f} without perturbation: {failed}."
    )
    sections.append(f"## Lipschitz constants\n\n{constant_table(results).markdown()}")
    sections.append(
        "## Checks of the attacks\n\nViolations, judged by the 95 % interval of the paired difference over "
        f"training seeds:\n\n{attack_check_table(results).markdown()}"
    )
    note = (
        f"Over {len(config.training_seeds)} training seeds x {config.episodes} episodes, with the 95 % bootstrap "
        "interval over training seeds (a percentile interval of few seeds tends to be narrow). eps is the l2 size of "
        "the perturbation of the raw observation; Lipschitz constants are for the weighted norm of the bound."
    )
    atomic_write_text(run.path / "tables.md", f"# {run.name}\n\n{note}\n\n" + "\n\n".join(sections) + "\n")
    with style():
        for steps in config.timesteps:
            _returns_figure(results, steps)
        _convergence_figure(results)
        _phase_figure(results)
        summary = _summary_figure(results)
    shown = [attack for attack in config.attacks if attack in ("gaussian", "strong")]
    tables = [
        f"Return after {budget(steps)} training steps, {len(config.training_seeds)} seeds, mean [95 % interval]\n"
        + return_table(results, steps, shown).text()
        for steps in config.timesteps
    ]
    return "\n\n".join([*tables, constant_table(results).text()]), summary


def _draw_returns(results: Results, steps: int, attack: str, ax: Axes) -> None:
    curves = {model.label: results.curve(model, steps, attack) for model in results.config.models}
    return_against_eps((0.0, *results.config.eps), curves, ax=ax, looks=results.looks, legend=False)
    ax.set_title(TITLES[attack])


def _one_scale(axes: Iterable[Axes]) -> None:
    """Give all return axes the same limits, cut at `AXIS_FLOOR`."""
    drawn = list(axes)
    low = max(AXIS_FLOOR, min(ax.get_ylim()[0] for ax in drawn))
    for ax in drawn:
        ax.set_ylim(low, 0.0)


def _returns_figure(results: Results, steps: int) -> None:
    attacks = results.config.attacks
    rows = -(-len(attacks) // 3)
    fig, axes = plt.subplots(
        rows, min(3, len(attacks)), figsize=(12.5, 3.9 * rows), sharey=True, squeeze=False
    )
    for ax, attack in zip(axes.flat, attacks, strict=False):
        _draw_returns(results, steps, attack, ax)
    _one_scale(axes.flat[: len(attacks)])
    for ax in axes.flat[len(attacks) :]:
        ax.remove()
    for ax in axes[:, 1:].flat:
        if ax.figure is not None:
            ax.set_ylabel("")
    for ax in axes[:-1].flat:
        ax.set_xlabel("")
    fig.suptitle(f"Return after {budget(steps)} training steps: mean and 95 % interval over training seeds")
    _shared_legend(fig, axes[0, 0])
    _save(results, fig, f"returns_{budget(steps)}")


def _convergence_figure(results: Results) -> None:
    config = results.config
    if "strong" not in config.attacks:
        return
    steps, eps = config.timesteps[-1], config.eps[len(config.eps) // 2]
    fig, ax = plt.subplots(figsize=(6.4, 4.4))
    curves = {model.label: results.convergence(model, steps, eps) for model in config.models}
    attack_convergence(
        curves, ax=ax, looks=results.looks, legend=False, xlabel="iteration of the strong attack",
        ylabel="mean return of a 50-step window",
    )  # fmt: skip
    ax.set_title(f"Convergence of the strong attack, eps {eps:g}, {budget(steps)} training steps")
    _shared_legend(fig, ax)
    _save(results, fig, "convergence")


def _phase_figure(results: Results) -> None:
    config = results.config
    steps, eps = config.timesteps[-1], min(0.3, max(config.eps))
    models = (config.models[0], config.models[-1])
    fig, axes = plt.subplots(1, 2, figsize=(11.0, 4.6), sharex=True, sharey=True)
    for ax, model in zip(axes, models, strict=True):
        paths = results.run.cell(f"phase_{model.key}_steps={steps}")
        for name, color in (("nominal", "0.55"), ("attacked", "#d55e00")):
            states = np.array(paths[name])
            phase_portrait(states[..., 0], states[..., 1], ax=ax, color=color, label=name, legend=False)
        ax.set_title(model.label)
    axes[1].set_ylabel("")
    fig.suptitle(
        f"Eight episodes with and without the strong attack, eps {eps:g} ({budget(steps)} training steps)"
    )
    _shared_legend(fig, axes[0])
    _save(results, fig, "phase_portraits")


def _summary_figure(results: Results) -> Path:
    config = results.config
    steps = config.timesteps[-1]
    fig, axes = plt.subplots(2, 2, figsize=(11.5, 8.6))
    for ax, attack in zip(axes[0], ("gaussian", "strong"), strict=True):
        _draw_returns(results, steps, attack, ax)
        ax.set_title(f"{TITLES[attack]}, {budget(steps)} training steps")
    _one_scale(axes[0])
    constants = {model.label: results.constants(model, steps) for model in config.models}
    lipschitz_bars(
        {label: cell["empirical"] for label, cell in constants.items()},
        {label: cell["certified"] for label, cell in constants.items()},
        ax=axes[1, 0], looks=results.looks,
        ylabel="Lipschitz constant\n[action per weighted observation unit]",
    )  # fmt: skip
    axes[1, 0].set_title("Lipschitz constant: certified bound and gradient ascent")
    action_sensitivity(
        config.eps,
        {label: cell["action_change"] for label, cell in constants.items()},
        {model.label: model.lipschitz for model in config.models if model.lipschitz is not None},
        ax=axes[1, 1], looks=results.looks, action_span=ACTION_RANGE, legend=False,
    )  # fmt: skip
    axes[1, 1].set_title("Action change: found (solid) and guaranteed (dashed)")
    _shared_legend(fig, axes[0, 0])
    return _save(results, fig, "summary")


def _shared_legend(fig: Any, ax: Axes) -> None:
    handles, labels = ax.get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=len(labels))


def _save(results: Results, fig: Any, name: str) -> Path:
    path = results.run.figure(f"{name}.png")
    save_figure(fig, path)
    plt.close(fig)
    return path
