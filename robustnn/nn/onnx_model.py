"""Export to ONNX: the explicit weights as Gemm nodes with activations between them."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn

from robustnn.errors import CheckpointError, RobustNNError, invalid
from robustnn.files import atomic_write_bytes
from robustnn.nn.convert import as_explicit
from robustnn.params.explicit import ExplicitMLP

__all__ = ["check_outputs", "finished_model", "network_nodes", "require_onnx", "rounding", "to_onnx"]

# ONNX operator and attributes of each activation; ONNX's own defaults are stated where they matter.
_OPERATORS: dict[str, tuple[str, dict[str, Any]]] = {
    "elu": ("Elu", {"alpha": 1.0}),
    "identity": ("Identity", {}),
    "leaky_relu": ("LeakyRelu", {"alpha": 0.01}),
    "relu": ("Relu", {}),
    "sigmoid": ("Sigmoid", {}),
    "softplus": ("Softplus", {}),
    "tanh": ("Tanh", {}),
}
_OPSET = 17
_DTYPES = (torch.float32, torch.float64)


def to_onnx(net: nn.Module | ExplicitMLP, path: str | os.PathLike[str]) -> None:
    """Write a network as an ONNX model of Gemm and activation nodes, the same weights as `to_mlp()`.

    The model has the input "input" of shape (batch, n_in) and the output "output" of shape (batch, n_out), in the
    dtype of the weights. It passes ONNX's checker before it is written. Where onnxruntime is installed, its outputs
    on a few inputs are compared with ours as well; if it has no kernel for the dtype, that comparison is left out.
    In float64 leaky_relu is exact to single precision only, that of ONNX's slope attribute.

    Args:
        net: An LBDN, an MLP, a plain `nn.Sequential`, or explicit weights; float32 or float64.
        path: The file to write.

    Raises:
        InvalidArgumentError: If the network is of another kind or dtype, or a stack.
        CheckpointError: If the model does not reproduce the network.
        RobustNNError: If onnx is not installed.

    Example:
        >>> to_onnx(net, "policy.onnx")  # doctest: +SKIP
    """
    onnx = require_onnx()
    network = as_explicit(net).to(device="cpu")
    dtype = network.weights[0].dtype
    if network.weights[0].ndim != 2:
        raise invalid("net", "a single network", "a stack", "Export its members one by one.")
    if dtype not in _DTYPES:
        raise invalid("net", "weights in float32 or float64", dtype, "Convert it with .float() first.")
    model = _model(network)
    onnx.checker.check_model(model, full_check=True)
    data = model.SerializeToString()
    x = torch.linspace(-2.0, 2.0, 5 * network.in_features, dtype=dtype).reshape(5, -1)
    check_outputs(data, "input", x, "output", network(x), rounding(network, x))
    atomic_write_bytes(path, data)


def require_onnx() -> Any:
    """Return the module onnx.

    Raises:
        RobustNNError: If it is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise RobustNNError(
            f"onnx: expected it to be installed, got: {error}. Run: pip install 'robustnn[export]'."
        ) from error
    return onnx


def network_nodes(network: ExplicitMLP, source: str, target: str) -> tuple[list[Any], list[Any]]:
    """Return the Gemm and activation nodes of a network, and its weights as initialisers.

    Args:
        network: A single network on the CPU.
        source: Name of the input.
        target: Name of the output.

    Returns:
        Nodes, and initialisers with the names weight_k and bias_k.
    """
    from onnx import helper, numpy_helper

    operator, attributes = _OPERATORS[network.activation]
    nodes, initialisers = [], []
    name = source
    last = len(network.weights) - 1
    for k, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True)):
        inputs = [name, f"weight_{k}"]
        initialisers.append(numpy_helper.from_array(weight.numpy(), f"weight_{k}"))
        if bias is not None:
            inputs.append(f"bias_{k}")
            initialisers.append(numpy_helper.from_array(bias.numpy(), f"bias_{k}"))
        name = target if k == last else f"linear_{k}"
        nodes.append(helper.make_node("Gemm", inputs, [name], transB=1))
        if k < last:
            nodes.append(helper.make_node(operator, [name], [f"hidden_{k}"], **attributes))
            name = f"hidden_{k}"
    return nodes, initialisers


def finished_model(nodes: list[Any], inputs: list[Any], outputs: list[Any], initialisers: list[Any]) -> Any:
    """Return the model of a graph, in the versions of operators and format that all models here have."""
    from onnx import helper

    graph = helper.make_graph(nodes, "robustnn", inputs, outputs, initialisers)
    # IR version 8 belongs to this operator set; newer ones are refused by older runtimes.
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=8, producer_name="robustnn"
    )


def _model(network: ExplicitMLP) -> Any:
    from onnx import TensorProto, helper

    nodes, initialisers = network_nodes(network, "input", "output")
    kind = TensorProto.DOUBLE if network.weights[0].dtype == torch.float64 else TensorProto.FLOAT
    values = [
        helper.make_tensor_value_info(label, kind, ["batch", size])
        for label, size in (("input", network.in_features), ("output", network.out_features))
    ]
    return finished_model(nodes, values[:1], values[1:], initialisers)


def rounding(network: ExplicitMLP, x: Tensor) -> Tensor:
    """Return how far two evaluations of a network may be apart that sum in another order.

    Args:
        network: A single network.
        x: Inputs, shape (batch, n_in).

    Returns:
        Shape (batch, n_out): an error of machine epsilon per term, of the size that the terms may have.
    """
    size = x.abs()
    for weight, bias in zip(network.weights, network.biases, strict=True):
        size = size @ weight.abs().mT + (1.0 if bias is None else bias.abs() + 1.0)
    # ONNX keeps the slope of LeakyRelu in single precision, whatever the dtype of the model.
    dtype = torch.float32 if network.activation == "leaky_relu" else x.dtype
    return 1e3 * torch.finfo(dtype).eps * size


def check_outputs(
    data: bytes, source: str, x: Tensor, target: str, expected: Tensor, allowed: Tensor
) -> None:
    """Raise unless onnxruntime, where it is installed, computes what is expected.

    Args:
        data: The model.
        source: Name of its input.
        x: Values of the input.
        target: Name of the output.
        expected: Values of the output.
        allowed: Largest difference of every entry.

    Raises:
        CheckpointError: If an entry differs by more.
    """
    try:
        import onnxruntime
    except ImportError:
        return
    try:
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    except onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented:
        return
    found: Tensor = torch.from_numpy(session.run([target], {source: x.numpy()})[0])
    if found.shape != expected.shape or not bool(((found - expected).abs() <= allowed).all()):
        raise CheckpointError(
            f"ONNX model: expected the outputs of the network, got a difference of "
            f"{float((found - expected).abs().max()):.3g} in onnxruntime. Report this; nothing was written."
        )
