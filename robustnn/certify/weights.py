r"""Weights of the components of an input: from a bound in a weighted l2 norm to one over a box.

If $|c^T \Delta f|^2 \le \Delta x^T \mathrm{diag}(\lambda)\, \Delta x$ then over the box $|\Delta x_i| \le r$ it is at
most $r^2 \sum_i \lambda_i$. The least such sum over all $\mathrm{diag}(\lambda) \succeq P$ is the dual of the max-cut
relaxation of $\max_{|x_i| \le 1} x^T P x$; for a matrix of rank one it is exact, where equal weights lose up to
$\sqrt n$.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from robustnn.bounds.network import Chain

__all__ = ["input_weights", "quadratic_gain"]

_STEPS = 100
# Least weight of a component relative to an equal share.
_FLOOR = 1e-9


def quadratic_gain(chain: Chain, theta: Sequence[Tensor]) -> Tensor:
    r"""Return P of $\|\Delta f\|^2 \le \Delta x^T P \Delta x$ for given multipliers; see `robustnn.bounds.recursion`.

    Args:
        chain: The network.
        theta: Admissible multipliers, one tensor (n_k,) per hidden layer.

    Returns:
        Shape (n_in, n_in), without regard to rounding.
    """
    p = chain.weights[-1].mT @ chain.weights[-1]
    for k in reversed(range(len(theta))):
        alpha, beta, weight = chain.alpha[k], chain.beta[k], chain.weights[k]
        multiplier = theta[k] / (beta - alpha)
        moved = (multiplier * (alpha + beta)).unsqueeze(-1) * weight
        through = moved.mT @ torch.linalg.solve_ex(2 * torch.diag(multiplier) - p, moved).result
        p = through - 2 * weight.mT @ ((multiplier * alpha * beta).unsqueeze(-1) * weight)
    return (p + p.mT) / 2


def input_weights(quadratic: Tensor, norm: str) -> list[Tensor]:
    r"""Return weights $\lambda$ with $\|z\| \le 1 \Rightarrow \sum_i \lambda_i z_i^2 \le 1$, small where P allows it.

    Nothing depends on how good they are but the bound: it is proved afterwards.

    Args:
        quadratic: P, shape (n, n).
        norm: "l2" (all ones) or "linf" (of sum one).

    Returns:
        Candidates, each of shape (n,), positive.
    """
    n = len(quadratic)
    ones = quadratic.new_ones(n)
    if norm == "l2":
        return [ones]
    equal = ones / n
    rows = quadratic.abs().sum(-1)  # feasible: the difference is diagonally dominant
    if n == 1 or not bool(rows.isfinite().all()) or not bool((rows > 0).any()):
        return [equal]
    starts = (equal, _normalised(rows))
    best = min((_improved(quadratic, start) for start in starts), key=lambda pair: pair[0])[1]
    return [equal, best]


def _normalised(weight: Tensor) -> Tensor:
    share = weight / weight.sum()
    share = share.clamp_min(_FLOOR / len(weight))
    return share / share.sum()


def _improved(quadratic: Tensor, weight: Tensor) -> tuple[float, Tensor]:
    """Lower the largest eigenvalue of P in the weighted norm by subgradient steps over log weights."""
    best, lowest = weight, float("inf")
    average = torch.zeros_like(weight)
    for step in range(_STEPS):
        root = weight.rsqrt()
        eigenvalues, vectors = torch.linalg.eigh(root.unsqueeze(-1) * quadratic * root)
        value = float(eigenvalues[-1])
        if value < lowest:
            best, lowest = weight, value
        average = 0.7 * average + 0.3 * vectors[:, -1].square()
        weight = _normalised(
            weight * ((average - weight) / (weight + 0.1 / len(weight)) / (1 + step) ** 0.5).exp()
        )
    return lowest, best
