"""L-BFGS for a batch of independent problems whose objective may be infinite.

The optimiser of scipy solves one problem at a time and its line search interpolates function values, which an
infinite value spoils. Multipliers of a Lipschitz bound are admissible on an open set only, and bounds around
many points are wanted at once; a bisecting line search serves both.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["minimize"]

_MEMORY = 20
_BISECTIONS = 25
# Constants of the weak Wolfe conditions (Lewis & Overton, Nonsmooth optimization via quasi-Newton methods, 2013).
_DECREASE = 1e-4
_CURVATURE = 0.9


def minimize(
    objective: Callable[[Tensor], tuple[Tensor, Tensor]],
    x: Tensor,
    iterations: int,
    *,
    tolerance: float = 1e-9,
    history: list[float] | None = None,
) -> Tensor:
    """Minimise functions of n variables, one per member of the batch, by limited-memory BFGS.

    Args:
        objective: Maps x of shape (..., n) to values (...) and gradients (..., n); member i depends on x[i] only. A
            value may be infinite, except at the start.
        x: Start, shape (..., n).
        iterations: Largest number of steps.
        tolerance: A member has converged when ten steps decrease its value by less than this.
        history: If given, the largest value of the batch is appended after every step.

    Returns:
        The best points found, shape (..., n); no value is above the one at the start.
    """
    value, gradient = objective(x)
    steps: list[Tensor] = []
    changes: list[Tensor] = []
    values = [value]
    for _ in range(iterations):
        direction = -_apply_inverse_hessian(gradient, steps, changes)
        slope = (direction * gradient).sum(-1)
        uphill = ~(slope < 0)
        direction = torch.where(uphill.unsqueeze(-1), -gradient, direction)
        slope = torch.where(uphill, -gradient.square().sum(-1), slope)
        new = _line_search(objective, (x, value, gradient), direction, slope, first=not steps)
        steps.append(new[0] - x)
        changes.append(new[2] - gradient)
        del steps[:-_MEMORY], changes[:-_MEMORY]
        x, value, gradient = new
        values.append(value)
        if history is not None:
            history.append(float(value.max()))
        no_step = bool((values[-2] == value).all())
        if no_step or (len(values) > 10 and bool((values[-11] - value < tolerance).all())):
            break
    return x


def _apply_inverse_hessian(gradient: Tensor, steps: list[Tensor], changes: list[Tensor]) -> Tensor:
    """Two-loop recursion; a pair without positive curvature counts for nothing."""
    q = gradient
    coefficients: list[tuple[Tensor, Tensor]] = []
    scale = torch.ones_like(gradient[..., :1])
    for s, y in zip(reversed(steps), reversed(changes), strict=True):
        sy = (s * y).sum(-1, keepdim=True)
        rho = torch.where(sy > 1e-14 * y.square().sum(-1, keepdim=True), 1 / sy, torch.zeros_like(sy))
        a = rho * (s * q).sum(-1, keepdim=True)
        q = q - a * y
        coefficients.append((rho, a))
        newest = (scale == 1) & (rho > 0)
        scale = torch.where(newest, sy / y.square().sum(-1, keepdim=True), scale)
    q = q * scale
    for s, y, (rho, a) in zip(steps, changes, reversed(coefficients), strict=True):
        q = q + (a - rho * (y * q).sum(-1, keepdim=True)) * s
    return q


def _line_search(
    objective: Callable[[Tensor], tuple[Tensor, Tensor]],
    point: tuple[Tensor, Tensor, Tensor],
    direction: Tensor,
    slope: Tensor,
    *,
    first: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Bisect until every member satisfies the weak Wolfe conditions; otherwise keep its best point."""
    x, value, _ = best_x, best_value, best_gradient = point
    length = direction.norm(dim=-1)
    step = torch.where(length > 0, 1 / length.clamp_min(1e-300), length) if first else torch.ones_like(length)
    # A change of a logarithm by more than this is no local step.
    step = torch.minimum(step, 3.0 / direction.abs().amax(-1).clamp_min(1e-300))
    low, high = torch.zeros_like(step), torch.full_like(step, torch.inf)
    done = ~(slope < 0)
    for _ in range(_BISECTIONS):
        trial = x + step.unsqueeze(-1) * direction
        trial_value, trial_gradient = objective(trial)
        better = ~done & (trial_value < best_value)
        best_x = torch.where(better.unsqueeze(-1), trial, best_x)
        best_value = torch.where(better, trial_value, best_value)
        best_gradient = torch.where(better.unsqueeze(-1), trial_gradient, best_gradient)
        decreased = trial_value <= value + _DECREASE * step * slope
        flat = (trial_gradient * direction).sum(-1) >= _CURVATURE * slope
        done = done | (decreased & flat)
        if bool(done.all()):
            break
        high = torch.where(decreased, high, step)
        low = torch.where(decreased, step, low)
        step = torch.where(done, step, torch.where(high.isinf(), 2 * low, (low + high) / 2))
    return best_x, best_value, best_gradient
