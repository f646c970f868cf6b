"""How much of its Lipschitz bound does a trained network use? Four layers on a step function of one variable.

Table 1 and Figure 3 of Wang & Manchester, *Direct Parameterization of Lipschitz-Bounded Deep Networks* (ICML 2023):
the same deep network of AOL, orthogonal, SLL and sandwich layers is fitted to a discontinuous function, which makes it
use all the slope it can get; tightness is its Lipschitz constant over the bound. The constant is estimated by gradient
ascent as in the paper, and computed from the slopes of all linear pieces. docs/toy_tightness.md has the results.

    python -m experiments.toy_tightness            # full run, about fifteen minutes on two cores
    python -m experiments.toy_tightness --long     # the sandwich network at gamma 10, trained twice as long
    python -m experiments.toy_tightness --spread   # the sandwich network at gamma 10, eight seeds, trained in two ways
    python -m experiments.toy_tightness --published-data  # the sandwich network on the samples of the published code
    python -m experiments.toy_tightness --smoke    # seconds, for the test suite
    python -m experiments.toy_tightness --report experiments/results/toy_tightness
    python -m experiments.toy_tightness --document # write the numbers of docs/toy_tightness.md from committed results

An interrupted run continues where it stopped with the same command.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from experiments.toy import document, report
from experiments.toy.config import LONG, PUBLISHED_DATA, SMOKE, SPREAD, Config
from experiments.toy.train import gradient_factor, train_and_measure
from robustnn.report import update_block
from robustnn.runs import RunFolder
from robustnn.sweep import Task, run_tasks

RESULTS = Path(__file__).parent / "results"
RUNS = Path("runs")
DOCUMENT = Path(__file__).parents[1] / "docs" / "toy_tightness.md"


def tasks(config: Config) -> Iterator[Task]:
    """One task per model and seed, and one per initialisation and seed."""
    for seed in config.seeds:
        for init in config.inits:
            yield f"gradient_init={init}_seed={seed}", gradient_factor, (config, init, seed)
        for model in config.models:
            yield f"{model.key}_seed={seed}", train_and_measure, (config, model, seed)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the experiment from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--smoke", action="store_true", help="tiny run for the test suite")
    size.add_argument("--long", action="store_true", help="the sandwich network at gamma 10, 400 epochs")
    size.add_argument(
        "--spread",
        action="store_true",
        help="the sandwich network at gamma 10, 8 seeds, trained in two ways",
    )
    size.add_argument(
        "--published-data",
        action="store_true",
        help="the sandwich network on the training samples of the published code",
    )
    size.add_argument(
        "--report", type=Path, metavar="FOLDER", help="only rebuild tables and figures of a run"
    )
    size.add_argument("--document", action="store_true", help="only rewrite the numbers of the document")
    parser.add_argument("--root", type=Path, help="where run folders go (default: runs/, full run: results/)")
    parser.add_argument("--workers", type=int, default=2, help="worker processes (default 2)")
    arguments = parser.parse_args(argv)
    if arguments.report is not None:
        print(report.write(RunFolder.open(arguments.report)))
        return
    if arguments.document:
        for name, content in document.blocks(RESULTS).items():
            update_block(DOCUMENT, name, content)
        return
    start = time.perf_counter()
    if arguments.smoke:
        config, name, root = SMOKE, "toy_smoke", RUNS
    elif arguments.long:
        config, name, root = LONG, "toy_tightness_long", RESULTS
    elif arguments.spread:
        config, name, root = SPREAD, "toy_tightness_spread", RESULTS
    elif arguments.published_data:
        config, name, root = PUBLISHED_DATA, "toy_tightness_published_data", RESULTS
    else:
        config, name, root = Config(), "toy_tightness", RESULTS
    run = RunFolder.create(
        arguments.root or root,
        name,
        config,
        seeds=config.seeds,
        resume=True,
        repository=Path(__file__).parent,
    )
    run_tasks(run, list(tasks(config)), arguments.workers, "training")
    print(f"\n{report.write(run)}\nRun folder: {run.path}  ({time.perf_counter() - start:.0f} s)")


if __name__ == "__main__":
    main()
