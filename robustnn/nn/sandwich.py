"""The sandwich layer as a module."""

from __future__ import annotations

import torch
from torch import nn

from robustnn.errors import check_positive_int
from robustnn.nn.module import ExplicitModule, check_floating
from robustnn.params.activations import resolve_activation
from robustnn.params.direct import SandwichParams, init_sandwich
from robustnn.params.explicit import ExplicitMLP
from robustnn.params.maps import sandwich_to_explicit

__all__ = ["SandwichLayer"]


class SandwichLayer(ExplicitModule):
    r"""A 1-Lipschitz layer, for any value of its parameters.

    $$h^+ = \sqrt2 A^T \Psi \sigma(\sqrt2 \Psi^{-1} B h + b), \qquad A A^T + B B^T = I$$

    (Wang & Manchester, ICML 2023, equation 10), or $h^+ = B h + b$ as the output layer of a network.

    Args:
        in_features: Input width n_in.
        out_features: Output width n_out.
        activation: Name or torch.nn class with slopes in [0, 1].
        output: Whether this is an output layer (no activation, no psi).
        bias: Whether to add b.
        device: Device of the parameters.
        dtype: Floating dtype of the parameters.

    Raises:
        InvalidArgumentError: If a width is not a positive integer or the activation is not in the table.

    Example:
        >>> layer = SandwichLayer(4, 8)
        >>> layer(torch.zeros(5, 4)).shape
        torch.Size([5, 8])
    """

    psi: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        activation: str | type[nn.Module] = "relu",
        output: bool = False,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features = check_positive_int("in_features", in_features)
        self.out_features = check_positive_int("out_features", out_features)
        self.activation = resolve_activation(activation).name
        check_floating("dtype", dtype)
        fresh = init_sandwich(
            self.in_features, self.out_features, hidden=not output, bias=bias, device=device, dtype=dtype
        )
        self.weight = nn.Parameter(fresh.weight)
        self.alpha = nn.Parameter(fresh.alpha)
        self.register_parameter("psi", None if fresh.psi is None else nn.Parameter(fresh.psi))
        self.register_parameter("bias", None if fresh.bias is None else nn.Parameter(fresh.bias))

    @property
    def lipschitz(self) -> float:
        """The guaranteed bound: one."""
        return 1.0

    def direct(self, dtype: torch.dtype | None = None) -> SandwichParams:
        """Return the free parameters by value, cast to `dtype` if one is given."""
        try:
            params = SandwichParams(*map(self._parameters.__getitem__, SandwichParams._fields))  # type: ignore[arg-type]
        except KeyError:  # another kind of attribute stands in the place of a parameter
            params = SandwichParams(self.weight, self.alpha, self.psi, self.bias)
        if dtype is None:
            return params
        return SandwichParams(*(None if p is None else p.to(dtype) for p in params))  # type: ignore[arg-type]

    def _explicit(self, dtype: torch.dtype | None = None) -> ExplicitMLP:
        return sandwich_to_explicit(self.direct(dtype), self.activation, target=self.weight.dtype)

    def extra_repr(self) -> str:
        """Summarise the layer for `repr`."""
        kind = "output" if self.psi is None else self.activation
        return f"{self.in_features}, {self.out_features}, {kind}, bias={self.bias is not None}"
