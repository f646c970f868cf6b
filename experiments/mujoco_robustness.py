"""How do bounded policies withstand wrong sensors on a MuJoCo task? Hopper, PPO, MLP and LBDN.

Training, attacks and evaluation use gymnasium's interface alone, so that any other task with continuous actions can
take the place of Hopper. Beside the returns under attack stand the certified changes of the action and the largest
ones found. It needs the simulator: pip install 'robustnn[rl]'. docs/robustness.md says what was found.

    python -m experiments.mujoco_robustness            # a million steps per policy, about an hour on two cores
    python -m experiments.mujoco_robustness --short    # a short training, about ten minutes
    python -m experiments.mujoco_robustness --smoke    # seconds, for the test suite
    python -m experiments.mujoco_robustness --report experiments/results/mujoco_robustness_short

Every run has a folder with its configuration, seeds, versions, per-episode returns, tables and figures. An
interrupted run continues where it stopped with the same command.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product

from experiments.command import Size, run_experiment
from experiments.mujoco_robustness_study import report
from experiments.mujoco_robustness_study.config import FULL, SHORT, SMOKE, Config
from experiments.mujoco_robustness_study.measure import returns_cell
from experiments.mujoco_robustness_study.report import NOMINAL, return_key, train_key
from experiments.mujoco_robustness_study.train import check_mujoco, train_cell
from robustnn.runs import RunFolder
from robustnn.sweep import Task

SIZES = {
    "full": Size(FULL, "mujoco_robustness", "a million steps per policy", committed=True),
    "short": Size(SHORT, "mujoco_robustness_short", "a short training", committed=True),
    "smoke": Size(SMOKE, "mujoco_robustness_smoke", "tiny run for the test suite"),
}


def stages(run: RunFolder, config: Config) -> Iterable[tuple[str, list[Task]]]:
    """Training, then returns under every attack."""
    check_mujoco()
    folder = run.path
    policies = list(product(config.training_seeds, config.models))
    conditions = [(NOMINAL, 0.0), *product(config.attacks, config.eps)]
    yield "training ", [(train_key(m, seed), train_cell, (config, folder, m, seed)) for seed, m in policies]
    yield (
        "measuring",
        [
            (return_key(m, seed, attack, eps), returns_cell, (config, folder, m, seed, attack, eps))
            for seed, m in policies
            for attack, eps in conditions
        ],
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the experiment from the command line."""
    run_experiment(__doc__, SIZES, stages, report.write, argv)


if __name__ == "__main__":
    main()
