"""The unbounded counterpart of the LBDN, under the same interface."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from robustnn.errors import check_positive_int
from robustnn.nn.lbdn import check_widths
from robustnn.nn.module import ExplicitModule, check_floating
from robustnn.params.activations import resolve_activation
from robustnn.params.explicit import ExplicitMLP

__all__ = ["MLP"]


class MLP(ExplicitModule):
    r"""An ordinary multi-layer perceptron, $z_{k+1} = \sigma(W_k z_k + b_k)$, $y = W_L z_L + b_L$.

    It has the interface of `LBDN` (explicit weights, freezing, export) and no bound; initialisation is that
    of `torch.nn.Linear`.

    Args:
        in_features: Number of inputs n_in.
        hidden_features: Widths of the hidden layers; may be empty.
        out_features: Number of outputs n_out.
        activation: Name or torch.nn class from the activation table.
        bias: Whether the layers have biases.
        device: Device of the parameters.
        dtype: Floating dtype of the parameters.

    Raises:
        InvalidArgumentError: If a width or the activation is not acceptable.

    Example:
        >>> MLP(3, (32, 32), 1, activation="tanh").lipschitz
        inf
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: Sequence[int],
        out_features: int,
        *,
        activation: str | type[nn.Module] = "relu",
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features = check_positive_int("in_features", in_features)
        self.hidden_features = check_widths("hidden_features", hidden_features)
        self.out_features = check_positive_int("out_features", out_features)
        self.activation = resolve_activation(activation).name
        check_floating("dtype", dtype)
        widths = (self.in_features, *self.hidden_features, self.out_features)
        self.layers = nn.ModuleList(
            nn.Linear(n_in, n_out, bias=bias, device=device, dtype=dtype)
            for n_in, n_out in zip(widths, widths[1:], strict=False)
        )

    @property
    def lipschitz(self) -> float:
        """No bound is guaranteed: infinity."""
        return math.inf

    def _explicit(self, dtype: torch.dtype | None = None) -> ExplicitMLP:
        weights = tuple(layer.weight for layer in self.layers)
        biases = tuple(layer.bias for layer in self.layers)
        network = ExplicitMLP(weights, biases, self.activation)  # type: ignore[arg-type]
        return network if dtype is None else network.to(dtype=dtype)

    def extra_repr(self) -> str:
        """Summarise the network for `repr`."""
        return f"activation={self.activation}"
