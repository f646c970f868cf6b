"""The Lipschitz-bounded convolutional network."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robustnn.errors import invalid
from robustnn.nn.conv import ConvModule, SandwichConv2d
from robustnn.nn.conv_lipkernel import LipKernelConv2d
from robustnn.nn.conv_net import ConvNet, Spec
from robustnn.nn.sandwich import SandwichLayer
from robustnn.params.conv_grid import Pair
from robustnn.params.direct import LBDNParams
from robustnn.params.maps import lbdn_to_explicit

__all__ = ["ConvLBDN"]


class ConvLBDN(ConvNet):
    r"""A convolutional network with a guaranteed Lipschitz bound from pixels to outputs, for any parameters.

    $$\|f(x) - f(x')\|_2 \le \gamma \|x - x'\|_2 \quad\text{for all images } x, x'$$

    Sandwich convolutions and 1-Lipschitz pooling, a flattening, and a dense LBDN (Wang & Manchester, ICML 2023). The
    factor $\sqrt\gamma$ is in the first layer and in the dense part.

    Args:
        input_shape: (channels, height, width).
        conv: One entry per layer: (out_channels, kernel_size) or (out_channels, kernel_size, stride) for a sandwich
            convolution, ("average", size) or ("max", size), with a stride if windows overlap, for pooling.
        hidden_features: Widths of the dense hidden layers.
        out_features: Number of outputs.
        lipschitz: The bound gamma > 0, output units per unit of the pixels (l2 norm over all pixels and channels).
        activation: Name or torch.nn class with slopes in [0, 1].
        parametrization: "kernel" or "fft", as in `SandwichConv2d`, or "lipkernel" for `LipKernelConv2d`.
        padding: As in `SandwichConv2d`.
        outer: As in `SandwichConv2d`; "lipkernel" has a matrix for A in any case.
        bias: Whether the layers have biases.
        device: Device of the parameters.
        dtype: Floating dtype of the parameters.

    Raises:
        InvalidArgumentError: If an argument is not acceptable, or a window does not fit the image.

    Example:
        >>> net = ConvLBDN((1, 28, 28), [(16, 4, 2), (32, 4, 2)], (100,), 10, lipschitz=2.0)
        >>> net(torch.zeros(5, 1, 28, 28)).shape, net.lipschitz
        (torch.Size([5, 10]), 2.0)
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        conv: Sequence[Spec],
        hidden_features: Sequence[int],
        out_features: int,
        *,
        lipschitz: float = 1.0,
        activation: str | type[nn.Module] = "relu",
        parametrization: str = "kernel",
        padding: str | None = None,
        outer: str = "kernel",
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        for name, value, choices in (
            ("parametrization", parametrization, ("kernel", "fft", "lipkernel")),
            ("outer", outer, ("kernel", "pointwise")),
        ):
            if value not in choices:
                raise invalid(name, f"one of {', '.join(choices)}", repr(value), "Choose one of these.")
        self.parametrization, self.outer = parametrization, outer
        super().__init__(
            input_shape, conv, hidden_features, out_features, lipschitz=lipschitz, activation=activation,
            padding=padding, bias=bias, device=device, dtype=dtype,
        )  # fmt: skip

    def _convolution(
        self,
        shape: tuple[int, int, int],
        out_channels: int,
        kernel_size: int | Pair,
        stride: int | Pair,
        bias: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> ConvModule:
        if self.parametrization == "lipkernel":
            return LipKernelConv2d(
                shape[0], out_channels, kernel_size, stride, padding=self.padding, activation=self.activation,
                bias=bias, image_size=shape[1:], device=device, dtype=dtype,
            )  # fmt: skip
        return SandwichConv2d(
            shape[0], out_channels, kernel_size, stride, parametrization=self.parametrization, padding=self.padding,
            outer=self.outer, activation=self.activation, bias=bias, image_size=shape[1:], device=device, dtype=dtype,
        )  # fmt: skip

    def _linear(
        self,
        n_in: int,
        n_out: int,
        last: bool,
        bias: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> SandwichLayer:
        return SandwichLayer(
            n_in, n_out, activation=self.activation, output=last, bias=bias, device=device, dtype=dtype
        )

    def _dense(self, dtype: torch.dtype | None) -> list[tuple[Tensor, Tensor | None]]:
        layers = tuple(layer.direct(dtype) for layer in self.layers)  # type: ignore[operator]
        target = self.layers[0].weight.dtype
        network = lbdn_to_explicit(
            LBDNParams(layers, math.sqrt(self._lipschitz)),
            self.activation,
            dtype=dtype,
            target=target,  # type: ignore[arg-type]
        )
        return list(zip(network.weights, network.biases, strict=True))
