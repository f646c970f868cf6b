"""Trained policies by value in .npz files: weights, action limits, and normalisation statistics."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm

from robustnn.closedloop import Critic, critic_of
from robustnn.params import ExplicitMLP, LBDNParams, lbdn_to_explicit, sandwich_from_jax
from robustnn.policies import ActionMap, Normalization, action_map
from robustnn.runs import atomic_write_bytes

Arrays = dict[str, np.ndarray]


def save_policy(path: Path, policy: ActionMap, critic: Critic | None = None) -> None:
    """Write a policy with clipped continuous actions to a .npz file, in one step.

    Args:
        path: The file; its folder is made.
        policy: Not squashed.
        critic: Of observations, with the policy's normalisation; None for none.
    """
    assert policy.low is not None and policy.high is not None and not policy.squash
    arrays = _network_arrays(policy.network, "")
    arrays |= {"low": policy.low.cpu().numpy(), "high": policy.high.cpu().numpy()}
    if policy.normalization is not None:
        statistics = policy.normalization
        arrays |= {"mean": statistics.mean.cpu().numpy(), "std": statistics.std.cpu().numpy()}
        arrays["clip"] = np.asarray(torch.as_tensor(statistics.clip).cpu().numpy())
    if critic is not None:
        assert critic.takes == "observation" and len(critic.networks) == 1
        arrays |= _network_arrays(critic.networks[0], "critic_")
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    path.parent.mkdir(exist_ok=True)
    atomic_write_bytes(path, buffer.getvalue())


def save_agent(path: Path, agent: BaseAlgorithm) -> None:
    """Write the policy and the value network of an on-policy agent."""
    env = agent.get_env()
    save_policy(path, action_map(agent, env), critic_of(agent, env))


def load_policy(path: Path) -> ActionMap:
    """Read a policy written by `save_policy`."""
    with np.load(path, allow_pickle=False) as data:
        network = _network(data, "")
        limits = (torch.from_numpy(data["low"]), torch.from_numpy(data["high"]))
        return ActionMap(network, _normalization(data), *limits)


def load_critic(path: Path) -> Critic:
    """Read the critic beside a policy."""
    with np.load(path, allow_pickle=False) as data:
        return Critic((_network(data, "critic_"),), "observation", _normalization(data))


def load_published_policy(path: Path) -> ActionMap:
    """Read a pendulum policy published with arXiv 2405.11432: normalise, LBDN, first logit, tanh; float64.

    Args:
        path: A .npz file of its direct parameters (`layer0_XY`, ...), `ln_gamma`, `obs_mean` and `obs_std`.

    Returns:
        The deterministic action, shape (..., 1).
    """
    with np.load(path, allow_pickle=False) as file:
        data: dict[str, Any] = {
            k: torch.as_tensor(file[k]).double() for k in file if file[k].dtype.kind == "f"
        }
    gamma = math.exp(float(data["ln_gamma"]))
    n_layers = sum(key.endswith("_XY") for key in data)
    arrays: list[list[Any]] = [
        [data.get(f"layer{k}_{name}") for name in "XY a d b".split()] for k in range(n_layers)
    ]
    layers = tuple(sandwich_from_jax(*layer, lipschitz=gamma) for layer in arrays)
    both = lbdn_to_explicit(LBDNParams(layers, gamma), "tanh")  # logits of mean and standard deviation
    *biases, bias = both.biases
    assert bias is not None
    mean = ExplicitMLP((*both.weights[:-1], both.weights[-1][:1]), (*biases, bias[:1]), "tanh")
    one = torch.ones(1, dtype=torch.float64)
    return ActionMap(mean, Normalization(data["obs_mean"], data["obs_std"], math.inf), -one, one, squash=True)


def _network_arrays(network: ExplicitMLP, prefix: str) -> Arrays:
    arrays = {f"{prefix}weight_{k}": w.cpu().numpy() for k, w in enumerate(network.weights)}
    arrays |= {f"{prefix}bias_{k}": b.cpu().numpy() for k, b in enumerate(network.biases) if b is not None}
    arrays[f"{prefix}activation"] = np.array(network.activation)
    return arrays


def _network(data: Mapping[str, np.ndarray], prefix: str) -> ExplicitMLP:
    n = sum(key.startswith(f"{prefix}weight_") for key in data)
    weights = tuple(torch.from_numpy(data[f"{prefix}weight_{k}"]) for k in range(n))
    names = [f"{prefix}bias_{k}" for k in range(n)]
    biases = tuple(torch.from_numpy(data[name]) if name in data else None for name in names)
    return ExplicitMLP(weights, biases, str(data[f"{prefix}activation"]))


def _normalization(data: Mapping[str, np.ndarray]) -> Normalization | None:
    if "mean" not in data:
        return None
    mean, std, clip = (torch.from_numpy(data[name]) for name in ("mean", "std", "clip"))
    return Normalization(mean, std, clip if clip.ndim else float(clip))
