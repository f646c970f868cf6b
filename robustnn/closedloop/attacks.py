"""What gradient attacks share: restarts, steps inside a ball, and descent that keeps the best iterate.

Restarts are further episodes: R of them turn a batch (..., E) into (..., R E), restart by restart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from robustnn.closedloop.ball import Ball
from robustnn.closedloop.perturb import Convergence, EpisodeRandom

__all__ = [
    "AdamSteps",
    "SteepestSteps",
    "best_of_restarts",
    "descend",
    "finite_gradient",
    "opposite_starts",
    "repeat_episodes",
    "spread_starts",
    "stack_histories",
]


class Steps(Protocol):
    """A rule for moving the variables of an attack; made anew for every optimisation."""

    def point(self, z: Tensor) -> Tensor:
        """Map the variables to admissible perturbations, differentiably."""

    def update(self, z: Tensor, gradient: Tensor) -> Tensor:
        """Return the next variables."""


class AdamSteps:
    """Adam: for l2 on free vectors that are scaled to length eps, for linf on the cube, by projection.

    Args:
        ball: The admissible set.
        lr: Step size, in the units of eps.
    """

    def __init__(self, ball: Ball, lr: float) -> None:
        """Start with empty moments."""
        self._ball, self._lr = ball, lr
        self._mean: Tensor | float = 0.0
        self._square: Tensor | float = 0.0
        self._count = 0

    def point(self, z: Tensor) -> Tensor:
        """Scale to length eps (l2)."""
        return self._ball.to_surface(z) if self._ball.norm == "l2" else z

    def update(self, z: Tensor, gradient: Tensor) -> Tensor:
        """Take one step (Kingma and Ba, 2015; betas 0.9 and 0.999)."""
        self._count += 1
        self._mean = 0.9 * self._mean + 0.1 * gradient
        self._square = 0.999 * self._square + 0.001 * gradient.square()
        mean = self._mean / (1.0 - 0.9**self._count)
        root = (self._square / (1.0 - 0.999**self._count)).sqrt()
        moved = z - self._lr * mean / (root + 1e-8)
        return moved if self._ball.norm == "l2" else self._ball.project(moved)


class SteepestSteps:
    """Steps of known length along the momentum of the steepest direction of every observation.

    The size of the gradient does not matter, so that steps far from the end of a window move as fast as
    the others.

    Args:
        ball: The admissible set.
        step_fraction: Length of the first step over eps.
        momentum: Share of the previous direction that is kept.
        decay_over: Number of steps over which their length falls to zero along a cosine; None for never.
    """

    def __init__(
        self, ball: Ball, step_fraction: float, *, momentum: float = 0.0, decay_over: int | None = None
    ) -> None:
        """Start at rest."""
        self._ball, self._step = ball, step_fraction * ball.eps
        self._momentum, self._decay_over = momentum, decay_over
        self._direction: Tensor | float = 0.0
        self._count = 0

    def point(self, z: Tensor) -> Tensor:
        """Return the variables: they are admissible already."""
        return z

    def update(self, z: Tensor, gradient: Tensor) -> Tensor:
        """Take one step and project."""
        self._direction = self._momentum * self._direction + self._ball.steepest(gradient)
        progress = 0.0 if self._decay_over is None else self._count / self._decay_over
        self._count += 1
        step = self._step * 0.5 * (1.0 + math.cos(math.pi * progress))
        return self._ball.project(z - step * self._direction)


def descend(
    cost: Callable[[Tensor], Tensor],
    z: Tensor,
    rule: Steps,
    iterations: int,
    *,
    keep_best: bool = True,
    restarts: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    """Lower the cost of every episode by itself, whatever the gradient mode outside.

    Args:
        cost: Maps admissible perturbations (..., n_y) to one cost per episode, shape (*shape).
        z: Where to start.
        rule: How to move.
        iterations: Number of moves; zero to judge the start only.
        keep_best: Keep each episode's best iterate instead of its last one.
        restarts: R, for the choice of the best of them at the end.

    Returns:
        The perturbations of the best restarts (..., n_y), their costs (*shape), and the costs after 0, 1,
        ..., `iterations` moves averaged over the episodes, shape (iterations + 1,) or (iterations + 1, S).
    """
    chosen, lowest = z, z.new_zeros(())
    history = []
    for move in range(iterations + 1):
        more = move < iterations
        with torch.enable_grad():
            z = z.detach().requires_grad_(more)
            point = rule.point(z)
            value = cost(point)
        with torch.no_grad():
            if move == 0 or not keep_best:
                chosen, lowest = point.detach(), value.detach()
            else:
                better = value < lowest
                lowest = torch.where(better, value, lowest)
                chosen = torch.where(better.unsqueeze(-1), point, chosen)
            history.append(_best(lowest, restarts).mean(-1))
            if more:
                z = rule.update(z, finite_gradient(value, z))
    return best_of_restarts(chosen, lowest, restarts).detach(), _best(lowest, restarts), torch.stack(history)


def finite_gradient(cost: Tensor, z: Tensor) -> Tensor:
    """Return the gradient of the summed cost, zero where there is none or it is not finite.

    Only z receives a gradient: parameters of policies and plants are left alone.

    Args:
        cost: One value per episode; the sum gives each episode its own gradient.
        z: Leaf tensor.

    Returns:
        Shape of z.
    """
    if not cost.requires_grad:
        return torch.zeros_like(z)
    (gradient,) = torch.autograd.grad(cost, z, torch.ones_like(cost), allow_unused=True)
    return torch.zeros_like(z) if gradient is None else gradient.nan_to_num(0.0, 0.0, 0.0)


def repeat_episodes(values: Tensor, restarts: int, axis: int = -2) -> Tensor:
    """Repeat the episode axis for every restart: (..., E, n) to (..., R E, n)."""
    return values if restarts == 1 else torch.cat([values] * restarts, dim=axis)


def opposite_starts(ball: Ball, random: EpisodeRandom, steps: int, restarts: int, n_y: int) -> Tensor:
    """Draw starts on the surface of a ball: every second restart is the opposite of the one before.

    Args:
        ball: The ball.
        random: Source of the draws.
        steps: T.
        restarts: R.
        n_y: Number of observation components.

    Returns:
        Shape (T, R, E, n_y).
    """
    pairs = (restarts + 1) // 2
    drawn = ball.surface_sample(random.normal(pairs * steps, n_y).unflatten(0, (steps, pairs)))
    return torch.stack((drawn, -drawn), dim=2).flatten(1, 2)[:, :restarts]


def spread_starts(starts: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Give every policy the same random starts.

    Args:
        starts: Shape (T, R, E, n_y).
        shape: Leading axes of the loop, (E,) or (S, E).

    Returns:
        Shape (T, R E, n_y) or (T, S, R E, n_y).
    """
    flat = starts.flatten(1, 2)
    return flat if len(shape) == 1 else flat.unsqueeze(1).repeat(1, shape[0], 1, 1)


