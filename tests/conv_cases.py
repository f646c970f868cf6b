"""What the tests of convolutional layers share: cases, and Jacobians as dense matrices."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from robustnn.nn import SandwichConv2d
from robustnn.params.conv_kernel import conv_margin

# parametrization, padding, outer
KINDS = (
    ("kernel", "zeros", "kernel"),
    ("kernel", "circular", "kernel"),
    ("fft", "circular", "kernel"),
    ("kernel", "zeros", "pointwise"),
    ("kernel", "circular", "pointwise"),
)
Kind = tuple[str, str, str]


def settings(kind: Kind) -> dict[str, str]:
    """The keyword arguments of a kind."""
    return dict(zip(("parametrization", "padding", "outer"), kind, strict=True))


IMAGES = ((7, 7), (5, 8))
SIZES = (1e-3, 1.0, 30.0, 1e6)
DTYPES = (torch.float32, torch.float64)


def images(channels: int, size: tuple[int, int], n: int = 4, seed: int = 3) -> Tensor:
    """Normal samples of shape (n, channels, *size), float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, channels, *size, generator=generator, dtype=torch.float64)


def jacobian(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Jacobian of a map of images (1, channels, height, width) as a matrix."""
    found = torch.func.jacrev(lambda z: function(z).flatten())(x)
    return found.reshape(len(found), -1)


def norm(matrix: Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrix, ord=2))


def shipped(layer: SandwichConv2d, size: tuple[int, int]) -> Callable[[Tensor], Tensor]:
    """The weights that are shipped, read back in float64: what a bound has to be true of."""
    with torch.no_grad():
        return layer.explicit(size).to(dtype=torch.float64)


def isometric(layer: SandwichConv2d, angle: float) -> SandwichConv2d:
    """Make a layer with as many channels out as in A = cos(angle) S and B = sin(angle) S', S and S' orthogonal.

    Both are the identity, or shifts; without activation its gain is sin(2 angle) in every direction.
    """
    n = layer.out_channels
    half = torch.tensor(angle, dtype=torch.float64)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        # X = 0, Y = t I gives A = (1 - t^2) / (1 + t^2) I: t = tan(angle / 2) up to signs.
        t = torch.tan(half / 2)
        weight = torch.cat((torch.zeros(n, n, dtype=torch.float64), t * torch.eye(n, dtype=torch.float64)))
        if layer.parametrization == "kernel":
            layer.weight.copy_(weight)
        else:
            centre = tuple((k - 1) // 2 for k in layer.taps)
            layer.weight[:, :, centre[0], centre[1]] = weight.mT.to(layer.weight)
        layer.alpha.copy_(weight.norm())
    return layer


def randomise(module: nn.Module, size: float = 1.0, seed: int = 0) -> nn.Module:
    """Replace every parameter by normal samples of the given size."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(size * values)
    return module


def given_away(layer: SandwichConv2d) -> float:
    """Twice the margin that a layer leaves for rounding, and the rounding itself: what its gain may lack of one."""
    n_in = layer.in_channels * layer.stride[0] * layer.stride[1]
    dtype, taps = layer.weight.dtype, math.prod(layer.taps)
    margin = conv_margin(layer.out_channels, layer.out_channels + n_in, taps, dtype)
    return 2.0 * (1.0 - margin) + 8.0 * torch.finfo(dtype).eps
