"""The numbers of docs/robustness_further.md, from the committed run folders, and of runs that have none."""

from __future__ import annotations

from pathlib import Path

from experiments.decisions_study import report as decisions
from experiments.fine_tune_study import report as fine_tune
from experiments.mujoco_robustness_study import report as mujoco
from experiments.robustness_study.report import (
    attack_table,
    fact_table,
    floor_table,
    nominal_sentence,
    recipe_table,
    twin_table,
)
from experiments.robustness_study.results import Results
from robustnn.runs import RunFolder

DOCUMENT = Path(__file__).parents[2] / "docs" / "robustness_further.md"
# Names of the blocks, and of the options and run folders that make them.
_PLANTS = {"swing-up": "what_buys_robustness_swing_up", "quadrotor": "what_buys_robustness_quadrotor"}
_PARTS = ("", "-twins", "-attacks", "-facts")


def blocks(folder: Path) -> dict[str, str]:
    """Return the blocks of the document by name.

    Args:
        folder: Where the run folders are, if there are any.

    Returns:
        Markdown text of every block.
    """
    found = {**fine_tune.blocks(folder), **mujoco.blocks(folder), **_decisions(folder)}
    for prefix, name in _PLANTS.items():
        if (folder / name / "tables.md").exists():
            found |= blocks_of(Results(RunFolder.open(folder / name)), prefix)
        else:
            none = f"No results are committed; `python -m experiments.what_buys_robustness --{prefix}` makes them."
            found |= {f"{prefix}{part}": none for part in _PARTS}
    return found


def _decisions(folder: Path) -> dict[str, str]:
    """Return the block on certified decisions."""
    folder = folder / "decisions"
    if not (folder / "tables.md").exists():
        return {"decisions": "No results are committed; `python -m experiments.decisions` makes them."}
    results = decisions.Results(RunFolder.open(folder))
    shares, returns = decisions.share_table(results), decisions.return_table(results)
    found = f"Certified decisions that the attack changed: {results.contradictions()}."
    picture = "![Certified and attacked decisions](../experiments/results/decisions/figures/decisions.png)"
    note = decisions.note(results)
    return {"decisions": f"{note}\n\n{shares.markdown()}\n\n{found}\n\n{returns.markdown()}\n\n{picture}"}


def blocks_of(results: Results, prefix: str) -> dict[str, str]:
    """Return the blocks about one run: recipe and controls, the twins, every attack at the middle size, constants."""
    eps = results.config.eps[len(results.config.eps) // 2]
    picture = f"![Return against the size of the errors](../experiments/results/{results.run.name}/figures/returns.png)"
    return {
        prefix: f"{recipe_table(results).markdown()}\n\n{nominal_sentence(results)}\n\n{picture}",
        f"{prefix}-twins": twin_table(results).markdown(),
        f"{prefix}-attacks": (
            f"Mean return at eps {eps:g}:\n\n{attack_table(results, eps).markdown()}\n\nMethods that an attack "
            "hurts more / less than uniform noise of the same size, by the 95 % interval of the paired difference:"
            f"\n\n{floor_table(results).markdown()}"
        ),
        f"{prefix}-facts": fact_table(results).markdown(),
    }
