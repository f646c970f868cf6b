"""Maximal action difference: at every step the observation error that changes the action most."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from robustnn.closedloop.ball import Ball, Norm
from robustnn.closedloop.budget import Budget
from robustnn.closedloop.parts import check_callable, describe_part, planning_policy
from robustnn.closedloop.per_step import PerStepProcess, ball_of, check_per_step, describe_per_step
from robustnn.closedloop.perturb import Loop, Perturbation, Policy, Process

__all__ = ["MaximalActionDifference"]


@dataclass(frozen=True)
class MaximalActionDifference(Perturbation):
    r"""Projected gradient ascent on the action change, anew at every step.

    .. math:: \delta_t \approx \arg\max_{\|\delta / d\| \le \epsilon} \| \pi(y_t + \delta) - \pi(y_t) \|_2

    (the MAD attack of Zhang et al., NeurIPS 2020, arXiv 2003.08938). Steepest steps of a fixed fraction of
    eps from random points of the surface; the best iterate of all restarts is used. It needs no model of the
    plant and does not look at the reward.

    Args:
        eps: Radius, in observation units over those of the scale; zero or greater.
        norm: "l2" or "linf".
        scale: d, one positive number per observation component; None for ones.
        iterations: Gradient steps per step of the episode.
        step_fraction: Length of a gradient step over eps; `iterations * step_fraction` should exceed 2, so
            that every point of the ball can be reached from any other.
        restarts: Starts; every second one is the opposite of the one before, as the action may change
            either way.
        surrogate: The policy whose action change is maximised in the place of the attacked one, whose weights
            the attacker then need not know (Inkawhich et al., 2020): `imitate` makes one. None for the
            attacked policy itself.

    Raises:
        InvalidArgumentError: If an argument is out of its range.

    Example:
        >>> MaximalActionDifference(0.1, iterations=10).describe()["name"]
        'mad'
    """

    eps: float
    norm: Norm = "l2"
    scale: Sequence[float] | None = None
    iterations: int = 20
    step_fraction: float = 0.25
    restarts: int = 2
    surrogate: Policy | None = None
    name: ClassVar[str] = "mad"

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_per_step(self)
        if self.surrogate is not None:
            check_callable("surrogate", self.surrogate, "Pass a policy, or None for the attacked one.")

    @property
    def ball(self) -> Ball:
        """The set of admissible perturbations."""
        return ball_of(self)

    def start(self, loop: Loop) -> Process:
        """Return the process of one batch of episodes."""
        return _MadProcess(self, loop)

    def describe(self) -> dict[str, Any]:
        """Return name and parameters as plain JSON values."""
        rest = {} if self.surrogate is None else {"surrogate": describe_part(self.surrogate)}
        return {"name": self.name, **describe_per_step(self), **rest}

    def budget(self, steps: int) -> Budget:
        """Return what an episode of so many steps costs."""
        return Budget(policy=steps * self.iterations * self.restarts)


class _MadProcess(PerStepProcess):
    objective: ClassVar[str] = "squared action change"
    sign = -1.0

    def __init__(self, attack: MaximalActionDifference, loop: Loop) -> None:
        super().__init__(attack, loop)
        self._policy = planning_policy(loop, attack.surrogate)

    def cost(self, observation: Tensor) -> Callable[[Tensor], Tensor]:
        with torch.no_grad():
            nominal = self._policy(observation)
        return lambda seen: -(self._policy(seen) - nominal).square().sum(-1)
