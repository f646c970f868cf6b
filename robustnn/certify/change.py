r"""How far the outputs of a network can move while its input stays in a ball: one matrix for all directions.

With multipliers $T_k$ and a weight p of the input, Schur complements of the LipSDP condition from the input
forwards, from $S = p I$ by $S \leftarrow 2 T_k - T_k (\alpha + \beta) W_k S^{-1} W_k^T (\alpha + \beta) T_k$ (with
terms in $\alpha\beta$ where slopes do not begin at zero), lead to

$$\Delta f \Delta f^T \preceq G \, \|\Delta x\|_2^2, \qquad G = p\, W_L S^{-1} W_L^T,$$

so that $|c^T \Delta f| \le \sqrt{c^T G c}\,\|\Delta x\|_2$ for every direction c at once: for a logit, a difference of
two, or an action component. For the constructive multipliers of an LBDN $G \preceq \gamma^2 D_y^2$, so a difference
of logits is never allowed more than $\sqrt2\,\gamma$. With a factor $G = F F^T$ as the output scale of the network,
one Cholesky factorisation proves it (`robustnn.bounds.lipsdp`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robustnn.bounds import lipsdp
from robustnn.bounds.lmi import certified_bound
from robustnn.bounds.network import Chain, make_chain
from robustnn.bounds.recursion import gain_squared
from robustnn.certify.weights import input_weights, quadratic_gain
from robustnn.params.explicit import ExplicitMLP

__all__ = ["OutputChange", "output_change"]

# What floating point may do to a norm of computed matrices.
_EXCESS = 1.0 + 1e-12
# Added to G, relative to its largest eigenvalue, so that it has a factor.
_RIDGE = 1e-10
# How far above its least admissible value the weight of the input is put.
_SLACK = 1.0 + 1e-9
# Directions for which a search of their own is worth while where the ball is no Euclidean one.
_MANY = 300


@dataclass(frozen=True, eq=False)
class OutputChange:
    r"""Bounds of the change of outputs while the input moves by at most r in the norm of a ball.

    Attributes:
        factors: Matrices F, shape (n, n_out, n_out): $|c^T \Delta f| \le r \|F^T c\|_2$ for every c and every F.
        pairs: Shape (n_out, n_out), bound per unit of r of $|\Delta f_i - \Delta f_j|$, and of $|\Delta f_i|$ on
            the diagonal.
    """

    factors: Tensor
    pairs: Tensor

    def norm(self, weight: Tensor) -> Tensor:
        r"""Bound $\|w \Delta f\|_2$ per unit of r.

        Args:
            weight: Diagonal w, shape (..., n_out).

        Returns:
            Shape (...).
        """
        weighted = weight.unsqueeze(-1).unsqueeze(-3) * self.factors
        whole = torch.linalg.matrix_norm(weighted, ord=2).amin(-1) * _EXCESS
        apart = (weight * self.pairs.diagonal()).norm(dim=-1) * _EXCESS
        return torch.minimum(whole, apart)


def output_change(
    network: ExplicitMLP,
    unit: Tensor,
    norm: str,
    *,
    declared: Tensor,
    output_scale: Tensor,
    multipliers: Sequence[Tensor] | None,
    groups: Sequence[int],
    method: str,
    iterations: int,
) -> OutputChange:
    r"""Bound the change of a network's outputs over a ball $\|z\| \le r$, where its input moves by `unit` z.

    Args:
        network: The network in float64.
        unit: D, shape (n_in,), zero or greater: input units per unit of the ball.
        norm: "l2" or "linf".
        declared: A factor that is known to hold, shape (n_out, n_out).
        output_scale: D_y, shape (n_out,): the output norm that the multipliers belong to.
        multipliers: Multipliers of the network, or None to let LipSDP find them.
        groups: Numbers of outputs that belong together; only pairs in one group are compared.
        method: "declared", "auto" or "lipsdp".
        iterations: Steps of LipSDP.

    Returns:
        The bounds.
    """
    factors = [declared]
    if method == "declared":
        return OutputChange(torch.stack(factors), _pairs(factors))
    # A component that cannot move is left a trace, so that no column vanishes.
    scale = unit.clamp_min(1e-12 * float(unit.max()))
    first, *others = network.weights
    scaled = replace(network, weights=(first * scale, *others))
    chain = make_chain(scaled, None, output_scale)
    if chain.is_constant:
        return OutputChange(torch.zeros_like(declared).unsqueeze(0), torch.zeros_like(declared))
    candidates: list[tuple[Tensor, ...]] = []
    if multipliers is not None:
        # The proof moves them inwards where rounding decides whether they are admissible.
        moved = certified_bound(chain, tuple(multipliers) if chain.widths else ())[1]
        candidates += [moved] if bool(gain_squared(chain, moved).isfinite()) else []
    if method == "lipsdp" or not candidates:
        found = lipsdp(
            scaled,
            multipliers=candidates[0] if candidates and chain.widths else None,
            output_scale=output_scale,
            iterations=iterations,
        )
        candidates.append(found.multipliers if chain.widths else ())
    theta = candidates[0]
    for chosen in candidates:
        for weight in input_weights(quadratic_gain(chain, chosen), norm):
            factor = _proved(scaled, weight, output_scale, chosen)
            factors += [factor] if bool(factor.isfinite().all()) else []
    pairs = _pairs(factors)
    directions = list(_directions(groups))
    if method == "lipsdp" or (norm == "linf" and len(directions) <= _MANY):
        steps = iterations if method == "lipsdp" else 0
        p = float(gain_squared(chain, theta)) * _SLACK
        for i, j in directions:
            value = _own(network_row(scaled, i, j), norm, theta, p, float(pairs[i, j]), steps)
            pairs[i, j] = pairs[j, i] = value
    return OutputChange(torch.stack(factors), pairs)


def network_row(network: ExplicitMLP, i: int, j: int) -> ExplicitMLP:
    """Return the network of output i, less output j unless they are one."""
    *weights, last = network.weights
    row = last[i : i + 1] if i == j else last[i : i + 1] - last[j : j + 1]
    return replace(network, weights=(*weights, row), biases=(*network.biases[:-1], None))


def _directions(groups: Iterable[int]) -> Iterable[tuple[int, int]]:
    start = 0
    for size in groups:
        for i in range(start, start + size):
            yield i, i
            yield from ((i, j) for j in range(i + 1, start + size))
        start += size


def _pairs(factors: Sequence[Tensor]) -> Tensor:
    stacked = torch.stack(tuple(factors))
    differences = (stacked.unsqueeze(-2) - stacked.unsqueeze(-3)).norm(dim=-1)
    single = stacked.norm(dim=-1)
    eye = torch.eye(single.shape[-1], dtype=torch.bool, device=single.device)
    return torch.where(eye, single.unsqueeze(-1), differences).amin(0) * _EXCESS


def _proved(network: ExplicitMLP, weight: Tensor, output_scale: Tensor, theta: tuple[Tensor, ...]) -> Tensor:
    """A factor of G for one weighting of the input, with its proof."""
    folded = _weighted(network, weight)
    size = folded.weights[-1].shape[0]
    chain = make_chain(folded, None, output_scale)
    if chain.is_constant:
        return folded.weights[-1].new_zeros(size, size)
    p = float(gain_squared(chain, theta)) * _SLACK
    gram = _gram(make_chain(folded), theta, p)
    if not bool(gram.isfinite().all()):
        return torch.full_like(gram, math.inf)
    ridge = _RIDGE * float(torch.linalg.eigvalsh(gram)[-1])
    factor, info = torch.linalg.cholesky_ex(
        gram + ridge * torch.eye(size, dtype=gram.dtype, device=gram.device)
    )
    if int(info) != 0 or not bool(factor.isfinite().all()):
        return torch.full_like(gram, math.inf)
    bound = lipsdp(folded, multipliers=[t / p for t in theta], output_scale=factor, iterations=0)
    return bound.value * factor


def _gram(chain: Chain, theta: tuple[Tensor, ...], p: float) -> Tensor:
    """G of the module docstring."""
    eye = torch.eye(chain.weights[0].shape[1], dtype=torch.float64, device=chain.weights[0].device)
    schur = p * eye
    for k, t in enumerate(theta):
        alpha, beta, weight = chain.alpha[k], chain.beta[k], chain.weights[k]
        multiplier = t / (beta - alpha)
        schur = schur + 2 * weight.mT @ ((multiplier * alpha * beta).unsqueeze(-1) * weight)
        moved = (multiplier * (alpha + beta)).unsqueeze(-1) * weight
        schur = 2 * torch.diag(multiplier) - moved @ torch.linalg.solve_ex(schur, moved.mT).result
    last = chain.weights[-1]
    gram = p * last @ torch.linalg.solve_ex(schur, last.mT).result
    return (gram + gram.mT) / 2


def _own(
    row: ExplicitMLP, norm: str, theta: tuple[Tensor, ...], p: float, known: float, iterations: int
) -> float:
    """Bound of one output with multipliers and an input weighting of its own; never above `known`."""
    chain = make_chain(row)
    if chain.is_constant or not math.isfinite(p):
        return 0.0 if chain.is_constant else known
    # The multipliers in the size that suits a single output: its part of G / p.
    share = _gram(chain, theta, p).squeeze() / p * _SLACK
    if not bool(share.isfinite() & (share > 0.0)):
        return known
    own = tuple(t * share for t in theta)
    weights = input_weights(quadratic_gain(chain, own), norm)
    bounds = [lipsdp(_weighted(row, weight), multipliers=own or None, iterations=0) for weight in weights]
    if iterations:  # from a start of its own, which leads further than these multipliers do
        bounds.append(lipsdp(_weighted(row, weights[-1]), iterations=iterations))
    return min(known, *(bound.value * _EXCESS for bound in bounds))


def _weighted(network: ExplicitMLP, weight: Tensor) -> ExplicitMLP:
    """The network in the input norm |weight^(1/2) x|."""
    return replace(network, weights=(network.weights[0] * weight.rsqrt(), *network.weights[1:]))
