"""Classes by name, and values that hyper-parameter files write as expressions."""

from __future__ import annotations

import ast
import importlib
from typing import Any

import stable_baselines3
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import nn

from robustnn import policies
from robustnn.errors import RobustNNError, invalid

__all__ = ["ALGORITHMS", "algorithm_class", "dotted", "expression", "policy_class"]

_SB3 = ("A2C", "DDPG", "DQN", "PPO", "SAC", "TD3")
_CONTRIB = ("CrossQ", "MaskablePPO", "QRDQN", "TQC", "TRPO")
ALGORITHMS = {name.lower(): name for name in (*_SB3, *_CONTRIB)}

_LBDN = {
    "a2c": "LBDNActorCriticPolicy",
    "crossq": "contrib.LBDNCrossQPolicy",
    "ddpg": "LBDNTD3Policy",
    "dqn": "LBDNDQNPolicy",
    "maskableppo": "contrib.LBDNMaskablePolicy",
    "ppo": "LBDNActorCriticPolicy",
    "qrdqn": "contrib.LBDNQRDQNPolicy",
    "sac": "LBDNSACPolicy",
    "td3": "LBDNTD3Policy",
    "tqc": "contrib.LBDNTQCPolicy",
    "trpo": "LBDNActorCriticPolicy",
}
_CONSTANTS = {"True": True, "False": False, "None": None}


def algorithm_class(name: Any) -> type[BaseAlgorithm]:
    """Return the algorithm of a name such as "ppo" or "TQC"."""
    full = ALGORITHMS.get(str(name).lower().replace("_", ""))
    if full is None:
        raise invalid("algo", f"one of {', '.join(ALGORITHMS)}", repr(name), "Choose one of these.")
    module: Any = stable_baselines3
    if full in _CONTRIB:
        try:
            module = importlib.import_module("sb3_contrib")
        except ImportError as error:
            raise RobustNNError(
                f"algo: expected sb3-contrib for {full}, got none installed. Install it with "
                "'pip install robustnn[rl]'."
            ) from error
    found: type[BaseAlgorithm] = getattr(module, full)
    return found


def policy_class(name: Any, algorithm: str) -> Any:
    """Return the policy of a name: "mlp", "lbdn", a name of Stable-Baselines3, or a dotted one of a class."""
    if not isinstance(name, str):
        raise invalid("policy", "a name", repr(name), "Use 'lbdn', 'mlp' or the dotted name of a class.")
    if name.lower() == "mlp":
        return "MlpPolicy"
    if name.lower() == "lbdn":
        return dotted("policy", f"{policies.__name__}.{_LBDN[algorithm.lower().replace('_', '')]}")
    return dotted("policy", name) if "." in name else name


def dotted(what: str, name: Any) -> Any:
    """Return what a dotted name stands for, such as ``robustnn.policies.FreezeWeights``."""
    module, _, last = str(name).strip().rpartition(".")
    try:
        return getattr(importlib.import_module(module), last)
    except (ImportError, AttributeError, ValueError) as error:
        raise invalid(
            what, "the dotted name of something that can be imported", repr(name), str(error)
        ) from error


def expression(what: str, text: str) -> Any:
    """Return the value of a literal, a call of ``dict``, or a name ``nn.X``, as hyper-parameter files hold them.

    Nothing else is evaluated, so a file cannot run code.

    Args:
        what: Name of the setting, for messages.
        text: For example ``"dict(lipschitz=10.0, net_arch=[64, 64], activation_fn=nn.ReLU)"``.

    Raises:
        InvalidArgumentError: If it is another expression.
    """
    try:
        return _value(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, TypeError) as error:
        raise invalid(
            what, "literals, dict(...) and nn.X", repr(text), f"Write it as a mapping ({error})."
        ) from error


def _value(node: ast.AST) -> Any:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name) and node.id in _CONSTANTS:
        return _CONSTANTS[node.id]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand)
    if isinstance(node, (ast.List, ast.Tuple)):
        items = [_value(item) for item in node.elts]
        return tuple(items) if isinstance(node, ast.Tuple) else items
    if isinstance(node, ast.Dict) and None not in node.keys:
        return {_value(k): _value(v) for k, v in zip(node.keys, node.values, strict=True) if k is not None}
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
        if not node.args and all(keyword.arg is not None for keyword in node.keywords):
            return {str(keyword.arg): _value(keyword.value) for keyword in node.keywords}
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "nn":
        found = getattr(nn, node.attr, None)
        if isinstance(found, type) and issubclass(found, nn.Module):
            return found
    raise ValueError(f"no such value: {ast.unparse(node)}")
