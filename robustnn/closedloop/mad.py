"""Maximal action difference: at every step the observation error that changes the action most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from robustnn.closedloop.attacks import (
    SteepestSteps,
    descend,
    opposite_starts,
    repeat_episodes,
    spread_starts,
    stack_histories,
)
from robustnn.closedloop.ball import Ball, Norm
from robustnn.closedloop.perturb import ATTACK_STREAM, Convergence, Loop, Perturbation, Process
from robustnn.errors import check_positive, check_positive_int

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
    name: ClassVar[str] = "mad"

    def __post_init__(self) -> None:
        """Check the arguments."""
        checked = self.ball
        object.__setattr__(self, "eps", checked.eps)
        object.__setattr__(self, "scale", checked.scale)
        object.__setattr__(self, "iterations", check_positive_int("iterations", self.iterations))
        object.__setattr__(self, "step_fraction", check_positive("step_fraction", self.step_fraction))
        object.__setattr__(self, "restarts", check_positive_int("restarts", self.restarts))

    @property
    def ball(self) -> Ball:
        """The set of admissible perturbations."""
        return Ball(self.eps, self.norm, self.scale)

    def start(self, loop: Loop) -> Process:
        """Return the process of one batch of episodes."""
        self.ball.check_components(loop.plant.n_y)
        return _MadProcess(self, loop)

    def describe(self) -> dict[str, Any]:
        """Return name and parameters as plain JSON values."""
        return {
            "name": self.name,
            **self.ball.describe(),
            "iterations": self.iterations,
            "step_fraction": self.step_fraction,
            "restarts": self.restarts,
        }


class _MadProcess(Process):
    def __init__(self, attack: MaximalActionDifference, loop: Loop) -> None:
        self._attack, self._loop, self._ball = attack, loop, attack.ball
        self._policy = loop.leaky_policy
        self._random = loop.random(ATTACK_STREAM)
        self._histories: list[Tensor] = []

    def __call__(self, step: int, state: Tensor, observation: Tensor) -> Tensor:
        attack, policy, ball = self._attack, self._policy, self._ball
        start = opposite_starts(ball, self._random, 1, attack.restarts, observation.shape[-1])
        z = spread_starts(start, self._loop.shape).squeeze(0)
        repeated = repeat_episodes(observation.detach(), attack.restarts)
        with torch.no_grad():
            nominal = policy(repeated)

        def cost(z: Tensor) -> Tensor:
            change = policy(repeated + ball.to_observation(z)) - nominal
            return -change.square().sum(-1)

        rule = SteepestSteps(ball, attack.step_fraction)
        z, _, history = descend(cost, z, rule, attack.iterations, restarts=attack.restarts)
        self._histories.append(-history)
        return observation + ball.to_observation(z)

    def convergence(self) -> tuple[Convergence, ...]:
        return (stack_histories("squared action change", self._histories),)
