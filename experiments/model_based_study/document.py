"""The numbers of docs/model_based.md, from the committed run folder."""

from __future__ import annotations

from pathlib import Path

from experiments.model_based_study.report import note, tables
from experiments.model_based_study.results import Results
from robustnn.runs import RunFolder

DOCUMENT = Path(__file__).parents[2] / "docs" / "model_based.md"
NAME = "model_based"
_BLOCKS = ("note", "models", "policies", "sensitivity", "prediction", "attacks")
_NONE = "No results are committed; `python -m experiments.model_based` makes them."


def blocks(folder: Path) -> dict[str, str]:
    """Return the blocks of the document by name.

    Args:
        folder: Where the run folder `model_based` is, if there is one.

    Returns:
        Markdown text of every block.
    """
    if not (folder / NAME / "tables.md").exists():
        return dict.fromkeys(_BLOCKS, _NONE)
    results = Results(RunFolder.open(folder / NAME))
    found = {"note": note(results), **tables(results)}
    picture = f"![Returns, sensitivity and attacks](../experiments/results/{NAME}/figures/model_based.png)"
    return found | {"policies": f"{found['policies']}\n\n{picture}"}
