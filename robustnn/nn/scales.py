"""Checks of the scales that a network's norms are weighted by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from robustnn.errors import ShapeError, check_finite, invalid
from robustnn.params.scales import condition_number

__all__ = ["Scale", "as_scale", "is_valid_scale"]

Scale = Sequence[float] | Sequence[Sequence[float]] | Tensor

# The bound is lowered by condition number times machine epsilon; beyond this there is nothing left to guarantee.
_LARGEST_MARGIN = 1e-2


def as_scale(
    name: str,
    scale: Scale,
    size: int,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> Tensor:
    """Return a scale as a fresh tensor after checking it.

    Args:
        name: Name of the argument, for the message.
        scale: Vector of positive numbers, or an invertible matrix.
        size: Number of components n.
        device: Device of the result.
        dtype: Dtype of the result; torch's default dtype if None.

    Returns:
        Shape (n,) or (n, n).

    Raises:
        ShapeError: If the shape is another one.
        InvalidArgumentError: If a number is not positive, or the matrix is (nearly) singular for the dtype.
        NonFiniteError: If an entry is NaN or infinite.
    """
    expected = f"{size} positive numbers or an invertible {size} x {size} matrix"
    try:
        tensor = torch.as_tensor(scale, device=device).detach()
        if tensor.is_complex() or tensor.dtype == torch.bool:
            raise TypeError("no real numbers")
        tensor = tensor.to(dtype or torch.get_default_dtype(), copy=True)
    except (TypeError, ValueError, RuntimeError) as error:
        raise invalid(name, expected, repr(scale), "Pass a sequence of floats.") from error
    if tuple(tensor.shape) not in ((size,), (size, size)):
        raise ShapeError(
            f"{name}: expected shape ({size},) or ({size}, {size}), got {tuple(tensor.shape)}. "
            "Give one number per component, or a matrix."
        )
    check_finite(name, tensor)
    if not is_valid_scale(tensor):
        fix = "A scale is a size, in the component's unit."
        if tensor.ndim == 2:
            fix = "Choose a better conditioned matrix, other units, or float64."
        raise invalid(name, expected, f"{tensor.tolist()} in {tensor.dtype}", fix)
    return tensor


def is_valid_scale(scale: Any) -> bool:
    """Whether a tensor is a vector of positive numbers or a well-conditioned matrix."""
    if not isinstance(scale, Tensor) or not bool(scale.isfinite().all()):
        return False
    if scale.ndim == 1:
        return bool((scale > 0).all())
    if scale.ndim != 2 or scale.shape[0] != scale.shape[1]:
        return False
    return float(condition_number(scale.double())) * torch.finfo(scale.dtype).eps <= _LARGEST_MARGIN
