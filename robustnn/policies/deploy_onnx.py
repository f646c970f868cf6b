"""A deployed policy as an ONNX model, and its weights read back out of one."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustnn.errors import CheckpointError
from robustnn.nn.onnx_model import check_outputs, finished_model, network_nodes, require_onnx, rounding
from robustnn.params.explicit import ExplicitMLP
from robustnn.policies.deployed import DeployedPolicy

__all__ = ["onnx_bytes", "read_network", "same_graph"]

# Name of the second output of a model with discrete actions: what is compared.
_SCORES = {"logits": "logits", "Q-values": "values", "mean quantiles": "values"}


def onnx_bytes(deployed: DeployedPolicy) -> bytes:
    """Return a deployed policy as an ONNX model.

    The input "observation" of shape (batch, n_obs) is the flat raw observation in float32. The output "action" is
    (batch, n_act) in float32 for continuous actions, else int64 of shape (batch,) or (batch, k); discrete actions
    come with a second output "logits" or "values". The operators are Sub, Div, Gemm, the activation, Clip (Max and
    Min where components have limits of their own), Tanh, Add, Mul, ArgMax, and for several discrete actions Split
    and Concat, or Greater and Cast.

    Args:
        deployed: The policy.

    Returns:
        The model, checked by ONNX, and where onnxruntime is installed compared with the module.

    Raises:
        CheckpointError: If the model does not reproduce the module.
        RobustNNError: If onnx is not installed.
    """
    onnx = require_onnx()
    model = _model(deployed)
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString(deterministic=True)
    _compare(deployed, data)
    return data


def read_network(data: bytes, activation: str) -> ExplicitMLP:
    """Return the weights inside an ONNX model that `onnx_bytes` wrote.

    Args:
        data: The model.
        activation: Name of the activation, which `same_graph` checks.

    Returns:
        The network in float32.

    Raises:
        CheckpointError: If the model is damaged or has no such weights.
        RobustNNError: If onnx is not installed.
    """
    require_onnx()
    from onnx import TensorProto, numpy_helper

    found: dict[str, Tensor] = {}
    try:
        for tensor in _parsed(data).graph.initializer:
            if tensor.name.startswith(("weight_", "bias_")):
                if tensor.data_type != TensorProto.FLOAT or tensor.data_location != TensorProto.DEFAULT:
                    raise ValueError(f"{tensor.name} is not a float32 tensor inside the file")
                found[tensor.name] = torch.from_numpy(
                    np.array(numpy_helper.to_array(tensor), dtype=np.float32)
                )
        n_layers = sum(name.startswith("weight_") for name in found)
        weights = tuple(found[f"weight_{k}"] for k in range(n_layers))
        return ExplicitMLP(weights, tuple(found.get(f"bias_{k}") for k in range(n_layers)), activation)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise _refused(f"the weights of a network, got: {error}") from error


def same_graph(data: bytes, deployed: DeployedPolicy) -> bool:
    """Whether an ONNX model is the one of a deployed policy: every node, name, weight and constant.

    Args:
        data: The model.
        deployed: The policy.

    Raises:
        CheckpointError: If the model is damaged.
        RobustNNError: If onnx is not installed.
    """
    found, expected = _parsed(data), _model(deployed)
    return all(
        getattr(found, part) == getattr(expected, part)
        for part in ("graph", "opset_import", "functions", "training_info")
    )


def _parsed(data: bytes) -> Any:
    onnx = require_onnx()
    try:
        return onnx.load_model_from_string(data)
    except Exception as error:  # protobuf has an exception class of its own, derived from Exception
        raise _refused(f"an ONNX model, got: {error}") from error


def _refused(expected: str) -> CheckpointError:
    return CheckpointError(
        f"policy.onnx: expected {expected}. The file is damaged, was changed, or was not written by save_deployed."
    )


class _Graph:
    """Nodes in the order in which they are added, and the constants that they use."""

    def __init__(self, name: str) -> None:
        self.name = name  # of the value that the next node takes
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def add(self, operator: str, result: str, *constants: tuple[str, np.ndarray], **attributes: Any) -> None:
        """Append a node from the present value and constants to `result`."""
        from onnx import helper, numpy_helper

        for name, value in constants:
            self.constants.append(numpy_helper.from_array(value, name))
        names = [self.name, *(name for name, _ in constants)]
        self.nodes.append(helper.make_node(operator, names, [result], **attributes))
        self.name = result

    def limit(self, result: str, name: str, low: np.ndarray, high: np.ndarray) -> None:
        """Append Clip, or Max and Min where the limits of the components differ."""
        if (low == low[0]).all() and (high == high[0]).all():
            self.add("Clip", result, (f"{name}_low", np.array(low[0])), (f"{name}_high", np.array(high[0])))
        else:
            self.add("Max", f"{name}_above", (f"{name}_low", low))
            self.add("Min", result, (f"{name}_high", high))


def _model(deployed: DeployedPolicy) -> Any:
    from onnx import TensorProto, helper

    pipeline, network = deployed.pipeline, deployed.explicit().to(device="cpu")
    constant = {name: buffer.cpu().numpy() for name, buffer in deployed.named_buffers(recurse=False)}
    graph = _Graph("observation")
    if "mean" in constant:
        graph.add("Sub", "centred_once", ("mean", constant["mean"]))
        graph.add("Sub", "centred", ("mean_rest", constant["mean_rest"]))
        graph.add("Div", "normalised", ("std", constant["std"]))
        if "clip" in constant:
            graph.limit("clipped", "clip", -constant["clip"], constant["clip"])
    scores = _SCORES.get(pipeline.output, "mean_action")
    if pipeline.kind == "box" and pipeline.mean_clip is None:
        scores = "network_output"
    target = "network_output" if pipeline.mean_clip is not None else scores
    nodes, weights = network_nodes(network, graph.name, target)
    graph.nodes += nodes
    graph.constants += weights
    graph.name = target
    if pipeline.mean_clip is not None:
        limit = np.full(1, pipeline.mean_clip, dtype=np.float32)
        graph.limit(scores, "mean_clip", -limit, limit)
    kind, n = TensorProto.INT64, sum(pipeline.choices)
    shape: list[Any] = ["batch"]
    if pipeline.kind == "box":
        kind, shape = TensorProto.FLOAT, ["batch", network.out_features]
        _continuous(graph, pipeline.squash, constant)
    else:
        shape += [] if pipeline.kind == "discrete" else [len(pipeline.choices)]
        _discrete(graph, pipeline.kind, pipeline.choices)
    value = helper.make_tensor_value_info
    outputs = [value("action", kind, shape)]
    if pipeline.kind != "box":
        outputs.append(value(scores, TensorProto.FLOAT, ["batch", n]))
    inputs = [value("observation", TensorProto.FLOAT, ["batch", network.in_features])]
    return finished_model(graph.nodes, inputs, outputs, graph.constants)


def _continuous(graph: _Graph, squash: bool, constant: dict[str, np.ndarray]) -> None:
    if not squash:
        graph.limit("action", "action", constant["low"], constant["high"])
        return
    graph.add("Tanh", "squashed")
    graph.add("Add", "from_zero", ("one", np.ones(1, dtype=np.float32)))
    graph.add("Mul", "of_range", ("half_range", constant["half_range"]))
    graph.add("Add", "action", ("action_low", constant["low"]))


def _discrete(graph: _Graph, kind: str, choices: tuple[int, ...]) -> None:
    from onnx import TensorProto, helper, numpy_helper

    if kind == "discrete":
        graph.add("ArgMax", "action", axis=1, keepdims=0)
    elif kind == "multibinary":
        graph.add("Greater", "is_positive", ("zero", np.zeros(1, dtype=np.float32)))
        graph.add("Cast", "action", to=TensorProto.INT64)
    else:
        groups = [f"group_{k}" for k in range(len(choices))]
        graph.constants.append(numpy_helper.from_array(np.asarray(choices, dtype=np.int64), "group_sizes"))
        graph.nodes.append(helper.make_node("Split", [graph.name, "group_sizes"], groups, axis=1))
        picked = [f"choice_{k}" for k in range(len(choices))]
        for group, choice in zip(groups, picked, strict=True):
            graph.nodes.append(helper.make_node("ArgMax", [group], [choice], axis=1, keepdims=1))
        graph.nodes.append(helper.make_node("Concat", picked, ["action"], axis=1))


def _compare(deployed: DeployedPolicy, data: bytes) -> None:
    """Compare the model with the module on a few observations, around the mean of the normalisation."""
    network = deployed.explicit().to(device="cpu")
    x = torch.linspace(-2.0, 2.0, 5 * network.in_features).reshape(5, -1)
    features = x
    if deployed.std is not None and deployed.mean is not None:
        x = deployed.mean.cpu() + x * deployed.std.cpu()
        features = features.abs() + 1.0
    with torch.no_grad():
        if deployed.pipeline.kind == "box":
            name, expected = "action", deployed(x)
        else:
            name, expected = _SCORES[deployed.pipeline.output], deployed.scores(x)
    allowed = rounding(network, features)
    if deployed.pipeline.squash and deployed.half_range is not None and deployed.low is not None:
        allowed = (allowed + 1e-6) * deployed.half_range.cpu() + 1e-6 * deployed.low.cpu().abs()
    check_outputs(data, "observation", x, name, expected, allowed)
