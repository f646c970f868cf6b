"""What convolutional networks share: the chain of layers, the factors between them, and the dense part."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robustnn.errors import check_positive_int, invalid
from robustnn.nn.bounded import BoundedNet
from robustnn.nn.conv import ConvModule
from robustnn.nn.conv_pool import AveragePool2d, MaxPool2d
from robustnn.nn.module import check_floating
from robustnn.params.conv_explicit import ActivationStage, ExplicitCNN, FlattenStage, LinearStage, Stage
from robustnn.params.conv_grid import Pair

__all__ = ["ConvNet", "Spec"]

_POOLS = {"average": AveragePool2d, "max": MaxPool2d}
Spec = Sequence[int | str]


class ConvNet(ConvModule, BoundedNet):
    r"""1-Lipschitz convolutions and poolings, a flattening, and dense layers; sub-classes say which.

    The factor $\sqrt\gamma$ is in the first layer and in the dense part.

    Args:
        input_shape: (channels, height, width).
        conv: One entry per layer: (out_channels, kernel_size) or (out_channels, kernel_size, stride) for a
            convolution, ("average", size) or ("max", size), with a stride if windows overlap, for pooling.
        hidden_features: Widths of the dense hidden layers.
        out_features: Number of outputs.
        lipschitz: The bound gamma > 0, output units per unit of the pixels (l2 norm over all pixels and channels).
        activation: Name or torch.nn class with slopes in [0, 1].
        padding: "circular" or "zeros"; None for the layer's default.
        bias: Whether the layers have biases.
        device: Device of the parameters.
        dtype: Floating dtype of the parameters.

    Raises:
        InvalidArgumentError: If an argument is not acceptable, or a window does not fit the image.
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
        padding: str | None = None,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        shape = _check_image_shape(input_shape)
        super().__init__(math.prod(shape), hidden_features, out_features, lipschitz, activation)
        check_floating("dtype", dtype)
        self.input_shape = shape
        self.in_channels = shape[0]
        self.image_size = shape[1:]
        self.padding = padding
        self.features = nn.ModuleList()
        for k, spec in enumerate(conv):
            kind, size, stride = _check_spec(f"conv[{k}]", spec)
            layer: nn.Module
            if isinstance(kind, str):
                layer = _POOLS[kind](size, stride)
            else:
                layer = self._convolution(
                    shape, kind, size, 1 if stride is None else stride, bias, device, dtype
                )
            self.features.append(layer)
            shape = _shape_after(f"conv[{k}]", layer, shape)
        widths = (math.prod(shape), *self.hidden_features, self.out_features)
        self.layers = nn.ModuleList(
            self._linear(n_in, n_out, k == len(widths) - 2, bias, device, dtype)
            for k, (n_in, n_out) in enumerate(zip(widths, widths[1:], strict=False))
        )

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
        """Make a convolutional layer for images of the given shape."""
        raise TypeError(f"{type(self).__name__} must define _convolution()")

    def _linear(
        self,
        n_in: int,
        n_out: int,
        last: bool,
        bias: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> nn.Module:
        """Make a dense layer."""
        raise TypeError(f"{type(self).__name__} must define _linear()")

    def _dense(self, dtype: torch.dtype | None) -> list[tuple[Tensor, Tensor | None]]:
        """Return weights and biases of the dense part, whose bound is the root of that of the network."""
        raise TypeError(f"{type(self).__name__} must define _dense()")

    def _root(self) -> float:
        """Factor of the input, and bound of the dense part."""
        return math.sqrt(self._lipschitz)

    def _for_size(self, x: Tensor) -> ExplicitCNN:
        return self._convert()

    def gains(self) -> list[float]:
        """Factor of the input of every convolution, and of the dense part: sqrt(gamma) first, and after a pooling.

        Returns:
            One number per convolution, and one more.
        """
        found, gain = [], self._root()
        for layer in self.features:
            if isinstance(layer, ConvModule):
                found.append(gain)
                gain = 1.0
            else:
                gain *= float(layer.factor)  # type: ignore[arg-type]
        return [*found, gain]

    def stages(
        self, image_size: Pair | None, gain: float = 1.0, dtype: torch.dtype | None = None
    ) -> tuple[Stage, ...]:
        """Return the stages of the explicit form, with all factors in the weights.

        Args:
            image_size: Height and width of the input: those of the constructor, or None for them.
            gain: Further factor of the input.
            dtype: Dtype of the conversion.

        Returns:
            The stages.

        Raises:
            InvalidArgumentError: If the network was made for images of another size.
        """
        gains, shape = self.gains(), self.input_shape
        if image_size is not None and tuple(image_size) != shape[1:]:
            raise invalid(
                "image_size", f"{shape[1:]}, that of input_shape", image_size, "Build another network."
            )
        gains[0] *= gain
        found: list[Stage] = []
        for k, layer in enumerate(self.features):
            if isinstance(layer, ConvModule):
                found += layer.stages(shape[1:], gains.pop(0), dtype)
            else:
                found.append(layer.stage())  # type: ignore[operator]
            shape = _shape_after(f"conv[{k}]", layer, shape)
        found.append(FlattenStage())
        for k, (weight, bias) in enumerate(self._dense(dtype)):
            if k:
                found.append(ActivationStage(self.activation))
            found.append(LinearStage(weight if k else gains[0] * weight, bias))
        return tuple(found)

    def extra_repr(self) -> str:
        """Summarise the network for `repr`."""
        return f"lipschitz={self.lipschitz:g}, activation={self.activation}, input_shape={self.input_shape}"


def _check_image_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    if isinstance(shape, (str, bytes)) or not isinstance(shape, Sequence) or len(shape) != 3:
        raise invalid("input_shape", "(channels, height, width)", shape, "Pass for example (3, 32, 32).")
    channels, height, width = (check_positive_int(f"input_shape[{k}]", n) for k, n in enumerate(shape))
    return channels, height, width


def _check_spec(name: str, spec: Spec) -> tuple[int | str, int | tuple[int, int], int | None]:
    ok = isinstance(spec, Sequence) and not isinstance(spec, (str, bytes)) and len(spec) in (2, 3)
    if not ok or (isinstance(spec[0], str) and spec[0] not in _POOLS):
        raise invalid(
            name, '(out_channels, kernel_size[, stride]) or ("average" | "max", size[, stride])', spec,
            'Pass for example (32, 3), (64, 4, 2) or ("average", 2).',
        )  # fmt: skip
    kind, size, *stride = spec
    return kind, size, stride[0] if stride else None  # type: ignore[return-value]


def _shape_after(name: str, layer: nn.Module, shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Shape of the image after a layer."""
    if isinstance(layer, ConvModule):
        height, width = (-(-n // s) for n, s in zip(shape[1:], layer.stride, strict=True))
        return layer.out_channels, height, width
    size: Pair = layer.kernel_size  # type: ignore[assignment]
    stride: Pair = layer.stride  # type: ignore[assignment]
    if size[0] > shape[1] or size[1] > shape[2]:
        raise invalid(name, f"windows within the image of {shape[1:]}", size, "Pool less, or later.")
    return shape[0], (shape[1] - size[0]) // stride[0] + 1, (shape[2] - size[1]) // stride[1] + 1
