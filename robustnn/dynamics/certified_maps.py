"""The maps of a dynamics model in the units of the data, one for every proved constant."""

from __future__ import annotations

import hashlib
import struct
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustnn.dynamics.channels import Channels
from robustnn.dynamics.slope_form import SlopeForm, joint_form, output_form, step_form
from robustnn.dynamics.state_space import ExplicitStateSpace
from robustnn.errors import invalid

__all__ = ["CertifiableModel", "by_value", "certified_maps", "model_sha256"]

Array = NDArray[np.float64]


@runtime_checkable
class CertifiableModel(Protocol):
    """What can be certified: a state-space model by value with its channels."""

    channels: Channels

    def explicit(self) -> ExplicitStateSpace:
        """Return the model by value, in scaled units."""
        ...


def by_value(model: Any) -> tuple[ExplicitStateSpace, Channels]:
    """Return a model by value, in float64 on the CPU, and its channels.

    Raises:
        InvalidArgumentError: If it is no model.
    """
    channels = getattr(model, "channels", None)
    if not isinstance(channels, Channels) or not callable(getattr(model, "explicit", None)):
        raise invalid(
            "model", "a StateSpaceModel, or an object with explicit() and channels", type(model).__name__,
            "Pass a model of robustnn.dynamics.",
        )  # fmt: skip
    with torch.no_grad():
        explicit = model.explicit()
    return explicit.detach().to("cpu", torch.float64), channels


def certified_maps(
    model: ExplicitStateSpace, channels: Channels, input_scale: Array, output_scale: Array
) -> dict[str, SlopeForm]:
    """Return the map of every proof of a `ModelCertificate`, in the units in which its gain counts.

    Args:
        model: By value, in scaled units.
        channels: The scaling.
        input_scale: D_u, shape (n_u,), in the units of the inputs.
        output_scale: D_y, shape (n_y,), in the units of the outputs.

    Returns:
        By name of the proof. "output" is no proof: all outputs of (x, u).
    """
    n_x, n_u, n_y = model.n_x, model.n_u, model.n_y
    step = step_form(model).scaled(*_factors(model, channels, input_scale, None))
    plain = step_form(model).scaled(*_factors(model, channels, np.ones(n_u), None))
    output = output_form(model)
    weighted = output.scaled(*_factors(model, channels, input_scale, output_scale, state=False))
    single = output.scaled(*_factors(model, channels, input_scale, np.ones(n_y), state=False))
    joint = joint_form(model).scaled(*_factors(model, channels, input_scale, output_scale))
    by_x, by_u = (0, n_x), (n_x, n_x + n_u)
    forms = {
        "rate": step.inputs(*by_x),
        "reach": step,
        "state": step.inputs(*by_x),
        "input": step.inputs(*by_u),
    }
    forms |= {f"input[{j}]": plain.inputs(n_x + j, n_x + j + 1) for j in range(n_u)}
    forms |= {"output_state": weighted.inputs(*by_x), "output_input": weighted.inputs(*by_u)}
    for i in range(n_y):
        one = single.output(i)
        forms |= {f"output_state[{i}]": one.inputs(*by_x), f"output_input[{i}]": one.inputs(*by_u)}
    return {**forms, "l2_gain": joint, "output": weighted}


def _factors(
    model: ExplicitStateSpace,
    channels: Channels,
    input_scale: Array,
    output_scale: Array | None,
    *,
    state: bool = True,
) -> tuple[Tensor, Tensor]:
    """What inputs (x, u) and outputs (the next state, y) of a form are multiplied with; None for no outputs y."""
    ones = model.a.new_ones(model.n_x)
    inputs = torch.cat((ones, torch.from_numpy(input_scale / channels.scaling.u_scale)))
    parts = [ones] if state else []
    if output_scale is not None:
        parts.append(torch.from_numpy(channels.scaling.y_scale / output_scale))
    return inputs, torch.cat(parts)


def model_sha256(model: ExplicitStateSpace, channels: Channels) -> str:
    """Return the SHA-256 of a model by value: its scaling, shapes, weights and biases."""
    digest = hashlib.sha256(b"robustnn dynamics model 1")
    names = [net.activation if net else "" for net in (model.f, model.h)]
    layers = [len(net.weights) if net else 0 for net in (model.f, model.h)]
    digest.update(repr((names, layers, model.step_size, channels.to_dict())).encode())

    def add(tensor: Tensor) -> Tensor:
        digest.update(struct.pack(f"<{tensor.ndim + 1}q", tensor.ndim, *tensor.shape))
        digest.update(tensor.cpu().double().contiguous().numpy().astype("<f8").tobytes())
        return tensor

    model.map(add)
    return digest.hexdigest()
