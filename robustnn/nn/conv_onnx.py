"""Export of convolutional networks to ONNX: Conv, pooling, Gemm and activation nodes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from robustnn.errors import invalid
from robustnn.files import atomic_write_bytes
from robustnn.nn.conv import ConvModule
from robustnn.nn.onnx_model import _OPERATORS, check_outputs, finished_model, require_onnx
from robustnn.params.conv_explicit import (
    ActivationStage,
    ConvStage,
    ExplicitCNN,
    FlattenStage,
    LinearStage,
    PoolStage,
    Shape,
    Stage,
)
from robustnn.params.conv_grid import as_pair

__all__ = ["cnn_to_onnx"]


def cnn_to_onnx(
    net: ConvModule | ExplicitCNN,
    path: str | os.PathLike[str],
    image_size: int | Sequence[int] | None = None,
) -> None:
    """Write a convolutional network as an ONNX model, the same weights as `to_cnn()`.

    The model has the input "input" of shape (batch, channels, height, width) and the output "output", in the dtype of
    the weights. It passes ONNX's checker before it is written, and where onnxruntime is installed its outputs on a
    few images are compared with ours.

    Args:
        net: A `ConvLBDN`, a sandwich convolution, or their explicit weights; float32 or float64.
        path: The file to write.
        image_size: Height and width of the images, if the network was not constructed for one.

    Raises:
        InvalidArgumentError: If a layer is evaluated by Fourier transform, no size is known, or the dtype is another.
        CheckpointError: If the model does not reproduce the network.
        RobustNNError: If onnx is not installed.

    Example:
        >>> cnn_to_onnx(net, "classifier.onnx")  # doctest: +SKIP
    """
    onnx = require_onnx()
    network: Any = net
    if isinstance(net, ConvModule):
        image_size = net.image_size if image_size is None else image_size
        with torch.no_grad():
            network = net.explicit()
    if not isinstance(network, ExplicitCNN):
        raise invalid(
            "net", "a convolutional network of this package", type(net).__name__, "Use to_onnx(...)."
        )
    network = network.detach().to("cpu")
    size = network.image_size if image_size is None else as_pair("image_size", image_size)
    if size is None:
        raise invalid("image_size", "height and width of the images", None, "Pass for example (32, 32).")
    if network.dtype not in (torch.float32, torch.float64):
        raise invalid(
            "net", "weights in float32 or float64", network.dtype, "Convert it with .float() first."
        )
    model = _model(network, network.shapes(size))
    onnx.checker.check_model(model, full_check=True)
    data = model.SerializeToString()
    x = torch.linspace(-1.0, 1.0, 3 * network.in_channels * size[0] * size[1], dtype=network.dtype)
    x = x.reshape(3, network.in_channels, *size)
    check_outputs(data, "input", x, "output", network(x), _rounding(network, x))
    atomic_write_bytes(path, data)


def _model(network: ExplicitCNN, shapes: Sequence[Shape]) -> Any:
    from onnx import TensorProto, helper

    nodes: list[Any] = []
    constants: list[Any] = []
    name = "input"
    for k, (stage, shape) in enumerate(zip(network.stages, shapes, strict=False)):
        name = _add_stage(stage, k, shape, name, nodes, constants)
    nodes.append(helper.make_node("Identity", [name], ["output"]))
    kind = TensorProto.DOUBLE if network.dtype == torch.float64 else TensorProto.FLOAT
    values = [
        helper.make_tensor_value_info(label, kind, ["batch", *shape])
        for label, shape in (("input", shapes[0]), ("output", shapes[-1]))
    ]
    return finished_model(nodes, values[:1], values[1:], constants)


def _add_stage(stage: Stage, k: int, shape: Shape, name: str, nodes: list[Any], constants: list[Any]) -> str:
    """Append the nodes of a stage and return the name of its result."""
    from onnx import helper, numpy_helper

    def add(operator: str, inputs: list[str], label: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(operator, inputs, [f"{label}_{k}"], **attributes))
        return f"{label}_{k}"

    def constant(tensor: Tensor, label: str) -> str:
        constants.append(numpy_helper.from_array(tensor.contiguous().numpy(), f"{label}_{k}"))
        return f"{label}_{k}"

    parameters = [constant(tensor, label) for label, tensor in stage.tensors().items()]
    if isinstance(stage, ConvStage):
        down, across = (-n % s for n, s in zip(shape[-2:], stage.stride, strict=True))
        (top, bottom), (left, right) = stage.rows, stage.columns
        pads = [top, left, bottom + down, right + across]
        if stage.circular:
            if down or across:
                filled = constant(torch.tensor([0, 0, 0, 0, 0, 0, down, across]), "pads")
                name = add("Pad", [name, filled], "filled")
            pads = [0, 0, 0, 0]
            for label, axis, (before, after), size in (
                ("rows", 2, stage.rows, shape[-2] + down),
                ("columns", 3, stage.columns, shape[-1] + across),
            ):
                if before or after:
                    index = constant(torch.arange(-before, size + after) % size, f"index_{label}")
                    name = add("Gather", [name, index], label, axis=axis)
        return add("Conv", [name, *parameters], "conv", pads=pads, strides=list(stage.stride))
    if isinstance(stage, ActivationStage):
        operator, attributes = _OPERATORS[stage.name]
        return add(operator, [name], "hidden", **attributes)
    if isinstance(stage, PoolStage):
        operator = "AveragePool" if stage.kind == "average" else "MaxPool"
        return add(operator, [name], "pool", kernel_shape=list(stage.size), strides=list(stage.stride))
    if isinstance(stage, FlattenStage):
        return add("Flatten", [name], "flat")
    if isinstance(stage, LinearStage):
        return add("Gemm", [name, *parameters], "linear", transB=1)
    raise invalid(
        "net", "layers with explicit kernels", type(stage).__name__, 'Build it with parametrization="kernel".'
    )


def _rounding(network: ExplicitCNN, x: Tensor) -> Tensor:
    """How far two evaluations may be apart that sum in another order, of the shape of the output."""
    size, single = x.abs(), False
    for stage in network.map(torch.abs).stages:
        if isinstance(stage, ActivationStage):
            size, single = size + 1.0, single or stage.name == "leaky_relu"
        else:
            size = stage(size)
    # ONNX keeps the slope of LeakyRelu in single precision, whatever the dtype of the model.
    return 1e3 * torch.finfo(torch.float32 if single else x.dtype).eps * (size + 1.0)
