"""Tables and the figure of the robustness study on a MuJoCo task, from its run folder alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray

from experiments.algorithms_study.config import Model
from experiments.mujoco_robustness_study.config import ATTACKS, Config
from robustnn.report import (
    Table,
    appearances,
    atomic_write_text,
    bootstrap_interval,
    certified_action_change,
    format_interval,
    format_number,
    paired_difference,
    return_against_eps,
    save_figure,
    style,
)
from robustnn.runs import RunFolder

NAMES = ("mujoco_robustness", "mujoco_robustness_short")
_BLOCKS = ("mujoco", "mujoco-attacks", "mujoco-changes")
_NONE = "No results are committed; `python -m experiments.mujoco_robustness --short` makes them."
NOMINAL, WORST = "none", "worst"


class Results:
    """Read access to the cells of a run.

    Args:
        run: A run folder in which all tasks are done.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self.config = Config.of(run.config)

    def returns(self, model: Model, attack: str = WORST, eps: float = 0.0) -> NDArray[np.float64]:
        """Returns per episode, (n_seeds, n_episodes); of `WORST` the least one over the attacks."""
        if eps == 0.0:
            attack = NOMINAL
        if attack == WORST:
            return np.min([self.returns(model, name, eps) for name in self.config.attacks], axis=0)
        keys = [return_key(model, seed, attack, eps) for seed in self.config.training_seeds]
        return np.array([self.run.cell(key)["returns"] for key in keys])

    def curve(self, model: Model) -> NDArray[np.float64]:
        """Returns under the worst attack from eps = 0 on, shape (n_seeds, 1 + n_eps, n_episodes)."""
        return np.stack([self.returns(model, WORST, eps) for eps in (0.0, *self.config.eps)], axis=1)

    def trained(self, model: Model, name: str) -> NDArray[np.float64]:
        """One entry of the training cells: "certified" and "found" have the shape (n_seeds, n_eps, n_states)."""
        return np.array([self.run.cell(train_key(model, seed))[name] for seed in self.config.training_seeds])


def train_key(model: Model, seed: int) -> str:
    """Return the key of a training run."""
    return f"train_{model.key}_seed={seed}"


def return_key(model: Model, seed: int, attack: str, eps: float) -> str:
    """Return the key of returns under an attack."""
    return f"returns_{model.key}_seed={seed}_{attack}_eps={eps:g}"


def return_table(results: Results, attack: str = WORST) -> Table:
    """Mean return with its interval under one attack: one row per policy, one column per size."""
    sizes = (0.0, *results.config.eps)
    rows = [
        (
            model.label,
            *(format_interval(bootstrap_interval(results.returns(model, attack, eps)), 0) for eps in sizes),
        )
        for model in results.config.models
    ]
    return Table(("policy", "nominal", *(f"eps {eps:g}" for eps in sizes[1:])), tuple(rows))


def attack_table(results: Results) -> Table:
    """Mean return under every attack, and in brackets its paired difference to uniform noise with an interval."""
    rows = []
    for model in results.config.models:
        for eps in results.config.eps:
            cells = []
            for attack in results.config.attacks:
                scores, floor = (results.returns(model, name, eps) for name in (attack, "uniform"))
                cell = format_number(float(scores.mean()))
                if attack != "uniform":
                    cell += f" ({format_interval(paired_difference(scores, floor), 0)})"
                cells.append(cell)
            rows.append((model.label, f"{eps:g}", *cells))
    return Table(("policy", "eps", *(ATTACKS[attack] for attack in results.config.attacks)), tuple(rows))


def change_table(results: Results) -> Table:
    """Certified changes of the action beside the largest ones found at the same states."""
    rows = []
    for model in results.config.models:
        certified, found = (results.trained(model, name) for name in ("certified", "found"))
        bound = format_interval(bootstrap_interval(results.trained(model, "bound")), 1)
        for k, eps in enumerate(results.config.eps):
            means = (format_interval(bootstrap_interval(part[:, k]), 3) for part in (certified, found))
            most = format_number(float(found[:, k].max()), 3)
            rows.append((model.label, bound, f"{eps:g}", *means, most))
    header = ("policy", "bound", "eps", "certified change, mean", "found, mean", "found, largest")
    return Table(header, tuple(rows))


