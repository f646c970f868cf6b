"""Learn a model of the pendulum, train a policy on it, certify the pair.

Records under random torques; Lipschitz models of the next observation at several bounds, and one without a bound;
LBDN policies trained by PPO on each of them and on the true plant. All are judged on the true plant. The constants of
model and policy prove how far an observation error drives the learned loop; attacks look for the most. Trajectory
attacks plan through the learned model, and through the plant. docs/model_based.md says what was found.

    python -m experiments.model_based            # full run, about ten minutes on two cores
    python -m experiments.model_based --smoke    # seconds, for the test suite
    python -m experiments.model_based --report experiments/results/model_based
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product

from experiments.command import Size, run_experiment
from experiments.model_based_study import measure, report
from experiments.model_based_study.config import SMOKE, Config
from experiments.model_based_study.models import fit_cell
from experiments.model_based_study.results import attack_key, fit_key, pair_key, return_key, train_key
from experiments.model_based_study.train import train_cell
from robustnn.runs import RunFolder
from robustnn.sweep import Task

SIZES = {
    "full": Size(Config(), "model_based", "all of it", committed=True),
    "smoke": Size(SMOKE, "model_based_smoke", "tiny run for the test suite"),
}


def stages(run: RunFolder, config: Config) -> Iterable[tuple[str, list[Task]]]:
    """Models, then policies on them, then measurements of both."""
    folder, seeds = run.path, config.training_seeds
    models = list(product(seeds, config.models))
    policies = list(product(seeds, config.sources))
    yield "fitting  ", [(fit_key(m, seed), fit_cell, (config, folder, m, seed)) for seed, m in models]
    yield "training ", [(train_key(s, seed), train_cell, (config, folder, s, seed)) for seed, s in policies]
    tasks: list[Task] = [
        (return_key(s, seed), measure.return_cell, (config, folder, s, seed)) for seed, s in policies
    ]
    for seed, model in models:
        facts, policy = run.cell(fit_key(model, seed)), run.cell(train_key(model, seed))
        here = (config, folder, model, seed)
        tasks.append((pair_key(model, seed), measure.pair_cell, (*here, facts, policy["constant"])))
        tasks += [
            (attack_key(model, seed, eps), measure.attack_cell, (*here, eps)) for eps in config.attack_eps
        ]
    yield "measuring", tasks


def main(argv: Sequence[str] | None = None) -> None:
    """Run the experiment from the command line."""
    run_experiment(__doc__, SIZES, stages, report.write, argv)


if __name__ == "__main__":
    main()
