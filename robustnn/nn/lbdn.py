"""The Lipschitz-bounded deep network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from robustnn.errors import (
    CheckpointError,
    ShapeError,
    check_finite,
    check_positive,
    check_positive_int,
    invalid,
)
from robustnn.nn.module import ExplicitModule, check_floating
from robustnn.nn.sandwich import SandwichLayer
from robustnn.params.activations import resolve_activation
from robustnn.params.direct import LBDNParams
from robustnn.params.explicit import ExplicitMLP
from robustnn.params.maps import lbdn_to_explicit

__all__ = ["LBDN"]


class LBDN(ExplicitModule):
    r"""A feed-forward network with a guaranteed Lipschitz bound, for any value of its parameters.

    $$\|D_y^{-1}(f(x) - f(x'))\|_2 \le \gamma \, \|D_x^{-1}(x - x')\|_2 \quad\text{for all } x, x'$$

    with $\gamma$ = `lipschitz` and diagonal scales $D_x$, $D_y$ (ones by default). The network is a stack of
    sandwich layers (Wang & Manchester, *Direct Parameterization of Lipschitz-Bounded Deep Networks*, ICML
    2023), equal in function to an ordinary MLP whose weights satisfy the LipSDP condition; see `to_mlp()`.
    All parameters are free, so any optimiser trains it.

    Args:
        in_features: Number of inputs n_in.
        hidden_features: Widths of the hidden layers; an empty sequence gives an affine map.
        out_features: Number of outputs n_out.
        lipschitz: The bound gamma > 0, in units of (output / output_scale) per (input / input_scale).
        activation: Name or torch.nn class, one of `robustnn.params.activations.ACTIVATIONS`.
        bias: Whether the layers have biases.
        input_scale: D_x, n_in positive numbers in the units of the inputs: how large a change of each
            component counts as one.
        output_scale: D_y, n_out positive numbers in the units of the outputs.
        device: Device of the parameters.
        dtype: Floating dtype of the parameters; torch's default dtype if None.

    Raises:
        InvalidArgumentError: If gamma, a width, a scale or the activation is not acceptable.

    Example:
        >>> net = LBDN(3, (32, 32), 1, lipschitz=5.0, activation="tanh")
        >>> net(torch.zeros(7, 3)).shape, net.lipschitz
        (torch.Size([7, 1]), 5.0)
    """

    input_scale: Tensor | None
    output_scale: Tensor | None

    def __init__(
        self,
        in_features: int,
        hidden_features: Sequence[int],
        out_features: int,
        *,
        lipschitz: float = 1.0,
        activation: str | type[nn.Module] = "relu",
        bias: bool = True,
        input_scale: Sequence[float] | Tensor | None = None,
        output_scale: Sequence[float] | Tensor | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features = check_positive_int("in_features", in_features)
        self.hidden_features = check_widths("hidden_features", hidden_features)
        self.out_features = check_positive_int("out_features", out_features)
        self._lipschitz = check_positive("lipschitz", lipschitz)
        self.activation = resolve_activation(activation).name
        check_floating("dtype", dtype)
        widths = (self.in_features, *self.hidden_features, self.out_features)
        self.layers = nn.ModuleList(
            SandwichLayer(
                n_in, n_out, activation=self.activation, output=k == len(widths) - 2,
                bias=bias, device=device, dtype=dtype,
            )
            for k, (n_in, n_out) in enumerate(zip(widths, widths[1:], strict=False))
        )  # fmt: skip
        for name, scale, size in (
            ("input_scale", input_scale, self.in_features),
            ("output_scale", output_scale, self.out_features),
        ):
            self.register_buffer(name, None if scale is None else _as_scale(name, scale, size, device, dtype))

    @property
    def lipschitz(self) -> float:
        """The guaranteed bound gamma in the weighted norms of the class docstring."""
        return self._lipschitz

    def direct(self, dtype: torch.dtype | None = None) -> LBDNParams:
        """Return the free parameters, the bound and the scales by value.

        Args:
            dtype: Cast to this dtype first, if given.

        Returns:
            Tensors that share memory with the module's parameters unless they are cast.
        """

        def cast(scale: Tensor | None) -> Tensor | None:
            return scale if scale is None or dtype is None else scale.to(dtype)

        layers = tuple(layer.direct(dtype) for layer in self.layers)  # type: ignore[operator]
        return LBDNParams(layers, self._lipschitz, cast(self.input_scale), cast(self.output_scale))

    def _explicit(self, dtype: torch.dtype | None = None) -> ExplicitMLP:
        return lbdn_to_explicit(self.direct(dtype), self.activation, target=self.layers[0].weight.dtype)  # type: ignore[arg-type]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in ("input_scale", "output_scale"):
            scale = state_dict.get(prefix + name)
            if isinstance(scale, Tensor) and not bool(((scale > 0) & scale.isfinite()).all()):
                raise CheckpointError(
                    f"state dict: expected positive, finite numbers in {prefix + name}, got {scale.tolist()}. "
                    "The checkpoint is damaged or was not written by an LBDN."
                )
        super()._load_from_state_dict(state_dict, prefix, *args)

    def get_extra_state(self) -> dict[str, float]:
        """Return the bound, so that it travels with the state dict."""
        return {"lipschitz": self._lipschitz}

    def set_extra_state(self, state: Any) -> None:
        """Restore the bound from a state dict."""
        try:
            self._lipschitz = check_positive("lipschitz", dict(state)["lipschitz"])
        except (TypeError, KeyError, ValueError) as error:
            raise CheckpointError(
                f"state dict: expected the extra state {{'lipschitz': gamma > 0}}, got {state!r}. "
                "The checkpoint is damaged or was not written by an LBDN."
            ) from error

    def extra_repr(self) -> str:
        """Summarise the bound for `repr`."""
        return f"lipschitz={self._lipschitz:g}, activation={self.activation}"


def check_widths(name: str, widths: Sequence[int]) -> tuple[int, ...]:
    """Return hidden widths as a tuple of positive ints.

    Args:
        name: Name of the argument, for the message.
        widths: A sequence of positive integers.

    Returns:
        The widths.

    Raises:
        InvalidArgumentError: If it is not a sequence of positive integers.
    """
    if isinstance(widths, (str, bytes)) or not isinstance(widths, Sequence):
        raise invalid(name, "a sequence of positive integers", repr(widths), "Pass for example (64, 64).")
    return tuple(check_positive_int(f"{name}[{k}]", width) for k, width in enumerate(widths))


def _as_scale(
    name: str,
    scale: Sequence[float] | Tensor,
    size: int,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> Tensor:
    try:
        tensor = torch.as_tensor(scale, device=device).detach()
        if tensor.is_complex() or tensor.dtype == torch.bool:
            raise TypeError("no real numbers")
        tensor = tensor.to(dtype or torch.get_default_dtype(), copy=True)
    except (TypeError, ValueError, RuntimeError) as error:
        raise invalid(name, f"{size} positive numbers", repr(scale), "Pass a sequence of floats.") from error
    if tuple(tensor.shape) != (size,):
        raise ShapeError(
            f"{name}: expected shape ({size},), got {tuple(tensor.shape)}. Give one number per component."
        )
    check_finite(name, tensor)
    if bool((tensor <= 0).any()):
        raise invalid(
            name, "positive numbers", tensor.tolist(), "A scale is a size, in the component's unit."
        )
    return tensor
