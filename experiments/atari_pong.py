"""How many decisions of an agent that plays from pixels are certified, and how many does an attack change?

PPO with `LBDNCnnPolicy` is trained on Pong from raw frames, and SB3's CnnPolicy of the same layers for comparison.
Along episodes of the greedy policy every decision gets its certified radius, an l2 norm over all stacked uint8 frames;
a sample of them is attacked by projected gradients. The certified share can only lie below the share that survives.

    python -m experiments.atari_pong            # Pong: ten million steps per training, for a GPU; robustnn[atari]
    python -m experiments.atari_pong --short    # Pong for minutes, on a CPU; robustnn[atari]
    python -m experiments.atari_pong --small    # a dot of two pixels, five seeds, minutes on one core
    python -m experiments.atari_pong --smoke    # seconds, for the test suite
    python -m experiments.atari_pong --report experiments/results/atari_pong_small

Training and evaluation of one policy and seed are one task; an interrupted run goes on with the tasks that are missing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from experiments.atari_pong_study import report
from experiments.atari_pong_study.config import SHORT, SMALL, SMOKE, Config
from experiments.atari_pong_study.measure import train_and_measure
from experiments.atari_pong_study.task import require_atari
from experiments.command import Size, run_experiment
from robustnn.errors import RobustNNError
from robustnn.runs import RunFolder
from robustnn.sweep import Task

SIZES = {
    "full": Size(Config(), "atari_pong", "Pong, needs robustnn[atari]", committed=True),
    "short": Size(SHORT, "atari_pong_short", "Pong for minutes, needs robustnn[atari]", committed=True),
    "small": Size(SMALL, "atari_pong_small", "a dot on 12 x 12 pixels, five seeds", committed=True),
    "smoke": Size(SMOKE, "atari_pong_smoke", "tiny run for the test suite"),
}
_ATARI = ("full", "short")


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
    """Run the experiment from the command line; without ale-py Pong ends with a message before anything is written."""
    given = sys.argv[1:] if argv is None else argv
    others = ("-h", "--help", "--report", *(f"--{name}" for name in SIZES if name not in _ATARI))
    if not any(argument.split("=")[0] in others for argument in given):
        try:
            require_atari()
        except RobustNNError as error:
            raise SystemExit(str(error)) from error
    run_experiment(__doc__, SIZES, stages, report.write, argv)


if __name__ == "__main__":
    main()