def best_of_restarts(values: Tensor, costs: Tensor, restarts: int) -> Tensor:
    """Return the values of the restart with the lowest cost.

    Args:
        values: Shape (..., *shape, n) with R E episodes.
        costs: Shape (*shape) with R E episodes.
        restarts: R.

    Returns:
        Shape (..., *shape, n) with E episodes.
    """
    if restarts == 1:
        return values
    choice = costs.unflatten(-1, (restarts, -1)).argmin(-2)  # (..., E)
    split = values.unflatten(-2, (restarts, -1))  # (..., R, E, n)
    index = choice.unsqueeze(-2).unsqueeze(-1).expand(*split.shape[:-3], 1, *split.shape[-2:])
    return split.gather(-3, index).squeeze(-3)


def stack_histories(objective: str, histories: Sequence[Tensor]) -> Convergence:
    """Return the convergence of several optimisations; shorter histories repeat their last value.

    Args:
        objective: What was optimised, in words.
        histories: Each of shape (iterations + 1,) or (iterations + 1, S).

    Returns:
        The convergence.
    """
    arrays = [history.double().cpu().numpy() for history in histories]
    counts = np.array([len(array) - 1 for array in arrays])
    longest = int(counts.max()) + 1
    padded = [np.concatenate([a, np.repeat(a[-1:], longest - len(a), axis=0)]) for a in arrays]
    return Convergence(objective, np.stack(padded), counts)


def _best(costs: Tensor, restarts: int) -> Tensor:
    """Lowest cost over the restarts: (..., R E) to (..., E)."""
    return costs if restarts == 1 else costs.unflatten(-1, (restarts, -1)).amin(-2)
