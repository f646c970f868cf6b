"""Attack on discrete decisions: at every step the observation error that leaves the greedy choice least margin."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from robustnn.closedloop.ball import Ball, Norm
from robustnn.closedloop.budget import Budget
from robustnn.closedloop.per_step import PerStepProcess, ball_of, check_per_step, describe_per_step
from robustnn.closedloop.perturb import Loop, Perturbation, Process
from robustnn.errors import UnsupportedSpaceError

__all__ = ["MarginAttack"]


@dataclass(frozen=True)
class MarginAttack(Perturbation):
    r"""Projected gradient descent on the margin of the greedy choice, anew at every step.

    .. math:: \delta_t \approx \arg\min_{\|\delta / d\| \le \epsilon}
        s_{i}(y_t + \delta) - \max_{j \ne i} s_j(y_t + \delta), \quad i = \arg\max_j s_j(y_t)

    with the scores s of the policy, logits or Q-values. A choice changes where the margin is negative. Of
    several choices at once, the sum of their margins is lowered; a binary one has the margin $|s|$. It needs no
    model of the plant and does not look at the reward.

    Args:
        eps: Radius, in observation units over those of the scale; zero or greater.
        norm: "l2" or "linf".
        scale: d, one positive number per observation component; None for ones.
        iterations: Gradient steps per step of the episode.
        step_fraction: Length of a gradient step over eps.
        restarts: Starts; every second one is the opposite of the one before.

    Raises:
        InvalidArgumentError: If an argument is out of its range.

    Example:
        >>> MarginAttack(0.1, "linf").describe()["name"]
        'margin'
    """

    eps: float
    norm: Norm = "l2"
    scale: Sequence[float] | None = None
    iterations: int = 20
    step_fraction: float = 0.25
    restarts: int = 2
    name: ClassVar[str] = "margin"

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_per_step(self)

    @property
    def ball(self) -> Ball:
        """The set of admissible perturbations."""
        return ball_of(self)

    def start(self, loop: Loop) -> Process:
        """Return the process of one batch of episodes.

        Raises:
            UnsupportedSpaceError: If actions are continuous.
        """
        if not loop.choices:
            raise UnsupportedSpaceError(
                "perturbation: expected discrete actions for a MarginAttack, got continuous ones. "
                "Use MaximalActionDifference."
            )
        return _MarginProcess(self, loop)

    def describe(self) -> dict[str, Any]:
        """Return name and parameters as plain JSON values."""
        return {"name": self.name, **describe_per_step(self)}

    def budget(self, steps: int) -> Budget:
        """Return what an episode of so many steps costs."""
        return Budget(policy=steps * self.iterations * self.restarts)


class _MarginProcess(PerStepProcess):
    objective: ClassVar[str] = "margin of the greedy choice"

    def __init__(self, attack: MarginAttack, loop: Loop) -> None:
        super().__init__(attack, loop)
        self._policy, self._choices = loop.leaky_policy, loop.choices

    def cost(self, observation: Tensor) -> Callable[[Tensor], Tensor]:
        with torch.no_grad():
            greedy = self._policy(observation)

        def margins(seen: Tensor) -> Tensor:
            total = seen.new_zeros(seen.shape[:-1])
            pairs = zip(
                greedy.split(self._choices, -1), self._policy(seen).split(self._choices, -1), strict=True
            )
            for before, after in pairs:
                total = total + _margin(before, after)
            return total

        return margins


def _margin(before: Tensor, after: Tensor) -> Tensor:
    """Margin of the choice that was greedy before, shape (...)."""
    if after.shape[-1] == 1:
        return torch.where(before > 0.0, after, -after).squeeze(-1)
    chosen = before.argmax(-1, keepdim=True)
    others = after.scatter(-1, chosen, float("-inf")).amax(-1)
    return after.gather(-1, chosen).squeeze(-1) - others
