r"""The Lipschitz constant of a relu network of one input, by its slopes on all linear pieces.

On an interval without kinks every state of the network is affine in x, $z_k = a_k x + c_k$. A unit of the next layer
has a kink where $W_k (a_k x + c_k) + b_k$ changes sign, which is the root of an affine function: so layer after layer
all kinks are found, those far from the data included, and the constant is the largest $|a_L|$ of all pieces.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from robustnn import ExplicitMLP
from robustnn.errors import ShapeError, check_finite, invalid

__all__ = ["Pieces", "linear_pieces"]

# Kinks at a smaller relative distance are one kink: rounding decides what lies between them.
_RESOLUTION = 1e-12


class Pieces(NamedTuple):
    """A piecewise linear function of one variable.

    Attributes:
        kinks: Where pieces meet, ascending, shape (n - 1,), in units of x.
        slopes: Slope of every piece, from the left ray to the right ray, shape (n,), output units per input unit.
    """

    kinks: Tensor
    slopes: Tensor

    @property
    def constant(self) -> float:
        """The Lipschitz constant: the largest slope, whatever its sign."""
        return float(self.slopes.abs().max())

    def steepest(self) -> tuple[float, float]:
        """Return the ends of the steepest piece; a ray is cut off at length one."""
        k = int(self.slopes.abs().argmax())
        ends = _ends(self.kinks)
        left, right = float(ends[k]), float(ends[k + 1])
        return left, right


def linear_pieces(network: ExplicitMLP) -> Pieces:
    """Return all linear pieces of a relu network with one input and one output, in float64.

    Args:
        network: The network by value; its weights are converted to float64.

    Returns:
        The pieces. Neighbours may have the same slope.

    Raises:
        ShapeError: If there is more than one input or output.
        InvalidArgumentError: If the activation is another one.
        NonFiniteError: If a weight is not finite.

    Example:
        >>> eye = torch.eye(1)
        >>> linear_pieces(ExplicitMLP((2 * eye, 3 * eye), (eye[0], None), "relu"))
        Pieces(kinks=tensor([-0.5000], dtype=torch.float64), slopes=tensor([0., 6.], dtype=torch.float64))
    """
    shape = (network.in_features, network.out_features)
    if network.weights[0].ndim != 2 or shape != (1, 1):
        raise ShapeError(f"network: expected one input and one output, got {shape}. Take a single network.")
    if network.activation != "relu":
        raise invalid("network", "relu", network.activation, "Only relu gives linear pieces.")
    weights = [weight.detach().to(torch.float64) for weight in network.weights]
    for k, weight in enumerate(weights):
        check_finite(f"weights[{k}]", weight)
    biases = [
        weight.new_zeros(len(weight)) if bias is None else bias.detach().to(weight)
        for weight, bias in zip(weights, network.biases, strict=True)
    ]
    kinks = weights[0].new_empty(0)
    slope, offset = weights[0].new_ones(1, 1), weights[0].new_zeros(1, 1)  # pieces first
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        slope, offset = slope @ weight.mT, offset @ weight.mT + bias
        finer = _merged(kinks, _roots(kinks, slope, offset))
        piece = torch.searchsorted(kinks, _middles(finer))
        slope, offset = slope[piece], offset[piece]
        active = slope * _middles(finer).unsqueeze(-1) + offset > 0
        slope, offset, kinks = slope * active, offset * active, finer
    return Pieces(kinks, (slope @ weights[-1].mT).squeeze(-1))


def _ends(kinks: Tensor) -> Tensor:
    """Kinks with a point beyond either side."""
    if not len(kinks):
        return kinks.new_tensor([0.0, 1.0])
    return torch.cat((kinks[:1] - 1.0, kinks, kinks[-1:] + 1.0))


def _middles(kinks: Tensor) -> Tensor:
    """A point inside every piece."""
    ends = _ends(kinks)
    return 0.5 * (ends[1:] + ends[:-1])


def _roots(kinks: Tensor, slope: Tensor, offset: Tensor) -> Tensor:
    """Roots of the affine functions of every piece that lie in it."""
    infinity = kinks.new_tensor([torch.inf])
    left, right = torch.cat((-infinity, kinks)), torch.cat((kinks, infinity))
    roots = -offset / torch.where(slope == 0, torch.nan, slope)
    return roots[(roots > left.unsqueeze(-1)) & (roots < right.unsqueeze(-1))]


def _merged(old: Tensor, new: Tensor) -> Tensor:
    """All kinks in order, without those that are indistinguishable from the one before."""
    kinks = torch.cat((old, new)).sort().values
    if not len(kinks):
        return kinks
    apart = kinks.diff() > _RESOLUTION * (1.0 + kinks[1:].abs())
    return kinks[torch.cat((apart.new_ones(1), apart))]
