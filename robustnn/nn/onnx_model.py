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

__all__ = ["to_onnx"]

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
    try:
        import onnx
    except ImportError as error:
        raise RobustNNError(
            f"onnx: expected it to be installed, got: {error}. Run: pip install 'robustnn[export]'."
        ) from error
    network = as_explicit(net).to(device="cpu")
    dtype = network.weights[0].dtype
    if network.weights[0].ndim != 2:
        raise invalid("net", "a single network", "a stack", "Export its members one by one.")
    if dtype not in _DTYPES:
        raise invalid("net", "weights in float32 or float64", dtype, "Convert it with .float() first.")
    model = _model(network)
    onnx.checker.check_model(model, full_check=True)
    data = model.SerializeToString()
    _compare(network, data)
    atomic_write_bytes(path, data)


def _model(network: ExplicitMLP) -> Any:
    from onnx import TensorProto, helper, numpy_helper

    operator, attributes = _OPERATORS[network.activation]
    nodes, initialisers = [], []
    name = "input"
    last = len(network.weights) - 1
    for k, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True)):
        inputs = [name, f"weight_{k}"]
        initialisers.append(numpy_helper.from_array(weight.numpy(), f"weight_{k}"))
        if bias is not None:
            inputs.append(f"bias_{k}")
            initialisers.append(numpy_helper.from_array(bias.numpy(), f"bias_{k}"))
        name = "output" if k == last else f"linear_{k}"
        nodes.append(helper.make_node("Gemm", inputs, [name], transB=1))
        if k < last:
            nodes.append(helper.make_node(operator, [name], [f"hidden_{k}"], **attributes))
            name = f"hidden_{k}"
    kind = TensorProto.DOUBLE if network.weights[0].dtype == torch.float64 else TensorProto.FLOAT
    values = [
        helper.make_tensor_value_info(label, kind, ["batch", size])
        for label, size in (("input", network.in_features), ("output", network.out_features))
    ]
    graph = helper.make_graph(nodes, "robustnn", values[:1], values[1:], initialisers)
    # IR version 8 belongs to this operator set; newer ones are refused by older runtimes.
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=8, producer_name="robustnn"
    )


def _compare(network: ExplicitMLP, data: bytes) -> None:
    try:
        import onnxruntime
    except ImportError:
        return
    try:
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    except onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented:
        return
    x = torch.linspace(-2.0, 2.0, 5 * network.in_features, dtype=network.weights[0].dtype).reshape(5, -1)
    ours = network(x)
    theirs: Tensor = torch.from_numpy(session.run(None, {"input": x.numpy()})[0])
    # Products are summed in another order: an error of eps per term, of the size that the terms may have.
    size = x.abs()
    for weight, bias in zip(network.weights, network.biases, strict=True):
        size = size @ weight.abs().mT + (1.0 if bias is None else bias.abs() + 1.0)
    # ONNX keeps the slope of LeakyRelu in single precision, whatever the dtype of the model.
    dtype = torch.float32 if network.activation == "leaky_relu" else x.dtype
    allowed = 1e3 * torch.finfo(dtype).eps * size
    if theirs.shape != ours.shape or not bool(((theirs - ours).abs() <= allowed).all()):
        raise CheckpointError(
            f"ONNX model: expected the outputs of the network, got a difference of "
            f"{float((theirs - ours).abs().max()):.3g} in onnxruntime. Report this; nothing was written."
        )
