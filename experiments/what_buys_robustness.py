"""What buys robustness against errors of the sensors? Networks, bounds, training methods and their combinations.

Every method trains a policy with PPO on the same plant; some put an adversary or a penalty into that, some train on by
gradients through the plant. All policies start from the same states under the same attacks, delays and faults.
docs/robustness.md says what was found.

    python -m experiments.what_buys_robustness                # pendulum, about an hour and a half on two cores
    python -m experiments.what_buys_robustness --confirm      # the recipe on fresh training seeds
    python -m experiments.what_buys_robustness --second       # the second plant, about forty minutes
    python -m experiments.what_buys_robustness --swing-up     # the cart-pole from hanging, about ten minutes
    python -m experiments.what_buys_robustness --quadrotor    # a quadrotor in the plane, about ten minutes
    python -m experiments.what_buys_robustness --floor        # every attack at eps 0.11, about ten minutes
    python -m experiments.what_buys_robustness --smoke        # seconds, for the test suite
    python -m experiments.what_buys_robustness --report experiments/results/what_buys_robustness

Every run has a folder with its configuration, seeds, versions, per-episode returns, tables and figures. An
interrupted run continues where it stopped with the same command.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from experiments.command import Size, run_experiment
from experiments.robustness_study import controllers, measure, report
from experiments.robustness_study.config import Config
from experiments.robustness_study.results import (
    adversary_key,
    attack_key,
    condition_key,
    facts_key,
    swing_up_key,
    train_key,
    upright_key,
)
from experiments.robustness_study.settings import CONFIRM, FLOOR, PENDULUM, QUADROTOR, SECOND, SMOKE, SWING_UP
from experiments.robustness_study.train import train_cell
from robustnn.runs import RunFolder
from robustnn.sweep import Task

SIZES = {
    "full": Size(PENDULUM, "what_buys_robustness", "the pendulum", committed=True),
    "confirm": Size(CONFIRM, "what_buys_robustness_confirm", "the recipe on fresh seeds", committed=True),
    "second": Size(SECOND, "what_buys_robustness_second", "the second plant", committed=True),
    "swing-up": Size(SWING_UP, "what_buys_robustness_swing_up", "the cart-pole from hanging", committed=True),
    "quadrotor": Size(QUADROTOR, "what_buys_robustness_quadrotor", "the planar quadrotor", committed=True),
    "floor": Size(FLOOR, "what_buys_robustness_floor", "every attack at eps 0.11", committed=True),
    "smoke": Size(SMOKE, "what_buys_robustness_smoke", "tiny run for the test suite"),
}


def stages(run: RunFolder, config: Config) -> Iterable[tuple[str, list[Task]]]:
    """Training first: the measurements read the policies of all seeds."""
    folder = run.path
    yield (
        "training ",
        [
            (train_key(method, seed), train_cell, (config, folder, method, seed))
            for seed in config.training_seeds
            for method in config.methods
        ],
    )
    tasks: list[Task] = []
    for method in config.methods:
        here = (config, folder, method)
        tasks.append((facts_key(method), measure.facts, here))
        tasks.append((attack_key(method, "none", 0.0), measure.returns_under, (*here, "none", 0.0)))
        tasks += [(condition_key(method, n), measure.returns_in_condition, (*here, n)) for n in config.faults]
        for eps in config.eps:
            tasks += [
                (attack_key(method, attack, eps), measure.returns_under, (*here, attack, eps))
                for attack in config.attacks_on(method)
            ]
    for index in config.learned:
        method = config.methods[index]
        tasks += [
            (adversary_key(method, eps, k), measure.returns_under_adversary, (config, folder, method, eps, k))
            for eps in config.learned_eps
            for k in config.training_seeds[: config.learned_seeds]
        ]
    yield "measuring", tasks
    if config.equilibrium is not None:
        yield "upright  ", upright_tasks(run, config)


def upright_tasks(run: RunFolder, config: Config) -> list[Task]:
    """Near the upright: policies and linear controllers; on the whole task: LQG behind a swing-up."""
    sizes = (0.0, *controllers.UPRIGHT_EPS)
    tasks: list[Task] = [
        (upright_key(m.key, eps), controllers.policy_near_upright, (config, run.path, m, eps))
        for m in controllers.compared(config)
        for eps in sizes
    ]
    tasks += [
        (upright_key(name, eps), controllers.controller_near_upright, (config, name, eps))
        for name in controllers.CONTROLLERS
        for eps in sizes
    ]
    tasks += [
        (swing_up_key(eps), controllers.controller_swing_up, (config, eps)) for eps in (0.0, *config.eps)
    ]
    return [*tasks, ("gains", controllers.gains, (config,))]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the experiment from the command line."""
    run_experiment(__doc__, SIZES, stages, report.write, argv)


if __name__ == "__main__":
    main()
