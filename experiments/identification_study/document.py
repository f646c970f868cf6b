"""The numbers of docs/identification.md, from the committed run folders."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from experiments.identification_study.published import PUBLISHED
from experiments.identification_study.report import note, reference_sentence, sections
from experiments.identification_study.results import CHOSEN, Results
from robustnn.report import Table
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
_NETWORKS = ("RNN", "GRU", "LSTM")
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


def summary(folder: Path) -> str:
    """Return the table of the README: certified models, twins and published errors on the public benchmarks.

    Args:
        folder: Where the run folders are.
    """
    rows = []
    for run, _ in (TASKS[name] for name in ("tanks", "silverbox", "wiener-hammerstein")):
        results = Results(RunFolder.open(folder / run))
        twin = results.config.models[-1]
        published = {one.method: one.errors for one in PUBLISHED[results.config.task]}
        chosen = results.rows()[CHOSEN]
        for record, output, title in results.panels():
            ours = results.of_row(chosen, partial(results.errors, key=record, output=output))
            theirs = results.errors(twin, record, output)
            numbers = [
                one for errors in (ours, theirs) for one in (float(np.median(errors)), float(errors.max()))
            ]
            numbers += [min(published[name][record] for name in _NETWORKS), published["SUBNET"][record]]
            name = results.config.title + ("" if len(results.panels()) == 1 else f", {title}")
            rows.append((f"{name} [{results.page()['unit']}]", *(f"{number:.3g}" for number in numbers)))
    header = (
        "test RMSE", "certified, median", "worst seed", "no bound, median", "worst seed", "best of RNN, GRU, LSTM",
        "SUBNET",
    )  # fmt: skip
    return Table(header, tuple(rows)).markdown()
