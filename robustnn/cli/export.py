"""`robustnn export`: a policy as ONNX model with a certificate, or as safetensors."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from robustnn.cli.certify import environment_of
from robustnn.cli.models import load_model
from robustnn.cli.options import add_command, add_model_options, check_device
from robustnn.errors import UnsupportedSpaceError
from robustnn.nn import MLP
from robustnn.nn.export import save_network
from robustnn.params import ExplicitMLP
from robustnn.policies import DeployedImagePolicy, deploy, save_deployed

__all__ = ["add_to"]


def add_to(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "export",
        "write a policy as ONNX model or safetensors, with a certificate",
        "Write a policy, from the raw observation to the action, in a form that needs neither Stable-Baselines3 nor "
        "robustnn to run: a folder with an ONNX model, a certificate of exactly its weights and a description, all "
        "checked before they are put in place; or the network alone, without normalisation and limits of the action, "
        "as safetensors for robustnn.nn.load_network, beside its certificate.",
        "robustnn export model.zip --env robustnn/PendulumSwingUp-v0 --onnx controller",
        _run,
    )
    add_model_options(parser)
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument(
        "--onnx", metavar="FOLDER", type=Path, help="folder of the ONNX model and its certificate"
    )
    kind.add_argument(
        "--safetensors", metavar="NAME", type=Path,
        help="NAME.safetensors, and NAME.certificate.json with its own .safetensors",
    )  # fmt: skip
    parser.add_argument("--search", action="store_true", help="search for the tightest certificate (LipSDP)")
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)


def _run(arguments: argparse.Namespace) -> None:
    check_device(arguments.device)
    model = load_model(arguments.model, arguments.algo, arguments.device)
    vec_env = environment_of(model, arguments)
    # Without an environment there is no normalisation: the policy alone.
    deployed = deploy(model if vec_env is not None else model.policy, vec_env)
    if isinstance(deployed, DeployedImagePolicy):
        raise UnsupportedSpaceError(
            "model: expected a policy of vectors, got one of images. Use deploy(model).to_onnx(path) in Python, and "
            "deploy(model).bound() for what is proved of its weights."
        )
    if arguments.onnx is not None:
        bound = save_deployed(deployed, arguments.onnx, search=arguments.search)
        print(bound)
        print(f"written to {arguments.onnx}")
        return
    target = arguments.safetensors.with_suffix(".safetensors")
    certificate = deployed.certificate(search=arguments.search)
    save_network(_network(deployed.explicit()), target)
    written = certificate.save(target.with_suffix(".certificate"))
    print(deployed.bound(certificate))
    print(f"written to {target}, {', '.join(map(str, written))}")


def _network(explicit: ExplicitMLP) -> MLP:
    """Return a module with these weights."""
    hidden = [weight.shape[0] for weight in explicit.weights[:-1]]
    net = MLP(explicit.in_features, hidden, explicit.out_features, activation=explicit.activation)
    with torch.no_grad():
        for layer, weight, bias in zip(net.layers, explicit.weights, explicit.biases, strict=True):
            layer.weight.copy_(weight)  # type: ignore[operator]
            layer.bias.zero_() if bias is None else layer.bias.copy_(bias)  # type: ignore[operator]
    return net
