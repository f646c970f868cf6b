"""L-BFGS for a batch of independent problems whose objective may be infinite.

The optimiser of scipy solves one problem at a time and its line search interpolates function values, which an
infinite value spoils. Multipliers of a Lipschitz bound are admissible on an open set only, and bounds around
many points are wanted at once; a bisecting line search serves both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

__all__ = ["LBFGS", "minimize"]

_MEMORY = 20
_BISECTIONS = 25
# Constants of the weak Wolfe conditions (Lewis & Overton, Nonsmooth optimization via quasi-Newton methods, 2013).
_DECREASE = 1e-4
_CURVATURE = 0.9


class LBFGS:
    """Limited-memory BFGS on functions of n variables, one per member of a batch, step by step.

    Args:
        objective: Maps x of shape (..., n) to values (...) and gradients (..., n); member i depends on x[i] only. A
            value may be infinite or NaN, except at the start.
        x: Start, shape (..., n).
        largest_change: Largest change of a variable that a step tries first.
        memory: Number of past steps that are remembered.

    Attributes:
        x: The present point, shape (..., n).
        value: Of the objective there, shape (...).
        gradient: Shape (..., n).
    """

    def __init__(
        self,
        objective: Callable[[Tensor], tuple[Tensor, Tensor]],
        x: Tensor,
        *,
        largest_change: float = 3.0,
        memory: int = _MEMORY,
    ) -> None:
        self._objective = objective
        self._largest_change = largest_change
        self._memory = memory
        self._steps: list[Tensor] = []
        self._changes: list[Tensor] = []
        self.x = x
        self.value, self.gradient = objective(x)

    def step(self) -> bool:
        """Go one step; return whether a value has decreased."""
        direction = -_apply_inverse_hessian(self.gradient, self._steps, self._changes)
        slope = (direction * self.gradient).sum(-1)
        uphill = ~(slope < 0)
        direction = torch.where(uphill.unsqueeze(-1), -self.gradient, direction)
        slope = torch.where(uphill, -self.gradient.square().sum(-1), slope)
        point = (self.x, self.value, self.gradient)
        first = None if self._steps else 1.0  # length of the first step
        new = _line_search(self._objective, point, direction, slope, first, self._largest_change)
        moved = bool((new[1] != self.value).any())
        self._steps.append(new[0] - self.x)
        self._changes.append(new[2] - self.gradient)
        del self._steps[: -self._memory], self._changes[: -self._memory]
        self.x, self.value, self.gradient = new
        return moved

    def state(self) -> dict[str, Tensor]:
        """Return all that the next step depends on, by value."""
        empty = self.x.new_empty((0, *self.x.shape))
        return {
            "x": self.x.clone(),
            "value": self.value.clone(),
            "gradient": self.gradient.clone(),
            "steps": torch.stack(self._steps) if self._steps else empty,
            "changes": torch.stack(self._changes) if self._changes else empty,
        }

    @classmethod
    def resume(
        cls,
        objective: Callable[[Tensor], tuple[Tensor, Tensor]],
        state: Mapping[str, Tensor],
        *,
        largest_change: float = 3.0,
        memory: int = _MEMORY,
    ) -> LBFGS:
        """Continue from what `state` has returned, to the last bit."""
        made = cls.__new__(cls)
        made._objective, made._largest_change, made._memory = objective, largest_change, memory
        # Memory of their own: sums round differently where an array begins elsewhere within a cache line.
        made._steps = [row.clone() for row in state["steps"]]
        made._changes = [row.clone() for row in state["changes"]]
        made.x, made.value, made.gradient = (state[name].clone() for name in ("x", "value", "gradient"))
        return made


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
        objective: As in `LBFGS`.
        x: Start, shape (..., n).
        iterations: Largest number of steps.
        tolerance: A member has converged when ten steps decrease its value by less than this.
        history: If given, the largest value of the batch is appended after every step.

    Returns:
        The best points found, shape (..., n); no value is above the one at the start.
    """
    solver = LBFGS(objective, x)
    values = [solver.value]
    for _ in range(iterations):
        moved = solver.step()
        values.append(solver.value)
        if history is not None:
            history.append(float(solver.value.max()))
        if not moved or (len(values) > 10 and bool((values[-11] - solver.value < tolerance).all())):
            break
    return solver.x


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
    first: float | None,
    largest_change: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Bisect until every member satisfies the weak Wolfe conditions; otherwise keep its best point."""
    x, value, _ = best_x, best_value, best_gradient = point
    length = direction.norm(dim=-1)
    step = torch.ones_like(length)
    if first is not None:
        step = torch.where(length > 0, first / length.clamp_min(1e-300), length)
    step = torch.minimum(step, largest_change / direction.abs().amax(-1).clamp_min(1e-300))
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
