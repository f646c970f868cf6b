"""Convolutional sandwich layers as modules."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from robustnn.errors import check_finite, check_positive_int, invalid
from robustnn.nn.module import ExplicitModule, check_floating
from robustnn.params.activations import resolve_activation
from robustnn.params.conv_direct import KernelParams, SpectralParams, init_kernel, init_spectral
from robustnn.params.conv_explicit import ExplicitCNN, FlattenStage, Stage
from robustnn.params.conv_grid import Pair, as_pair, check_images
from robustnn.params.conv_kernel import kernel_to_stages
from robustnn.params.conv_merge import merge_pointwise
from robustnn.params.conv_spectral import SpectralConvStage, SpectralStage, spectral_to_stage
from robustnn.params.fused import is_watched

__all__ = ["ConvModule", "SandwichConv2d"]

Size = int | Sequence[int]


class ConvModule(ExplicitModule):
    """A module on images (..., channels, height, width), with the interface of `ExplicitModule`.

    Its explicit weights are an `ExplicitCNN`. Frozen weights of one image size are passed over at another.
    """

    in_channels: int
    out_channels: int
    stride: Pair
    image_size: Pair | None = None

    def stages(
        self, image_size: Pair | None, gain: float = 1.0, dtype: torch.dtype | None = None
    ) -> tuple[Stage, ...]:
        """Return the stages of the explicit form, of the parameters cast to `dtype` if one is given."""
        raise TypeError(f"{type(self).__name__} must define stages()")

    def _explicit(self, dtype: torch.dtype | None = None) -> ExplicitCNN:  # type: ignore[override]
        return self._chain(self.image_size, dtype)

    def _chain(self, image_size: Pair | None, dtype: torch.dtype | None) -> ExplicitCNN:
        stages = self.stages(image_size, 1.0, dtype)
        sized = any(isinstance(stage, (FlattenStage, SpectralConvStage, SpectralStage)) for stage in stages)
        return ExplicitCNN(stages, self.in_channels, image_size if sized else None)

    def _convert(self, image_size: Pair | None = None) -> ExplicitCNN:  # type: ignore[override]
        """Convert the parameters for one image size; without gradients in float64, rounded once."""
        parameter, size = next(self.parameters()), image_size or self.image_size
        dtype, device_type = parameter.dtype, parameter.device.type
        if torch.is_autocast_enabled(device_type):
            with torch.autocast(device_type, enabled=False):
                return self._convert(image_size)
        if torch.is_grad_enabled():
            if dtype.itemsize >= 4:
                return self._chain(size, None)
            return self._chain(size, torch.float32).to(dtype=dtype)  # no matrix inverse in half precision
        if not is_watched():  # else there are no values
            for name, tensor in self.named_parameters():
                check_finite(f"parameter {name}", tensor, "Training diverged; load an earlier checkpoint.")
        network = self._chain(size, torch.float64).map(
            lambda tensor: tensor.to(dtype, copy=True, memory_format=torch.contiguous_format)
        )
        if not is_watched():
            for k, weight in enumerate(network.weights):
                check_finite(
                    f"explicit weight {k}", weight, "The parameters do not fit the dtype; use float64."
                )
        return network

    def explicit(self, image_size: Size | None = None) -> ExplicitCNN:  # type: ignore[override]
        """Return the explicit weights of the present parameters, as in `ExplicitModule`.

        Args:
            image_size: Height and width of the images, if they differ from those of the constructor.

        Returns:
            The network by value.

        Raises:
            NonFiniteError: If gradients are disabled and a parameter or weight is NaN or infinite.
            InvalidArgumentError: If a layer has a spectrum and no size is known.
        """
        size = self.image_size if image_size is None else as_pair("image_size", image_size)
        network = self._convert(size)
        return network.map(torch.clone) if torch.is_grad_enabled() else network

    def to_mlp(self) -> nn.Sequential:
        """Refuse: an ordinary network of the same function is a `to_cnn()`."""
        raise invalid("to_mlp", "a network of vectors", type(self).__name__, "Call to_cnn().")

    def to_cnn(self, image_size: Size | None = None, *, merge: bool = False) -> nn.Sequential:
        """Return ordinary `nn.Conv2d`, padding, pooling and activation modules with the same function.

        Args:
            image_size: Height and width of the images, if the constructor was not told.
            merge: Whether 1 x 1 convolutions are merged into what follows them, see
                `robustnn.params.conv_merge.merge_pointwise`.

        Returns:
            An independent `nn.Sequential` with the explicit weights (float64 conversion, rounded once).

        Raises:
            InvalidArgumentError: If a layer is parametrised by its spectrum, or no image size is known.
        """
        size = self.image_size if image_size is None else as_pair("image_size", image_size)
        with torch.no_grad():
            network = self._convert(size)
            return (merge_pointwise(network) if merge else network).to_sequential(size)

    def _for_size(self, x: Tensor) -> ExplicitCNN:
        """Convert the parameters for the size of these images."""
        return self._convert((x.shape[-2], x.shape[-1]))

    def forward(self, x: Tensor) -> Tensor:
        """Evaluate the module.

        Args:
            x: Shape (..., in_channels, height, width), in the dtype of the parameters.

        Returns:
            Shape (..., out_channels, height', width').
        """
        check_images(x, self.in_channels, next(self.parameters()).dtype)
        if not torch.is_grad_enabled():
            frozen = cast("ExplicitCNN | None", self._frozen_weights)
            if frozen is not None and frozen.fits(x) and self._all_in_place():
                return frozen(x)
            if self._keeper is not None and not is_watched() and self.image_size == tuple(x.shape[-2:]):
                return self._keeper(self)(x)
        return self._for_size(x)(x)


class SandwichConv2d(ConvModule):
    r"""A 1-Lipschitz convolutional layer, for any value of its parameters and any size of the image.

    $$h^+ = \sqrt2 A^T \Psi \sigma(\sqrt2 \Psi^{-1} B h + b), \qquad A A^T + B B^T \preceq I$$

    (Wang & Manchester, ICML 2023, section 4.3), with convolutions A and B.

    `parametrization="kernel"` makes A and B k x k kernels (see `robustnn.params.conv_kernel`): no Fourier transform,
    zero padding or periodic images, and export to ordinary convolutions. `parametrization="fft"` is the layer of the
    paper (see `robustnn.params.conv_spectral`): periodic images, every such layer reached, several times the work.

    A layer of stride s acts on blocks of s x s pixels moved into channels, which is invertible; its kernel is rounded
    up to whole blocks (3 x 3 at stride 2 is 4 x 4). Sizes that the stride does not divide are filled up with zeros.

    Args:
        in_channels: Channels in.
        out_channels: Channels out.
        kernel_size: k, or (rows, columns); odd or even.
        stride: s, or (rows, columns).
        parametrization: "kernel" or "fft".
        padding: "circular" or "zeros" ("kernel" only); the output has ceil(size / stride) pixels. The default is zeros
            for "kernel", circular for "fft".
        outer: "kernel", or "pointwise" ("kernel" parametrization only), which makes A a matrix: the layer is a k x k
            convolution, an activation, and a 1 x 1 convolution, at half of the cost; `merge_pointwise` makes an
            ordinary convolutional network of such layers. The proof is the same; fewer layers are reached.
        activation: Name or torch.nn class with slopes in [0, 1]; "identity" makes it $2 A^T B h + \sqrt2 A^T \Psi b$.
        bias: Whether to add b.
        image_size: Height and width, or one number; only for `explicit()` and `freeze()` of "fft".
        device: Device of the parameters.
        dtype: Floating dtype of the parameters.

    Raises:
        InvalidArgumentError: If an argument is not acceptable.

    Example:
        >>> SandwichConv2d(3, 16, 3, stride=2)(torch.zeros(5, 3, 15, 20)).shape
        torch.Size([5, 16, 8, 10])
    """

    weight: nn.Parameter
    psi: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        *,
        parametrization: str = "kernel",
        padding: str | None = None,
        outer: str = "kernel",
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
        if parametrization not in ("kernel", "fft"):
            raise invalid("parametrization", "kernel or fft", repr(parametrization), "Choose one of these.")
        if padding not in (None, "circular", "zeros") or (parametrization, padding) == ("fft", "zeros"):
            raise invalid(
                "padding", "circular or zeros, and circular for fft", repr(padding),
                'Use parametrization="kernel" for zeros.',
            )  # fmt: skip
        if outer not in ("kernel", "pointwise") or (parametrization, outer) == ("fft", "pointwise"):
            raise invalid(
                "outer",
                "kernel or pointwise, and kernel for fft",
                repr(outer),
                'Use parametrization="kernel".',
            )
        self.parametrization = parametrization
        self.outer = outer
        self.padding = padding or ("zeros" if parametrization == "kernel" else "circular")
        self.taps = -(-self.kernel_size[0] // self.stride[0]), -(-self.kernel_size[1] // self.stride[1])
        n_in = self.in_channels * self.stride[0] * self.stride[1]
        draw: Any = init_spectral
        if parametrization == "kernel":
            draw = partial(init_kernel, pointwise=outer == "pointwise")
        fresh = draw(n_in, self.out_channels, self.taps, bias=bias, device=device, dtype=dtype)
        for name, tensor in fresh._asdict().items():
            missing = tensor is None or tensor.numel() == 0  # a kernel of one tap has no shifts
            self.register_parameter(name, None if missing else nn.Parameter(tensor))

    @property
    def lipschitz(self) -> float:
        """The guaranteed bound: one."""
        return 1.0

    def direct(self, dtype: torch.dtype | None = None) -> KernelParams | SpectralParams:
        """Return the free parameters by value, cast to `dtype` if one is given."""
        kind: Any = KernelParams if self.parametrization == "kernel" else SpectralParams
        tensors = {name: getattr(self, name) for name in kind._fields}
        if "shifts" in tensors and tensors["shifts"] is None:
            size = len(self.weight) - (self.out_channels if self.outer == "pointwise" else 0)
            tensors["shifts"] = self.weight.new_empty(0, size, size // 2)
        result: KernelParams | SpectralParams = kind(
            **{name: None if t is None else t.to(dtype or t.dtype) for name, t in tensors.items()}
        )
        return result

    def stages(
        self, image_size: Pair | None, gain: float = 1.0, dtype: torch.dtype | None = None
    ) -> tuple[Stage, ...]:
        """Return the stages of the explicit form.

        Args:
            image_size: Height and width of the input; may be None with explicit kernels.
            gain: Factor of the input.
            dtype: Dtype of the conversion.

        Returns:
            Convolution, activation and convolution, or one stage that does all by Fourier transform.

        Raises:
            InvalidArgumentError: If the size is needed and missing.
        """
        params, target = self.direct(dtype), self.weight.dtype
        if isinstance(params, SpectralParams):
            if self.taps != (1, 1):
                if image_size is None:
                    raise invalid(
                        "image_size", "height and width, which the weights of this layer belong to", None,
                        "Call explicit(image_size=...), or construct the layer with image_size=...",
                    )  # fmt: skip
                stage = spectral_to_stage(
                    params, self.activation, self.stride, image_size, gain=gain, target=target
                )
                return (stage,)
            # One tap has the same matrix at every frequency: that of a kernel.
            n_out, size = params.weight.shape[:2]
            params = KernelParams(
                params.weight.reshape(n_out, size).mT, params.alpha,
                params.weight.new_empty(0, size, size // 2), params.psi, params.bias,
            )  # fmt: skip
        return kernel_to_stages(
            params, self.activation, self.taps, self.stride, circular=self.padding == "circular",
            n_in=self.in_channels * self.stride[0] * self.stride[1] if self.outer == "pointwise" else None,
            gain=gain, target=target,
        )  # fmt: skip

    def extra_repr(self) -> str:
        """Summarise the layer for `repr`."""
        return (
            f"{self.in_channels}, {self.out_channels}, {self.kernel_size}, stride={self.stride}, "
            f"{self.parametrization}, {self.padding}, outer={self.outer}, {self.activation}, "
            f"bias={self.bias is not None}"
        )
