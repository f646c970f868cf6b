"""The numbers of docs/classification.md, from the committed run folders."""

from __future__ import annotations

from pathlib import Path

from experiments.classification_study.published import CERTIFIED, CIFAR10, CIFAR100, MNIST
from experiments.classification_study.report import Results, note, sections
from robustnn.runs import RunFolder

DOCUMENT = Path(__file__).parents[2] / "docs" / "classification.md"
# Block of the document: run folder and command line option.
RUNS = {
    "mnist": ("classification_mnist", "--mnist"),
    "lipkernel": ("classification_mnist_lipkernel", "--lipkernel"),
    "cifar": ("classification_cifar", "--cifar"),
    "cifar100": ("classification_cifar100", "--cifar100"),
    "certified": ("classification_certified", "--certified"),
}


def blocks(folder: Path) -> dict[str, str]:
    """Return the blocks of the document by name.

    Args:
        folder: Where the run folders are; a run without one says so.

    Returns:
        Markdown text of every block.
    """
    found = {name: block(folder / run, option) for name, (run, option) in RUNS.items()}
    published = (MNIST, CIFAR100, CERTIFIED, CIFAR10)
    return {**found, "published": "\n\n".join(table.markdown() for table in published)}


def block(folder: Path, option: str) -> str:
    """Return the tables and the figure of one run.

    Args:
        folder: Its run folder.
        option: Of the command that makes it.
    """
    if not (folder / "tables.md").exists():
        return f"No results yet; `python -m experiments.classification {option}` makes them."
    results = Results(RunFolder.open(folder))
    tables = [f"### {title}\n\n{text}" for title, text in sections(results)]
    picture = (
        f"![Certified and attacked accuracy](../experiments/results/{folder.name}/figures/classification.png)"
    )
    return "\n\n".join([note(results), *tables, picture])
