r"""Weighted norm balls $\{\delta : \|\delta / d\| \le \epsilon\}$ and the maps that attacks need on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from robustnn.errors import ShapeError, check_nonnegative, check_positive, invalid

__all__ = ["Ball", "Norm"]

Norm = Literal["l2", "linf"]


@dataclass(frozen=True)
class Ball:
    r"""The set of perturbations $\delta$ with $\|\delta / d\| \le \epsilon$, d the scale.

    Its methods work in weighted coordinates $z = \delta / d$; `to_observation` leaves them.

    Args:
        eps: Radius, in units of the observation over those of the scale; zero or greater.
        norm: "l2" or "linf", over the components of one observation.
        scale: One positive number per observation component, in its unit; None for ones.

    Raises:
        InvalidArgumentError: If eps is negative, a scale is not positive, or the norm is unknown.

    Example:
        >>> Ball(0.1, "l2").project(torch.tensor([3.0, 4.0]))
        tensor([0.0600, 0.0800])
    """

    eps: float
    norm: Norm = "l2"
    scale: Sequence[float] | None = field(default=None)

    def __post_init__(self) -> None:
        """Check the arguments and store plain floats."""
        object.__setattr__(self, "eps", check_nonnegative("eps", self.eps))
        if self.norm not in ("l2", "linf"):
            raise invalid("norm", "'l2' or 'linf'", repr(self.norm), "Choose one of these.")
        if self.scale is not None:
            values = tuple(check_positive(f"scale[{i}]", float(s)) for i, s in enumerate(self.scale))
            object.__setattr__(self, "scale", values)

    def check_components(self, n_y: int) -> None:
        """Raise `ShapeError` unless the scale has one entry for each of n_y components."""
        if self.scale is not None and len(self.scale) != n_y:
            raise ShapeError(
                f"scale: expected {n_y} numbers, one per observation component, got {len(self.scale)}. "
                "Give one positive number per component, or None."
            )

    def describe(self) -> dict[str, Any]:
        """Return the ball as plain JSON values."""
        return {"eps": self.eps, "norm": self.norm, "scale": None if self.scale is None else list(self.scale)}

    def to_observation(self, z: Tensor) -> Tensor:
        """Turn weighted coordinates (..., n_y) into a perturbation (..., n_y) in observation units."""
        return z if self.scale is None else z * z.new_tensor(self.scale)

    def length(self, z: Tensor) -> Tensor:
        """Return the norm of z (..., n_y), shape (..., 1)."""
        if self.norm == "l2":
            return torch.linalg.vector_norm(z, dim=-1, keepdim=True)
        return z.abs().amax(dim=-1, keepdim=True)

    def project(self, z: Tensor) -> Tensor:
        """Return the nearest point of the ball, shape (..., n_y)."""
        if self.norm == "linf":
            return z.clamp(-self.eps, self.eps)
        return z * (self.eps / self.length(z).clamp_min(self._smallest(z))).clamp(max=1.0)

    def to_surface(self, z: Tensor) -> Tensor:
        """Scale z (..., n_y) radially to length eps; zero stays zero, with finite derivatives."""
        return z * (self.eps / self.length(z).clamp_min(self._smallest(z)))

    def steepest(self, gradient: Tensor) -> Tensor:
        """Return the vector of unit norm with the largest product with the gradient (..., n_y), or zero."""
        if self.norm == "linf":
            return gradient.sign()
        largest = gradient.abs().amax(dim=-1, keepdim=True)
        safe = gradient / largest.clamp_min(self._smallest(gradient))  # squares neither overflow nor vanish
        return safe / self.length(safe).clamp_min(self._smallest(safe))

    def surface_sample(self, normal: Tensor) -> Tensor:
        """Turn standard normal draws (..., n_y) into points of length eps: uniform on it for l2."""
        if self.norm == "linf":
            return self.eps * normal.sign()
        return self.to_surface(normal)

    @staticmethod
    def _smallest(z: Tensor) -> float:
        """Smallest length told from zero."""
        return float(torch.finfo(z.dtype).tiny) ** 0.5
