"""How many decisions of a DQN agent on CartPole-v1 are certified, and how many does an attack change?

SB3's MlpPolicy and Lipschitz-bounded Q-networks are trained with equal settings. Along rollouts of the greedy policy
every visited state gets its certified radius, from the global bound and from one over the ball around the state; the
same states are attacked. The certified share can only lie below the share that survives the attack.

    python -m experiments.decisions            # full run, about ten minutes on two cores
    python -m experiments.decisions --smoke    # seconds, for the test suite
    python -m experiments.decisions --report experiments/results/decisions
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from experiments.command import Size, run_experiment
from experiments.decisions_study import report
from experiments.decisions_study.config import SMOKE, Config
from experiments.decisions_study.measure import train_and_measure
from robustnn.runs import RunFolder
from robustnn.sweep import Task

SIZES = {
    "full": Size(Config(), "decisions", "all of it", committed=True),
    "smoke": Size(SMOKE, "decisions_smoke", "tiny run for the test suite"),
}


def stages(run: RunFolder, config: Config) -> Iterable[tuple[str, list[Task]]]:
    """One task per policy and training seed."""
    yield (
        "training and measuring",
        [
            (report.cell_key(model, seed), train_and_measure, (config, model, seed))
            for seed in config.training_seeds
            for model in config.models
        ],
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the experiment from the command line."""
    run_experiment(__doc__, SIZES, stages, report.write, argv)


if __name__ == "__main__":
    main()
