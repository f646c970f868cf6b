"""The worst gain of a closed loop that an attack finds: a lower bound beside the certified one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustnn.certify.quadratic import quadratic_policy
from robustnn.closedloop.problem import ControlProblem
from robustnn.closedloop.synthesis import close_loop, static_controller
from robustnn.errors import check_positive, check_positive_int

__all__ = ["WorstGain", "worst_gain"]


@dataclass(frozen=True, eq=False)
class WorstGain:
    r"""The largest ratio $\|\Delta z\|_2 / \|d\|_2$ that was found, and the disturbance that has it.

    Attributes:
        gain: The ratio.
        disturbance: $d = (w, \delta)$, shape (T, n_w + n_y), in units of the problem's disturbances.
        size: Root mean square of the disturbance over the steps.
        history: Largest ratio after 0, 1, ... iterations.
    """

    gain: float
    disturbance: Tensor
    size: float
    history: tuple[float, ...]


def worst_gain(
    problem: ControlProblem,
    policy: Any,
    *,
    limits: tuple[Any, Any] | None = None,
    steps: int = 200,
    sizes: Sequence[float] = (1e-3, 0.1, 1.0),
    iterations: int = 40,
    restarts: int = 1,
    state: Any = None,
    seed: int = 0,
) -> WorstGain:
    r"""Search for the disturbance of a given energy with the largest effect, by power iteration through the loop.

    The loop runs twice from the same state, with and without d. From sinusoids in the worst direction of the linearised
    loop, and from noise, every iteration sets d to the gradient of $\|\Delta z\|^2$, scaled to the energy. For an
    affine policy that is the power method, and the gain tends to the H-infinity norm as `steps` grow.

    Args:
        problem: The linear plant, its costs, and the sizes of the disturbances.
        policy: As in `certify_loop`.
        limits: As in `certify_loop`.
        steps: T, length of the disturbance.
        sizes: Root mean squares over the steps of $\|d_t\|_2$ to try, positive: small ones for the loop near the
            nominal motion, large ones for saturated loops.
        iterations: Power iterations.
        restarts: Starts from noise for every size, besides the sinusoid.
        state: Start state, shape (n_x,), in deviations from the equilibrium; zero if None.
        seed: Seed of the noise.

    Returns:
        The best that was found: a lower bound of the incremental l2 gain of the loop.

    Example:
        >>> from robustnn.closedloop import control_problem
        >>> from robustnn.envs import SpringChain
        >>> from robustnn.nn import MLP
        >>> problem = control_problem(SpringChain(masses=1, damping=1.0), [0.0, 0.0], [0.0])
        >>> worst_gain(problem, MLP(2, [8], 1), steps=50, iterations=5).gain > 0.0
        True
    """
    for name, count in (("steps", steps), ("iterations", iterations)):
        check_positive_int(name, count)
    check_positive_int("restarts", restarts, minimum=0)
    levels = [check_positive(f"sizes[{k}]", size) for k, size in enumerate(sizes)]
    known = quadratic_policy(policy, limits)
    a, b, c, v, w = (
        torch.from_numpy(m) for m in (problem.a, problem.b, problem.c, problem.sensor, problem.process)
    )
    root_q, root_r = (torch.from_numpy(m) for m in (problem.state_weight, problem.action_weight))
    y_0, u_0 = torch.from_numpy(problem.observation), torch.from_numpy(problem.action)
    start = torch.zeros(len(a), dtype=torch.float64) if state is None else torch.as_tensor(state).double()
    n_w, n_d = w.shape[1], w.shape[1] + len(v)

    def outputs(d: Tensor) -> Tensor:
        """Costs z (T, batch, n_z) for disturbances (T, batch, n_d)."""
        x = start.expand(d.shape[1], -1)
        found = []
        for now in d:
            u = known.function(y_0 + x @ c.mT + now[:, n_w:] @ v.mT) - u_0
            found.append(torch.cat([x @ root_q.mT, u @ root_r.mT], -1))
            x = x @ a.mT + u @ b.mT + now[:, :n_w] @ w.mT
        return torch.stack(found)

    with torch.no_grad():
        nominal = outputs(torch.zeros(steps, 1, n_d, dtype=torch.float64))
    slope = torch.autograd.functional.jacobian(known.function, y_0 + start @ c.mT)
    shapes = [_sinusoid(problem, slope.numpy(), steps)]
    noise = torch.Generator().manual_seed(seed)
    shapes += [torch.randn(steps, n_d, dtype=torch.float64, generator=noise) for _ in range(restarts)]
    energies = torch.tensor([level * math.sqrt(steps) for level in levels for _ in shapes]).double()
    d = torch.stack([shape for _ in levels for shape in shapes], 1)

    def scaled(z: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(z, dim=(0, 2)).clamp_min(torch.finfo(z.dtype).tiny ** 0.5)
        return z * (energies / norm).unsqueeze(-1)

    d = scaled(d)
    best, chosen, history = torch.zeros(len(energies), dtype=torch.float64), d, []
    for move in range(iterations + 1):
        with torch.enable_grad():
            d = d.detach().requires_grad_()
            change = (outputs(d) - nominal).square().sum((0, 2))
            (gradient,) = torch.autograd.grad(change.sum(), d)
        ratio = change.detach().sqrt() / torch.linalg.vector_norm(d.detach(), dim=(0, 2))
        better = ratio > best
        best = torch.where(better, ratio, best)
        chosen = torch.where(better.unsqueeze(-1), d.detach(), chosen)
        history.append(float(best.max()))
        if move < iterations:
            still = gradient.square().sum((0, 2)) == 0.0
            d = scaled(torch.where(still.unsqueeze(-1), d.detach(), gradient))
    winner = int(best.argmax())
    size = float(energies[winner]) / math.sqrt(steps)
    return WorstGain(float(best[winner]), chosen[:, winner].clone(), size, tuple(history))


def _sinusoid(problem: ControlProblem, slope: np.ndarray, steps: int) -> Tensor:
    """The worst input of the linearised loop at its peak, (T, n_d)."""
    a, b, c, d = close_loop(problem, static_controller(problem, slope))
    poles = np.abs(np.angle(np.linalg.eigvals(a)))
    best, angle, direction = -1.0, 0.0, np.ones(b.shape[1], dtype=complex)
    for trial in np.unique(
        np.concatenate([np.linspace(0.0, math.pi, 200), np.geomspace(1e-3, 1.0, 60), poles])
    ):
        response = (
            c @ np.linalg.solve(np.exp(1j * trial) * np.eye(len(a)) - a + 1e-12 * np.eye(len(a)), b) + d
        )
        _, values, right = np.linalg.svd(response)
        if values[0] > best:
            best, angle, direction = float(values[0]), float(trial), right[0].conj()
    signal = np.exp(1j * angle * np.arange(steps))[:, None] * direction
    return torch.from_numpy(np.ascontiguousarray(signal.real) + 1e-9)
