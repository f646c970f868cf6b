"""One table of networks and settings that drives the contract tests."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from robustnn import LBDN, ExplicitMLP
from robustnn.linalg import inverse_cayley

ACTIVATION_NAMES = ("elu", "identity", "leaky_relu", "relu", "sigmoid", "softplus", "tanh")

# (in_features, hidden_features, out_features): no hidden layer, width one, wide, narrow, deep
SHAPES = (
    (1, (1,), 1),
    (3, (), 2),
    (3, (8,), 2),
    (2, (5, 1, 7), 3),
    (6, (16, 16), 1),
    (4, (3, 3, 3, 3, 3, 3), 4),
)

# Sizes of random parameters: a bound must hold for every one of them.
SIZES = (1e-3, 1.0, 30.0, 1e3, 1e6, 1e12)


def randomised(net: torch.nn.Module, size: float, seed: int = 0) -> torch.nn.Module:
    """Replace every parameter by normal samples of the given size: a bound must hold for any of them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(size * values)
    return net


def random_lbdn(
    shape: tuple[int, tuple[int, ...], int], size: float = 1.0, seed: int = 0, **kwargs: object
) -> LBDN:
    """An LBDN of a shape from `SHAPES` with random parameters."""
    return randomised(LBDN(*shape, **kwargs), size, seed)  # type: ignore[arg-type, return-value]


def exported(net: torch.nn.Module) -> ExplicitMLP:
    """The weights that are shipped, read back in float64: what a bound has to be true of."""
    with torch.no_grad():
        return net.explicit().to(dtype=torch.float64)


def inputs(n_in: int, *, n: int = 6, size: float = 1.0, seed: int = 1) -> Tensor:
    """Normal samples of shape (n, n_in), float64."""
    generator = torch.Generator().manual_seed(seed)
    return size * torch.randn(n, n_in, generator=generator, dtype=torch.float64)


def tight_lbdn(width: int, depth: int, activation: str, **kwargs: object) -> LBDN:
    """An LBDN of equal widths whose layers are all isometries, so that the bound is attained.

    Each layer is sin(2t) times an orthogonal matrix with t = pi/4; the first and last factors are chosen so that
    2 A^T B is orthogonal throughout: B_0 = I/sqrt2, A = I/sqrt2, ..., and the output layer is B = I (A = 0).
    """
    net = LBDN(width, (width,) * depth, width, activation=activation, dtype=torch.float64, **kwargs)  # type: ignore[arg-type]
    eye = torch.eye(width, dtype=torch.float64)
    with torch.no_grad():
        for k, layer in enumerate(net.layers):
            angle = math.pi / 2 if k == depth else math.pi / 4
            x, y = inverse_cayley(math.cos(angle) * eye, math.sin(angle) * eye)
            stacked = torch.cat((x, y))
            layer.weight.copy_(stacked)
            layer.alpha.copy_(stacked.norm())
            if layer.bias is not None:
                layer.bias.zero_()
            if layer.psi is not None:
                layer.psi.zero_()
    return net
