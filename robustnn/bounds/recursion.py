r"""The LipSDP bound as a recursion over layers, its gradient, and multipliers in closed form.

For slopes in $[\alpha, \beta]$ and positive diagonal $T_k$, every pair of a neuron's input and output changes
satisfies $T_k (\delta z - \alpha\,\delta v)(\beta\,\delta v - \delta z) \ge 0$. Adding twice these terms to
$\|\delta y\|^2$ and maximising over $\delta z_L, \ldots, \delta z_1$ in turn gives, from $P = W_L^T W_L$ backwards,

$$P \leftarrow W_k^T \left( T_k (\alpha + \beta) (2 T_k - P)^{-1} (\alpha + \beta) T_k - 2 T_k \alpha \beta \right) W_k,
  \qquad 2 T_k - P > 0,$$

and $\mathrm{Lip}^2 \le \lambda_{\max}(P)$. It is the condition of Fazlyab et al., *Efficient and Accurate
Estimation of Lipschitz Constants for Deep Neural Networks* (NeurIPS 2019), solved for the bound: minimising over
T gives the optimum of that semidefinite program, and every T with $2 T_k - P > 0$ gives a bound.

Multipliers are stored as $\theta = T (\beta - \alpha)$: in this form a multiplier that serves for a slope interval
serves for every interval inside it, since the two quadratic terms differ by a square. For slopes in [0, 1]
both are the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from robustnn.bounds.lbfgs import minimize
from robustnn.bounds.network import Chain

__all__ = ["dual", "gain_squared", "greedy", "improve", "product_rule"]

# Stands for the eigenvalues of a zero matrix.
_TINY = 1e-280

# The optimum tends to lie where eigenvalues meet, which are kinks of the largest one, and where some 2T - P is
# singular. A Schatten norm and a barrier, of growing order and falling weight, lead there.
_STAGES = ((16.0, 1e-2), (64.0, 1e-3), (256.0, 1e-4), (1024.0, 1e-5), (4096.0, 1e-6))


def _step(
    p: Tensor, weight: Tensor, alpha: Tensor, beta: Tensor, t: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The next P, K = (2T - P)^{-1} (alpha + beta) T W, the Cholesky factor of 2T - P, and whether there is one."""
    factor, info = torch.linalg.cholesky_ex(torch.diag_embed(2 * t) - p)
    identity = torch.eye(p.shape[-1], dtype=p.dtype, device=p.device)
    factor = torch.where((info == 0)[..., None, None], factor, identity)
    tw = ((alpha + beta) * t).unsqueeze(-1) * weight
    gain = torch.cholesky_solve(tw, factor)
    p = tw.mT @ gain
    if bool(alpha.any()):
        p = p - weight.mT @ ((2 * t * alpha * beta).unsqueeze(-1) * weight)
    return (p + p.mT) / 2, gain, factor, info == 0


def _sweep(chain: Chain, theta: Sequence[Tensor]) -> tuple[Tensor, list[tuple[Tensor, Tensor]], Tensor]:
    """P at the input, K and the Cholesky factor of every layer, and where the multipliers are admissible."""
    p = chain.weights[-1].mT @ chain.weights[-1]
    layers: list[tuple[Tensor, Tensor]] = []
    admissible = torch.ones((), dtype=torch.bool, device=p.device)
    for k in reversed(range(len(theta))):
        alpha, beta = chain.alpha[k], chain.beta[k]
        p, gain, factor, ok = _step(p, chain.weights[k], alpha, beta, theta[k] / (beta - alpha))
        layers.append((gain, factor))
        admissible = admissible & ok
    return p, layers[::-1], admissible & p.isfinite().all(-1).all(-1)


def gain_squared(chain: Chain, theta: Sequence[Tensor]) -> Tensor:
    """Return the square of the bound that multipliers give, up to rounding; infinity if they give none.

    Args:
        chain: The network.
        theta: One tensor (..., n_k) per hidden layer.

    Returns:
        Shape (...).
    """
    p, _, admissible = _sweep(chain, theta)
    p = torch.where(admissible[..., None, None], p, torch.zeros_like(p))
    return torch.where(admissible, torch.linalg.eigvalsh(p)[..., -1], math.inf)


