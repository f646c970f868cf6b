"""Convolutional networks of other layers, with the arguments and the interface of `ConvLBDN`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from robustnn.nn.baselines import AOLLinear, CayleyLinear
from robustnn.nn.conv import ConvModule
from robustnn.nn.conv_bounded import AOLConv2d, OrthogonalConv2d, PlainConv2d, SLLConv2d
from robustnn.nn.conv_net import ConvNet, Spec
from robustnn.params.conv_grid import Pair

__all__ = ["ConvAOL", "ConvCNN", "ConvCayley", "ConvSLL"]


class _ConvBaseline(ConvNet):
    conv_class: ClassVar[Any]
    linear_class: ClassVar[Any]

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
        layer: ConvModule = self.conv_class(
            shape[0], out_channels, kernel_size, stride, padding=self.padding, activation=self.activation, bias=bias,
            image_size=shape[1:], device=device, dtype=dtype,
        )  # fmt: skip
        return layer

    def _linear(
        self,
        n_in: int,
        n_out: int,
        last: bool,
        bias: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> nn.Module:
        layer: nn.Module = self.linear_class(n_in, n_out, bias=bias, device=device, dtype=dtype)
        return layer

    def _dense(self, dtype: torch.dtype | None) -> list[tuple[Tensor, Tensor | None]]:
        parts = [layer._explicit(dtype) for layer in self.layers]  # type: ignore[operator]
        found = [(part.weights[0], part.biases[0]) for part in parts]
        found[-1] = self._root() * found[-1][0], found[-1][1]
        return found


class ConvAOL(_ConvBaseline):
    """A network of `AOLConv2d` and almost-orthogonal dense layers; arguments as in `ConvNet`.

    Example:
        >>> ConvAOL((1, 8, 8), [(4, 3, 2)], (16,), 10, lipschitz=2.0)(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 10])
    """

    conv_class, linear_class = AOLConv2d, AOLLinear


class ConvCayley(_ConvBaseline):
    """A network of `OrthogonalConv2d` and orthogonal dense layers; arguments as in `ConvNet`.

    Example:
        >>> ConvCayley((1, 8, 8), [(4, 3, 2)], (16,), 10, lipschitz=2.0)(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 10])
    """

    conv_class, linear_class = OrthogonalConv2d, CayleyLinear


class ConvSLL(_ConvBaseline):
    """A network of `SLLConv2d` and orthogonal dense layers; arguments as in `ConvNet`.

    Example:
        >>> ConvSLL((1, 8, 8), [(4, 3, 2)], (16,), 10, lipschitz=2.0)(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 10])
    """

    conv_class, linear_class = SLLConv2d, CayleyLinear


class ConvCNN(_ConvBaseline):
    """An ordinary convolutional network without a bound, of `PlainConv2d` and `torch.nn.Linear`.

    Args:
        input_shape: (channels, height, width).
        conv: As in `ConvNet`; the factors of its poolings are left out.
        hidden_features: Widths of the dense hidden layers.
        out_features: Number of outputs.
        activation: Name or torch.nn class from the activation table.
        padding: "circular" or "zeros".
        bias: Whether the layers have biases.
        device: Device of the parameters.
        dtype: Floating dtype of the parameters.

    Raises:
        InvalidArgumentError: If an argument is not acceptable.

    Example:
        >>> ConvCNN((1, 8, 8), [(4, 3), ("max", 2)], (16,), 10).lipschitz
        inf
    """

    conv_class, linear_class = PlainConv2d, nn.Linear

    def __init__(
        self,
        input_shape: Sequence[int],
        conv: Sequence[Spec],
        hidden_features: Sequence[int],
        out_features: int,
        *,
        activation: str | type[nn.Module] = "relu",
        padding: str | None = None,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            input_shape, conv, hidden_features, out_features, activation=activation, padding=padding, bias=bias,
            device=device, dtype=dtype,
        )  # fmt: skip

    @property
    def lipschitz(self) -> float:
        """No bound is guaranteed: infinity."""
        return math.inf

    def gains(self) -> list[float]:
        """Return ones: nothing is scaled."""
        return [1.0] * (1 + sum(isinstance(layer, ConvModule) for layer in self.features))

    def _dense(self, dtype: torch.dtype | None) -> list[tuple[Tensor, Tensor | None]]:
        def cast(tensor: Any) -> Any:
            return None if tensor is None else tensor.to(dtype or tensor.dtype)

        return [(cast(layer.weight), cast(layer.bias)) for layer in self.layers]
