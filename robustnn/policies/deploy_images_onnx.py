"""A deployed policy of images as an ONNX model: division by 255, convolutions, limits or choice of the action."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robustnn.nn.conv_onnx import cnn_to_onnx
from robustnn.nn.onnx_model import check_outputs, finished_model, require_onnx
from robustnn.policies.deploy_images import DeployedImagePolicy
from robustnn.policies.deploy_onnx import _SCORES, _continuous, _discrete, _Graph

__all__ = ["image_onnx_bytes"]


def image_onnx_bytes(deployed: DeployedImagePolicy) -> bytes:
    """Return a deployed policy of images as an ONNX model; see `DeployedImagePolicy.to_onnx`.

    Args:
        deployed: The policy.

    Returns:
        The model, checked by ONNX, and where onnxruntime is installed compared with the module.

    Raises:
        CheckpointError: If the model does not reproduce the module.
        RobustNNError: If onnx is not installed.
    """
    onnx = require_onnx()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.onnx"
        cnn_to_onnx(deployed.explicit().to(device="cpu"), file, deployed.shape[1:])
        network = onnx.load(str(file))
    model = _model(deployed, network.graph)
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString(deterministic=True)
    _compare(deployed, data)
    return data


def _model(deployed: DeployedImagePolicy, network: Any) -> Any:
    """The graph of the network, with what stands before and behind it."""
    from onnx import TensorProto, helper

    pipeline = deployed.pipeline
    scores = _SCORES.get(pipeline.output, "mean_action")
    graph = _Graph("observation")
    graph.add("Cast", "raw", to=TensorProto.FLOAT)
    graph.add("Div", "input", ("white", np.array(deployed.white, dtype=np.float32)))
    graph.nodes += network.node
    graph.constants += network.initializer
    graph.name = "output"
    graph.add("Identity", scores)
    constant = {name: buffer.cpu().numpy() for name, buffer in deployed.named_buffers(recurse=False)}
    kind, shape = TensorProto.INT64, list[Any](["batch"])
    if pipeline.kind == "box":
        kind, shape = TensorProto.FLOAT, ["batch", pipeline.n_outputs]
        _continuous(graph, False, constant)
    else:
        shape += [] if pipeline.kind == "discrete" else [len(pipeline.choices)]
        _discrete(graph, pipeline.kind, pipeline.choices)
    value = helper.make_tensor_value_info
    outputs = [value("action", kind, shape)]
    if pipeline.kind != "box":
        outputs.append(value(scores, TensorProto.FLOAT, ["batch", pipeline.n_outputs]))
    inputs = [value("observation", TensorProto.UINT8, ["batch", *deployed.shape])]
    return finished_model(graph.nodes, inputs, outputs, graph.constants)


def _compare(deployed: DeployedImagePolicy, data: bytes) -> None:
    """Compare the model with the module on a few images."""
    x = torch.randint(0, 256, (3, *deployed.shape), generator=torch.Generator().manual_seed(0)).to(
        torch.uint8
    )
    with torch.no_grad():
        if deployed.pipeline.kind == "box":
            name, expected = "action", deployed(x)
        else:
            name, expected = _SCORES[deployed.pipeline.output], deployed.scores(x)
    # Outputs of the network of absolute weights: what the terms of the sums amount to.
    size = x.float() / deployed.white
    for stage in deployed.explicit().to(device="cpu").map(torch.abs).stages:
        size = stage(size) + 1.0
    check_outputs(data, "observation", x, name, expected, 1e3 * torch.finfo(torch.float32).eps * size)
