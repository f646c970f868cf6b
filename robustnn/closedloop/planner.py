"""The trajectory attack in the course of an episode: a plan made window by window."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from robustnn.closedloop.attacks import (
    AdamSteps,
    SteepestSteps,
    descend,
    opposite_starts,
    repeat_episodes,
    spread_starts,
    stack_histories,
)
from robustnn.closedloop.parts import model_state, planning_policy
from robustnn.closedloop.perturb import ATTACK_STREAM, Convergence, Loop, Process, UniformBall
from robustnn.closedloop.rollout import Record, simulate

if TYPE_CHECKING:
    from robustnn.closedloop.trajectory import TrajectoryAttack
    from robustnn.envs.plant import Plant

__all__ = ["TrajectoryProcess"]

MOMENTUM = 0.7


class TrajectoryProcess(Process):
    """Plans the perturbations of an episode.

    Where plant and policy are known, all of them at the first step, as later states are known too; with a model or
    a surrogate one window at a time, from what has really been reached.

    Args:
        attack: The settings.
        loop: The closed loop.
    """

    def __init__(self, attack: TrajectoryAttack, loop: Loop) -> None:
        """Keep the settings; the plan is made when the start states are known."""
        self._attack, self._loop, self._ball = attack, loop, attack.ball
        self._policy = planning_policy(loop, attack.surrogate)
        self._plant: Plant = loop.plant if attack.model is None else attack.model
        self._online = attack.model is not None or attack.surrogate is not None
        self._random = loop.random(ATTACK_STREAM)
        self._planned = 0
        self._rest: Tensor | None = None
        self._deltas: list[Tensor] = []
        self._windows: list[Tensor] = []
        self._episode: list[Tensor] = []

    def __call__(self, step: int, state: Tensor, observation: Tensor) -> Tensor:
        """Return what the policy sees (..., n_y)."""
        if step == self._planned:
            with torch.no_grad():
                z = (
                    self._plan_window(state.detach(), observation.detach())
                    if self._online
                    else self._plan(state.detach())
                )
                self._deltas += self._ball.to_observation(z).unbind(0)
            self._planned = len(self._deltas)
        return observation + self._deltas[step]

    def convergence(self) -> tuple[Convergence, ...]:
        """Return the convergence in the windows and, with keep_best, over the episode."""
        words = "return of the window" if self._attack.objective == "sum" else "final reward of the window"
        windows = stack_histories(words, self._windows)
        if not self._episode:
            return (windows,)
        return (windows, stack_histories("return of the episode", self._episode))

    def _plan(self, state: Tensor) -> Tensor:
        """Return the perturbations of the episode in weighted coordinates, shape (steps, *shape, n_y)."""
        steps = self._loop.steps
        start_state, start_done = state, self._plant.terminal(state)
        done = start_done
        parts: list[Tensor] = []
        begin = 0
        while begin < steps:
            parts.append(self._window(state, done, begin))
            begin += len(parts[-1])
            if begin < steps:
                record = self._simulate(state, done, parts[-1])
                state, done = record.states[-1], record.done[-1]
        z = torch.cat(parts)
        return self._finish(start_state, start_done, z) if self._attack.keep_best else z

    def _plan_window(self, state: Tensor, observation: Tensor) -> Tensor:
        """Return the perturbations that are applied next, in weighted coordinates, shape (applied, *shape, n_y)."""
        state = model_state(self._plant, state, observation)
        return self._window(state, self._plant.terminal(state), self._planned)

    def _window(self, state: Tensor, done: Tensor, begin: int) -> Tensor:
        """Optimise the window that begins with a step, keep what is not applied for the next one."""
        attack, steps = self._attack, self._loop.steps
        length, applied = attack.window(begin, steps)
        z = self._optimise_window(state, done, self._starts(length, self._rest), self._rest is not None)
        self._rest = z[applied:] if applied < length else None
        return z[:applied]

    def _starts(self, length: int, rest: Tensor | None) -> Tensor:
        """Random starts of a window; the first restart begins with the rest of the last plan."""
        starts = opposite_starts(
            self._ball, self._random, length, self._attack.restarts, self._loop.plant.n_y
        )
        z = spread_starts(starts, self._loop.shape)
        if rest is not None:
            kept = min(length, rest.shape[0])
            z[:kept, ..., : rest.shape[-2], :] = rest[:kept]
        return z

    def _optimise_window(self, state: Tensor, done: Tensor, z: Tensor, warm: bool) -> Tensor:
        """Return the best perturbations found for one window."""
        attack, ball = self._attack, self._ball
        iterations = self._allowed(attack.iterations_of(warm))
        rule: AdamSteps | SteepestSteps
        if attack.method == "adam":
            rule = AdamSteps(ball, attack.lr)
        else:
            rule = SteepestSteps(ball, attack.step_fraction, momentum=MOMENTUM, decay_over=iterations)
        restarts = attack.restarts
        state, done = repeat_episodes(state, restarts), repeat_episodes(done, restarts, axis=-1)
        cost = self._cost(state, done, attack.objective)
        z, _, history = descend(cost, z, rule, iterations, keep_best=attack.keep_best, restarts=restarts)
        self._windows.append(history)
        return z

    def _finish(self, state: Tensor, done: Tensor, z: Tensor) -> Tensor:
        """Refine the plan of the whole episode, or what does more damage: nothing, or plain noise."""
        cost = self._cost(state, done, "sum")
        lowest = cost(z)
        noise = UniformBall(self._ball.eps, self._ball.norm, self._ball.scale).draw(self._loop)
        for other in (torch.zeros_like(z), noise):
            value = cost(other)
            better = value < lowest
            lowest = torch.where(better, value, lowest)
            z = torch.where(better.unsqueeze(-1), other, z)
        iterations = self._allowed(self._attack.refine)
        fraction = 0.5 * self._attack.step_fraction
        rule = SteepestSteps(self._ball, fraction, momentum=MOMENTUM, decay_over=iterations)
        z, _, history = descend(cost, z, rule, iterations)
        self._episode.append(history)
        return z

    def _cost(self, state: Tensor, done: Tensor, objective: str) -> Callable[[Tensor], Tensor]:
        """Return the map from perturbations to the return that the attacker wants low."""

        def cost(z: Tensor) -> Tensor:
            rewards = self._simulate(state, done, z).rewards(self._plant)
            return rewards.sum(0) if objective == "sum" else rewards[-1]

        return cost

    def _simulate(self, state: Tensor, done: Tensor, z: Tensor) -> Record:
        """Simulate from `state` under perturbations (T, *shape, n_y) in weighted coordinates."""
        deltas = self._ball.to_observation(z).unbind(0)
        return simulate(self._plant, self._policy, state, len(deltas), lambda t, _, y: y + deltas[t], done)

    def _allowed(self, iterations: int) -> int:
        """No moves in a ball of radius zero."""
        return iterations if self._ball.eps > 0.0 else 0
