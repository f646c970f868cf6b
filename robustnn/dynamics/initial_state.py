"""Initial states from windows of measured data, for many windows at once."""

from __future__ import annotations

import torch
from torch import Tensor

from robustnn.dynamics.simulate import simulate
from robustnn.dynamics.state_space import ExplicitStateSpace

__all__ = ["fit_initial_states"]

_ITERATIONS = 40
_STEP = 1e-6  # of the difference quotients; states are of the size of one
_FAR = 1e6  # stands for a simulated value that is not finite
_TOLERANCE = 1e-10


def fit_initial_states(model: ExplicitStateSpace, u: Tensor, y: Tensor) -> Tensor:
    r"""Return the states at the first sample that fit measured outputs best.

    Minimises $\sum_t \|\hat y_t(x_0) - y_t\|_2^2$ for every window by the method of Levenberg and Marquardt, from zero.

    Args:
        model: In scaled units, float64, without a graph.
        u: Scaled inputs, shape (B, n, n_u).
        y: Scaled outputs, shape (B, n, n_y).

    Returns:
        Shape (B, n_x).
    """
    with torch.no_grad():
        x = y.new_zeros(len(y), model.n_x)
        residual, jacobian = _linearised(model, x, u, y)
        cost = residual.square().sum(-1)
        damping = torch.full_like(cost, 1e-3)
        for _ in range(_ITERATIONS):
            gradient = (jacobian.mT @ residual[..., None])[..., 0]
            normal = jacobian.mT @ jacobian
            diagonal = normal.diagonal(dim1=-2, dim2=-1)
            size = diagonal.amax(-1, keepdim=True).clamp_min(1e-300)
            shift = damping[:, None] * (diagonal + 1e-9 * size) + 1e-13 * size
            step = -torch.linalg.solve_ex(normal + torch.diag_embed(shift), gradient).result
            trial = x + torch.where(step.isfinite().all(-1, keepdim=True), step, torch.zeros_like(step))
            new_residual, new_jacobian = _linearised(model, trial, u, y)
            new_cost = new_residual.square().sum(-1)
            better = new_cost < cost
            gain = (cost - new_cost).clamp_min(0.0)
            x = torch.where(better[:, None], trial, x)
            residual = torch.where(better[:, None], new_residual, residual)
            jacobian = torch.where(better[:, None, None], new_jacobian, jacobian)
            damping = torch.where(better, damping / 10.0, damping * 10.0).clamp(1e-12, 1e12)
            done = (
                (better & (gain <= _TOLERANCE * cost))
                | (step.abs().amax(-1) <= _TOLERANCE)
                | (damping > 1e11)
            )
            cost = torch.where(better, new_cost, cost)
            if bool(done.all()):
                break
        return x


def _linearised(model: ExplicitStateSpace, x: Tensor, u: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Residuals (B, n n_y) and their derivatives by the states (B, n n_y, n_x)."""
    count, n_x = x.shape
    shifts = torch.cat((x.new_zeros(1, n_x), _STEP * torch.eye(n_x, dtype=x.dtype, device=x.device)))
    starts = (x[:, None] + shifts).reshape(-1, n_x)
    inputs = u[:, None].expand(-1, n_x + 1, -1, -1).reshape(-1, *u.shape[1:])
    found = simulate(model, starts, inputs).y.reshape(count, n_x + 1, -1)
    found = found.nan_to_num(nan=_FAR, posinf=_FAR, neginf=-_FAR).clamp(-_FAR, _FAR)
    base = found[:, 0]
    return base - y.reshape(count, -1), ((found[:, 1:] - base[:, None]) / _STEP).mT
