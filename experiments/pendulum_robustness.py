"""What does a Lipschitz bound buy, and cost, in a closed loop? PPO on the pendulum, then attacks.

An unbounded MLP and LBDN policies at several bounds are trained with PPO and compared, on the same start
states, under no perturbation, noise, the per-step attack and trajectory attacks on the raw observation.

    python -m experiments.pendulum_robustness            # full run, about an hour on two cores
    python -m experiments.pendulum_robustness --demo     # small run, under three minutes
    python -m experiments.pendulum_robustness --smoke    # seconds, for the test suite
    python -m experiments.pendulum_robustness --report experiments/results/pendulum_robustness

Every run has a folder with its configuration, seeds, versions, trained weights, per-episode returns, tables and
figures. An interrupted run continues where it stopped with the same command.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments.pendulum import measure, report
from experiments.pendulum.config import DEMO, SMOKE, Config, Model
from experiments.pendulum.train import policy_path, train
from experiments.policy_files import save_policy
from robustnn.runs import RunFolder
from robustnn.sweep import Task, run_tasks

RESULTS = Path(__file__).parent / "results"
RUNS = Path("runs")


def train_cell(config: Config, folder: Path, model: Model, seed: int) -> dict[str, Any]:
    """Train one policy and store its weights after each of `config.timesteps`."""
    maps, seconds = train(config, model, seed)
    for steps, policy in maps.items():
        save_policy(policy_path(folder, model, steps, seed), policy)
    return {"seconds": round(seconds, 2)}


def training_tasks(config: Config, folder: Path) -> Iterator[Task]:
    """One task per model and training seed."""
    for seed in config.training_seeds:
        for model in config.models:
            yield f"train_{model.key}_seed={seed}", train_cell, (config, folder, model, seed)


def measuring_tasks(config: Config, folder: Path) -> Iterator[Task]:
    """One task per model, training budget and condition, over all training seeds."""
    strongest = max(config.eps)
    for steps in reversed(config.timesteps):
        for model in config.models:
            where = f"{model.key}_steps={steps}"
            arguments = (config, folder, model, steps)
            yield f"constants_{where}", measure.constants, arguments
            for attack, eps in config.conditions:
                key = f"returns_{where}_{attack}_eps={eps:g}"
                yield key, measure.returns_under, (*arguments, attack, eps)
        for model in (config.models[0], config.models[-1]):
            key = f"phase_{model.key}_steps={steps}"
            yield key, measure.phase_paths, (config, folder, model, steps, min(0.3, strongest))


def main(argv: Sequence[str] | None = None) -> None:
    """Run the experiment from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--demo", action="store_true", help="small run, under three minutes on two cores")
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
    if arguments.demo:
        config, name, root = DEMO, "pendulum_demo", RUNS
    elif arguments.smoke:
        config, name, root = SMOKE, "pendulum_smoke", RUNS
    else:
        config, name, root = Config(), "pendulum_robustness", RESULTS
    run = RunFolder.create(
        arguments.root or root,
        name,
        config,
        seeds=config.training_seeds,
        resume=True,
        repository=Path(__file__).parent,
    )
    run_tasks(run, list(training_tasks(config, run.path)), arguments.workers, "training ")
    run_tasks(run, list(measuring_tasks(config, run.path)), arguments.workers, "measuring")
    text, figure = report.write(run)
    print(f"\n{text}\nFigure: {figure}\nRun folder: {run.path}  ({time.perf_counter() - start:.0f} s)")


if __name__ == "__main__":
    main()
