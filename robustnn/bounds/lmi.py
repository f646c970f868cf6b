r"""The check that makes a number a bound: one Cholesky factorisation with an allowance for its own rounding.

With $\Lambda_k = T_k / \gamma$ the bound $\gamma$ holds if the block tridiagonal matrix

$$H = \begin{bmatrix}
  \gamma I + Q_0 & -W_0^T \Lambda_0 S & & \\
  -S \Lambda_0 W_0 & 2 \Lambda_0 + Q_1 & \ddots & \\
  & \ddots & \ddots & -W_L^T \\
  & & -W_L & \gamma I \end{bmatrix} \succeq 0, \qquad
  S = \mathrm{diag}(\alpha + \beta), \quad Q_k = 2 W_k^T \Lambda_k \alpha \beta W_k$$

(Fazlyab et al., NeurIPS 2019; for slopes in [0, 1] it is the one of Wang & Manchester, ICML 2023). H is first scaled
to a unit diagonal. In floating point a completed Cholesky factorisation of a matrix A proves that
$A + \Delta$ is positive semidefinite for some $\Delta$ with $|\Delta_{ij}| \le c_m \sqrt{a_{ii} a_{jj}}$,
$c_m = (m + 1) u / (1 - 2 (m + 1) u)$, m the longest inner product and u the unit roundoff (Rump, *Verification of
positive definiteness*, BIT 2006; Higham, *Accuracy and Stability of Numerical Algorithms*, theorem 10.3). So
$H - s I$ is factorised, with s larger than everything that rounding can do to H and to its factors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from robustnn.bounds.network import Chain
from robustnn.bounds.recursion import gain_squared
from robustnn.linalg import frobenius_norm

__all__ = ["certified_bound", "rounding_shift", "satisfies_lmi"]

_UNIT_ROUNDOFF = torch.finfo(torch.float64).eps / 2
# Relative growth of multipliers from a layer to the one before, which moves H inwards where it is singular.
_SLACKS = (0.0, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
# Relative excess of a bound over its value without regard to rounding.
_EXCESSES = (1e-13, 1e-12, 1e-11, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def _blocks(
    chain: Chain, theta: Sequence[Tensor], gamma: Tensor
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Diagonal and sub-diagonal blocks of H with unit diagonal, and the norm of what may be wrong with them.

    Not counted in the latter are a few roundings per entry.
    """
    n_layers = len(chain.widths)
    gamma = gamma.unsqueeze(-1)
    multipliers = [
        t / (beta - alpha) / gamma for t, alpha, beta in zip(theta, chain.alpha, chain.beta, strict=True)
    ]
    like = chain.weights[0]
    ends = (like.new_ones(like.shape[1]), like.new_ones(len(chain.weights[-1])))
    plain = [gamma * ends[0], *(2 * m for m in multipliers), gamma * ends[1]]
    diagonal = list(plain)
    quadratic: list[Tensor | None] = [None] * (n_layers + 2)
    factors = [like.new_zeros(1)] * n_layers
    errors = [like.new_zeros(gamma.shape[:-1])]
    for k, multiplier in enumerate(multipliers):
        factor = 2 * multiplier * chain.alpha[k] * chain.beta[k]
        if bool(factor.any()):
            factors[k] = factor.sqrt().unsqueeze(-1)
            root = factors[k] * chain.weights[k]
            quadratic[k] = root
            diagonal[k] = diagonal[k] + root.square().sum(-2)
    scales = [d.rsqrt() for d in diagonal]
    mains: list[Tensor] = []
    for k, scale in enumerate(scales):
        term = quadratic[k]
        if term is None:
            mains.append(torch.eye(scale.shape[-1], dtype=like.dtype, device=like.device))
            continue
        scaled = term * scale.unsqueeze(-2)
        mains.append(torch.diag_embed(plain[k] * scale.square()) + scaled.mT @ scaled)
        magnitude = scaled.abs()
        products = (magnitude.mT @ magnitude.sum(-1, keepdim=True)).squeeze(-1) + 1.0
        unit = (scaled.shape[-1] + scaled.shape[-2] + 8) * _UNIT_ROUNDOFF
        errors.append(unit * products.amax(-1))
        spread = chain.spread[k]
        if spread is not None:
            wrong = frobenius_norm(factors[k] * spread * scale.unsqueeze(-2))
            errors.append(wrong * (2 * frobenius_norm(scaled) + wrong))
    offs: list[Tensor] = []
    for k, weight in enumerate(chain.weights):
        left = scales[k + 1]
        if k < n_layers:
            left = left * multipliers[k] * (chain.alpha[k] + chain.beta[k])
        offs.append(-left.unsqueeze(-1) * weight * scales[k].unsqueeze(-2))
        spread = chain.spread[k]
        if spread is not None:
            errors.append(frobenius_norm(left.unsqueeze(-1) * spread * scales[k].unsqueeze(-2)))
    return mains, offs, torch.stack(torch.broadcast_tensors(*errors)).sum(0)


