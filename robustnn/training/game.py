"""A policy's sensors against the policy: windows of closed-loop simulation in which errors are optimised."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from robustnn.closedloop.attacks import SteepestSteps
from robustnn.closedloop.ball import Ball
from robustnn.closedloop.rollout import simulate

if TYPE_CHECKING:
    from robustnn.envs.plant import Plant

__all__ = ["Game", "GameSettings"]

MOMENTUM = 0.7


@dataclass(frozen=True)
class GameSettings:
    """How the game is played.

    Attributes:
        episodes: E, number of episodes in progress.
        attacked: How many of them are attacked; the others are nominal.
        window: H, steps that are simulated and optimised at once.
        advance: Steps by which the episodes move on after a window, at most H.
        moves: Moves of errors and policy per window.
        step_fraction: Length of a move of an error over eps.
    """

    episodes: int
    attacked: int
    window: int
    advance: int
    moves: int
    step_fraction: float


class Game:
    """Episodes in progress, and the errors planned for their next window.

    The errors are kept from move to move and from window to window: what is left of a plan when the episodes move on
    begins the next one. All random numbers are drawn on the CPU.

    Args:
        plant: The plant.
        ball: The admissible errors.
        settings: How the game is played.
        seed: Seed of start states and of the errors that plans begin with.
        like: A tensor of the dtype and device of the simulation.
    """

    def __init__(self, plant: Plant, ball: Ball, settings: GameSettings, seed: int, like: Tensor) -> None:
        """Start all episodes."""
        self._plant, self._ball, self._settings, self._like = plant, ball, settings, like
        self._generator = torch.Generator().manual_seed(seed)
        count = settings.episodes
        self._attacked = (torch.arange(count) < settings.attacked).unsqueeze(-1).to(like)
        self._state = self._starts()
        # Ages at random, so that the episodes do not end all at once.
        self._age = torch.randint(plant.horizon, (count,), generator=self._generator).to(like.device)
        self._plan = self._errors()

    def play(
        self, policy: Callable[[], Callable[[Tensor], Tensor]], improve: Callable[[Tensor, Tensor], None]
    ) -> Tensor:
        """Play one window and move the episodes on.

        Args:
            policy: Returns the present policy, with a graph to its parameters.
            improve: Takes the returns of the window (E,) and the errors; back-propagates minus the mean return, to
                the errors as well, and changes the parameters.

        Returns:
            Returns of the last move, shape (E,), without graph.
        """
        settings = self._settings
        rule = SteepestSteps(self._ball, settings.step_fraction, momentum=MOMENTUM)
        z = self._plan
        for _ in range(settings.moves):
            z = z.requires_grad_(True)
            errors = _adding(self._ball.to_observation(z * self._attacked))
            record = simulate(self._plant, policy(), self._state, settings.window, errors)
            returns = record.rewards(self._plant).sum(0)
            improve(returns, z)
            with torch.no_grad():
                # One backward pass served both players: the errors lower what the policy raises.
                gradient = torch.zeros_like(z) if z.grad is None else -z.grad.nan_to_num(0.0, 0.0, 0.0)
                z = rule.update(z, gradient).detach()
        self._move_on(record.states[settings.advance].detach(), record.done[settings.advance], z)
        return returns.detach()

    def _move_on(self, state: Tensor, done: Tensor, z: Tensor) -> None:
        """Take the episodes to the states reached; those that have ended start again."""
        advance = self._settings.advance
        errors = self._errors()
        age = self._age + advance
        over = done | (age >= self._plant.horizon) | ~state.isfinite().all(-1)
        self._age = age.masked_fill(over, 0)
        self._state = torch.where(over.unsqueeze(-1), self._starts(), state)
        plan = torch.cat((z[advance:], errors[:advance]))
        self._plan = torch.where(over.unsqueeze(-1), errors, plan)

    def _starts(self) -> Tensor:
        shape = (self._settings.episodes, self._plant.n_x)
        uniform = torch.rand(shape, generator=self._generator, dtype=torch.float64)
        return self._plant.initial(uniform).to(self._like)

    def _errors(self) -> Tensor:
        shape = (self._settings.window, self._settings.episodes, self._plant.n_y)
        normal = torch.randn(shape, generator=self._generator, dtype=torch.float64)
        return self._ball.surface_sample(normal).to(self._like)


def _adding(deltas: Tensor) -> Callable[[int, Tensor, Tensor], Tensor]:
    """Return what adds errors (H, E, n_y) to the observations, step by step."""
    parts = deltas.unbind(0)
    return lambda step, _, observation: observation + parts[step]
