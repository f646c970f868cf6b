"""The numbers of docs/identification.md, from the committed run folders."""

from __future__ import annotations

from pathlib import Path

from experiments.identification_study.report import note, reference_sentence, sections
from experiments.identification_study.results import Results
from robustnn.runs import RunFolder

DOCUMENT = Path(__file__).parents[2] / "docs" / "identification.md"
# Block of the document: run folder and command line option.
TASKS = {
    "tanks": ("identification_tanks", "--tanks"),
    "silverbox": ("identification_silverbox", "--silverbox"),
    "wiener-hammerstein": ("identification_wiener_hammerstein", "--wiener-hammerstein"),
    "van-der-pol": ("identification_van_der_pol", "--van-der-pol"),
    "two-link-arm": ("identification_two_link_arm", "--two-link-arm"),
}
_FIGURES = {
    "bound": "Test error against the bound",
    "spread": "Spread of the test error over starts and seeds",
    "simulation": "Simulation of the test record",
    "simulation_1": "Simulation of the test record, first output",
    "simulation_2": "Simulation of the test record, second output",
}


def blocks(folder: Path) -> dict[str, str]:
    """Return the blocks of the document by name.

    Args:
        folder: Where the run folders are; a task without one says so.

    Returns:
        Markdown text of every block.
    """
    return {name: block(folder / run, option) for name, (run, option) in TASKS.items()}


def block(folder: Path, option: str) -> str:
    """Return the tables and figures of one task.

    Args:
        folder: Its run folder.
        option: Of the command that makes it.
    """
    if not (folder / "tables.md").exists():
        return f"No results are committed; `python -m experiments.identification {option}` makes them."
    results = Results(RunFolder.open(folder))
    tables = [f"### {title}\n\n{text}" for title, text in sections(results)]
    figures = [
        f"![{title}](../experiments/results/{folder.name}/figures/{name}.png)"
        for name, title in _FIGURES.items()
        if (folder / "figures" / f"{name}.png").exists()
    ]
    return "\n\n".join([note(results), reference_sentence(results), *tables, *figures])
