"""The finite-impulse-response sandwich layer as a module."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from robustnn.errors import check_positive_int, invalid
from robustnn.nn.conv1d import SequenceModule
from robustnn.nn.module import check_floating
from robustnn.params.activations import resolve_activation
from robustnn.params.conv_explicit import Stage
from robustnn.params.conv_gramian import FIRParams, fir_kernel, init_fir
from robustnn.params.conv_grid import Pair
from robustnn.params.conv_kernel import conv_margin, sandwich_stages

__all__ = ["FIRConv1d"]


class FIRConv1d(SequenceModule):
    r"""A causal 1-Lipschitz layer of sequences: a filter of l taps, an activation, and a matrix.

    $$h^+_t = \sqrt2 A^T \Psi \sigma\Big(\sqrt2 \Psi^{-1} \sum_{s=0}^{l-1} B_s h_{t-s} + b\Big), \qquad
      A A^T + B(\omega) B(\omega)^H \preceq I$$

    by the controllability Gramian (Pauli, Wang, Manchester & Allgoewer, CDC 2023; see `robustnn.params.conv_gramian`).
    Unlike the projectors of `SandwichConv1d` the parameterisation covers filters that are no part of an orthogonal one,
    and the layer looks into the past only: with zeros as padding, the first outputs are those of a filter at rest.

    Args:
        in_channels: Channels in.
        out_channels: Channels out.
        kernel_size: Number of taps l.
        padding: "zeros" or "circular"; the output is as long as the input.
        activation: Name or torch.nn class with slopes in [0, 1].
        bias: Whether to add b.
        length: Length of the sequences; only for `to_cnn()`.
        device: Device of the parameters.
        dtype: Floating dtype of the parameters.

    Raises:
        InvalidArgumentError: If an argument is not acceptable.

    Example:
        >>> FIRConv1d(3, 16, 5)(torch.zeros(4, 3, 21)).shape
        torch.Size([4, 16, 21])
    """

    weight: nn.Parameter
    psi: nn.Parameter

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        padding: str = "zeros",
        activation: str | type[nn.Module] = "relu",
        bias: bool = True,
        length: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = check_positive_int("in_channels", in_channels)
        self.out_channels = check_positive_int("out_channels", out_channels)
        self.kernel_size = 1, check_positive_int("kernel_size", kernel_size)
        self.stride = 1, 1
        self.image_size = None if length is None else (1, check_positive_int("length", length))
        self.activation = resolve_activation(activation).name
        check_floating("dtype", dtype)
        if padding not in ("circular", "zeros"):
            raise invalid("padding", "circular or zeros", repr(padding), "Choose one of these.")
        self.padding = padding
        fresh = init_fir(
            self.in_channels, self.out_channels, self.kernel_size[1], bias=bias, device=device, dtype=dtype
        )
        for name, tensor in fresh._asdict().items():
            self.register_parameter(name, None if tensor is None else nn.Parameter(tensor))

    @property
    def lipschitz(self) -> float:
        """The guaranteed bound: one."""
        return 1.0

    def direct(self, dtype: torch.dtype | None = None) -> FIRParams:
        """Return the free parameters by value, cast to `dtype` if one is given."""
        tensors: Any = (getattr(self, name) for name in FIRParams._fields)
        cast: Any = (None if t is None else t.to(dtype or t.dtype) for t in tensors)
        return FIRParams(*cast)

    def stages(
        self, image_size: Pair | None, gain: float = 1.0, dtype: torch.dtype | None = None
    ) -> tuple[Stage, ...]:
        """Return filter, activation and matrix.

        Args:
            image_size: Not used; any length will do.
            gain: Factor of the input.
            dtype: Dtype of the conversion.

        Returns:
            The stages.
        """
        params, taps = self.direct(dtype), self.kernel_size[1]
        n_out, circular, target = self.out_channels, self.padding == "circular", self.weight.dtype
        kernel = fir_kernel(params, self.in_channels, taps)
        margin = conv_margin(n_out, kernel.shape[1], taps, target)
        # The taps of a kernel run forwards in time: the window ends at the present sample, and A has that tap only.
        inner, activation, matrix = sandwich_stages(
            kernel[:, :n_out, :, -1:], kernel[:, n_out:], params.psi, params.bias, self.activation, (1, 1), circular,
            gain * margin, margin, target,
        )  # fmt: skip
        return replace(inner, columns=(taps - 1, 0)), activation, matrix  # type: ignore[call-arg]

    def extra_repr(self) -> str:
        """Summarise the layer for `repr`."""
        return f"{self.in_channels}, {self.out_channels}, {self.kernel_size[1]}, {self.padding}, {self.activation}"
