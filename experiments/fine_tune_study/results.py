"""Read access to a run of the study of fine-tuning."""

from __future__ import annotations

from typing import Any, NamedTuple

from experiments.fine_tune_study.config import START, Config
from experiments.robustness_study.config import Method
from experiments.robustness_study.results import WORST
from experiments.robustness_study.results import Results as StudyResults
from robustnn.report import Interval, paired_difference
from robustnn.runs import RunFolder


class Trade(NamedTuple):
    """What a policy has against the MLP that it came from, same seeds and start states.

    Attributes:
        lost: Nominal return of the MLP minus that of the policy.
        bought: Return of the policy under the strongest attack minus that of the MLP.
    """

    lost: Interval
    bought: Interval

    @property
    def rate(self) -> float | None:
        """Bought per unit lost; None where the interval of the loss does not lie above zero."""
        return self.bought.estimate / self.lost.estimate if self.lost.low > 0.0 else None


class Results(StudyResults):
    """The cells of a run in which all tasks are done.

    Args:
        run: The run folder.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self.tuning = Config.of(run.config)
        self.config = self.tuning.study

    def trade(self, method: Method, eps: float) -> Trade:
        """Return loss and gain at one size of the errors, with intervals over seeds."""
        lost = paired_difference(self.returns(START), self.returns(method))
        bought = paired_difference(self.returns(method, WORST, eps), self.returns(START, WORST, eps))
        return Trade(lost, bought)

    def chains(self) -> list[dict[str, Any]]:
        """What the training of every seed has noted: first bound, course, wall times."""
        return [self.run.cell(chain_key(seed)) for seed in self.tuning.training_seeds]


def chain_key(seed: int) -> str:
    """Return the key of the training of one agent through all bounds."""
    return f"chain_seed={seed}"
