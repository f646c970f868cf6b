r"""Metrics in which a model contracts, found without a solver.

With $P = L L^T$ the rate is the gain of $x \mapsto F(x, u)$ from $\|\cdot\|_P$ to $\|\cdot\|_P$, minimised over L and
the multipliers together; every P is a valid metric, and every rate that comes out is proved. For a linear map the
optimum is the spectral radius (Lyapunov); with slope-restricted units the condition is that of contracting models of
Revay, Wang & Manchester, *Recurrent Equilibrium Networks* (IEEE TAC 2023), for networks of any depth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

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

__all__ = ["contraction"]


def contraction(form: SlopeForm, *, starts: Sequence[Tensor] = (), iterations: int = 300) -> GainProof:
    r"""Return the smallest rate of $\|F(x, u) - F(x', u)\|_P \le \rho \|x - x'\|_P$ found over all metrics.

    Args:
        form: The map from x to the next state, as many outputs as inputs.
        starts: Multipliers to start from besides those in closed form, for the metric I.
        iterations: L-BFGS steps.

    Returns:
        The rate and its proof, whose target and source are P with largest eigenvalue one; a rate of one or more means
        that no metric was found in which the model contracts.

    Raises:
        CertificateError: If rounding leaves nothing proved.
    """
    n = form.n_in
    eye = torch.eye(n, dtype=torch.float64)
    candidates = [(eye, t) for t in starts if t.shape == (form.n_z,)]
    metrics = [eye, *_lyapunov_metrics(form)]
    candidates += [(p, greedy_multipliers(form, p)) for p in metrics]

    def log_rate(point: tuple[Tensor, Tensor]) -> float:
        p, t = point
        gamma = gamma_matrix(form, t, p)[0]
        factor, info = torch.linalg.cholesky_ex(p)
        if gamma is None or int(info):
            return math.inf
        return float(largest(whitened(gamma, factor), STAGES[-1][0]))

    best = min(candidates, key=log_rate)
    for order, barrier in STAGES if iterations else ():
        space = MetricSpace(best[0])

        def objective(x: Tensor, order: float = order, barrier: float = barrier, space: MetricSpace = space,
                      base: Tensor = best[1]) -> Tensor:  # fmt: skip
            factor = space.factor(x[: space.size])
            gamma, room = gamma_matrix(form, base * x[space.size :].exp(), factor @ factor.mT)
            if gamma is None:
                return x.new_tensor(math.inf)
            return largest(whitened(gamma, factor), order) - barrier * room + condition_penalty(factor)

        x = descend(objective, eye.new_zeros(space.size + form.n_z), iterations // len(STAGES))
        factor = space.factor(x[: space.size])
        found = _normalised(factor @ factor.mT, best[1] * x[space.size :].exp())
        best = min((best, found), key=log_rate)
    attempts = [best, *sorted(candidates, key=log_rate)]
    for p, t in attempts:
        value = log_rate((p, t))
        if not math.isfinite(value):
            continue
        p, t = _normalised(p, t)
        try:
            return prove(form, t, p, p, math.exp(0.5 * value))
        except CertificateError:
            continue
    raise CertificateError(
        "model: expected a metric in which a rate can be proved in float64, got none. Use a model with smaller weights."
    )


def _normalised(p: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The same proof with the largest eigenvalue of P at one."""
    p, scale = scale_to_one(p)
    return p, t * scale


def _lyapunov_metrics(form: SlopeForm) -> list[Tensor]:
    """Metrics in which the model linearised at equal slopes contracts at about its spectral radius."""
    found = []
    for a in linearised(form):
        radius = float(np.abs(np.linalg.eigvals(a)).max(initial=0.0))
        for slack in (1.001, 1.05):
            p = lyapunov(a / (slack * radius + 1e-3))
            if p is not None:
                found.append(scale_to_one(p)[0])
    return found
