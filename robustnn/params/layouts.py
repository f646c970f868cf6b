"""Parameter layouts of other programs, read into ours. Differentiable, so that gradients can be compared."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from robustnn.errors import ShapeError, check_finite, check_positive, invalid
from robustnn.linalg import frobenius_norm
from robustnn.params.direct import LBDNParams, SandwichParams

__all__ = ["read_layout", "sandwich_from_jax", "sandwich_from_julia", "sandwich_from_torch"]

_JAX_NORM_EPS = float(torch.finfo(torch.float32).eps)


def sandwich_from_torch(
    weight: Tensor, alpha: Tensor, psi: Tensor | None, bias: Tensor | None
) -> SandwichParams:
    """Read a layer of the authors' torch code: weight is wide, (n_out, n_out + n_in), psi is a logarithm.

    The output layer's bias is not scaled by the network's bound there, as here.

    Args:
        weight: Shape (n_out, n_out + n_in), transpose of X stacked on Y.
        alpha: Radius, one element.
        psi: Shape (n_out,), or None for an output layer.
        bias: Shape (n_out,), or None.

    Returns:
        The same layer in our layout.
    """
    return SandwichParams(weight.mT, alpha.reshape(()), psi, bias)


def sandwich_from_jax(
    xy: Tensor, a: Tensor, d: Tensor | None, b: Tensor | None, *, lipschitz: float = 1.0
) -> SandwichParams:
    r"""Read a layer of the R2DN (JAX) code: XY is tall, (n_out + n_in, n_out), d is a logarithm.

    That code divides by $\sqrt{\|XY\|_F^2 + 1.19 \cdot 10^{-7}}$ instead of $\|XY\|_F$ (absorbed into alpha
    here), and multiplies the output layer's bias by $\sqrt\gamma$ (absorbed into the bias when `d` is None).

    Args:
        xy: Shape (n_out + n_in, n_out).
        a: Radius, one element.
        d: Shape (n_out,), or None for an output layer.
        b: Shape (n_out,), or None.
        lipschitz: Bound of the network, used for the output layer's bias only.

    Returns:
        The same layer in our layout.
    """
    norm = frobenius_norm(xy)
    alpha = a.reshape(()) * norm / (norm.square() + _JAX_NORM_EPS).sqrt()
    if d is None and b is not None:
        b = math.sqrt(lipschitz) * b
    return SandwichParams(xy, alpha, d, b)


def sandwich_from_julia(xy: Tensor, a: Tensor, d: Tensor | None, b: Tensor | None) -> SandwichParams:
    """Read a layer of RobustNeuralNetworks.jl: XY is tall, (n_out + n_in, n_out), d is a logarithm.

    The norm is exact and the output layer's bias is not scaled by the network's bound, as here.

    Args:
        xy: Shape (n_out + n_in, n_out).
        a: Radius, one element.
        d: Shape (n_out,), or None for an output layer.
        b: Shape (n_out,), or None.

    Returns:
        The same layer in our layout.
    """
    return SandwichParams(xy, a.reshape(()), d, b)


# Names of (weight, radius, psi, bias) in each layout; the first spelling is the usual one.
_FIELDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "torch": (("weight",), ("alpha",), ("psi",), ("bias",)),
    "jax": (("XY",), ("a",), ("d",), ("b",)),
    "julia": (("XY",), ("\N{GREEK SMALL LETTER ALPHA}", "alpha", "a"), ("d",), ("b",)),
}
_BOUND = re.compile(r"(?:^|[._/])(?P<log>(?:ln|log)_?)?(?:gamma|\N{GREEK SMALL LETTER GAMMA})$")
# The JAX code confines d to this interval.
_JAX_PSI = 20.0


def read_layout(
    layout: str,
    tensors: Mapping[str, Any],
    *,
    lipschitz: float | None = None,
    dtype: torch.dtype | None = None,
) -> LBDNParams:
    r"""Read all layers of a network by the names that another program gave them.

    A name has the field and the number of the layer, in either order and with any prefix: "model.0.weight",
    "params/SandwichLayer_0/XY", "layer0_XY", "XY_1". Numbers may start at zero or one. A sequence stands for its
    elements in order, as in `{"XY": [...], "d": [...]}`.

    ========  =====================================  ===================  ======================================
    layout    program                                weight               names
    ========  =====================================  ===================  ======================================
    "torch"   LBDN (the authors' code)               (n_out, n_out+n_in)  weight, alpha, psi, bias
    "jax"     R2DN, Lipschitz-RL                     (n_out+n_in, n_out)  XY, a, d, b, ln_gamma
    "julia"   RobustNeuralNetworks.jl                (n_out+n_in, n_out)  XY, alpha, d, b, log_gamma (or in Greek)
    ========  =====================================  ===================  ======================================

    Args:
        layout: One of the three.
        tensors: Parameters by name, nested mappings allowed; tensors or arrays.
        lipschitz: The bound gamma; needed if no gamma or log_gamma is among the tensors.
        dtype: Floating dtype of the result; that of the first weight if None.

    Returns:
        The same network in our layout, without graph.

    Raises:
        InvalidArgumentError: If a name is unknown, missing or doubled, or the bound is missing or contradicted.
        ShapeError: If the layers form no chain.
    """
    if layout not in _FIELDS:
        raise invalid("layout", f"one of {', '.join(_FIELDS)}", repr(layout), "Choose one of these.")
    if not isinstance(tensors, Mapping):
        raise invalid("tensors", "parameters by name", type(tensors).__name__, "Pass a mapping.")
    fields, bounds = _sort(layout, dict(_flatten(tensors)))
    indices = sorted({index for index, _ in fields})
    if not indices or indices != list(range(indices[0], indices[0] + len(indices))) or indices[0] > 1:
        raise invalid(
            "tensors", "layers numbered from 0 or 1 without gaps", indices, "Pass the whole network."
        )
    gamma = _bound(bounds, lipschitz)
    dtype = dtype or fields.get((indices[0], 0), torch.zeros(())).dtype
    if not dtype.is_floating_point:
        raise invalid("tensors", "real floating weights", dtype, "Pass dtype, for example torch.float64.")
    layers: list[SandwichParams] = []
    for index in indices:
        given = [fields.get((index, k)) for k in range(4)]
        weight, radius, psi, bias = (None if t is None else t.to(dtype) for t in given)
        last = index == indices[-1]
        if weight is None or radius is None or (psi is None) != last:
            names = [_FIELDS[layout][k][0] for k, t in enumerate(given) if t is not None]
            wanted = [name[0] for name in _FIELDS[layout][: 2 if last else 3]]
            raise invalid(
                f"tensors: layer {index}", f"{wanted}" + (" and no psi" if last else ""), names,
                "An output layer has no psi; if this one was evaluated without activation, leave its psi out."
                if last else "Pass all parameters of the layer.",
            )  # fmt: skip
        _check_layer(
            layout, index, weight, radius, psi, bias, layers[-1].weight.shape[-1] if layers else None
        )
        if layout == "torch":
            layers.append(sandwich_from_torch(weight, radius, psi, bias))
        elif layout == "julia":
            layers.append(sandwich_from_julia(weight, radius, psi, bias))
        else:
            psi = None if psi is None else psi.clamp(-_JAX_PSI, _JAX_PSI)
            layers.append(sandwich_from_jax(weight, radius, psi, bias, lipschitz=gamma))
    return LBDNParams(tuple(layers), gamma)


def _flatten(tensors: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for key, value in tensors.items():
        name = f"{prefix}{key}"
        if isinstance(value, (list, tuple)) and all(hasattr(item, "shape") for item in value):
            value = {str(k): item for k, item in enumerate(value)}
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{name}.")
            continue
        try:
            dtype = torch.float64 if isinstance(value, float) else None
            tensor = torch.as_tensor(value, dtype=dtype).detach().clone()
        except (TypeError, ValueError, RuntimeError) as error:
            raise invalid(
                f"tensors: {name}", "a tensor or array", repr(value)[:80], "Leave it out."
            ) from error
        check_finite(f"tensors: {name}", tensor)
        yield name, tensor


def _sort(layout: str, named: dict[str, Tensor]) -> tuple[dict[tuple[int, int], Tensor], list[float]]:
    """Tensors by (layer, field), and the bounds found."""
    fields: dict[tuple[int, int], Tensor] = {}
    bounds: list[float] = []
    for name, tensor in named.items():
        bound = _BOUND.search(name)
        if bound is not None and tensor.numel() == 1:
            bounds.append(math.exp(tensor.item()) if bound["log"] else tensor.item())
            continue
        tokens = [token for token in re.split(r"[._/\[\]]+", name) if token]
        kinds = [(k, t) for t in tokens for k, names in enumerate(_FIELDS[layout]) if t in names]
        numbers = [int(number) for token in tokens for number in re.findall(r"\d+$", token)]
        if not kinds or not numbers:
            wanted = [name for names in _FIELDS[layout] for name in names]
            raise invalid(
                f"tensors: {name}",
                f"a layer number and one of {wanted}, or a bound",
                name,
                "Leave other tensors out.",
            )
        key = numbers[-1], kinds[-1][0]
        if key in fields:
            raise invalid(
                f"tensors: {name}", "one tensor of each kind per layer", "a second one", "Leave one out."
            )
        fields[key] = tensor
    return fields, bounds


def _bound(found: list[float], given: float | None) -> float:
    values = [check_positive("tensors: gamma", value) for value in found]
    if given is not None:
        values.insert(0, check_positive("lipschitz", given))
    if not values or any(not math.isclose(value, values[0], rel_tol=1e-5) for value in values):
        raise invalid(
            "lipschitz", "one bound, given or among the tensors", values or "none",
            "Pass lipschitz, equal to the one stored if there is one.",
        )  # fmt: skip
    return values[-1]


def _check_layer(
    layout: str,
    index: int,
    weight: Tensor,
    radius: Tensor,
    psi: Tensor | None,
    bias: Tensor | None,
    n_in: int | None,
) -> None:
    shape = tuple(weight.mT.shape if layout == "torch" and weight.ndim == 2 else weight.shape)
    n_out = shape[-1] if shape else 0
    inputs = shape[0] - n_out if len(shape) == 2 else 0
    if inputs < 1 or n_out < 1 or (n_in is not None and inputs != n_in):
        form = "(n_out, n_out + n_in)" if layout == "torch" else "(n_out + n_in, n_out)"
        raise ShapeError(
            f"tensors: layer {index}: expected a weight {form}" + (f" with n_in = {n_in}" if n_in else "")
            + f", got {tuple(weight.shape)}. Check the layout's name and the order of the axes."
        )  # fmt: skip
    if radius.numel() != 1:
        raise ShapeError(
            f"tensors: layer {index}: expected a radius of one element, got {tuple(radius.shape)}."
        )
    for name, vector in (("psi", psi), ("bias", bias)):
        if vector is not None and tuple(vector.shape) != (n_out,):
            raise ShapeError(
                f"tensors: layer {index}: expected {name} of shape ({n_out},), got {tuple(vector.shape)}."
            )
