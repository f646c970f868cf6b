"""What the experiment on identified models does: task, sizes of the models, bounds, seeds, when a fit ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

# The seeds of the starts of two fits differ: fit k begins with this times k.
_SEED_STEP = 100
_TITLES = {
    "cascaded_tanks": "Cascaded tanks",
    "silverbox": "Silverbox",
    "wiener_hammerstein": "Wiener-Hammerstein",
    "van_der_pol": "Oscillator of Van der Pol",
    "two_link_arm": "Robot arm with two links",
}


class Model(NamedTuple):
    """One model class of the comparison; lipschitz is L_x, None for the unconstrained twin."""

    lipschitz: float | None

    @property
    def label(self) -> str:
        """Name in tables and figures."""
        return "unconstrained" if self.lipschitz is None else f"LBDN γ={self.lipschitz:g}"

    @property
    def key(self) -> str:
        """Name in file names."""
        return "unconstrained" if self.lipschitz is None else f"LBDN-{self.lipschitz:g}"


@dataclass(frozen=True)
class Config:
    """Settings of one run: one task, several model classes, several seeds.

    Attributes:
        task: Key of `robustnn.dynamics.BENCHMARKS`, or of `systems.SYSTEMS`.
        bounds: L_x of the Lipschitz-bounded models; below one the model is contracting.
        training_seeds: One fit per model class and seed.
        n_x: Number of states of every model.
        hidden: Widths of the hidden layers of every state map.
        feedthrough: Whether inputs act on outputs at once.
        starts: Starts per fit; the one with the smallest validation error is kept.
        val_share: Last part of the training record, which decides when a start ends and which one is kept.
        patience: Checks without a smaller validation error after which a start ends.
        check_every: Iterations between two checks.
        max_iterations: Of every start.
        time_budget: Of every start, in s of wall time.
        certificate_iterations: Steps of every search for a certificate.
        record: Arguments of the function that makes the record of one of the project's own plants.
    """

    task: str
    bounds: tuple[float, ...]
    training_seeds: tuple[int, ...] = tuple(range(10))
    n_x: int = 2
    hidden: tuple[int, ...] = (8,)
    feedthrough: bool = False
    starts: int = 1
    val_share: float = 0.25
    patience: int = 20
    check_every: int = 20
    max_iterations: int = 800
    time_budget: float = 300.0
    certificate_iterations: int = 300
    record: Mapping[str, int] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Name of the task in tables and figures."""
        return _TITLES[self.task]

    @property
    def models(self) -> tuple[Model, ...]:
        """The model classes that are compared, the unconstrained twin last."""
        return (*self.bounded, Model(None))

    @property
    def bounded(self) -> tuple[Model, ...]:
        """The Lipschitz-bounded model classes."""
        return tuple(Model(bound) for bound in self.bounds)

    def start_seeds(self, seed: int) -> range:
        """Return the seeds of the starts of a fit, those of no other fit."""
        return range(_SEED_STEP * seed, _SEED_STEP * seed + self.starts)

    @staticmethod
    def of(values: dict[str, Any]) -> Config:
        """Return the configuration that a run folder has stored as JSON values."""
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return Config(**fields)


_FIVE = (0, 1, 2, 3, 4)  # seeds of the long records
# Twenty starts of each of three bounds take about half of the five minutes that a fit may take.
TANKS = Config("cascaded_tanks", (0.97, 0.99, 1.0), n_x=3, starts=20, time_budget=30.0)
SILVERBOX = Config(
    "silverbox", (1.0, 1.1, 1.2), _FIVE, feedthrough=True, val_share=0.15, max_iterations=100_000,
    time_budget=40.0,
)  # fmt: skip
WIENER_HAMMERSTEIN = Config(
    "wiener_hammerstein", (0.95, 1.0), _FIVE, n_x=6, val_share=0.15, max_iterations=100_000, time_budget=60.0
)
VAN_DER_POL = Config(
    "van_der_pol", (1.0, 1.05, 1.2), starts=2, patience=40, max_iterations=2000, time_budget=60.0
)
TWO_LINK_ARM = Config(
    "two_link_arm", (1.0, 1.05), n_x=4, hidden=(12,), starts=2, patience=40,
    max_iterations=2000, time_budget=60.0,
)  # fmt: skip
SMOKE = Config(
    "van_der_pol", (0.98, 1.1), (0, 1), hidden=(4,), starts=2, check_every=4, max_iterations=8,
    certificate_iterations=20, record={"train": 400, "test": 200, "n_init": 20},
)  # fmt: skip
