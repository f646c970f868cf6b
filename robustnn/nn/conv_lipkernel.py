"""The LipKernel layer of images and of sequences."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from robustnn.errors import check_positive_int
from robustnn.nn.conv1d import SequenceModule
from robustnn.nn.conv_bounded import _Conv2d
from robustnn.params.conv_explicit import ConvStage, Stage
from robustnn.params.conv_grid import Pair
from robustnn.params.conv_kernel import sandwich_stages
from robustnn.params.conv_lipkernel import (
    LipKernelFactors,
    LipKernelParams,
    init_lipkernel,
    lipkernel_factors,
    lipkernel_kernel,
    lipkernel_margin,
)

__all__ = ["LipKernelConv1d", "LipKernelConv2d"]


class LipKernelConv2d(_Conv2d):
    r"""A 1-Lipschitz convolutional layer with a storage function, for any parameters and any size of the image.

    $$h^+ = \sqrt2 A^T \Psi \sigma(\sqrt2 \Psi^{-1} B * h + b), \qquad A A^T + B(\omega) B(\omega)^H \preceq I$$

    with a matrix A and an explicit kernel B that satisfies the linear matrix inequality of a Roesser system (Pauli,
    Wang, Manchester & Allgoewer, arXiv 2410.22258). The inequality holds by construction, without any term that repairs
    a factorisation; see `robustnn.params.conv_lipkernel` for the form, and for what it does not reach. Unlike the
    kernels of `SandwichConv2d` those here are no parts of orthogonal ones. `merge_pointwise` makes an ordinary
    convolutional network of such layers.

    A layer of stride s acts on blocks of s x s pixels moved into channels, as `SandwichConv2d` does. The conversion is
    in float64 in training too.

    Args:
        in_channels: Channels in.
        out_channels: Channels out.
        kernel_size: k, or (rows, columns); odd or even, rounded up to multiples of the stride.
        stride: s, or (rows, columns).
        padding: "zeros" or "circular"; the output has ceil(size / stride) pixels.
        activation: Name or torch.nn class with slopes in [0, 1].
        bias: Whether to add b.
        image_size: Height and width, or one number; only for `to_cnn()`.
        device: Device of the parameters.
        dtype: Floating dtype of the parameters.

    Raises:
        InvalidArgumentError: If an argument is not acceptable.

    Example:
        >>> LipKernelConv2d(3, 16, 3, stride=2)(torch.zeros(5, 3, 15, 20)).shape
        torch.Size([5, 16, 8, 10])
    """

    alpha: nn.Parameter
    core: nn.Parameter
    rows: nn.Parameter | None
    columns: nn.Parameter | None
    psi: nn.Parameter

    def _initialise(self, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        fresh = init_lipkernel(
            self._n_in, self.out_channels, self.taps, bias=False, device=device, dtype=dtype
        )
        for name, tensor in fresh._asdict().items():
            if name != "bias":
                self.register_parameter(name, None if tensor is None else nn.Parameter(tensor))

    def direct(self, dtype: torch.dtype | None = None) -> LipKernelParams:
        """Return the free parameters by value, cast to `dtype` if one is given."""
        tensors: Any = (getattr(self, name) for name in LipKernelParams._fields)
        cast_to: Any = (None if t is None else t.to(dtype or t.dtype) for t in tensors)
        return LipKernelParams(*cast_to)

    def factors(self) -> LipKernelFactors:
        """Return the factors that prove the bound, float64; differentiable."""
        return lipkernel_factors(self.direct(), self._n_in, self.taps)

    def kernel(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return B on the image after `space_to_depth`, (out, in * stride area, k_h, k_w)."""
        return lipkernel_kernel(self.factors(), self.taps).to(dtype or self.weight.dtype)

    def stages(
        self, image_size: Pair | None, gain: float = 1.0, dtype: torch.dtype | None = None
    ) -> tuple[Stage, ...]:
        """Return convolution, activation and matrix; the arguments are those of `SandwichConv2d.stages`."""
        params, target = self.direct(torch.float64), self.weight.dtype
        factors = lipkernel_factors(params, self._n_in, self.taps)
        margin = lipkernel_margin(self._n_in, self.out_channels, self.taps, target)
        stages = sandwich_stages(
            factors.outer[..., None, None], lipkernel_kernel(factors, self.taps), params.psi, params.bias,
            self.activation, self.stride, self.padding == "circular", gain * margin, margin, target,
        )  # fmt: skip
        return tuple(cast(Stage, stage.map(lambda tensor: tensor.to(dtype or target))) for stage in stages)


class LipKernelConv1d(SequenceModule, LipKernelConv2d):
    r"""A 1-Lipschitz convolutional layer of sequences with a storage function, for any parameters and any length.

    It is `LipKernelConv2d` on images of one row; its explicit weights act on (..., channels, 1, length). In one
    direction every filter of the given length with $A A^T + B(\omega) B(\omega)^H \prec I$ has a storage function.

    Args:
        in_channels: Channels in.
        out_channels: Channels out.
        kernel_size: k, odd or even.
        stride: s.
        causal: Whether the window ends at the present entry (the present block of s), and is not centred there.
        padding: "zeros" or "circular"; the output has ceil(length / stride) entries.
        activation: Name or torch.nn class with slopes in [0, 1].
        bias: Whether to add b.
        length: Length of the sequences; only for `to_cnn()`.
        device: Device of the parameters.
        dtype: Floating dtype of the parameters.

    Raises:
        InvalidArgumentError: If an argument is not acceptable.

    Example:
        >>> LipKernelConv1d(3, 16, 5, stride=2)(torch.zeros(4, 3, 21)).shape
        torch.Size([4, 16, 11])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        *,
        causal: bool = False,
        padding: str | None = None,
        activation: str | type[nn.Module] = "relu",
        bias: bool = True,
        length: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_channels, out_channels, (1, check_positive_int("kernel_size", kernel_size)),
            (1, check_positive_int("stride", stride)), padding=padding, activation=activation, bias=bias,
            image_size=None if length is None else (1, check_positive_int("length", length)),
            device=device, dtype=dtype,
        )  # fmt: skip
        self.causal = causal

    def stages(
        self, image_size: Pair | None, gain: float = 1.0, dtype: torch.dtype | None = None
    ) -> tuple[Stage, ...]:
        """Return filter, activation and matrix; a shift of the window changes no norm."""
        first, *others = super().stages(image_size, gain, dtype)
        if self.causal and isinstance(first, ConvStage):
            first = replace(first, columns=((self.taps[1] - 1) * self.stride[1], 0))
        return first, *others

    def extra_repr(self) -> str:
        """Summarise the layer for `repr`."""
        return f"{super().extra_repr()}, causal={self.causal}"
