"""The numbers of docs/robustness.md, from the committed run folders."""

from __future__ import annotations

from pathlib import Path

from experiments import published_policy
from experiments.robustness_study.report import (
    attack_table,
    condition_table,
    fact_table,
    floor_table,
    gamma_table,
    learned_table,
    nominal_sentence,
    recipe_table,
    return_table,
    swing_up_sentence,
    twin_table,
    upright_table,
)
from experiments.robustness_study.results import COMMON, Results
from robustnn.runs import RunFolder

DOCUMENT = Path(__file__).parents[2] / "docs" / "robustness.md"


def blocks(folder: Path) -> dict[str, str]:
    """Return the blocks of the document by name.

    Args:
        folder: Where the run folder `what_buys_robustness` is.

    Returns:
        Markdown text of every block.
    """
    first = Results(RunFolder.open(folder / "what_buys_robustness"))
    fresh = Results(RunFolder.open(folder / "what_buys_robustness_confirm"))
    second = Results(RunFolder.open(folder / "what_buys_robustness_second"))
    floor = Results(RunFolder.open(folder / "what_buys_robustness_floor"))
    published = published_policy.Conditions(RunFolder.open(folder / "published_policy"), folder)
    limit = first.limit()
    return {
        "recipe": f"{recipe_table(fresh).markdown()}\n\n{nominal_sentence(fresh)}",
        "twins": twin_table(fresh).markdown(),
        "fresh": fact_table(fresh).markdown(),
        "second": f"{recipe_table(second).markdown()}\n\n{nominal_sentence(second)}",
        "second-twins": twin_table(second).markdown(),
        "second-facts": fact_table(second).markdown(),
        "first": f"{recipe_table(first).markdown()}\n\n{nominal_sentence(first)}",
        "methods": return_table(first, first.config.methods, COMMON).markdown(),
        "gamma": gamma_table(first).markdown(),
        "faults": condition_table(first).markdown(),
        "attacks": (
            f"{attack_table(first, 0.2).markdown()}\n\nMethods that an attack hurts more / less than uniform noise of "
            f"the same size, by the 95 % interval of the paired difference:\n\n{floor_table(first).markdown()}"
            f"\n\nAn adversary trained by PPO against single policies:\n\n{learned_table(first).markdown()}"
        ),
        "floor": (
            f"{attack_table(floor, 0.11).markdown()}\n\n{floor_table(floor).markdown()}\n\n"
            f"{learned_table(floor).markdown()}"
        ),
        "published": (
            f"{published_policy.attack_table(published).markdown()}\n\n"
            f"{published_policy.delay_table(published).markdown()}\n\n{published_policy.constants_sentence(published)}"
        ),
        "upright": (
            f"{upright_table(first).markdown()}\n\nNo controller, of whatever order, has a gain below {limit:.3f}. "
            f"{swing_up_sentence(first)}"
        ),
        "facts": fact_table(first).markdown(),
    }