def note(results: Results) -> str:
    """Say what was done."""
    config = results.config
    seconds = [float(results.trained(model, "seconds").mean()) for model in config.models]
    times = ", ".join(f"{model.label} {s:.0f} s" for model, s in zip(config.models, seconds, strict=True))
    return (
        f"{config.env_id}: PPO for {config.timesteps} environment steps, networks "
        f"({', '.join(map(str, config.hidden))}), {len(config.training_seeds)} training seeds x {config.episodes} "
        "episodes, the same start states for all policies, deterministic policies, 95 % bootstrap intervals over "
        f"training seeds. Errors act at every step on the raw observation; eps is their size in the {config.norm} norm "
        f"over {len(config.scale)} components in units of {', '.join(f'{s:g}' for s in config.scale)}, about the "
        "standard deviations along the way. Worst: the least return of each episode over "
        f"{', '.join(ATTACKS[a] for a in config.attacks)}; none of them knows the plant. Bounds are of the action per "
        f"observation in these units, l2: declared for LBDN, LipSDP for MLP. Mean time of training: {times}."
    )


def blocks(folder: Path) -> dict[str, str]:
    """Return the blocks of the document by name.

    Args:
        folder: Where the run folders of the study are; the full one is taken if there is one.

    Returns:
        Markdown text of every block.
    """
    name = next((name for name in NAMES if (folder / name / "tables.md").exists()), None)
    if name is None:
        return dict.fromkeys(_BLOCKS, _NONE)
    results = Results(RunFolder.open(folder / name))
    picture = f"![Returns, and changes of the action](../experiments/results/{name}/figures/mujoco.png)"
    return {
        "mujoco": f"{note(results)}\n\n{return_table(results).markdown()}\n\n{picture}",
        "mujoco-attacks": attack_table(results).markdown(),
        "mujoco-changes": change_table(results).markdown(),
    }


def write(run: RunFolder) -> tuple[str, Path]:
    """Write tables and the figure of a finished run into its folder.

    Args:
        run: The run folder.

    Returns:
        The main tables as text, and the path of the figure.
    """
    results = Results(run)
    returns, changes = return_table(results), change_table(results)
    sections = (
        f"# {run.name}\n\n{note(results)}",
        f"## Mean return, worst of all attacks\n\n{returns.markdown()}",
        "## Mean return under every attack\n\nIn brackets the paired difference to uniform noise.\n\n"
        f"{attack_table(results).markdown()}",
        f"## Changes of the action\n\nl2, in its unit, at visited states.\n\n{changes.markdown()}",
    )
    atomic_write_text(run.path / "tables.md", "\n\n".join(sections) + "\n")
    with style():
        figure = _figure(results)
    return f"{returns.text()}\n\n{changes.text()}", figure


def _figure(results: Results) -> Path:
    config = results.config
    looks = appearances([model.label for model in config.models])
    size = f"size of the errors, {config.norm} [standard deviations]"
    fig: Any
    fig, (left, right) = plt.subplots(1, 2, figsize=(11.6, 5.0))
    curves = {model.label: results.curve(model) for model in config.models}
    return_against_eps(
        (0.0, *config.eps), curves, ax=left, looks=looks, legend=False, xlabel=size,
        ylabel="return per episode, worst of all attacks",
    )  # fmt: skip
    certified, found = (
        {model.label: results.trained(model, name) for model in config.models}
        for name in ("certified", "found")
    )
    certified_action_change(config.eps, certified, found, ax=right, looks=looks, legend=False, xlabel=size)
    right.set_title("Dashed: certified; solid: found")
    fig.suptitle(f"{config.env_id}: mean and 95 % interval over {len(config.training_seeds)} training seeds")
    handles, labels = left.get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    path = results.run.figure("mujoco.png")
    save_figure(fig, path)
    plt.close(fig)
    return path
