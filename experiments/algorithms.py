"""Does a Lipschitz-bounded policy learn as well as SB3's MlpPolicy? SAC and TD3, DQN and PPO, equal widths.

Every algorithm trains SB3's MlpPolicy and the LBDN policy with the same hyper-parameters and on the same scaled
observations; what differs is the network, and the bound that it has throughout training.

    python -m experiments.algorithms            # full run, about half an hour on two cores
    python -m experiments.algorithms --pilot    # the run that the bounds gamma were chosen from
    python -m experiments.algorithms --smoke    # seconds, for the test suite
    python -m experiments.algorithms --report experiments/results/algorithms

Every run has a folder with its configuration, seeds, versions, per-episode returns, tables and figures. An
interrupted run continues where it stopped with the same command.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from experiments.algorithms_study import report
from experiments.algorithms_study.config import PILOT, SMOKE, Config
from experiments.algorithms_study.train import train
from robustnn.runs import RunFolder
from robustnn.sweep import Task as Job
from robustnn.sweep import run_tasks

RESULTS = Path(__file__).parent / "results"
RUNS = Path("runs")


def jobs(config: Config) -> Iterator[Job]:
    """One training run per task, policy and seed."""
    for seed in config.training_seeds:
        for task in config.tasks:
            for model in task.models:
                yield report.cell_key(task, model, seed), train, (config, task, model, seed)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the experiment from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--pilot", action="store_true", help="several bounds, two seeds that the full run lacks"
    )
    size.add_argument("--smoke", action="store_true", help="tiny run for the test suite")
    size.add_argument(
        "--report", type=Path, metavar="FOLDER", help="only rebuild tables and figures of a run"
    )
    parser.add_argument("--root", type=Path, help="where run folders go (default: runs/, full run: results/)")
    parser.add_argument("--workers", type=int, default=2, help="worker processes (default 2)")
    arguments = parser.parse_args(argv)
    if arguments.report is not None:
        report.write(RunFolder.open(arguments.report))
        return
    start = time.perf_counter()
    if arguments.pilot:
        config, name, root = PILOT, "algorithms_pilot", RUNS
    elif arguments.smoke:
        config, name, root = SMOKE, "algorithms_smoke", RUNS
    else:
        config, name, root = Config(), "algorithms", RESULTS
    run = RunFolder.create(
        arguments.root or root,
        name,
        config,
        seeds=config.training_seeds,
        resume=True,
        repository=Path(__file__).parent,
    )
    run_tasks(run, list(jobs(config)), arguments.workers, "training")
    text, figure = report.write(run)
    print(f"\n{text}\nFigure: {figure}\nRun folder: {run.path}  ({time.perf_counter() - start:.0f} s)")


if __name__ == "__main__":
    main()
