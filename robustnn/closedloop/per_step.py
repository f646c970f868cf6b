"""Attacks that look at one observation at a time: projected gradient descent anew at every step."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol

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
from robustnn.closedloop.perturb import ATTACK_STREAM, Convergence, Loop, Process
from robustnn.errors import check_positive, check_positive_int

__all__ = ["PerStep", "PerStepProcess", "ball_of", "check_per_step", "describe_per_step"]


class PerStep(Protocol):
    """The settings that all per-step attacks share; see `MaximalActionDifference` for their meaning."""

    @property
    def eps(self) -> float: ...  # noqa: D102
    @property
    def norm(self) -> Norm: ...  # noqa: D102
    @property
    def scale(self) -> Sequence[float] | None: ...  # noqa: D102
    @property
    def iterations(self) -> int: ...  # noqa: D102
    @property
    def step_fraction(self) -> float: ...  # noqa: D102
    @property
    def restarts(self) -> int: ...  # noqa: D102


def ball_of(attack: PerStep) -> Ball:
    """Return the set of admissible perturbations."""
    return Ball(attack.eps, attack.norm, attack.scale)


def check_per_step(attack: PerStep) -> None:
    """Check the shared settings of a frozen attack and store them as plain numbers.

    Raises:
        InvalidArgumentError: If one is out of its range.
    """
    ball = ball_of(attack)
    object.__setattr__(attack, "eps", ball.eps)
    object.__setattr__(attack, "scale", ball.scale)
    object.__setattr__(attack, "iterations", check_positive_int("iterations", attack.iterations))
    object.__setattr__(attack, "step_fraction", check_positive("step_fraction", attack.step_fraction))
    object.__setattr__(attack, "restarts", check_positive_int("restarts", attack.restarts))


def describe_per_step(attack: PerStep) -> dict[str, Any]:
    """Return the shared settings as plain JSON values."""
    fields = ("iterations", "step_fraction", "restarts")
    return {**ball_of(attack).describe(), **{name: getattr(attack, name) for name in fields}}


class PerStepProcess(Process):
    """Projected gradient descent on a cost of what the policy sees, the best iterate of all restarts used.

    It looks at observations and at n_y only, so it runs wherever there is a policy.

    Args:
        attack: The settings.
        loop: The closed loop.
    """

    objective: ClassVar[str]
    # Sign with which the objective is reported: -1 where the attack raises it.
    sign: float = 1.0

    def __init__(self, attack: PerStep, loop: Loop) -> None:
        """Keep the settings and open the stream of random starts."""
        self._ball = ball_of(attack)
        self._ball.check_components(loop.plant.n_y)
        self._settings, self._shape = attack, loop.shape
        self._random = loop.random(ATTACK_STREAM)
        self._histories: list[Tensor] = []
        self._state: Tensor | None = None  # the true one; attacks that run without a plant leave it alone

    @abstractmethod
    def cost(self, observation: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the map from what the policy sees to what the attacker wants low.

        Args:
            observation: True observation, repeated for every restart, shape (..., R E, n_y).

        Returns:
            Maps (..., R E, n_y) to costs (..., R E).
        """

    def __call__(self, step: int, state: Tensor, observation: Tensor) -> Tensor:
        """Return what the policy sees (..., n_y)."""
        settings, ball = self._settings, self._ball
        start = opposite_starts(ball, self._random, 1, settings.restarts, observation.shape[-1])
        z = spread_starts(start, self._shape).squeeze(0)
        repeated = repeat_episodes(observation.detach(), settings.restarts)
        self._state = state
        cost = self.cost(repeated)
        z, _, history = descend(
            lambda z: cost(repeated + ball.to_observation(z)),
            z,
            SteepestSteps(ball, settings.step_fraction),
            settings.iterations,
            restarts=settings.restarts,
        )
        self._histories.append(self.sign * history)
        return observation + ball.to_observation(z)

    def convergence(self) -> tuple[Convergence, ...]:
        """Return how the objective developed, one stage per step of the episode."""
        return (stack_histories(self.objective, self._histories),)
