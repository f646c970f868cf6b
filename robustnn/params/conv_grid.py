"""Pixel grids: pairs of sizes, padding, and the invertible down-sampling of space to depth."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from robustnn.errors import InvalidArgumentError, ShapeError, check_positive_int, invalid

__all__ = [
    "as_pair",
    "check_images",
    "circular_pad",
    "depth_to_space",
    "fill_up",
    "reach",
    "space_to_depth",
    "to_coarse_kernel",
    "to_fine_kernel",
]

Pair = tuple[int, int]


def as_pair(name: str, value: Any) -> Pair:
    """Return a positive integer, or two of them, as a pair (rows, columns).

    Args:
        name: Name of the argument, for the message.
        value: An integer >= 1, or a sequence of two.

    Returns:
        The pair.

    Raises:
        InvalidArgumentError: If it is something else.
    """
    if isinstance(value, (tuple, list)):
        if len(value) != 2:
            raise invalid(name, "one integer or a pair of them", value, "Pass (rows, columns).")
        return check_positive_int(f"{name}[0]", value[0]), check_positive_int(f"{name}[1]", value[1])
    size = check_positive_int(name, value)
    return size, size


def check_images(x: Any, channels: int, dtype: torch.dtype) -> None:
    """Raise unless `x` is a batch of images with the given number of channels.

    Args:
        x: The input, (..., channels, height, width).
        channels: Number of channels.
        dtype: Dtype of the weights.

    Raises:
        ShapeError: If the shape does not fit.
        InvalidArgumentError: If it is no tensor, or its dtype is another one (outside autocast).
    """
    if not isinstance(x, Tensor):
        raise InvalidArgumentError(
            f"input: expected a torch.Tensor, got {type(x).__name__}. Convert it with torch.as_tensor(...)."
        )
    if x.ndim < 3 or x.shape[-3] != channels or 0 in x.shape[-2:]:
        raise ShapeError(
            f"input: expected shape (..., {channels}, height, width), got {tuple(x.shape)}. "
            "Channels come before rows and columns."
        )
    if not x.dtype.is_floating_point:
        raise InvalidArgumentError(
            f"input: expected dtype {dtype}, that of the weights, got {x.dtype}. Divide integer pixels by 255; the "
            "bound is then per unit of the quotient."
        )
    if x.dtype != dtype and not torch.is_autocast_enabled(x.device.type):
        raise InvalidArgumentError(
            f"input: expected dtype {dtype}, that of the weights, got {x.dtype}. "
            "Convert the input with .to(...) or the network with .to(...)."
        )


def reach(taps: int, *, transposed: bool = False) -> Pair:
    """Pixels that a kernel sees before and after the one it is centred at.

    Args:
        taps: Number of taps k in one direction.
        transposed: Whether the transposed convolution is meant, whose kernel is flipped.

    Returns:
        ((k - 1) // 2, k // 2), the two in reverse if transposed.
    """
    before, after = (taps - 1) // 2, taps // 2
    return (after, before) if transposed else (before, after)


def fill_up(x: Tensor, stride: Pair) -> Tensor:
    """Append rows and columns of zeros until both sizes are multiples of the stride; an isometry.

    Args:
        x: Shape (..., height, width).
        stride: (rows, columns).

    Returns:
        Shape (..., height', width').
    """
    rows, columns = (-x.shape[-2] % stride[0], -x.shape[-1] % stride[1])
    return functional.pad(x, (0, columns, 0, rows)) if rows or columns else x


def circular_pad(x: Tensor, rows: Pair, columns: Pair) -> Tensor:
    """Continue images periodically, by any number of pixels.

    Args:
        x: Shape (..., height, width).
        rows: Rows added before and after.
        columns: Columns added before and after.

    Returns:
        Shape (..., height', width').
    """
    for axis, (before, after) in ((-2, rows), (-1, columns)):
        size = x.shape[axis]
        if before > size or after > size:
            index = torch.arange(-before, size + after, device=x.device) % size
            x = x.index_select(axis, index)
        elif before or after:
            parts = (x.narrow(axis, size - before, before), x, x.narrow(axis, 0, after))
            x = torch.cat([part for part in parts if part.shape[axis]], dim=axis)
    return x


def space_to_depth(x: Tensor, stride: Pair) -> Tensor:
    """Move the pixels of every block into channels: a permutation of the entries, hence an isometry.

    Channel c of pixel (i, j) in a block becomes channel (c * rows + i) * columns + j.

    Args:
        x: Shape (..., channels, height, width), sizes multiples of the stride.
        stride: Size of the blocks (rows, columns).

    Returns:
        Shape (..., channels * rows * columns, height / rows, width / columns).
    """
    *lead, channels, height, width = x.shape
    rows, columns = stride
    x = x.reshape(*lead, channels, height // rows, rows, width // columns, columns)
    x = x.movedim((-3, -1), (-4, -3))
    return x.reshape(*lead, channels * rows * columns, height // rows, width // columns)


def depth_to_space(x: Tensor, stride: Pair) -> Tensor:
    """Undo `space_to_depth`.

    Args:
        x: Shape (..., channels * rows * columns, height, width).
        stride: Size of the blocks (rows, columns).

    Returns:
        Shape (..., channels, height * rows, width * columns).
    """
    *lead, channels, height, width = x.shape
    rows, columns = stride
    x = x.reshape(*lead, channels // (rows * columns), rows, columns, height, width)
    x = x.movedim((-4, -3), (-3, -1))
    return x.reshape(*lead, channels // (rows * columns), height * rows, width * columns)


def to_fine_kernel(kernel: Tensor, stride: Pair) -> Tensor:
    """Return the strided kernel that does what a kernel does after `space_to_depth`.

    Args:
        kernel: Shape (out, channels * rows * columns, k_h, k_w).
        stride: (rows, columns).

    Returns:
        Shape (out, channels, k_h * rows, k_w * columns); the same entries.
    """
    return depth_to_space(kernel, stride) if stride != (1, 1) else kernel


def to_coarse_kernel(kernel: Tensor, stride: Pair) -> Tensor:
    """Undo `to_fine_kernel`; sizes that are no multiples of the stride are filled up with zeros.

    Args:
        kernel: Shape (out, channels, k_h, k_w).
        stride: (rows, columns).

    Returns:
        Shape (out, channels * rows * columns, k_h', k_w').
    """
    return space_to_depth(fill_up(kernel, stride), stride) if stride != (1, 1) else kernel
