"""Explicit weights of a convolutional network, by value: a tuple of stages, each a map with its own tensors."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustnn.errors import InvalidArgumentError, ShapeError, invalid
from robustnn.params.activations import ACTIVATIONS
from robustnn.params.conv_grid import Pair, check_images, circular_pad, fill_up

__all__ = [
    "ActivationStage",
    "ConvStage",
    "ExplicitCNN",
    "FlattenStage",
    "LinearStage",
    "PoolStage",
    "ResidualStage",
    "Stage",
]

Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Stage:
    """One map of a chain. It acts on (b, ...) and has no state but its tensors."""

    def __call__(self, x: Tensor) -> Tensor:
        """Apply the map."""
        raise NotImplementedError

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name."""
        return {}

    def map(self, function: Callable[[Tensor], Tensor]) -> Any:
        """Return a copy with `function` applied to every tensor."""
        return replace(self, **{name: function(tensor) for name, tensor in self.tensors().items()})

    def modules(self, shape: Shape) -> list[nn.Module]:
        """Return ordinary modules with the same function for inputs (b, *shape)."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class ConvStage(Stage):
    """A strided convolution with padding of its own; sizes that the stride does not divide are filled up first.

    Attributes:
        weight: Shape (out, in, k_h, k_w).
        bias: Shape (out,), or None.
        stride: (rows, columns).
        rows: Rows of padding before and after.
        columns: Columns of padding before and after.
        circular: Whether the padding continues the image periodically, and not by zeros.
    """

    weight: Tensor
    bias: Tensor | None
    stride: Pair
    rows: Pair
    columns: Pair
    circular: bool

    def __call__(self, x: Tensor) -> Tensor:
        """Map (b, in, height, width) to (b, out, ceil(height / stride), ceil(width / stride))."""
        x = fill_up(x, self.stride)
        (top, bottom), (left, right) = self.rows, self.columns
        if self.circular:
            x = circular_pad(x, self.rows, self.columns)
        elif top == bottom and left == right:
            return functional.conv2d(x, self.weight, self.bias, self.stride, (top, left))
        else:
            x = functional.pad(x, (left, right, top, bottom))
        return functional.conv2d(x, self.weight, self.bias, self.stride)

    def tensors(self) -> dict[str, Tensor]:
        """Return weight and bias."""
        return {"weight": self.weight} if self.bias is None else {"weight": self.weight, "bias": self.bias}

    def modules(self, shape: Shape) -> list[nn.Module]:
        """Return padding where a convolution cannot do it, and a convolution."""
        (top, bottom), (left, right) = self.rows, self.columns
        down, across = (-size % s for size, s in zip(shape[-2:], self.stride, strict=True))
        found: list[nn.Module] = []
        if self.circular:
            if down or across:
                found.append(nn.ZeroPad2d((0, across, 0, down)))
            if top or bottom or left or right:
                if max(self.rows) > shape[-2] + down or max(self.columns) > shape[-1] + across:
                    raise InvalidArgumentError(
                        f"network: expected kernels that reach no further than the image, got "
                        f"{tuple(self.weight.shape[2:])} on {shape[-2:]}. Use a smaller kernel; torch's circular "
                        "padding goes round only once."
                    )
                found.append(nn.CircularPad2d((left, right, top, bottom)))
            top = left = 0
        elif top != bottom + down or left != right + across:
            found.append(nn.ZeroPad2d((left, right + across, top, bottom + down)))
            top = left = 0
        out_channels, in_channels, *taps = self.weight.shape
        conv = nn.utils.skip_init(
            nn.Conv2d, in_channels, out_channels, tuple(taps), stride=self.stride, padding=(top, left),
            bias=self.bias is not None, device=self.weight.device, dtype=self.weight.dtype,
        )  # fmt: skip
        return [*found, _filled(conv, self.weight, self.bias)]


@dataclass(frozen=True, eq=False)
class ActivationStage(Stage):
    """An activation from the table, by name."""

    name: str

    def __call__(self, x: Tensor) -> Tensor:
        """Apply it to every entry."""
        return ACTIVATIONS[self.name].function(x)

    def modules(self, shape: Shape) -> list[nn.Module]:
        """Return torch's module."""
        return [ACTIVATIONS[self.name].module()]


