"""Networks as files: safetensors with a description; and from the parameter layouts of other programs.

The safetensors file holds the tensors of a network and, in its header, a JSON description: format and version, kind,
widths, activation, bound, and a SHA-256 over the description and all tensors. It contains no code, and nothing in it is
executed on loading. The hash reveals damage and careless changes; it is no signature.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustnn.errors import CheckpointError, RobustNNError, invalid
from robustnn.files import atomic_write_bytes
from robustnn.nn.lbdn import LBDN
from robustnn.nn.mlp import MLP
from robustnn.params.layouts import read_layout

__all__ = ["load_layout", "load_network", "save_network"]

_FORMAT = "robustnn.network"
_VERSION = 1
_KINDS: dict[str, type[LBDN] | type[MLP]] = {"LBDN": LBDN, "MLP": MLP}
_DTYPES = {
    str(d).removeprefix("torch."): d for d in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
}
# Fields of the description, with the types that JSON gives them.
_FIELDS: dict[str, tuple[type, ...]] = {
    "format": (str,),
    "version": (int,),
    "kind": (str,),
    "in_features": (int,),
    "hidden_features": (list,),
    "out_features": (int,),
    "activation": (str,),
    "bias": (bool,),
    "dtype": (str,),
}
_LBDN_FIELDS: dict[str, tuple[type, ...]] = {"lipschitz": (float,), "trainable_lipschitz": (bool,)}


def save_network(net: LBDN | MLP, path: str | os.PathLike[str]) -> None:
    """Write a network to a safetensors file, replacing the file in one step.

    Args:
        net: An `LBDN` or an `MLP`.
        path: The file; its folder must exist.

    Raises:
        InvalidArgumentError: If it is another kind of module.
        NonFiniteError: If a parameter is NaN or infinite.
        OSError: If the file cannot be written.
        RobustNNError: If safetensors is not installed.

    Example:
        >>> save_network(net, "policy.safetensors")  # doctest: +SKIP
    """
    _require_safetensors()
    from safetensors.torch import save

    kind = next((name for name, cls in _KINDS.items() if type(net) is cls), None)
    if kind is None:
        raise invalid(
            "net",
            f"one of {', '.join(_KINDS)}",
            type(net).__name__,
            "Save its state_dict() with torch instead.",
        )
    with torch.no_grad():
        net.explicit()  # raises if the network is not finite
    tensors = _tensors(net)
    description: dict[str, Any] = {
        "format": _FORMAT,
        "version": _VERSION,
        "kind": kind,
        "in_features": net.in_features,
        "hidden_features": list(net.hidden_features),
        "out_features": net.out_features,
        "activation": net.activation,
        "bias": net.layers[0].bias is not None,
        "dtype": str(next(iter(tensors.values())).dtype).removeprefix("torch."),
    }
    if isinstance(net, LBDN):
        description |= {
            "lipschitz": net.lipschitz,
            "trainable_lipschitz": net.log_lipschitz is not None,
        }
    text = json.dumps(description, sort_keys=True, allow_nan=False)
    data = save(tensors, metadata={"network": text, "sha256": _digest(text, tensors)})
    atomic_write_bytes(path, data)


def load_network(path: str | os.PathLike[str], *, device: torch.device | str | None = None) -> LBDN | MLP:
    """Read a network written by `save_network`.

    Args:
        path: The file.
        device: Device of the network; the CPU if None.

    Returns:
        A network with the same parameters, bound and scales, to the last bit.

    Raises:
        CheckpointError: If the file is not one of ours, is damaged or incomplete, or holds values that no network
            has.
        OSError: If the file cannot be read.
        RobustNNError: If safetensors is not installed.
    """
    _require_safetensors()
    from safetensors import SafetensorError, safe_open

    name = str(path)
    Path(path).open("rb").close()  # a missing file is an OSError of the usual kind
    try:
        with safe_open(name, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise _refused(name, "a complete safetensors file", str(error)) from error
    text, digest = metadata.get("network"), metadata.get("sha256")
    if text is None or digest is None:
        raise _refused(name, f"a description of the format {_FORMAT}", f"the metadata {sorted(metadata)}")
    try:
        description = json.loads(text)
    except ValueError as error:
        raise _refused(name, "a description in JSON", str(error)) from error
    _check_description(name, description)
    if _digest(text, tensors) != digest:
        raise _refused(name, f"the hash {digest}", f"{_digest(text, tensors)}: the contents were changed")
    _check_tensors(name, description, tensors)
    return _build(name, description, tensors).to(device)


def load_layout(
    layout: str,
    tensors: Mapping[str, Any],
    *,
    activation: str | type[nn.Module] = "relu",
    lipschitz: float | None = None,
    trainable_lipschitz: bool = False,
    dtype: torch.dtype | None = None,
) -> LBDN:
    """Return an LBDN from the parameters of another program.

    Args:
        layout: "torch" (the authors' code), "jax" (R2DN, Lipschitz-RL) or "julia" (RobustNeuralNetworks.jl); see
            `robustnn.params.read_layout` for the names expected.
        tensors: Parameters by name, nested mappings allowed; tensors or arrays.
        activation: The activation of the network, which no layout stores.
        lipschitz: The bound gamma, if it is not among the tensors.
        trainable_lipschitz: Whether the bound is trained from here on.
        dtype: Dtype of the network; that of the tensors if None.

    Returns:
        The network.

    Raises:
        InvalidArgumentError: If names, shapes or the bound do not fit the layout.
    """
    return LBDN.from_direct(
        read_layout(layout, tensors, lipschitz=lipschitz, dtype=dtype),
        activation,
        trainable_lipschitz=trainable_lipschitz,
    )


def _require_safetensors() -> None:
    if importlib.util.find_spec("safetensors") is None:
        raise RobustNNError(
            "safetensors: expected it to be installed, got no such module. Run: pip install 'robustnn[export]'."
        )


def _tensors(net: nn.Module) -> dict[str, Tensor]:
    named = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    return {key: tensor.detach().cpu().contiguous().clone() for key, tensor in sorted(named.items())}


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for key in sorted(tensors):
        tensor = tensors[key].contiguous()
        digest.update(f"\0{key}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _refused(path: str, expected: str, got: object) -> CheckpointError:
    return CheckpointError(
        f"{path}: expected {expected}, got {got}. The file is damaged, or was not written by save_network."
    )


def _check_description(path: str, description: Any) -> None:
    if not isinstance(description, dict) or description.get("format") != _FORMAT:
        raise _refused(path, f"a description of the format {_FORMAT}", repr(description)[:200])
    if description.get("version") != _VERSION:
        raise CheckpointError(
            f"{path}: expected version {_VERSION} of the format, got {description.get('version')!r}. "
            "Load it with the version of robustnn that wrote it."
        )
    fields = _FIELDS | (_LBDN_FIELDS if description.get("kind") == "LBDN" else {})
    wrong = sorted(set(fields) ^ set(description)) or [
        key
        for key, types in fields.items()
        if not isinstance(description[key], types) or (types == (int,) and isinstance(description[key], bool))
    ]
    if wrong or description["kind"] not in _KINDS or description["dtype"] not in _DTYPES:
        raise _refused(
            path, f"the fields {sorted(fields)}", f"{description}; look at {wrong or ['kind', 'dtype']}"
        )


def _check_tensors(path: str, description: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Names, shapes and values, before anything of the sizes claimed is allocated."""
    widths = [description["in_features"], *description["hidden_features"], description["out_features"]]
    if not all(type(width) is int and width > 0 for width in widths):
        raise _refused(path, "positive widths", widths)
    n = len(widths) - 1
    shapes: dict[str, set[tuple[int, ...]]] = {}
    for k, (n_in, n_out) in enumerate(zip(widths, widths[1:], strict=False)):
        lbdn = description["kind"] == "LBDN"
        shapes[f"layers.{k}.weight"] = {(n_out + n_in, n_out) if lbdn else (n_out, n_in)}
        if lbdn:
            shapes[f"layers.{k}.alpha"] = {()}
        if lbdn and k < n - 1:
            shapes[f"layers.{k}.psi"] = {(n_out,)}
        if description["bias"]:
            shapes[f"layers.{k}.bias"] = {(n_out,)}
    if description.get("trainable_lipschitz"):
        shapes["log_lipschitz"] = {()}
    if description["kind"] == "LBDN":
        for key, width in (("input_scale", widths[0]), ("output_scale", widths[-1])):
            if key in tensors:
                shapes[key] = {(width,), (width, width)}
    dtype = _DTYPES[description["dtype"]]
    for key in sorted(set(shapes) | set(tensors)):
        got = (tuple(tensors[key].shape), tensors[key].dtype) if key in tensors else "nothing"
        if key not in shapes or key not in tensors or got[0] not in shapes[key] or got[1] != dtype:
            raise _refused(path, f"{key} of shape {sorted(shapes.get(key, []))} in {dtype}", got)
        if not bool(tensors[key].isfinite().all()):
            raise _refused(path, f"finite numbers in {key}", "NaN or infinity")


def _build(path: str, description: dict[str, Any], tensors: dict[str, Tensor]) -> LBDN | MLP:
    widths = description["in_features"], description["hidden_features"], description["out_features"]
    settings = {key: description[key] for key in ("activation", "bias")}
    settings["dtype"] = _DTYPES[description["dtype"]]
    if description["kind"] == "LBDN":
        settings |= {key: description[key] for key in _LBDN_FIELDS}
        settings |= {key: tensors.get(key) for key in ("input_scale", "output_scale")}
    try:
        with torch.random.fork_rng(devices=[]):  # what is drawn is overwritten at once
            net = _KINDS[description["kind"]](*widths, **settings)
    except RobustNNError as error:
        raise _refused(path, "a network", error) from error
    state = dict(tensors)
    if isinstance(net, LBDN):
        state["_extra_state"] = {"lipschitz": description["lipschitz"]}  # type: ignore[assignment]
    net.load_state_dict(state)
    return net
