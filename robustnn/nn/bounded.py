"""What the baselines share: the settings of a network with a fixed bound, and the parameters of a layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from robustnn.errors import CheckpointError, check_positive, check_positive_int
from robustnn.nn.lbdn import check_widths
from robustnn.nn.module import ExplicitModule, check_floating
from robustnn.params.activations import resolve_activation

__all__ = ["BoundedNet", "add_affine_parameters"]


class BoundedNet(ExplicitModule):
    r"""A network with a fixed bound, $\|f(x) - f(x')\|_2 \le \gamma \|x - x'\|_2$; sub-classes add the layers.

    The bound is part of the state dict: a loaded network has the bound of the network that was saved.

    Args:
        in_features: Number of inputs n_in.
        hidden_features: Widths of the hidden layers.
        out_features: Number of outputs n_out.
        lipschitz: The bound gamma > 0, output units per input unit.
        activation: Name or torch.nn class from the activation table.

    Raises:
        InvalidArgumentError: If gamma, a width or the activation is not acceptable.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: Sequence[int],
        out_features: int,
        lipschitz: float,
        activation: str | type[nn.Module],
    ) -> None:
        super().__init__()
        self.in_features = check_positive_int("in_features", in_features)
        self.hidden_features = check_widths("hidden_features", hidden_features)
        self.out_features = check_positive_int("out_features", out_features)
        self._lipschitz = check_positive("lipschitz", lipschitz)
        self.activation = resolve_activation(activation).name

    @property
    def lipschitz(self) -> float:
        """The guaranteed bound gamma."""
        return self._lipschitz

    def set_lipschitz(self, lipschitz: float) -> None:
        """Change the bound, and the function with it; frozen weights are dropped.

        Args:
            lipschitz: The new bound gamma > 0, output units per input unit.

        Raises:
            InvalidArgumentError: If it is not positive and finite.
        """
        bound = check_positive("lipschitz", lipschitz)
        self.unfreeze()
        self._lipschitz = bound

    def get_extra_state(self) -> dict[str, float]:
        """Return the bound, so that it travels with the state dict."""
        return {"lipschitz": self._lipschitz}

    def set_extra_state(self, state: Any) -> None:
        """Restore the bound from a state dict."""
        try:
            self.set_lipschitz(dict(state)["lipschitz"])
        except (TypeError, KeyError, ValueError) as error:
            raise CheckpointError(
                f"state dict: expected the extra state {{'lipschitz': gamma > 0}}, got {state!r}. The checkpoint is "
                f"damaged or was not written by a {type(self).__name__}."
            ) from error

    def extra_repr(self) -> str:
        """Summarise the network for `repr`."""
        return f"lipschitz={self._lipschitz:g}, activation={self.activation}"


def add_affine_parameters(
    module: nn.Module,
    n_in: int,
    n_out: int,
    bias: bool,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> None:
    r"""Give a module the parameters `weight`, (n_out, n_in), not yet filled, and `bias`, (n_out,) or None.

    The bias is uniform in $\pm 1/\sqrt{n_{in}}$, as in `torch.nn.Linear`.

    Args:
        module: The module.
        n_in: Input width, positive.
        n_out: Output width, positive.
        bias: Whether there is a bias.
        device: Device of the parameters.
        dtype: Floating dtype of the parameters.

    Raises:
        InvalidArgumentError: If `dtype` is no floating dtype.
    """
    check_floating("dtype", dtype)
    module.register_parameter("weight", nn.Parameter(torch.empty(n_out, n_in, device=device, dtype=dtype)))
    module.register_parameter("bias", None)
    if bias:
        module.register_parameter("bias", nn.Parameter(torch.empty(n_out, device=device, dtype=dtype)))
        nn.init.uniform_(module.bias, -1.0 / math.sqrt(n_in), 1.0 / math.sqrt(n_in))  # type: ignore[arg-type]
