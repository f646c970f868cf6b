"""How an adversary chooses errors of the observations of many copies at once, during training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from robustnn.closedloop.attacks import SteepestSteps, descend, opposite_starts, repeat_episodes
from robustnn.closedloop.ball import Ball
from robustnn.closedloop.planner import MOMENTUM
from robustnn.closedloop.rollout import simulate
from robustnn.policies.action_map import ActionMap

if TYPE_CHECKING:
    from robustnn.envs.plant import Plant

__all__ = ["Attacker", "Draws", "GaussianErrors", "MadErrors", "PlantErrors", "Scene", "UniformErrors"]


class Draws:
    """Random numbers of all copies from one generator on the CPU, for any device.

    Args:
        generator: The source.
        count: Number of copies E.
        dtype: Of the draws.
        device: Where they go.
    """

    def __init__(
        self, generator: np.random.Generator, count: int, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        self._generator, self._count, self._to = generator, count, (device, dtype)

    def normal(self, steps: int, width: int) -> Tensor:
        """Return standard normal draws, shape (steps, E, width)."""
        return torch.from_numpy(self._generator.standard_normal((steps, self._count, width))).to(*self._to)

    def uniform(self, steps: int, width: int) -> Tensor:
        """Return draws of U[0, 1), shape (steps, E, width)."""
        return torch.from_numpy(self._generator.random((steps, self._count, width))).to(*self._to)

    def starts(self, ball: Ball, steps: int, restarts: int, width: int) -> Tensor:
        """Return points on the surface of a ball, (steps, R E, width); every second restart is an opposite."""
        return opposite_starts(ball, cast(Any, self), steps, restarts, width).flatten(1, 2)


@dataclass(frozen=True, eq=False)
class Scene:
    """What an attacker sees at one moment.

    Attributes:
        observation: True observations, shape (E, n_y).
        ball: The admissible errors.
        draws: Source of random numbers for E copies.
        policy: Returns the present action map; for attacks by gradients.
        plant: The plant, for attacks through it.
        state: True states, shape (E, n_x), for attacks through the plant.
        fresh: Which copies have just started an episode, shape (E,); None for copies that are seen only once (the last
            observation of an episode).
    """

    observation: Tensor
    ball: Ball
    draws: Draws
    policy: Callable[[], ActionMap]
    plant: Plant | None = None
    state: Tensor | None = None
    fresh: Tensor | None = None


class Attacker:
    """Chooses errors in weighted coordinates, (E, n_y), inside the ball (except Gaussian ones)."""

    def __call__(self, scene: Scene) -> Tensor:
        """Return the errors of one moment."""
        raise TypeError(f"{type(self).__name__} must define __call__()")


class UniformErrors(Attacker):
    """Uniform in the ball."""

    def __call__(self, scene: Scene) -> Tensor:
        """Return the errors of one moment."""
        ball, width = scene.ball, scene.observation.shape[-1]
        if ball.norm == "linf":
            return ball.eps * (2.0 * scene.draws.uniform(1, width)[0] - 1.0)
        surface = ball.surface_sample(scene.draws.normal(1, width)[0])
        return surface * scene.draws.uniform(1, 1)[0] ** (1.0 / width)


class GaussianErrors(Attacker):
    r"""Gaussian of standard deviation $\epsilon / \sqrt n$ (l2: eps is the root mean square length) or eps (linf)."""

    def __call__(self, scene: Scene) -> Tensor:
        """Return the errors of one moment."""
        width = scene.observation.shape[-1]
        size = scene.ball.eps / (width**0.5 if scene.ball.norm == "l2" else 1.0)
        return size * scene.draws.normal(1, width)[0]


@dataclass(frozen=True)
class MadErrors(Attacker):
    """Projected gradient ascent on the change of the mean action, anew at every moment.

    Args:
        iterations: Gradient steps.
        step_fraction: Length of a step over eps.
        restarts: Random starts, of which the best is used.
    """

    iterations: int
    step_fraction: float
    restarts: int

    def __call__(self, scene: Scene) -> Tensor:
        """Return the errors of one moment."""
        ball, policy = scene.ball, scene.policy()
        start = scene.draws.starts(ball, 1, self.restarts, scene.observation.shape[-1])[0]
        observation = repeat_episodes(scene.observation, self.restarts)
        with torch.no_grad():
            nominal = policy(observation)

        def cost(z: Tensor) -> Tensor:
            return -(policy(observation + ball.to_observation(z)) - nominal).square().sum(-1)

        rule = SteepestSteps(ball, self.step_fraction)
        return descend(cost, start, rule, self.iterations, restarts=self.restarts)[0]


class PlantErrors(Attacker):
    """Errors that lower the reward of the next steps, by gradients through plant and policy, replanned on the way.

    All copies are planned together. A plan starts from what is left of the last one; a copy that has just started an
    episode has random errors until the next plan.

    Args:
        horizon: Steps that a plan looks ahead.
        replan: Steps after which it is made anew, at most the horizon.
        iterations: Gradient steps per plan.
        step_fraction: Length of a step over eps.
        restarts: Random starts for single observations; a plan has one.
    """

    def __init__(self, horizon: int, replan: int, iterations: int, step_fraction: float) -> None:
        """Start without a plan."""
        self.horizon, self.replan = horizon, replan
        self.iterations, self.step_fraction = iterations, step_fraction
        self._plan: Tensor | None = None
        self._used = 0

    def __call__(self, scene: Scene) -> Tensor:
        """Return the errors of one moment."""
        start = scene.draws.starts(scene.ball, self.horizon, 1, scene.observation.shape[-1])
        if scene.fresh is None:
            return self._optimise(scene, start)[0]
        if self._plan is not None:
            rest = self._plan[self._used :]
            kept = ~scene.fresh
            start[: len(rest), kept] = rest[:, kept]
        if self._plan is None or self._used >= self.replan or bool(scene.fresh.all()):
            start, self._used = self._optimise(scene, scene.ball.project(start)), 0
        else:  # the plan of running episodes, and random errors in the others
            start = torch.cat((start[:1].new_zeros(self._used, *start.shape[1:]), start))[: self.horizon]
        self._plan = start
        error = scene.ball.project(start[self._used])
        self._used += 1
        return error

    def _optimise(self, scene: Scene, start: Tensor) -> Tensor:
        plant, state, policy, ball = (
            cast("Plant", scene.plant),
            cast(Tensor, scene.state),
            scene.policy(),
            scene.ball,
        )
        done = plant.terminal(state)

        def cost(z: Tensor) -> Tensor:
            deltas = ball.to_observation(z).unbind(0)
            record = simulate(plant, policy, state, len(deltas), lambda t, _, y: y + deltas[t], done)
            return record.rewards(plant).sum(0)

        rule = SteepestSteps(ball, self.step_fraction, momentum=MOMENTUM)
        return descend(cost, start, rule, self.iterations)[0]