def value_and_gradient(
    chain: Chain, theta: Sequence[Tensor], order: float, barrier: float
) -> tuple[Tensor, list[Tensor]]:
    r"""Smooth majorant of the logarithm of the squared bound and its derivatives with respect to $\log\theta$.

    $$\tfrac1p \log \sum_i \lambda_i(P)^p - \mu \sum_k \log\det(I - T_k^{-1/2} P_{k+1} T_k^{-1/2} / 2)$$

    With $N = (2T - P)^{-1}$ and $K = N (\alpha + \beta) T W$, a change of P or T at layer k changes the next matrix
    by $K^T dP K$ and by $2\,\mathrm{sym}(W^T (\alpha + \beta)\, dT K) - 2 K^T dT K - 2 W^T \alpha\beta\, dT W$, and the
    barrier by $\mu\,\mathrm{tr}(N dP) + \mu\,\mathrm{tr}((T^{-1} - 2N)\, dT)$.

    Args:
        chain: The network.
        theta: One tensor (..., n_k) per hidden layer.
        order: Order p of the Schatten norm.
        barrier: Weight $\mu$ of the barrier.

    Returns:
        The value, shape (...), infinity where the multipliers are not admissible, and one tensor (..., n_k)
        per hidden layer.
    """
    p, layers, admissible = _sweep(chain, theta)
    identity = torch.eye(p.shape[-1], dtype=p.dtype, device=p.device)
    p = torch.where(admissible[..., None, None], p, identity)
    eigenvalues, vectors = torch.linalg.eigh(p)
    largest = eigenvalues[..., -1:].clamp_min(_TINY)
    relative = (eigenvalues / largest).clamp_min(0.0)
    total = relative.pow(order).sum(-1, keepdim=True)
    value = (largest.log() + total.log() / order).squeeze(-1)
    g = (vectors * (relative.pow(order - 1) / (largest * total)).unsqueeze(-2)) @ vectors.mT
    gradients: list[Tensor] = []
    for k, (gain, factor) in enumerate(layers):
        alpha, beta, weight = chain.alpha[k], chain.beta[k], chain.weights[k]
        t = theta[k] / (beta - alpha)
        pivots = factor.diagonal(dim1=-2, dim2=-1)
        value = value + barrier * ((2 * t).log() - 2 * pivots.log()).sum(-1)
        kg = gain @ g
        inverse = torch.cholesky_inverse(factor)
        next_g = kg @ gain.mT + barrier * inverse
        by_t = (
            2 * (alpha + beta) * (kg * weight).sum(-1) - 2 * next_g.diagonal(dim1=-2, dim2=-1) + barrier / t
        )
        if bool(alpha.any()):
            by_t = by_t - 2 * alpha * beta * ((weight @ g) * weight).sum(-1)
        gradients.append(by_t * t)
        g = next_g
    return torch.where(admissible, value, math.inf), gradients


