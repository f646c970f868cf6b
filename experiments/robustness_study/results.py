"""Read access to a run of the robustness study."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.robustness_study.config import LEARNED, Config, Method
from experiments.robustness_study.measure import problem_of
from robustnn.closedloop import sensor_error_limit
from robustnn.report import Interval, bootstrap_interval
from robustnn.runs import RunFolder

Array = NDArray[np.float64]

# Names of conditions beside the attacks.
NOMINAL = "none"
WORST = "worst"
# The same over the attacks that all methods met, for comparisons of all of them.
COMMON = "common"


class Results:
    """The cells of a run in which all tasks are done.

    Args:
        run: The run folder.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self.config = Config.of(run.config)

    def returns(self, method: Method, attack: str = NOMINAL, eps: float = 0.0) -> Array:
        """Returns per episode, (n_seeds, n_episodes); of `WORST` and `COMMON` the least one over the attacks."""
        if eps == 0.0:
            attack = NOMINAL
        if attack in (WORST, COMMON):
            names = self.config.attacks_on(method) if attack == WORST else self.config.attacks
            return np.min([self.returns(method, name, eps) for name in names], axis=0)
        return np.array(self.run.cell(attack_key(method, attack, eps))["returns"])

    def learned(self, method: Method, eps: float) -> Array:
        """Returns under the learned adversary, of the first training seeds, (n, n_episodes)."""
        seeds = self.config.training_seeds[: self.config.learned_seeds]
        return np.concatenate([self.run.cell(adversary_key(method, eps, seed))["returns"] for seed in seeds])

    def curve(self, method: Method, attack: str = WORST) -> Array:
        """Returns from eps = 0 on, shape (n_seeds, 1 + n_eps, n_episodes)."""
        return np.stack([self.returns(method, attack, eps) for eps in (0.0, *self.config.eps)], axis=1)

    def condition(self, method: Method, name: str) -> Array:
        """Returns under a delay or fault, shape (n_seeds, n_episodes)."""
        return np.array(self.run.cell(condition_key(method, name))["returns"])

    def interval(
        self, method: Method, attack: str = NOMINAL, eps: float = 0.0, statistic: str = "mean"
    ) -> Interval:
        """Return with its 95 % bootstrap interval over training seeds."""
        return bootstrap_interval(self.returns(method, attack, eps), statistic)

    def facts(self, method: Method) -> dict[str, Any]:
        """Constants of the policies of a method, lists over training seeds."""
        cell: dict[str, Any] = self.run.cell(facts_key(method))
        return cell

    def limit(self) -> float | None:
        """Least gain of any controller of the linearised plant, if there is an equilibrium."""
        return None if self.config.equilibrium is None else sensor_error_limit(problem_of(self.config))

    def seconds(self, method: Method) -> list[dict[str, float]]:
        """Wall times of the training runs."""
        return [self.run.cell(train_key(method, seed)) for seed in self.config.training_seeds]


def train_key(method: Method, seed: int) -> str:
    """Return the key of a training run."""
    return f"train_{method.key}_seed={seed}"


def attack_key(method: Method, attack: str, eps: float) -> str:
    """Return the key of returns under an attack."""
    return f"returns_{method.key}_{attack}_eps={eps:g}"


def adversary_key(method: Method, eps: float, seed: int) -> str:
    """Return the key of returns of one policy under an adversary that was trained against it."""
    return f"{attack_key(method, LEARNED, eps)}_seed={seed}"


def condition_key(method: Method, name: str) -> str:
    """Return the key of returns under a delay or fault."""
    return f"condition_{method.key}_{re.sub('[^A-Za-z0-9]+', '-', name).strip('-')}"


def upright_key(name: str, eps: float) -> str:
    """Return the key of returns near the upright, of a method (its key) or a linear controller."""
    return f"upright_{name}_eps={eps:g}"


def swing_up_key(eps: float) -> str:
    """Return the key of returns of the LQG controller behind a swing-up."""
    return f"swing-up_lqg_eps={eps:g}"


def facts_key(method: Method) -> str:
    """Return the key of the constants of a method."""
    return f"facts_{method.key}"
