"""Convolutional layers of sequences."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustnn.errors import InvalidArgumentError, ShapeError, check_positive_int
from robustnn.nn.conv import ConvModule, SandwichConv2d

__all__ = ["SandwichConv1d", "SequenceModule"]


class SequenceModule(ConvModule):
    """A module on sequences (..., channels, length): a `ConvModule` on images of one row."""

    def forward(self, x: Tensor) -> Tensor:
        """Evaluate the layer.

        Args:
            x: Shape (..., in_channels, length), in the dtype of the parameters.

        Returns:
            Shape (..., out_channels, ceil(length / stride)).
        """
        if not isinstance(x, Tensor):
            raise InvalidArgumentError(
                f"input: expected a torch.Tensor, got {type(x).__name__}. Convert it with torch.as_tensor(...)."
            )
        if x.ndim < 2 or x.shape[-2] != self.in_channels or x.shape[-1] == 0:
            raise ShapeError(
                f"input: expected shape (..., {self.in_channels}, length), got {tuple(x.shape)}. "
                "Channels come before time."
            )
        return super().forward(x.unsqueeze(-2)).squeeze(-2)

    def to_cnn(self, length: int | None = None, *, merge: bool = False) -> nn.Sequential:  # type: ignore[override]
        """Return ordinary `nn.Conv1d`, padding and activation modules with the same function.

        Args:
            length: Length of the sequences, if the constructor was not told.
            merge: As in `ConvModule.to_cnn`.

        Returns:
            An independent `nn.Sequential` with the explicit weights (float64 conversion, rounded once).

        Raises:
            InvalidArgumentError: If the layer is parametrised by its spectrum, or no length is known.
        """
        images = super().to_cnn(None if length is None else (1, length), merge=merge)
        return nn.Sequential(*(_flattened(module) for module in images))


class SandwichConv1d(SequenceModule, SandwichConv2d):
    """A 1-Lipschitz convolutional layer of sequences, for any value of its parameters and any length.

    It is `SandwichConv2d` on images of one row; its explicit weights act on (..., channels, 1, length).

    Args:
        in_channels: Channels in.
        out_channels: Channels out.
        kernel_size: k, odd or even.
        stride: s.
        parametrization: "kernel" or "fft".
        padding: "circular" or "zeros" ("kernel" only); the output has ceil(length / stride) entries.
        outer: "kernel", or "pointwise" ("kernel" parametrization only), as in `SandwichConv2d`.
        activation: Name or torch.nn class with slopes in [0, 1].
        bias: Whether to add b.
        length: Length of the sequences; only for `explicit()` and `freeze()` of "fft", and for `to_cnn()`.
        device: Device of the parameters.
        dtype: Floating dtype of the parameters.

    Raises:
        InvalidArgumentError: If an argument is not acceptable.

    Example:
        >>> SandwichConv1d(3, 16, 5, stride=2)(torch.zeros(4, 3, 21)).shape
        torch.Size([4, 16, 11])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        *,
        parametrization: str = "kernel",
        padding: str | None = None,
        outer: str = "kernel",
        activation: str | type[nn.Module] = "relu",
        bias: bool = True,
        length: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_channels, out_channels, (1, check_positive_int("kernel_size", kernel_size)),
            (1, check_positive_int("stride", stride)), parametrization=parametrization, padding=padding,
            outer=outer, activation=activation, bias=bias,
            image_size=None if length is None else (1, check_positive_int("length", length)),
            device=device, dtype=dtype,
        )  # fmt: skip


def _flattened(module: nn.Module) -> nn.Module:
    """The module for sequences that does what a module does to images of one row."""
    if isinstance(module, nn.ZeroPad2d):
        return nn.ZeroPad1d(module.padding[:2])
    if isinstance(module, nn.CircularPad2d):
        return nn.CircularPad1d(module.padding[:2])
    if not isinstance(module, nn.Conv2d):
        return module
    conv = nn.utils.skip_init(
        nn.Conv1d, module.in_channels, module.out_channels, module.kernel_size[1], stride=module.stride[1],
        padding=module.padding[1], bias=module.bias is not None, device=module.weight.device,
        dtype=module.weight.dtype,
    )  # fmt: skip
    with torch.no_grad():
        conv.weight.copy_(module.weight.squeeze(-2))
        if module.bias is not None:
            conv.bias.copy_(module.bias)
    return conv