@dataclass(frozen=True, eq=False)
class ResidualStage(Stage):
    """A shortcut around an unstrided convolution, an activation and a convolution.

    Attributes:
        inner: First convolution.
        activation: Key of the activation table.
        outer: Second convolution, back to the channels of the input.
        gain: Factor of the input of the whole.
    """

    inner: ConvStage
    activation: str
    outer: ConvStage
    gain: float = 1.0

    def __call__(self, x: Tensor) -> Tensor:
        """Map (b, channels, height, width) to the same shape."""
        x = self.gain * x if self.gain != 1.0 else x
        return x + self.outer(ACTIVATIONS[self.activation].function(self.inner(x)))

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of both convolutions, each with its name in front."""
        return {
            f"{name}_{key}": tensor
            for name in ("inner", "outer")
            for key, tensor in getattr(self, name).tensors().items()
        }

    def map(self, function: Callable[[Tensor], Tensor]) -> ResidualStage:
        """Return a copy with `function` applied to every tensor."""
        return replace(self, inner=self.inner.map(function), outer=self.outer.map(function))

    def modules(self, shape: Shape) -> list[nn.Module]:
        """Refuse: a chain of ordinary modules has no shortcuts."""
        raise InvalidArgumentError(
            "network: expected a chain of layers, got a residual block, which has a shortcut. "
            "Evaluate explicit(), or save the module."
        )


@dataclass(frozen=True, eq=False)
class PoolStage(Stage):
    """Mean or maximum over windows, without padding; an incomplete window at the border is left out.

    Attributes:
        kind: "average" or "max".
        size: Size of the windows (rows, columns).
        stride: Distance of the windows (rows, columns).
    """

    kind: str
    size: Pair
    stride: Pair

    def __call__(self, x: Tensor) -> Tensor:
        """Map (b, channels, height, width) to smaller images."""
        pool = functional.avg_pool2d if self.kind == "average" else functional.max_pool2d
        return pool(x, self.size, self.stride)

    @property
    def lipschitz(self) -> float:
        r"""The smallest Lipschitz constant between l2 norms that holds for images of any size.

        The mean over k pixels at distance t is a convolution with nonnegative taps, whose gain is largest for constant
        images: $\sqrt{\sum_{p<t} n_p^2} / k$ in each direction, n_p the taps that are p modulo t. A pixel can be the
        maximum of $\lceil k / t \rceil$ windows in each direction, and its change counts once in each of them.
        """
        total = 1.0
        for size, stride in zip(self.size, self.stride, strict=True):
            if self.kind == "average":
                total *= math.sqrt(sum(len(range(p, size, stride)) ** 2 for p in range(stride))) / size
            else:
                total *= math.sqrt(-(-size // stride))
        return total

    def modules(self, shape: Shape) -> list[nn.Module]:
        """Return torch's module."""
        kind = nn.AvgPool2d if self.kind == "average" else nn.MaxPool2d
        return [kind(self.size, self.stride)]


@dataclass(frozen=True, eq=False)
class FlattenStage(Stage):
    """All entries of an image as a vector."""

    def __call__(self, x: Tensor) -> Tensor:
        """Map (b, channels, height, width) to (b, channels * height * width)."""
        return x.flatten(1)

    def modules(self, shape: Shape) -> list[nn.Module]:
        """Return torch's module."""
        return [nn.Flatten()]


@dataclass(frozen=True, eq=False)
class LinearStage(Stage):
    """An affine map of vectors.

    Attributes:
        weight: Shape (out, in).
        bias: Shape (out,), or None.
    """

    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        """Map (b, in) to (b, out)."""
        return functional.linear(x, self.weight, self.bias)

    def tensors(self) -> dict[str, Tensor]:
        """Return weight and bias."""
        return {"weight": self.weight} if self.bias is None else {"weight": self.weight, "bias": self.bias}

    def modules(self, shape: Shape) -> list[nn.Module]:
        """Return an `nn.Linear`."""
        out_features, in_features = self.weight.shape
        linear = nn.utils.skip_init(
            nn.Linear, in_features, out_features, bias=self.bias is not None,
            device=self.weight.device, dtype=self.weight.dtype,
        )  # fmt: skip
        return [_filled(linear, self.weight, self.bias)]


