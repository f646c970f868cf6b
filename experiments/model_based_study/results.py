"""Read access to a run of the experiment on model-based training."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.model_based_study.config import Config, Source
from robustnn.report import Interval, bootstrap_interval
from robustnn.runs import RunFolder

Array = NDArray[np.float64]


class Results:
    """The cells of a run in which all tasks are done.

    Args:
        run: The run folder.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self.config = Config.of(run.config)

    def models(self, source: Source) -> list[dict[str, Any]]:
        """Errors and constants of a model, one entry per seed."""
        return [self.run.cell(fit_key(source, seed)) for seed in self.config.training_seeds]

    def policies(self, source: Source) -> list[dict[str, Any]]:
        """Constants of policies and times of training."""
        return [self.run.cell(train_key(source, seed)) for seed in self.config.training_seeds]

    def returns(self, source: Source, where: str) -> Array:
        """Returns on the "plant" or the "model", shape (n_seeds, n_episodes)."""
        return np.array(
            [self.run.cell(return_key(source, seed))[where] for seed in self.config.training_seeds]
        )

    def pairs(self, source: Source) -> list[dict[str, Any]]:
        """Tubes and predictions."""
        return [self.run.cell(pair_key(source, seed)) for seed in self.config.training_seeds]

    def attacked(self, source: Source, attack: str, eps: float) -> Array:
        """Returns on the true plant under an attack, shape (n_seeds, n_episodes)."""
        if eps == 0.0:
            return self.returns(source, "plant")
        seeds = self.config.training_seeds
        return np.array([self.run.cell(attack_key(source, seed, eps))[attack] for seed in seeds])

    def tube(self, source: Source, name: str) -> Array:
        """Proved ("tube") or found ("found") distances, shape (n_seeds, n_steps + 1)."""
        return np.array([one[name] for one in self.pairs(source)])

    def contradictions(self) -> int:
        """Number of found distances that lie above what is proved; zero, or a certificate is wrong."""
        return sum(int((self.tube(s, "found") > self.tube(s, "tube")).sum()) for s in self.config.models)

    def over_seeds(self, values: Any) -> Interval:
        """Mean over seeds with its 95 % bootstrap interval."""
        return bootstrap_interval(np.asarray(values, dtype=np.float64))


def fit_key(source: Source, seed: int) -> str:
    """Return the key of one model."""
    return f"fit_{source.key}_seed={seed}"


def train_key(source: Source, seed: int) -> str:
    """Return the key of one policy."""
    return f"train_{source.key}_seed={seed}"


def return_key(source: Source, seed: int) -> str:
    """Return the key of the returns of one policy."""
    return f"return_{source.key}_seed={seed}"


def pair_key(source: Source, seed: int) -> str:
    """Return the key of the certificate of one model and policy."""
    return f"pair_{source.key}_seed={seed}"


def attack_key(source: Source, seed: int, eps: float) -> str:
    """Return the key of the attacks on one policy."""
    return f"attack_{source.key}_seed={seed}_eps={eps:g}"
