"""From an ordinary network, or from a matrix, to the direct parameters of an LBDN of the same function."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from robustnn.errors import ShapeError, check_positive, invalid
from robustnn.nn.module import ExplicitModule, check_floating
from robustnn.nn.scales import Scale, as_scale
from robustnn.params.activations import ACTIVATIONS, resolve_activation
from robustnn.params.direct import LBDNParams
from robustnn.params.explicit import ExplicitMLP
from robustnn.params.inverse import certified_lipschitz, explicit_to_lbdn, product_multipliers
from robustnn.params.linear import linear_network

__all__ = ["as_explicit", "linear_to_direct", "mlp_to_direct"]

# What an activation module may be set to; the slopes of the table are those of torch's defaults.
_SETTINGS = {
    "elu": ("alpha",),
    "leaky_relu": ("negative_slope",),
    "softplus": ("beta", "threshold"),
}


def as_explicit(network: nn.Module | ExplicitMLP) -> ExplicitMLP:
    """Return the weights of an ordinary feed-forward network, or of one of ours.

    Args:
        network: An `nn.Sequential` (nested ones are flattened) of `nn.Linear` layers with one kind of activation
            between every two of them, a single `nn.Linear`, an `LBDN`, an `MLP`, or an `ExplicitMLP`.

    Returns:
        The network by value, without graph and sharing no memory with the modules.

    Raises:
        InvalidArgumentError: If it is something else.

    Example:
        >>> as_explicit(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))).activation
        'tanh'
    """
    if isinstance(network, ExplicitMLP):
        return network.map(lambda t: t.detach().clone())
    if isinstance(network, ExplicitModule):
        with torch.no_grad():
            found: Any = network.explicit()
        if not isinstance(found, ExplicitMLP):
            raise invalid(
                "network", "a network of dense layers", type(network).__name__,
                "Use the functions for convolutional networks, such as robustnn.bounds.certify_cnn.",
            )  # fmt: skip
        return found
    expected = "nn.Linear, activation, nn.Linear, ..., nn.Linear with one kind of activation"
    fix = "Pass an nn.Sequential of this form, an LBDN, an MLP, or an ExplicitMLP of the weights."
    if not isinstance(network, (nn.Sequential, nn.Linear)):
        raise invalid("network", expected, type(network).__name__, fix)
    modules = list(_flatten(network))
    linears, between = modules[::2], modules[1::2]
    names = [type(module).__name__ for module in modules]
    # Exact types: a subclass may compute something else, and so may hooks and parametrisations.
    plain = all(type(module) is nn.Linear for module in linears) and not any(
        module._forward_hooks or module._forward_pre_hooks for module in modules
    )
    if len(modules) % 2 == 0 or not plain or any(isinstance(module, nn.Linear) for module in between):
        raise invalid("network", expected, names, fix)
    activations = {_activation_name(module) for module in between}
    if len(activations) > 1:
        raise invalid("network", expected, names, "Use the same activation in all hidden layers.")
    return ExplicitMLP(
        tuple(module.weight.detach().clone() for module in linears),  # type: ignore[operator]
        tuple(None if module.bias is None else module.bias.detach().clone() for module in linears),  # type: ignore[operator]
        activations.pop() if activations else "identity",
    )


def _flatten(network: nn.Module) -> Iterator[nn.Module]:
    if type(network) is nn.Sequential:
        for module in network:
            yield from _flatten(module)
    else:
        yield network


def _activation_name(module: nn.Module) -> str:
    name = resolve_activation(type(module)).name
    default = ACTIVATIONS[name].module()
    for setting in _SETTINGS.get(name, ()):
        value, usual = getattr(module, setting), getattr(default, setting)
        if value != usual:
            raise invalid(
                "network", f"nn.{type(module).__name__} with {setting} = {usual:g}", f"{setting} = {value:g}",
                "Only torch's default settings are supported.",
            )  # fmt: skip
    return name


def mlp_to_direct(
    network: ExplicitMLP,
    lipschitz: float | None,
    multipliers: Sequence[Tensor] | None,
    slack: float,
    input_scale: Scale | None,
    output_scale: Scale | None,
    dtype: torch.dtype | None,
) -> LBDNParams:
    """Return the direct parameters of `LBDN.from_mlp`; arguments and errors as there."""
    check_floating("dtype", dtype)
    dtype = dtype or network.weights[0].dtype
    device = network.weights[0].device
    scales = {
        name: None if scale is None else as_scale(name, scale, size, device, dtype)
        for name, scale, size in (
            ("input_scale", input_scale, network.in_features),
            ("output_scale", output_scale, network.out_features),
        )
    }
    network = network.to(dtype=torch.float64)
    if multipliers is None:
        multipliers, lipschitz = product_multipliers(network, lipschitz, slack=slack, **scales)
    elif lipschitz is None:
        if check_positive("slack", slack) < 1.0:
            raise invalid("slack", "a factor >= 1", slack, "Use 1.05.")
        least = certified_lipschitz(network, multipliers, **scales)
        # Zero (a constant network) and infinity (no proof) are for the inverse map to judge.
        lipschitz = slack * least if 0.0 < least < math.inf else 1.0
    return explicit_to_lbdn(network, multipliers, lipschitz, dtype=dtype, **scales)


def linear_to_direct(
    gain: Sequence[Sequence[float]] | Tensor,
    widths: Sequence[int],
    lipschitz: float,
    activation: str,
    region: float,
    tolerance: float,
    input_scale: Scale | None,
    output_scale: Scale | None,
    dtype: torch.dtype | None,
) -> LBDNParams:
    """Return the direct parameters of `LBDN.from_linear`, on the CPU; arguments and errors as there."""
    check_floating("dtype", dtype)
    dtype = dtype or torch.get_default_dtype()
    try:
        matrix = torch.as_tensor(gain, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise invalid("gain", "a matrix of numbers", repr(gain), "Pass [[...]] or a tensor.") from error
    if matrix.ndim != 2 or matrix.numel() == 0:
        raise ShapeError(
            f"gain: expected shape (n_out, n_in), got {tuple(matrix.shape)}. Pass a matrix, [[...]] for one output."
        )
    # As the network will hold them: rounded to its dtype.
    scales = {
        name: None if scale is None else as_scale(name, scale, size, "cpu", dtype)
        for name, scale, size in (
            ("input_scale", input_scale, matrix.shape[1]),
            ("output_scale", output_scale, matrix.shape[0]),
        )
    }
    network, multipliers = linear_network(
        matrix, widths, lipschitz, activation, region=region, tolerance=tolerance, dtype=dtype, **scales
    )
    return explicit_to_lbdn(network, multipliers, lipschitz, dtype=dtype, **scales)
