"""What does a Lipschitz bound cost, and what does it save, when dynamics models are identified from data?

Contracting and Lipschitz-bounded state-space models and their unconstrained twins are fitted to public benchmarks and
to records of two of the project's plants, with several bounds and ten seeds each. All choices are made by validation
data; the test records are simulated after them. docs/identification.md says what was found.

    python -m experiments.identification                          # cascaded tanks, the same as --tanks
    python -m experiments.identification --silverbox
    python -m experiments.identification --wiener-hammerstein
    python -m experiments.identification --van-der-pol
    python -m experiments.identification --two-link-arm
    python -m experiments.identification --smoke                  # seconds, for the test suite
    python -m experiments.identification --report experiments/results/identification_tanks

The first three read the data in the folder that ROBUSTNN_DATA names, or download them by the package
nonlinear_benchmarks. An interrupted run continues where it stopped with the same command.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from experiments.command import Size, run_experiment
from experiments.identification_study import measure, report
from experiments.identification_study.config import (
    SILVERBOX,
    SMOKE,
    TANKS,
    TWO_LINK_ARM,
    VAN_DER_POL,
    WIENER_HAMMERSTEIN,
    Config,
)
from experiments.identification_study.results import PAGE, Results
from robustnn.runs import RunFolder
from robustnn.sweep import Task

_TANKS = Size(TANKS, "identification_tanks", "cascaded tanks, the default", committed=True)
SIZES = {
    "full": _TANKS,
    "tanks": _TANKS,
    "silverbox": Size(SILVERBOX, "identification_silverbox", "Silverbox", committed=True),
    "wiener-hammerstein": Size(
        WIENER_HAMMERSTEIN, "identification_wiener_hammerstein", "Wiener-Hammerstein", committed=True
    ),
    "van-der-pol": Size(VAN_DER_POL, "identification_van_der_pol", "forced oscillator", committed=True),
    "two-link-arm": Size(TWO_LINK_ARM, "identification_two_link_arm", "robot arm", committed=True),
    "smoke": Size(SMOKE, "identification_smoke", "tiny run for the test suite"),
}


def stages(run: RunFolder, config: Config) -> Iterable[tuple[str, list[Task]]]:
    """One task per model class and seed, and its certificate; then the best models are simulated for the figures."""
    yield (
        "fitting   ",
        [
            (measure.cell_key(model, seed), measure.fit_and_judge, (config, model, seed))
            for seed in config.training_seeds
            for model in config.models
        ],
    )
    yield (
        "certifying",
        [
            (measure.certificate_key(model, seed), measure.certify_chosen, (config, run.path, model, seed))
            for seed in config.training_seeds
            for model in config.models
        ],
    )
    chosen = Results(run).shown()
    yield "simulating", [(PAGE, measure.simulate_chosen, (config, run.path, chosen))]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the experiment from the command line."""
    run_experiment(__doc__, SIZES, stages, report.write, argv)


if __name__ == "__main__":
    main()
