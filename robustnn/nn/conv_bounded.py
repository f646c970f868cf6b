r"""Other convolutional layers, to compare the sandwich convolution with.

====================  ==================================================  =====================================
layer                 map                                                 how it is bounded by one
====================  ==================================================  =====================================
`AOLConv2d`           $\sigma(P D x + b)$, D diagonal                      sums of the entries of $|P^T P|$
`OrthogonalConv2d`    $\sigma(Q x + b)$                                    $Q_f$ has orthonormal rows or columns
`SLLConv2d`           $x - 2 W T^{-1} \sigma(W^T x + b)$, T diagonal       $W^T W \preceq T$
`PlainConv2d`         $\sigma(W x + b)$                                    not at all
====================  ==================================================  =====================================

All act on the image after `space_to_depth`, as `SandwichConv2d` does, and have its interface.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustnn.errors import check_positive_int, invalid
from robustnn.nn.conv import ConvModule
from robustnn.nn.module import check_floating
from robustnn.params.activations import resolve_activation
from robustnn.params.conv_direct import KernelParams, init_kernel, init_spectral
from robustnn.params.conv_explicit import ActivationStage, ConvStage, ResidualStage, Stage
from robustnn.params.conv_grid import Pair, as_pair, reach, to_fine_kernel
from robustnn.params.conv_kernel import contraction_kernel, conv_margin
from robustnn.params.conv_spectral import SpectralConvStage, coarse_size, spectral_factors

__all__ = ["AOLConv2d", "OrthogonalConv2d", "PlainConv2d", "SLLConv2d"]

Size = int | Sequence[int]


class _Conv2d(ConvModule):
    """What the layers share: sizes, window, activation and bias.

    Args:
        in_channels: Channels in.
        out_channels: Channels out.
        kernel_size: k, or (rows, columns); rounded up to multiples of the stride.
        stride: s, or (rows, columns).
        padding: "circular" or "zeros".
        activation: Name or torch.nn class with slopes in [0, 1].
        bias: Whether to add b.
        image_size: Height and width; only for layers with a spectrum, and for `to_cnn()`.
        device: Device of the parameters.
        dtype: Floating dtype of the parameters.

    Raises:
        InvalidArgumentError: If an argument is not acceptable.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    _default_padding = "zeros"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        *,
        padding: str | None = None,
        activation: str | type[nn.Module] = "relu",
        bias: bool = True,
        image_size: Size | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = check_positive_int("in_channels", in_channels)
        self.out_channels = check_positive_int("out_channels", out_channels)
        self.kernel_size = as_pair("kernel_size", kernel_size)
        self.stride = as_pair("stride", stride)
        self.image_size = None if image_size is None else as_pair("image_size", image_size)
        self.activation = resolve_activation(activation).name
        check_floating("dtype", dtype)
        if padding not in (None, "circular", "zeros"):
            raise invalid("padding", "circular or zeros", repr(padding), "Choose one of these.")
        self.padding = padding or self._default_padding
        self.taps = -(-self.kernel_size[0] // self.stride[0]), -(-self.kernel_size[1] // self.stride[1])
        self._n_in = self.in_channels * self.stride[0] * self.stride[1]
        bound = 1.0 / math.sqrt(self._n_in * math.prod(self.taps))
        self.register_parameter("bias", None)
        if bias:
            values = torch.empty(self._n_bias(), device=device, dtype=dtype).uniform_(-bound, bound)
            self.bias = nn.Parameter(values)
        self._initialise(device, dtype)

    def _n_bias(self) -> int:
        return self.out_channels

    def _initialise(self, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        """Add the other parameters; here a weight as that of `torch.nn.Conv2d`."""
        bound = 1.0 / math.sqrt(self._n_in * math.prod(self.taps))
        weight = torch.empty(self.out_channels, self._n_in, *self.taps, device=device, dtype=dtype)
        self.weight = nn.Parameter(weight.uniform_(-bound, bound))

    @property
    def lipschitz(self) -> float:
        """The guaranteed bound: one."""
        return 1.0

    def kernel(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return the kernel on the image after `space_to_depth`, (out, in * stride area, k_h, k_w)."""
        raise TypeError(f"{type(self).__name__} must define kernel()")

    def stages(
        self, image_size: Pair | None, gain: float = 1.0, dtype: torch.dtype | None = None
    ) -> tuple[Stage, ...]:
        """Return convolution and activation; the arguments are those of `SandwichConv2d.stages`."""
        kernel = self.kernel(dtype)
        margin = conv_margin(kernel.shape[0], kernel.shape[1], math.prod(self.taps), self.weight.dtype)
        bias = None if self.bias is None else self.bias.to(kernel.dtype)
        stage = self._window(to_fine_kernel(kernel * (gain * margin), self.stride), bias, self.stride)
        return stage, ActivationStage(self.activation)

    def _window(
        self, kernel: Tensor, bias: Tensor | None, stride: Pair, *, transposed: bool = False
    ) -> ConvStage:
        pads = [
            tuple(n * s for n in reach(k, transposed=transposed))
            for k, s in zip(self.taps, stride, strict=True)
        ]
        rows, columns = cast(list[Pair], pads)
        return ConvStage(kernel, bias, stride, rows, columns, self.padding == "circular")

    def extra_repr(self) -> str:
        """Summarise the layer for `repr`."""
        return (
            f"{self.in_channels}, {self.out_channels}, {self.kernel_size}, stride={self.stride}, {self.padding}, "
            f"{self.activation}, bias={self.bias is not None}"
        )


class PlainConv2d(_Conv2d):
    """An ordinary convolution and activation, without a bound, initialised as `torch.nn.Conv2d`."""

    @property
    def lipschitz(self) -> float:
        """No bound is guaranteed: infinity."""
        return math.inf

    def kernel(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return the weight."""
        return self.weight.to(dtype or self.weight.dtype)


class AOLConv2d(_Conv2d):
    r"""The almost-orthogonal convolution of Prach & Lampert (ECCV 2022, Theorem 2).

    $$y = \sigma(P D x + b), \qquad D_{ii} = \Big(\sum_{j,t} |(P^T P)_{ij}(t)|\Big)^{-1/2}$$

    with the correlations of the kernel over all lags t; valid for either padding.
    """

    def kernel(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return P D."""
        p = self.weight.to(dtype or self.weight.dtype)
        peak = p.detach().abs().max().clamp_min(torch.finfo(p.dtype).tiny)
        p = p / peak  # P D does not change when P is multiplied by a number
        sums = _correlation(p.transpose(0, 1)).abs().sum((1, 2, 3))
        return p / sums.clamp_min(torch.finfo(p.dtype).tiny).sqrt()[:, None, None]


class OrthogonalConv2d(_Conv2d):
    r"""An orthogonal convolution: circular by the Cayley map per frequency, or with an explicit kernel.

    Padding "circular" (the default) is the layer of Trockman & Kolter (ICLR 2021): $Q_f$ is the Cayley transform of the
    spectrum of a free kernel, evaluated by Fourier transform. Padding "zeros" is a block convolution with the kernel of
    `robustnn.params.conv_kernel`, whose periodic form is orthogonal.
    """

    _default_padding = "circular"

    def _initialise(self, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        small, large = sorted((self.out_channels, self._n_in))
        if self.padding == "circular":
            spectral = init_spectral(large - small, small, self.taps, bias=False, device=device, dtype=dtype)
            self.weight, self.alpha = nn.Parameter(spectral.weight), nn.Parameter(spectral.alpha)
        else:
            free = init_kernel(large - small, small, self.taps, bias=False, device=device, dtype=dtype)
            self.weight, self.alpha = nn.Parameter(free.weight), nn.Parameter(free.alpha)
            # A kernel of one tap has no shifts.
            self.shifts = nn.Parameter(free.shifts) if len(free.shifts) else None

    def kernel(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return the kernel of a block convolution."""
        weight = self.weight.to(dtype or self.weight.dtype)
        none, size = weight.new_empty(0), len(weight)
        shifts = weight.new_empty(0, size, size // 2) if self.shifts is None else self.shifts.to(weight.dtype)
        params = KernelParams(weight, self.alpha.to(weight.dtype), shifts, none, None)
        kernel = contraction_kernel(params, self.taps)
        return kernel if self.out_channels <= self._n_in else kernel.transpose(0, 1).flip(-2, -1)

    def stages(
        self, image_size: Pair | None, gain: float = 1.0, dtype: torch.dtype | None = None
    ) -> tuple[Stage, ...]:
        """Return convolution and activation; the arguments are those of `SandwichConv2d.stages`."""
        if self.padding == "zeros":
            return super().stages(image_size, gain, dtype)
        if image_size is None:
            raise invalid(
                "image_size", "height and width, which the spectrum belongs to", None, "Pass image_size=..."
            )
        weight = self.weight.to(dtype or self.weight.dtype)
        factors = spectral_factors(weight, self.alpha.to(weight.dtype), coarse_size(image_size, self.stride))
        q = torch.cat(factors, dim=-2)  # tall
        q = q.mT if self.out_channels <= self._n_in else q
        margin = conv_margin(min(q.shape[1:]), max(q.shape[1:]), 1, self.weight.dtype)
        spectrum = torch.view_as_real((q * (gain * margin)).contiguous())
        bias = None if self.bias is None else self.bias.to(weight.dtype)
        stage = SpectralConvStage(spectrum, bias, self.stride, image_size)
        return stage, ActivationStage(self.activation)


class SLLConv2d(_Conv2d):
    r"""The SDP-based residual convolution of Araujo et al. (ICLR 2023, Theorem 3).

    $$x^+ = x - 2 W T^{-1} \sigma(W^T x + b), \qquad T_{ii} = \sum_{j,t} |(W^T W)_{ij}(t)| \, q_j / q_i$$

    It keeps the number of channels and of pixels. Where `out_channels` or `stride` ask for others, an orthogonal
    convolution over one block of pixels, without activation, stands in front.
    """

    def _initialise(self, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        n = self.out_channels
        weight = torch.empty(n, n, *self.taps, device=device, dtype=dtype)
        self.weight = nn.Parameter(nn.init.xavier_normal_(weight))
        self.log_q = nn.Parameter(torch.rand(n, device=device, dtype=dtype).clamp_min(1e-3).log())
        self.front: OrthogonalConv2d | None = None
        if self._n_in != n or self.stride != (1, 1):
            self.front = OrthogonalConv2d(
                self.in_channels, n, self.stride, self.stride, padding="zeros", activation="identity", bias=False,
                device=device, dtype=dtype,
            )  # fmt: skip

    def stages(
        self, image_size: Pair | None, gain: float = 1.0, dtype: torch.dtype | None = None
    ) -> tuple[Stage, ...]:
        """Return the front, if there is one, and the block; the arguments are those of `SandwichConv2d.stages`."""
        weight = self.weight.to(dtype or self.weight.dtype)
        log_q = self.log_q.to(weight.dtype)
        limit = math.log(torch.finfo(weight.dtype).max) / 4
        q = (log_q - log_q.mean()).clamp(-limit, limit).exp()
        tiny = torch.finfo(weight.dtype).tiny
        peak = weight.detach().abs().max().clamp_min(tiny)
        unit = weight / peak  # neither overflow nor underflow in the squares
        t = (_correlation(unit).abs().sum((2, 3)) @ q) / q
        outer = -2.0 * (unit / t.clamp_min(tiny)[:, None, None, None]) / peak
        bias = None if self.bias is None else self.bias.to(weight.dtype)
        # The block is nearly an isometry where its units are off, so its margin is in the factor of the input.
        size, taps = self.out_channels, math.prod(self.taps)
        factor = conv_margin(2 * size, 2 * size, 4 * taps, self.weight.dtype)
        found: list[Stage] = []
        if self.front is not None:
            found += self.front.stages(image_size, gain * factor, dtype)[:1]
            factor = gain = 1.0
        block = ResidualStage(
            self._window(weight, bias, (1, 1)), self.activation,
            self._window(outer.transpose(0, 1).flip(-2, -1), None, (1, 1), transposed=True), gain * factor,
        )  # fmt: skip
        return (*found, block)


def _correlation(kernel: Tensor) -> Tensor:
    """Correlations between the rows of a kernel over all lags, (out, out, 2 k_h - 1, 2 k_w - 1)."""
    return functional.conv2d(kernel, kernel, padding=(kernel.shape[2] - 1, kernel.shape[3] - 1))