@dataclass(frozen=True, eq=False)
class ExplicitCNN:
    """A convolutional network by value.

    Attributes:
        stages: The maps in order.
        in_channels: Channels of the input.
        image_size: The (height, width) that the weights belong to; None if any will do.

    Example:
        >>> stage = ConvStage(torch.ones(1, 1, 2, 2), None, (2, 2), (0, 0), (0, 0), False)
        >>> ExplicitCNN((stage,), 1)(torch.ones(1, 3, 4)).shape
        torch.Size([1, 2, 2])
    """

    stages: tuple[Stage, ...]
    in_channels: int
    image_size: Pair | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Evaluate the network.

        Args:
            x: Shape (..., in_channels, height, width), any number of leading axes.

        Returns:
            Shape (..., channels, height', width'), or (..., features) after a flattening.

        Raises:
            ShapeError: If the number of channels, or the size of a network made for one size, does not fit.
            InvalidArgumentError: If x is no tensor or has another dtype.
        """
        check_images(x, self.in_channels, self.dtype)
        if not self.fits(x):
            raise ShapeError(
                f"input: expected images of {self.image_size}, the size that these weights belong to, got "
                f"{tuple(x.shape[-2:])}. A network is made for one size; a layer makes weights for another by "
                "explicit(image_size=...)."
            )
        lead = x.shape[:-3]
        x = x.reshape(-1, *x.shape[-3:])
        for stage in self.stages:
            x = stage(x)
        return x.reshape(*lead, *x.shape[1:])

    def fits(self, x: Tensor) -> bool:
        """Whether images have the size that the weights belong to."""
        return self.image_size is None or tuple(x.shape[-2:]) == self.image_size

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """All tensors but the biases, in order."""
        return tuple(t for stage in self.stages for name, t in stage.tensors().items() if "bias" not in name)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return self.weights[0].dtype

    def map(self, function: Callable[[Tensor], Tensor]) -> ExplicitCNN:
        """Return a copy with `function` applied to every tensor."""
        return replace(self, stages=tuple(stage.map(function) for stage in self.stages))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> ExplicitCNN:
        """Return a copy on another device or in another dtype."""
        return self.map(lambda tensor: tensor.to(device=device, dtype=dtype))

    def detach(self) -> ExplicitCNN:
        """Return a copy that shares the values and no graph."""
        return self.map(torch.Tensor.detach)

    def shapes(self, image_size: Pair) -> list[Shape]:
        """Shapes before every stage and after the last, without the batch.

        Args:
            image_size: Height and width of the input.

        Returns:
            One more than there are stages.
        """
        x = torch.empty(1, self.in_channels, *image_size, dtype=self.dtype, device="meta")
        found = [tuple(x.shape[1:])]
        for stage in self.stages:
            x = stage.map(lambda tensor: tensor.to("meta"))(x)
            found.append(tuple(x.shape[1:]))
        return found

    def to_sequential(self, image_size: Pair | None = None) -> nn.Sequential:
        """Return a plain `nn.Sequential` of `nn.Conv2d`, padding, pooling, `nn.Linear` and activation modules.

        Args:
            image_size: Height and width of the images: padding depends on them where a stride does not divide them.

        Returns:
            A module with parameters of its own; its input is (b, in_channels, height, width).

        Raises:
            InvalidArgumentError: If a stage is evaluated by Fourier transform and is no ordinary convolution, or
                no size is known.
        """
        size = image_size or self.image_size
        if size is None:
            raise invalid("image_size", "height and width of the images", None, "Pass for example (32, 32).")
        modules: list[nn.Module] = []
        for stage, shape in zip(self.stages, self.shapes(size), strict=False):
            modules += stage.modules(shape)
        return nn.Sequential(*modules)


def _filled(module: Any, weight: Tensor, bias: Tensor | None) -> nn.Module:
    with torch.no_grad():
        module.weight.copy_(weight)
        if bias is not None:
            module.bias.copy_(bias)
    result: nn.Module = module
    return result
