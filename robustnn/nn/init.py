r"""Initialisations of an LBDN: what its layers are before training.

A layer with X = 0 and Y = t Q, Q orthogonal, has A = cos(2 arctan t) I and B of norm sin(2 arctan t): the largest
gain of $2 A^T B$ is at $t = \tan(\pi/8)$, and larger t lets the layer die away.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from robustnn.errors import check_nonnegative

if TYPE_CHECKING:
    from robustnn.nn.lbdn import LBDN

__all__ = ["INITIALISATIONS", "balanced_", "zero_output_"]


@torch.no_grad()
def balanced_(net: LBDN, *, bias: float = 0.0) -> LBDN:
    r"""Initialise all layers with X = 0 and Y = tan(pi/8) times a random orthogonal matrix, in place.

    Then $2 A^T B$ of every layer is (semi-)orthogonal, and so are the explicit weights of equal widths up to a
    factor; the published initialisation damps the gradient more in every layer. The gain of the network without
    its activations is $\gamma / \sqrt2$.

    Args:
        net: The network.
        bias: Value of the biases of the hidden layers. A positive one, such as 0.5, opens more relu units.

    Returns:
        The network.

    Example:
        >>> from robustnn import LBDN
        >>> net = balanced_(LBDN(4, (4,), 4, dtype=torch.float64))
        >>> w = net.explicit().weights[0]
        >>> bool(torch.allclose(w @ w.mT, torch.eye(4, dtype=torch.float64)))
        True
    """
    check_nonnegative("bias", bias)
    net.unfreeze()
    for layer in net.layers:
        n = layer.out_features
        y = torch.empty_like(layer.weight[n:], dtype=torch.float64)  # type: ignore[index]
        nn.init.orthogonal_(y, gain=math.tan(math.pi / 8))
        layer.weight[:n].zero_()  # type: ignore[index]
        layer.weight[n:].copy_(y)  # type: ignore[index]
        _finish(layer, bias)
    return net


@torch.no_grad()
def zero_output_(net: LBDN) -> LBDN:
    """Set the output layer to zero in place: the network starts as y = 0, whatever its bound.

    Y of that layer is zero, and X is a multiple of the identity, which has no effect but gives the polar form the
    radius of the published initialisation; gradients with respect to Y do not vanish.

    Args:
        net: The network.

    Returns:
        The network.
    """
    net.unfreeze()
    layer = net.layers[-1]
    layer.weight.zero_()  # type: ignore[operator]
    layer.weight[: layer.out_features].fill_diagonal_(1.0 / math.sqrt(3.0))  # type: ignore[index]
    _finish(layer, 0.0)
    return net


def _finish(layer: nn.Module, bias: float) -> None:
    """Radius, psi and bias that belong to the weight of a layer."""
    layer.alpha.copy_(layer.weight.norm())  # type: ignore[operator]
    if isinstance(layer.psi, Tensor):
        layer.psi.zero_()
    if isinstance(layer.bias, Tensor):
        layer.bias.fill_(bias if layer.psi is not None else 0.0)


def _default(net: LBDN) -> LBDN:
    return net


# Values of the argument `init` of LBDN; "default" is the published initialisation, which every layer starts with.
INITIALISATIONS: dict[str, Callable[[LBDN], LBDN]] = {
    "balanced": balanced_,
    "default": _default,
    "zero_output": zero_output_,
}
