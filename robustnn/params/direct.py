"""Direct parameters: free tensors, any real values, and how they are initialised."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from robustnn.linalg import frobenius_norm

__all__ = ["LBDNParams", "SandwichParams", "init_sandwich"]


class SandwichParams(NamedTuple):
    """Free parameters of one sandwich layer, n_in -> n_out.

    Attributes:
        weight: X stacked on Y, shape (n_out + n_in, n_out); only its direction matters.
        alpha: Radius of the polar form, shape (): the layer uses alpha * weight / ||weight||_F.
        psi: Logarithm of the diagonal of Psi, shape (n_out,); None in an output layer.
        bias: Shape (n_out,), or None.
    """

    weight: Tensor
    alpha: Tensor
    psi: Tensor | None
    bias: Tensor | None


class LBDNParams(NamedTuple):
    """Free parameters of a Lipschitz-bounded network together with its bound.

    Attributes:
        layers: Hidden layers (with psi) followed by one output layer (psi is None).
        lipschitz: The bound gamma in the weighted norms below: a number, or a tensor of shape () if it is trained.
        input_scale: D_x, shape (n_in,) or (n_in, n_in): inputs are measured as ||D_x^{-1} x||_2, where a vector
            stands for a diagonal matrix. None stands for ones.
        output_scale: D_y, shape (n_out,) or (n_out, n_out): outputs are measured as ||D_y^{-1} y||_2.
    """

    layers: tuple[SandwichParams, ...]
    lipschitz: float | Tensor
    input_scale: Tensor | None = None
    output_scale: Tensor | None = None


def init_sandwich(
    n_in: int,
    n_out: int,
    *,
    hidden: bool = True,
    bias: bool = True,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> SandwichParams:
    """Draw the published initialisation of a sandwich layer from torch's global generator.

    weight and bias are uniform in +-1/sqrt(n_in + n_out) (the default of `torch.nn.Linear` for the stacked
    matrix), psi = 0, and alpha is the Frobenius norm of weight, so that the polar scaling starts at one.

    Args:
        n_in: Input width.
        n_out: Output width.
        hidden: Whether the layer has psi (hidden) or not (output).
        bias: Whether the layer has a bias.
        device: Device of the tensors.
        dtype: Floating dtype of the tensors.

    Returns:
        Fresh parameters (plain tensors without gradient).
    """
    bound = 1.0 / math.sqrt(n_in + n_out)
    weight = torch.empty(n_out + n_in, n_out, device=device, dtype=dtype).uniform_(-bound, bound)
    return SandwichParams(
        weight=weight,
        alpha=frobenius_norm(weight),
        psi=torch.zeros(n_out, device=device, dtype=dtype) if hidden else None,
        bias=torch.empty(n_out, device=device, dtype=dtype).uniform_(-bound, bound) if bias else None,
    )
