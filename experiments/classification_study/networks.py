"""The networks that are compared: one architecture with layers of every kind, and the last normalised layer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from experiments.classification_study.config import LAYERS, Config, Model
from robustnn.errors import check_positive_int, invalid
from robustnn.nn import ConvAOL, ConvCayley, ConvCNN, ConvLBDN, ConvSLL
from robustnn.nn.conv_net import ConvNet

Shape = tuple[int, int, int]


class Architecture(NamedTuple):
    """Widths of a network.

    Attributes:
        conv: (channels, kernel size, stride) of every convolution.
        dense: Widths of the dense hidden layers.
    """

    conv: tuple[tuple[int, int, int], ...]
    dense: tuple[int, ...]

    def scaled(self, factor: float) -> Architecture:
        """Return an architecture of widths times a factor, rounded, at least one."""
        conv = tuple((max(1, round(factor * n)), k, stride) for n, k, stride in self.conv)
        return Architecture(conv, tuple(max(1, round(factor * n)) for n in self.dense))


def _kwl(w: int) -> Architecture:
    conv = ((32 * w, 3, 1), (32 * w, 3, 2), (64 * w, 3, 1), (64 * w, 3, 2))
    return Architecture(conv, (512 * w, 512 * w))


NETWORKS = {
    "small": Architecture(((8, 3, 2),), (24,)),
    # Two convolutions and two dense layers (Pauli et al., LipKernel, arXiv 2410.22258).
    "2C2F": Architecture(((16, 4, 2), (32, 4, 2)), (100,)),
    # Wang & Manchester, ICML 2023, Table 2 (w = 1, 2, 4) and Table 3.
    "KWL-S": _kwl(1),
    "KWL-M": _kwl(2),
    "KWL-L": _kwl(4),
    "certified": Architecture(
        ((64, 3, 1), (64, 3, 2), (128, 3, 1), (128, 3, 2), (256, 3, 1), (256, 3, 2)), (2048, 2048, 1024)
    ),
}


class Classifier(nn.Module):
    """Scores of the classes from pixels: a fixed shift, a network, and perhaps a last normalised layer.

    Args:
        net: From pixels to scores, or to the features in front of the last layer.
        mean: Shift of every channel, which changes no distance.
        n_classes: Number of classes, if there is a last layer with rows of norm one; None if there is none.
    """

    mean: Tensor

    def __init__(self, net: ConvNet, mean: Tensor, n_classes: int | None = None) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", mean.reshape(-1, 1, 1))
        self.weight = self.bias = None
        if n_classes is not None:
            n_classes = check_positive_int("n_classes", n_classes, minimum=2)
            self.weight = nn.Parameter(torch.empty(n_classes, net.out_features))
            self.bias = nn.Parameter(torch.zeros(n_classes))
            nn.init.normal_(self.weight)

    def rows(self) -> Tensor | None:
        """Return the weight of the last layer, rows of norm one up to rounding; None if there is no such layer."""
        return None if self.weight is None else functional.normalize(self.weight, dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores of images.

        Args:
            x: Shape (b, channels, height, width), pixels in [0, 1].

        Returns:
            Shape (b, n_classes).
        """
        return scores(self.net(x - self.mean), self.rows(), self.bias)


def scores(features: Tensor, rows: Tensor | None, bias: Tensor | None) -> Tensor:
    """Return the scores of the network's outputs: themselves, or those of the last normalised layer."""
    return features if rows is None else functional.linear(functional.relu(features), rows, bias)


def build(config: Config, model: Model, shape: Shape, n_classes: int, mean: Tensor) -> Classifier:
    """Return an untrained classifier, drawn from torch's global generator.

    Args:
        config: Settings.
        model: Kind of layers and bound.
        shape: (channels, height, width).
        n_classes: Number of classes.
        mean: Mean of every channel of the training images.
    """
    if config.network not in NETWORKS:
        raise invalid(
            "network", f"one of {', '.join(NETWORKS)}", repr(config.network), "Choose one of these."
        )
    architecture = NETWORKS[config.network]
    if config.equal_parameters and model.layer != "plain":
        count = n_parameters(_network("plain", 1.0, architecture, shape, n_classes, config.normalise_last))
        factor = matching_factor(
            count, lambda factor: _network(
                model.layer, 1.0, architecture.scaled(factor), shape, n_classes, config.normalise_last, "meta"
            ),
        )  # fmt: skip
        architecture = architecture.scaled(factor)
    net = _network(model.layer, model.gamma or 1.0, architecture, shape, n_classes, config.normalise_last)
    return Classifier(net, mean, n_classes if config.normalise_last else None)


def n_parameters(module: nn.Module) -> int:
    """Return the number of trained numbers."""
    return sum(parameter.numel() for parameter in module.parameters())


def matching_factor(count: int, make: Callable[[float], nn.Module]) -> float:
    """Return the factor of the widths, between 1/4 and 4, at which a network has nearly `count` parameters.

    Args:
        count: The number wanted.
        make: Makes the network of a factor; larger factors make larger networks.
    """
    low, high = 0.25, 4.0
    for _ in range(12):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if n_parameters(make(middle)) < count else (low, middle)
    return min((low, high), key=lambda factor: abs(n_parameters(make(factor)) - count))


def is_spectral(layer: str) -> bool:
    """Whether layers are evaluated by Fourier transform, which there is none of in half precision."""
    return layer in ("sandwich-fft", "cayley")


def _network(
    layer: str,
    gamma: float,
    architecture: Architecture,
    shape: Shape,
    n_classes: int,
    normalise_last: bool,
    device: str | None = None,
) -> ConvNet:
    conv, dense, n_out = architecture.conv, architecture.dense, n_classes
    if normalise_last:
        if not dense:
            raise invalid("normalise_last", "False without a dense layer", True, "Choose another network.")
        *widths, n_out = dense
        dense = tuple(widths)
    if layer == "plain":
        return ConvCNN(shape, conv, dense, n_out, device=device)
    if layer in ("aol", "cayley", "sll"):
        kind = {"aol": ConvAOL, "cayley": ConvCayley, "sll": ConvSLL}[layer]
        return kind(shape, conv, dense, n_out, lipschitz=gamma, device=device)
    if layer not in LAYERS:
        raise invalid("layer", f"one of {', '.join(LAYERS)}", repr(layer), "Choose one of these.")
    return ConvLBDN(
        shape, conv, dense, n_out, lipschitz=gamma, device=device,
        parametrization={"sandwich-fft": "fft", "lipkernel": "lipkernel"}.get(layer, "kernel"),
        outer="pointwise" if layer == "sandwich" else "kernel",
    )  # fmt: skip
