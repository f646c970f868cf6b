r"""What a bound is computed from: the weights of a network in float64, its slopes and its norms, by value.

A difference of two inputs passes through a network as $\delta v_k = W_k \delta z_k$,
$\delta z_{k+1} = D_k \delta v_k$ with an unknown diagonal $D_k$ whose entries lie between the smallest and the
largest slope of the activation. Biases do not matter. Every method of this package bounds the gain of this
chain of matrices over all $D_k$.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustnn.errors import ShapeError, check_finite, invalid
from robustnn.nn.convert import as_explicit
from robustnn.nn.lbdn import LBDN
from robustnn.nn.scales import Scale, as_scale
from robustnn.params.activations import ACTIVATIONS
from robustnn.params.explicit import ExplicitMLP
from robustnn.params.fused import psi_limit

__all__ = [
    "Chain",
    "Network",
    "as_network",
    "check_multipliers",
    "constructive_multipliers",
    "fold_scales",
    "make_chain",
]

Network = ExplicitMLP | nn.Module

_EPS = torch.finfo(torch.float64).eps


def as_network(net: Network) -> ExplicitMLP:
    """Return the explicit weights of a single network after checking them.

    Args:
        net: An `ExplicitMLP`, an `LBDN` or `MLP` (whose exported weights, rounded to the dtype of its parameters,
            are taken), or an `nn.Sequential` of `nn.Linear` and one kind of activation in turns. For an SB3
            policy pass `robustnn.policies.action_map(policy).network`.

    Returns:
        The network by value, in its own dtype, without graph.

    Raises:
        InvalidArgumentError: If it is something else, or a stack.
        NonFiniteError: If a weight or bias is not finite.

    Example:
        >>> as_network(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))).activation
        'relu'
    """
    network = as_explicit(net)
    if network.weights[0].ndim != 2:
        raise invalid("network", "a single network", "a stack", "Bound its members one by one.")
    for k, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True)):
        check_finite(f"weights[{k}]", weight)
        if bias is not None:
            check_finite(f"biases[{k}]", bias)
    return network


@dataclass(frozen=True, eq=False)
class Chain:
    r"""The matrices between the slopes, in float64 and in the norms of the bound.

    Attributes:
        weights: $W_k$, each (out, in), with $D_x$ and $D_y^{-1}$ folded into the first and the last.
        alpha: Smallest slope of every hidden neuron, each (..., n_k) (leading axes are a batch of regions).
        beta: Largest slope, of the same shapes, greater than the smallest.
        spread: How far, entry by entry, a weight may be from the matrix that it stands for; None where that is
            less than a few units in the last place of each entry.
    """

    weights: tuple[Tensor, ...]
    alpha: tuple[Tensor, ...]
    beta: tuple[Tensor, ...]
    spread: tuple[Tensor | None, ...]

    @property
    def widths(self) -> tuple[int, ...]:
        """Numbers of hidden neurons n_1 ... n_L."""
        return tuple(len(weight) for weight in self.weights[:-1])

    @property
    def is_constant(self) -> bool:
        """Whether the network is constant because a weight vanishes."""
        return any(
            not bool(weight.any()) and (spread is None or not bool(spread.any()))
            for weight, spread in zip(self.weights, self.spread, strict=True)
        )

    def transposed(self) -> Chain:
        """Return the chain of the transposed matrices in reversed order; its gain is the same."""
        return Chain(
            tuple(weight.mT for weight in reversed(self.weights)),
            self.alpha[::-1],
            self.beta[::-1],
            tuple(None if spread is None else spread.mT for spread in reversed(self.spread)),
        )


def make_chain(
    network: ExplicitMLP,
    input_scale: Scale | None = None,
    output_scale: Scale | None = None,
    slopes: tuple[float, float] | None = None,
) -> Chain:
    r"""Return the chain of a network for the norms $\|D_x^{-1} x\|_2$ and $\|D_y^{-1} y\|_2$.

    Args:
        network: A single network by value.
        input_scale: D_x, (n_in,) positive numbers in the units of the inputs or an invertible matrix; ones if None.
        output_scale: D_y, (n_out,) in the units of the outputs or a matrix; ones if None.
        slopes: Smallest and largest slope, which must enclose those of the activation; its own if None.

    Returns:
        The chain. A linear network (the identity with its own slopes) becomes a single matrix.

    Raises:
        ShapeError: If a scale has the wrong shape.
        InvalidArgumentError: If a scale or `slopes` is not acceptable.
    """
    weights, spread = fold_scales(network, input_scale, output_scale)
    low, high = _enclosing(network.activation, slopes)
    if low == high:
        return _merged(weights, spread, high)
    hidden = weights[:-1]
    return Chain(
        tuple(weights),
        tuple(w.new_full((len(w),), low) for w in hidden),
        tuple(w.new_full((len(w),), high) for w in hidden),
        tuple(spread),
    )


def fold_scales(
    network: ExplicitMLP, input_scale: Scale | None, output_scale: Scale | None
) -> tuple[list[Tensor], list[Tensor | None]]:
    r"""Return $D_y^{-1} W_L, \ldots, W_0 D_x$ in float64, and what rounding may have changed in them.

    Args:
        network: A single network by value.
        input_scale: As in `make_chain`.
        output_scale: As in `make_chain`.

    Returns:
        The weights, and for each a bound of the error of every entry, or None where that is a unit or two in
        the last place.
    """
    weights = [weight.detach().to(torch.float64) for weight in network.weights]
    spread: list[Tensor | None] = [None] * len(weights)
    device = weights[0].device
    if input_scale is not None:
        d_x = as_scale("input_scale", input_scale, network.in_features, device, torch.float64)
        if d_x.ndim == 1:
            weights[0] = weights[0] * d_x
        else:
            spread[0] = (len(d_x) + 2) * _EPS * (weights[0].abs() @ d_x.abs())
            weights[0] = weights[0] @ d_x
    if output_scale is not None:
        d_y = as_scale("output_scale", output_scale, network.out_features, device, torch.float64)
        last, before = weights[-1], spread[-1]
        if d_y.ndim == 1:
            weights[-1] = last / d_y.unsqueeze(-1)
            spread[-1] = None if before is None else before / d_y.unsqueeze(-1) * (1 + 2 * _EPS)
        else:
            # ||X - D^{-1} W|| <= ||D^{-1}|| ||D X - W|| for every column, whatever the solver did.
            solved = torch.linalg.solve(d_y, last)
            residual = (d_y @ solved - last).abs() + (len(d_y) + 3) * _EPS * (
                d_y.abs() @ solved.abs() + last.abs()
            )
            if before is not None:
                residual = residual + before
            inverse_norm = 1.01 / torch.linalg.svdvals(d_y)[-1]
            weights[-1], spread[-1] = solved, (inverse_norm * residual.norm(dim=0)).expand_as(solved)
    return weights, spread


def _merged(weights: Sequence[Tensor], spread: Sequence[Tensor | None], slope: float) -> Chain:
    """A linear network is a single matrix, up to the rounding of the product."""
    product, error = weights[0], spread[0]
    for weight, own in zip(weights[1:], spread[1:], strict=True):
        magnitude = weight.abs() @ product.abs()
        error = slope * (
            (weight.shape[1] + 4) * _EPS * magnitude + (0.0 if error is None else weight.abs() @ error)
        )
        error = error if own is None else error + slope * (own @ (product.abs() + error.abs().sum()))
        product = slope * (weight @ product)
    return Chain((product,), (), (), (error if error is None else error * (1 + 1e-9),))


def _enclosing(activation: str, slopes: tuple[float, float] | None) -> tuple[float, float]:
    entry = ACTIVATIONS[activation]
    own = (entry.slope_min, entry.slope_max)
    if slopes is None:
        return own
    if len(slopes) != 2 or not 0 <= slopes[0] <= own[0] or not own[1] <= slopes[1] < math.inf:
        raise invalid(
            "slopes", f"an interval of numbers >= 0 around {own}, the slopes of {activation}", slopes,
            "Widen it, or leave it out.",
        )  # fmt: skip
    return float(slopes[0]), float(slopes[1])


def check_multipliers(multipliers: Sequence[Tensor], chain: Chain) -> tuple[Tensor, ...]:
    """Return multipliers as float64 tensors like the weights, after checking that they fit.

    Args:
        multipliers: One tensor (n_k,) of positive numbers per hidden layer.
        chain: The network.

    Returns:
        The multipliers.

    Raises:
        ShapeError: If the shapes are not those of the hidden layers.
        InvalidArgumentError: If an entry is not positive and finite.
    """
    tensors = [torch.as_tensor(t).detach().to(chain.weights[0]) for t in multipliers]
    shapes, expected = [tuple(t.shape) for t in tensors], [(n,) for n in chain.widths]
    if shapes != expected:
        raise ShapeError(
            f"multipliers: expected shapes {expected}, one per hidden layer, got {shapes}. "
            "Use the multipliers of this network."
        )
    for k, t in enumerate(tensors):
        check_finite(f"multipliers[{k}]", t)
        if bool((t <= 0).any()):
            raise invalid(f"multipliers[{k}]", "positive numbers", float(t.min()), "Multipliers are weights.")
    return tuple(tensors)


def constructive_multipliers(net: LBDN) -> tuple[Tensor, ...]:
    r"""Multipliers by which a Lipschitz-bounded network satisfies its own bound: $T_k = \gamma \Psi_k^2$.

    Source: Wang & Manchester (ICML 2023), where $\Lambda_k = \Psi_k^2 = T_k / \gamma$. They hold in the network's
    own norms, for slopes in [0, 1].

    Args:
        net: The network.

    Returns:
        One float64 tensor (n_k,) per hidden layer.
    """
    limit = psi_limit(net.layers[0].weight.dtype)  # type: ignore[arg-type]
    with torch.no_grad():
        return tuple(
            float(net.lipschitz) * (2.0 * layer.psi.clamp(-limit, limit)).exp()
            for layer in net.direct(torch.float64).layers
            if layer.psi is not None
        )
