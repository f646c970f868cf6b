"""What does robustness cost an agent that is trained already? MLP agents made LBDNs, under a falling bound.

Every agent is trained with PPO, made an LBDN of the same function, and brought down a sequence of bounds by more PPO;
at some of them a copy is trained on by gradients through the plant against wrong sensors. At every bound the return
without errors stands beside that under the strongest of several attacks. docs/robustness.md says what was found.

    python -m experiments.fine_tune            # full run, about ten minutes on two cores
    python -m experiments.fine_tune --smoke    # seconds, for the test suite
    python -m experiments.fine_tune --report experiments/results/fine_tune

Every run has a folder with its configuration, seeds, versions, per-episode returns, tables and figures. An
interrupted run continues where it stopped with the same command.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from experiments.command import Size, run_experiment
from experiments.fine_tune_study import report
from experiments.fine_tune_study.config import FULL, SMOKE, Config
from experiments.fine_tune_study.results import chain_key
from experiments.fine_tune_study.train import train_chain
from experiments.robustness_study import measure
from experiments.robustness_study.results import attack_key, facts_key, train_key
from experiments.robustness_study.train import train_cell
from robustnn.runs import RunFolder
from robustnn.sweep import Task

SIZES = {
    "full": Size(FULL, "fine_tune", "the pendulum", committed=True),
    "smoke": Size(SMOKE, "fine_tune_smoke", "tiny run for the test suite"),
}


def stages(run: RunFolder, config: Config) -> Iterable[tuple[str, list[Task]]]:
    """Training first: the measurements read the policies of all seeds."""
    folder, study = run.path, config.study
    control = config.longer
    training: list[Task] = [
        (chain_key(seed), train_chain, (config, folder, seed)) for seed in config.training_seeds
    ]
    yield (
        "training ",
        [
            *training,
            *(
                (train_key(control, seed), train_cell, (study, folder, control, seed))
                for seed in config.training_seeds
            ),
        ],
    )
    tasks: list[Task] = []
    for method in study.methods:
        here = (study, folder, method)
        tasks.append((facts_key(method), measure.facts, here))
        tasks.append((attack_key(method, "none", 0.0), measure.returns_under, (*here, "none", 0.0)))
        tasks += [
            (attack_key(method, attack, eps), measure.returns_under, (*here, attack, eps))
            for eps in study.eps
            for attack in study.attacks_on(method)
        ]
    yield "measuring", tasks


def main(argv: Sequence[str] | None = None) -> None:
    """Run the experiment from the command line."""
    run_experiment(__doc__, SIZES, stages, report.write, argv)


if __name__ == "__main__":
    main()
