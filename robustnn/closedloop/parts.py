"""The parts that an attack may be given: substitutes of the policy or the plant, and critics."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, fields, is_dataclass, replace
from typing import Any

from torch import Tensor, nn

from robustnn.closedloop.padded import padded
from robustnn.closedloop.perturb import CLIP_LEAK, Loop, Policy
from robustnn.errors import check_shape, invalid
from robustnn.params.explicit import ExplicitMLP
from robustnn.policies.action_map import ActionMap

__all__ = ["check_callable", "check_model", "describe_part", "model_state", "planning_policy"]

_MODEL_PARTS = ("transition", "observation", "reward", "terminal", "n_x")


def planning_policy(loop: Loop, surrogate: Policy | None) -> Policy:
    """Return the policy that an attack differentiates, in the dtype and on the device of the loop.

    Args:
        loop: The closed loop.
        surrogate: The substitute; None for the attacked policy itself.

    Returns:
        The policy, with a gradient also where an `ActionMap` clips actions.
    """
    if surrogate is None:
        return loop.leaky_policy
    if isinstance(surrogate, ActionMap):
        return padded(replace(surrogate, clip_leak=CLIP_LEAK).to(loop.device, loop.dtype))
    return padded(surrogate)


def check_callable(name: str, value: Any, fix: str) -> None:
    """Raise `InvalidArgumentError` unless the value can be called."""
    if not callable(value) or isinstance(value, type):
        raise invalid(name, "a callable", repr(value), fix)


def check_model(name: str, model: Any) -> None:
    """Raise `InvalidArgumentError` unless the value has the parts of a plant that attacks use."""
    missing = [part for part in _MODEL_PARTS if not hasattr(model, part)]
    if missing or isinstance(model, type):
        got = f"{type(model).__name__} without {', '.join(missing)}" if missing else "a class"
        fix = "Pass a plant or a learned model."
        raise invalid(name, "an instance with the methods of a plant", got, fix)


def model_state(model: Any, state: Tensor | None, observation: Tensor) -> Tensor:
    """Return the state of a model: what its `state_of(observation)` says, or else that of the plant.

    Args:
        model: A plant, or a model of one.
        state: True state of the plant, shape (..., n_x of the plant); None if it is not known.
        observation: True observation, shape (..., n_y).

    Raises:
        ShapeError: If the model has other states than the plant and no `state_of`.
    """
    state_of = getattr(model, "state_of", None)
    if state_of is not None:
        own: Tensor = state_of(observation)
        return own
    fix = "Give the model a method state_of(observation), or the states of the plant."
    if state is None:
        raise invalid(
            "model", "a model with state_of where the plant's state is not known", describe_part(model), fix
        )
    check_shape("state", state, f"(..., {model.n_x}), of the model", state.shape[-1] == model.n_x, fix)
    return state


def describe_part(part: Any) -> dict[str, Any]:
    """Return the kind of a part, and its weights' digest or its parameters, as plain JSON values.

    Args:
        part: A policy, critic, plant or model.

    Returns:
        Type, and one of: `sha256` of the weights; the fields of a dataclass of plain values.
    """
    kind = {"type": getattr(part, "__name__", type(part).__name__)}
    tensors = _weights(part)
    if tensors:
        digest = hashlib.sha256()
        for tensor in tensors:
            digest.update(str(tuple(tensor.shape)).encode())
            digest.update(tensor.detach().cpu().double().numpy().astype("<f8").tobytes())
        return {**kind, "sha256": digest.hexdigest()}
    plain = (bool, int, float, str, type(None))
    if is_dataclass(part) and all(isinstance(getattr(part, f.name), plain) for f in fields(part)):
        return {**kind, **asdict(part)}  # type: ignore[arg-type]
    return kind


def _weights(part: Any) -> list[Tensor]:
    """The weights of a part that has any; the normalisation in front of a network is left out."""
    if isinstance(part, nn.Module):
        return list(part.state_dict().values())
    if isinstance(part, ExplicitMLP):
        return [tensor for tensor in (*part.weights, *part.biases) if tensor is not None]
    single = getattr(part, "network", None)
    networks = (single,) if single is not None else getattr(part, "networks", ())
    return [tensor for network in networks for tensor in _weights(network)]
