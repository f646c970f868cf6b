r"""Incremental gains from inputs to outputs: metrics with a quadratic bound of state and input changes together.

Where the triangle inequality adds what states and inputs contribute, these conditions see that they cannot both point
in the worst direction. Metric and multipliers are searched by L-BFGS; what comes out is proved.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
from torch import Tensor

from robustnn.dynamics.gains import (
    STAGES,
    GainProof,
    descend,
    gamma_matrix,
    greedy_multipliers,
    largest,
    prove,
    whitened,
)
from robustnn.dynamics.metric_space import MetricSpace, condition_penalty, linearised, lyapunov, scale_to_one
from robustnn.dynamics.slope_form import SlopeForm
from robustnn.errors import CertificateError

__all__ = ["incremental_l2_gain", "reachable"]


def reachable(
    step: SlopeForm, output: SlopeForm, n_x: int, start: GainProof, *, iterations: int = 150
) -> GainProof | None:
    r"""Return a metric and constants that bound what bounded input changes do to states, tight for the output.

    $$\|\delta x_+\|_P^2 \le \lambda \|\delta x\|_P^2 + \mu \|\delta u\|_2^2, \qquad 0 < \lambda < 1$$

    so that $\|\delta x_t\|_P^2 \le \mu d^2 / (1 - \lambda)$ for equal initial states and changes of at most d.
    Minimised is the bound of the output that follows, the star norm of Abedor, Nagpal & Poolla, *A linear matrix
    inequality approach to peak-to-peak gain minimization* (Int. J. Robust and Nonlinear Control 1996), with
    multipliers.

    Args:
        step: From (x, u) to the next state; inputs and outputs of both maps in the units in which gains count.
        output: From (x, u) to y.
        n_x: Number of states.
        start: A contraction with a rate below one.
        iterations: L-BFGS steps.

    Returns:
        The gain $\mu^{1/2}$ with its proof (target P with largest eigenvalue one, source diag(P, I), `decay` =
        $\lambda$, `fixed` = n_x); None if no input reaches an output, or rounding leaves nothing proved.
    """
    seen = output.inputs(0, n_x)
    if step.inputs(n_x, step.n_in).is_constant or seen.is_constant:
        return None
    n_u = step.n_in - n_x
    eye_y = torch.eye(seen.n_out, dtype=torch.float64)
    sizes = [step.n_z, seen.n_z]

    def squared(metric: Tensor, decay: Tensor, t: Tensor, order: float) -> tuple[Tensor, Tensor] | None:
        gamma, room = gamma_matrix(step, t, metric)
        found = None if gamma is None else _eliminated(decay * metric, gamma, n_x, order)
        return None if found is None else (found[0], room + found[1])

    def merit(
        x: Tensor, space: MetricSpace, base: Sequence[Tensor], logit: Tensor, order: float, barrier: float
    ) -> Tensor:
        """Logarithm of the squared bound of the output."""
        own = x[space.size + 1 :].split(sizes)
        factor = space.factor(x[: space.size])
        share = torch.sigmoid(logit + x[space.size])
        found = squared(factor @ factor.mT, share, base[0] * own[0].exp(), order)
        gamma_y, room_y = gamma_matrix(seen, base[1] * own[1].exp(), eye_y)
        if found is None or gamma_y is None:
            return x.new_tensor(math.inf)
        total = found[0] + largest(whitened(gamma_y, factor), order) - (1.0 - share).log()
        return total - barrier * (found[1] + room_y) + condition_penalty(factor)

    t_y = greedy_multipliers(seen, eye_y)
    zero = eye_y.new_zeros(n_x * (n_x + 1) // 2 + 1 + sum(sizes))
    last = STAGES[-1][0]
    best: tuple[float, Tensor, Tensor, list[Tensor]] | None = None
    for p, decay, t in _reach_starts(step, n_x, start):
        value = float(merit(zero, MetricSpace(p), (t, t_y), torch.logit(decay), last, 0.0))
        if value < math.inf and (best is None or value < best[0]):
            best = (value, p, decay, [t, t_y])
    if best is None:
        return None
    _, p, decay, both = best
    for order, barrier in STAGES if iterations else ():
        space, logit = MetricSpace(p), torch.logit(decay)

        def objective(x: Tensor, order: float = order, barrier: float = barrier, space: MetricSpace = space,
                      base: Sequence[Tensor] = tuple(both), logit: Tensor = logit) -> Tensor:  # fmt: skip
            return merit(x, space, base, logit, order, barrier)

        x = descend(objective, zero, iterations // len(STAGES))
        factor = space.factor(x[: space.size])
        p, scale = scale_to_one(factor @ factor.mT)
        decay = torch.sigmoid(logit + x[space.size])
        moved = [b * y.exp() for b, y in zip(both, x[space.size + 1 :].split(sizes), strict=True)]
        both = [moved[0] * scale, moved[1]]
        value = float(merit(zero, MetricSpace(p), both, torch.logit(decay), last, 0.0))
        if value < best[0]:
            best = (value, p, decay, both)
    _, p, decay, both = best
    multipliers = both[0]
    found = squared(p, decay, multipliers, last)
    source = torch.block_diag(p, torch.eye(n_u, dtype=torch.float64))
    value = math.inf if found is None else math.exp(0.5 * float(found[0]))
    try:
        return prove(step, multipliers, p, source, value, fixed=n_x, decay=float(decay))
    except CertificateError:
        return None


def incremental_l2_gain(
    joint: SlopeForm, n_x: int, starts: Sequence[GainProof], *, iterations: int = 200
) -> GainProof | None:
    r"""Return a proved incremental $\ell_2$ gain from u to y, by the bounded real lemma with multipliers.

    $$\delta x_+^T P\, \delta x_+ + \|\delta y\|_2^2 \le \delta x^T P\, \delta x + \gamma^2 \|\delta u\|_2^2$$

    Args:
        joint: From (x, u) to the next state and y, with u and y in the units in which the gain counts.
        n_x: Number of states.
        starts: Contractions with rates below one.
        iterations: L-BFGS steps.

    Returns:
        The gain and its proof (target diag(P, I), source diag(P, I), `fixed` = n_x); None if none was found.
    """
    n_y, n_u = joint.n_out - n_x, joint.n_in - n_x
    eye = torch.eye(n_y, dtype=torch.float64)

    def squared(metric: Tensor, t: Tensor, order: float) -> tuple[Tensor, Tensor] | None:
        """Logarithm of gamma^2, and log det of what is left of P."""
        gamma, room = gamma_matrix(joint, t, torch.block_diag(metric, eye))
        found = None if gamma is None else _eliminated(metric, gamma, n_x, order)
        return None if found is None else (found[0], room + found[1])

    best: tuple[float, Tensor, Tensor] | None = None
    for start, exponent in product(starts, range(-6, 25)):
        scaled = start.target * 10.0 ** (0.5 * exponent)
        target = torch.block_diag(scaled, eye)
        for t in (greedy_multipliers(joint, target), _padded(start, joint, scaled, target)):
            found = squared(scaled, t, STAGES[-1][0])
            if found is not None and (best is None or float(found[0]) < best[0]):
                best = (float(found[0]), scaled, t)
    if best is None:
        return None
    current = best[1:]
    for order, barrier in STAGES if iterations else ():
        space = MetricSpace(current[0])

        def objective(x: Tensor, order: float = order, barrier: float = barrier, space: MetricSpace = space,
                      base: Tensor = current[1]) -> Tensor:  # fmt: skip
            factor = space.factor(x[: space.size])
            found = squared(factor @ factor.mT, base * x[space.size :].exp(), order)
            return x.new_tensor(math.inf) if found is None else found[0] - barrier * found[1]

        x = descend(objective, eye.new_zeros(space.size + joint.n_z), iterations // len(STAGES))
        factor = space.factor(x[: space.size])
        metric = factor @ factor.mT
        current = ((metric + metric.mT) / 2.0, current[1] * x[space.size :].exp())
        found = squared(*current, STAGES[-1][0])
        if found is not None and float(found[0]) < best[0]:
            best = (float(found[0]), *current)
    _, metric, t = best
    target, source = torch.block_diag(metric, eye), torch.block_diag(metric, torch.eye(n_u).double())
    try:
        return prove(joint, t, target, source, math.exp(0.5 * best[0]), fixed=n_x)
    except CertificateError:
        return None


def _eliminated(bound: Tensor, gamma: Tensor, n_x: int, order: float) -> tuple[Tensor, Tensor] | None:
    r"""With the states eliminated from $\Gamma \preceq diag(R, \mu I)$: log of mu, and log det(I - R^-1 Gamma_xx)."""
    factor, info = torch.linalg.cholesky_ex(bound - gamma[:n_x, :n_x])
    whole, wrong = torch.linalg.cholesky_ex(bound)
    if int(info) or int(wrong):
        return None
    half = torch.linalg.solve_triangular(factor, gamma[:n_x, n_x:], upper=False)
    rest = gamma[n_x:, n_x:] + half.mT @ half
    margin = 2.0 * (factor.diagonal().log().sum() - whole.diagonal().log().sum())
    return largest((rest + rest.mT) / 2.0, order), margin


def _reach_starts(step: SlopeForm, n_x: int, start: GainProof) -> list[tuple[Tensor, Tensor, Tensor]]:
    r"""Metrics with rates and multipliers: of the contraction, and inverse Gramians of the linearised model.

    For a linear model and a given lambda the best metric is the inverse of $Q = A Q A^T / \lambda + B B^T$.
    """
    starts = []
    slowest = min(start.bound, 1.0 - 1e-9) ** 2
    shares = (0.05, 0.2, 0.5, 0.8, 0.95)
    for share in shares:
        decay = torch.tensor(slowest + share * (1.0 - slowest), dtype=torch.float64)
        starts.append((start.target, decay, start.multipliers))
        for matrix in linearised(step):
            a, b = matrix[:, :n_x], matrix[:, n_x:]
            drive = b @ b.T
            # A state that no input reaches has no bound of its own: it gets a large one.
            drive = drive + 1e-4 * np.diag(np.diagonal(drive) + np.trace(drive) / n_x + 1e-12)
            gramian = lyapunov((a / np.sqrt(float(decay))).T, drive)
            if gramian is None or not bool(torch.linalg.cholesky_ex(gramian)[1] == 0):
                continue
            p = torch.cholesky_inverse(torch.linalg.cholesky(gramian))
            p, _ = scale_to_one((p + p.mT) / 2.0)
            if int(torch.linalg.cholesky_ex(p)[1]) == 0:
                starts.append((p, decay, greedy_multipliers(step, p)))
    return starts


def _padded(start: GainProof, joint: SlopeForm, metric: Tensor, target: Tensor) -> Tensor:
    """Multipliers of the contraction for the units of the step, those in closed form for units of the output."""
    scale = float(metric.diagonal().sum() / start.target.diagonal().sum())
    rest = greedy_multipliers(joint, target)
    return torch.cat((scale * start.multipliers, rest[len(start.multipliers) :]))