def rounding_shift(mains: Sequence[Tensor], offs: Sequence[Tensor], errors: Tensor) -> Tensor:
    """Return a shift larger than the effect of rounding on H and on its Cholesky factorisation.

    Args:
        mains: Diagonal blocks with unit diagonal.
        offs: Sub-diagonal blocks.
        errors: Bound of the norm of all errors in the blocks besides a few roundings per entry, shape (...).

    Returns:
        Shape (...).
    """
    sizes = [block.shape[-1] for block in mains]
    neighbours = [sum(sizes[max(0, k - 1) : k + 2]) for k in range(len(sizes))]
    longest = max(a + b for a, b in zip(sizes, sizes[1:], strict=False))
    u = _UNIT_ROUNDOFF
    factorisation = (longest + 3) * u / (1 - 2 * (longest + 3) * u) * max(neighbours)
    entries = [off.abs().sum(-1).amax(-1) for off in offs] + [off.abs().sum(-2).amax(-1) for off in offs]
    row_sum = torch.stack(torch.broadcast_tensors(*entries)).sum(0)
    return 2 * (factorisation + 32 * u * (1 + row_sum) + errors)


def satisfies_lmi(chain: Chain, theta: Sequence[Tensor], gamma: Tensor) -> tuple[Tensor, Tensor]:
    """Prove the bound `gamma` by a Cholesky factorisation, rounding included.

    Args:
        chain: The network.
        theta: One tensor (..., n_k) of positive numbers per hidden layer.
        gamma: The bound, shape (...).

    Returns:
        Whether the proof succeeded, and the shift s: all eigenvalues of the normalised H are then above zero by
        the part of s that rounding did not use up. Both of shape (...).
    """
    if chain.is_constant:
        return gamma >= 0, torch.zeros_like(gamma)
    mains, offs, errors = _blocks(chain, theta, gamma)
    shift = rounding_shift(mains, offs, errors)
    proved = (gamma > 0) & shift.isfinite() & (shift < 0.5)
    shifts = torch.where(proved, shift, torch.zeros_like(shift))[..., None, None]
    schur: Tensor | None = None
    for k in reversed(range(len(mains))):
        identity = torch.eye(mains[k].shape[-1], dtype=mains[k].dtype, device=mains[k].device)
        block = mains[k] - shifts * identity
        if schur is not None:
            solved = torch.linalg.solve_triangular(schur, offs[k], upper=False)
            block = block - solved.mT @ solved
        schur, info = torch.linalg.cholesky_ex(block)
        proved = proved & (info == 0) & schur.isfinite().all(-1).all(-1)
    return proved, shift


def certified_bound(chain: Chain, theta: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
    """Return the smallest bound that the multipliers prove, rounding included.

    The bound without regard to rounding is raised, and the multipliers are moved inwards where they lie on the
    boundary of what is admissible, by the least amount on a coarse grid for which the proof succeeds.

    Args:
        chain: The network.
        theta: One tensor (..., n_k) per hidden layer.

    Returns:
        The bound, shape (...), infinity where no proof succeeded;
        the multipliers used, and the shift of `satisfies_lmi`.
    """
    used = tuple(theta)
    bound = torch.full_like(gain_squared(chain, theta), math.inf)
    residual = torch.zeros_like(bound)
    if chain.is_constant:
        return torch.zeros_like(bound), used, residual
    depth = len(used)
    reached = torch.full_like(bound, math.inf)  # relative excess of the bound found
    for slack in _SLACKS:
        if bool((reached <= slack).all()) or (slack > 0 and not depth):
            break
        moved = tuple(t * (1 + slack) ** (2 * (depth - k) - 1) for k, t in enumerate(theta))
        base = gain_squared(chain, moved).sqrt()
        for excess in _EXCESSES:
            gamma = base * (1 + excess)
            open_ = gamma < bound
            if not bool(open_.any()):
                break
            proved, shift = satisfies_lmi(chain, moved, gamma)
            better = open_ & proved
            bound = torch.where(better, gamma, bound)
            reached = torch.where(better, slack + excess, reached)
            residual = torch.where(better, shift, residual)
            used = tuple(torch.where(better.unsqueeze(-1), m, u) for m, u in zip(moved, used, strict=True))
    return bound, used, residual