def improve(
    chain: Chain,
    theta: Sequence[Tensor],
    iterations: int,
    *,
    warm: bool = False,
    history: list[float] | None = None,
) -> tuple[Tensor, ...]:
    r"""Minimise the bound over the multipliers, $\theta \cdot e^{x}$, from admissible ones.

    Args:
        chain: The network.
        theta: One tensor (..., n_k) per hidden layer; every member of a batch is a problem of its own.
        iterations: L-BFGS steps, shared among the stages of the smoothing.
        warm: Whether the start is close to the optimum already; the first stages would lead away from it.
        history: If given, the largest objective of the batch after every step is appended.

    Returns:
        Multipliers that give a bound no larger (before rounding is accounted for).
    """
    if not theta or iterations == 0:
        return tuple(theta)
    # The matrix whose eigenvalue is the bound has the size of the input: let it be the smaller side.
    if chain.weights[-1].shape[0] < chain.weights[0].shape[1]:
        start = gain_squared(chain, theta)
        flipped = improve(chain.transposed(), dual(theta, start), iterations, warm=warm, history=history)
        result = dual(flipped, gain_squared(chain.transposed(), flipped))
        return _better(chain, tuple(theta), result)
    best = current = tuple(theta)
    stages = _STAGES[2:] if warm else _STAGES
    for order, barrier in stages:
        objective = _objective(chain, current, order, barrier)
        zero = torch.zeros_like(torch.cat(current, dim=-1))
        x = minimize(objective, zero, iterations // len(stages), history=history)
        current = _scaled(current, x)
        best = _better(chain, best, current)
    return best


def _objective(
    chain: Chain, start: tuple[Tensor, ...], order: float, barrier: float
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    def objective(x: Tensor) -> tuple[Tensor, Tensor]:
        value, gradients = value_and_gradient(chain, _scaled(start, x), order, barrier)
        return value, torch.cat(gradients, dim=-1)

    return objective


def _scaled(theta: tuple[Tensor, ...], x: Tensor) -> tuple[Tensor, ...]:
    factors = torch.split(x.exp(), [t.shape[-1] for t in theta], dim=-1)
    return tuple(t * factor for t, factor in zip(theta, factors, strict=True))


def _better(chain: Chain, first: tuple[Tensor, ...], second: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    choose = (gain_squared(chain, second) < gain_squared(chain, first)).unsqueeze(-1)
    return tuple(torch.where(choose, b, a) for a, b in zip(first, second, strict=True))


def dual(theta: Sequence[Tensor], gain: Tensor) -> tuple[Tensor, ...]:
    r"""Return multipliers of the transposed chain: $\theta' = \mathrm{Lip}^2 / \theta$ in reversed order.

    They certify the same bound for the transposed chain.

    Args:
        theta: One tensor (..., n_k) per hidden layer.
        gain: Square of the bound that they give, shape (...).

    Returns:
        The multipliers in the order of the transposed chain.
    """
    return tuple(gain.unsqueeze(-1) / t for t in reversed(list(theta)))


def product_rule(chain: Chain) -> tuple[Tensor, ...]:
    r"""Multipliers that give the product of the norms of the weights and the largest slopes.

    With $P \le p I$ and slopes at most $\beta$, $\theta = p / \beta$ leads to $\beta^2 p\,W_k^T W_k$. Every layer
    has a norm of its own here, $\|W_k B_{k-1}\|$ with $B = \mathrm{diag}(\beta)$, so slopes may differ by neuron.

    Args:
        chain: The network.

    Returns:
        One tensor (..., n_k) per hidden layer.
    """
    theta: list[Tensor] = []
    p = torch.ones((), dtype=torch.float64, device=chain.weights[0].device)
    for weight, beta in zip(chain.weights[:0:-1], chain.beta[::-1], strict=True):
        p = p * torch.linalg.matrix_norm(weight * beta.unsqueeze(-2), ord=2).square()
        theta.insert(0, p.clamp_min(_TINY).unsqueeze(-1) / beta)
    return tuple(theta)


def greedy(chain: Chain, *, iterations: int = 0) -> tuple[Tensor, ...]:
    r"""Choose multipliers one layer at a time, from the output backwards.

    In closed form $	heta = \lambda_{\max}(B P B) / eta$ with $B = \mathrm{diag}(eta)$; with iterations, the diagonal
    that minimises the next $\lambda_{\max}(P)$. On the transposed chain these are ECLipsE-Fast and ECLipsE of Xu &
    Sivaranjani, *ECLipsE: Efficient Compositional Lipschitz Constant Estimation* (NeurIPS 2024).

    Args:
        chain: The network.
        iterations: L-BFGS steps per layer; 0 for the closed form.

    Returns:
        One tensor (n_k,) per hidden layer.
    """
    theta: list[Tensor] = []
    p = chain.weights[-1].mT @ chain.weights[-1]
    for k in reversed(range(len(chain.widths))):
        weight, alpha, beta = chain.weights[k], chain.alpha[k], chain.beta[k]
        scaled = beta.unsqueeze(-1) * p * beta.unsqueeze(-2)
        chosen = torch.linalg.eigvalsh(scaled)[..., -1:].clamp_min(_TINY) / beta
        if iterations:
            eigenvalues, vectors = torch.linalg.eigh(p)
            root = eigenvalues.clamp_min(0.0).sqrt().unsqueeze(-1) * vectors.mT
            layer = Chain((weight, root), (alpha,), (beta,), (None, None))
            (chosen,) = improve(layer, (chosen,), iterations)
        theta.insert(0, chosen)
        p, _, _, _ = _step(p, weight, alpha, beta, chosen / (beta - alpha))
    return tuple(theta)
