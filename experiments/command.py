"""The command line that experiments share: sizes of a run, its folder, its workers, and rebuilding its report."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustnn.runs import RunFolder
from robustnn.sweep import Task, run_tasks

RESULTS = Path(__file__).parent / "results"
RUNS = Path("runs")


@dataclass(frozen=True)
class Size:
    """One size of an experiment.

    Attributes:
        config: Dataclass of settings, with the attribute `training_seeds`.
        name: Name of the run folder.
        words: What `--help` says.
        committed: Whether the folder lies among the committed results, and not in `runs/`.
    """

    config: Any
    name: str
    words: str
    committed: bool = False


def run_experiment(
    document: str,
    sizes: Mapping[str, Size],
    stages: Callable[[RunFolder, Any], Iterable[tuple[str, list[Task]]]],
    write: Callable[[RunFolder], tuple[str, Path]],
    argv: Sequence[str] | None = None,
) -> RunFolder:
    """Run an experiment from the command line; an interrupted run continues with the same command.

    Args:
        document: Docstring of the script; its first paragraph is the description.
        sizes: The sizes by name. The one called "full" is the default; every other one has an option of its name.
        stages: Gives for the run folder and the configuration the stages of the sweep, each a title and its tasks.
        write: Writes tables and figures of a finished run; returns what to print and the main figure.
        argv: Arguments; None for those of the process.

    Returns:
        The run folder.
    """
    parser = argparse.ArgumentParser(description=document.split("\n\n")[0])
    choice = parser.add_mutually_exclusive_group()
    for name, size in sizes.items():
        if name != "full":
            choice.add_argument(f"--{name}", dest="size", action="store_const", const=name, help=size.words)
    choice.add_argument(
        "--report", type=Path, metavar="FOLDER", help="only rebuild tables and figures of a run"
    )
    parser.add_argument("--root", type=Path, help="where run folders go (default: runs/, full run: results/)")
    parser.add_argument("--workers", type=int, default=2, help="worker processes (default 2)")
    arguments = parser.parse_args(argv)
    if arguments.report is not None:
        run = RunFolder.open(arguments.report)
        write(run)
        return run
    start = time.perf_counter()
    size = sizes[arguments.size or "full"]
    run = RunFolder.create(
        arguments.root or (RESULTS if size.committed else RUNS),
        size.name,
        size.config,
        seeds=size.config.training_seeds,
        resume=True,
        repository=Path(__file__).parent,
    )
    for title, tasks in stages(run, size.config):
        run_tasks(run, tasks, arguments.workers, title)
    text, figure = write(run)
    print(f"\n{text}\nFigure: {figure}\nRun folder: {run.path}  ({time.perf_counter() - start:.0f} s)")
    return run
