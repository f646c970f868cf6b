"""The table of activations with slopes in [0, 1], the class for which the LBDN bound is proved.

Source: Wang & Manchester, Direct Parameterization of Lipschitz-Bounded Deep Networks (ICML 2023), section 2:
the certificate needs an activation that acts per component with slope restricted to [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustnn.errors import InvalidArgumentError

__all__ = ["ACTIVATIONS", "Activation", "resolve_activation"]


@dataclass(frozen=True)
class Activation:
    """A scalar activation and the interval that holds all its difference quotients.

    Attributes:
        name: Key in `ACTIVATIONS`.
        function: Elementwise tensor function.
        module: The torch module class with the same function, as exported by `to_mlp()`.
        slope_min: Infimum of the difference quotients.
        slope_max: Supremum of the difference quotients.
    """

    name: str
    function: Callable[[Tensor], Tensor]
    module: type[nn.Module]
    slope_min: float
    slope_max: float


def _identity(x: Tensor) -> Tensor:
    return x


def _softplus(x: Tensor) -> Tensor:
    # torch's default threshold of 20 leaves a jump of 2e-9 there, which no slope bound survives; at 40 the
    # exponential is below the rounding of float64. `nn.Softplus()`, in exported networks, keeps the jump.
    return functional.softplus(x, threshold=40.0)


ACTIVATIONS: dict[str, Activation] = {
    entry.name: entry
    for entry in (
        Activation("elu", functional.elu, nn.ELU, 0.0, 1.0),
        Activation("identity", _identity, nn.Identity, 1.0, 1.0),
        Activation("leaky_relu", functional.leaky_relu, nn.LeakyReLU, 0.01, 1.0),
        Activation("relu", torch.relu, nn.ReLU, 0.0, 1.0),
        Activation("sigmoid", torch.sigmoid, nn.Sigmoid, 0.0, 0.25),
        Activation("softplus", _softplus, nn.Softplus, 0.0, 1.0),
        Activation("tanh", torch.tanh, nn.Tanh, 0.0, 1.0),
    )
}

_REFUSED = {
    "gelu": "its slope leaves [0, 1] (about -0.13 to 1.13)",
    "hardswish": "its slope leaves [0, 1] (-0.5 to 1.5)",
    "mish": "its slope leaves [0, 1] (about -0.11 to 1.09)",
    "prelu": "its slope is trained and not confined to [0, 1]",
    "selu": "its slope reaches 1.76",
    "silu": "its slope leaves [0, 1] (about -0.10 to 1.10)",
    "softmax": "it does not act per component",
    "swish": "its slope leaves [0, 1] (about -0.10 to 1.10)",
}
_ALIASES = {"leakyrelu": "leaky_relu", "linear": "identity", "none": "identity"}


def resolve_activation(activation: str | type[nn.Module]) -> Activation:
    """Return the table entry of an activation given by name or by torch module class.

    Args:
        activation: A key of `ACTIVATIONS` in any case, or a class such as `torch.nn.Tanh`.

    Returns:
        The entry with function, module class and slope bounds.

    Raises:
        InvalidArgumentError: If the activation is unknown, or its slope leaves [0, 1].

    Example:
        >>> resolve_activation(nn.ReLU).name
        'relu'
    """
    accepted = f"one of {', '.join(ACTIVATIONS)}"
    if isinstance(activation, type) and issubclass(activation, nn.Module):
        name = activation.__name__.lower()
    elif isinstance(activation, str):
        name = activation.lower()
    else:
        raise InvalidArgumentError(
            f"activation: expected {accepted} (a name or a torch.nn class), got {activation!r}. "
            "Pass the class itself, not an instance, so that its parameters are the default ones."
        )
    name = _ALIASES.get(name, name)
    if name in _REFUSED:
        raise InvalidArgumentError(
            f"activation: expected slopes in [0, 1], got {name}: {_REFUSED[name]}. Use {accepted}."
        )
    if name not in ACTIVATIONS:
        raise InvalidArgumentError(
            f"activation: expected {accepted}, got {activation!r}. Choose one of these."
        )
    entry = ACTIVATIONS[name]
    if isinstance(activation, type) and activation is not entry.module:
        raise InvalidArgumentError(
            f"activation: expected {accepted}, got {activation!r}, a class of the same name as "
            f"torch.nn.{entry.module.__name__} whose slopes are unknown. Pass torch's own class or the name."
        )
    return entry
