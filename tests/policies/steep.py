"""How far a chain is from its bound: rounding on the one side, networks of the steepest slope on the other."""

from __future__ import annotations

import math

import numpy as np
import torch
from gymnasium import spaces

from robustnn.params.activations import ACTIVATIONS
from robustnn.policies import action_map
from robustnn.policies.networks import decider_of
from tests.policies.chains import EPS32, Chain


def rounding(chain: Chain, features: np.ndarray, bound_of_action: np.ndarray) -> np.ndarray:
    """Largest error of float32 evaluation of the network, in units of the action scale, shape (n,)."""
    decider = decider_of(chain.model)
    network = decider.explicit().to(dtype=torch.float64)
    size = torch.as_tensor(np.abs(features / decider.scale().double().numpy()))
    error = 2 * EPS32 * size
    for k, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True)):
        offset = 0.0 if bias is None else bias.abs()
        magnitude = size @ weight.abs().mT + offset
        error = error @ weight.abs().mT + (weight.shape[1] + 8) * EPS32 * magnitude
        size = magnitude + (1.0 if k < len(network.weights) - 1 else 0.0)
    error = error + 4 * EPS32 * size
    space = chain.model.action_space
    total = error.numpy()
    if isinstance(space, spaces.Box):
        low, high = (np.asarray(v, np.float64).reshape(-1) for v in (space.low, space.high))
        limit = np.where(np.isfinite(low) & np.isfinite(high), np.maximum(abs(low), abs(high)), 0.0)
        half = 0.5 * (high - low) if decider.squash else 1.0
        total = half * total + 8 * EPS32 * limit
    return np.linalg.norm(total / bound_of_action, axis=-1)


# Where an activation has its largest slope, one; the sigmoid has a quarter.
STEEPEST = {"tanh": 0.0, "identity": 0.0, "relu": 1.0, "elu": 1.0, "leaky_relu": 1.0, "softplus": 25.0}


def steep(chain: Chain, direction: np.ndarray, output: int) -> float | None:
    """Give the bounded network rank one and the slope gamma at the zero of its features.

    Args:
        chain: A model with a bounded policy.
        direction: Unit vector of the features, (n_in,).
        output: Index of the output that moves.

    Returns:
        A step along the direction that leaves the network nearly linear; None if its activation has no slope of one.
    """
    policy = chain.model.policy
    net, decider = policy.lbdn, decider_of(policy)
    n_quantiles = decider.n_quantiles or 1
    layers = list(net.layers)
    if len(layers) > 1 and net.activation not in STEEPEST:
        return None
    with torch.no_grad():
        u = torch.as_tensor(direction, dtype=torch.float32)
        for k, layer in enumerate(layers):
            n_out, last = layer.out_features, k == len(layers) - 1
            v = torch.zeros(n_out)
            if last:
                v[output :: n_out // n_quantiles] = 1.0 / math.sqrt(n_quantiles)
            else:
                v[0] = 1.0
            layer.weight.zero_()
            layer.weight[n_out:] = (1.0 if last else math.sqrt(2.0) - 1.0) * torch.outer(u, v)
            layer.alpha.copy_(layer.weight.norm())
            layer.bias.zero_()
            if layer.psi is not None:
                layer.psi.zero_()
            u = v
        # Biases that move every hidden unit to its steepest point and the output to the middle of its range.
        network = net.explicit().to(dtype=torch.float64)
        value = torch.zeros(network.in_features, dtype=torch.float64)
        slope = torch.as_tensor(direction, dtype=torch.float64)
        steps = []
        space = policy.action_space
        middle = torch.zeros(network.out_features, dtype=torch.float64)
        if isinstance(space, spaces.Box) and not policy.squash_output:
            middle = torch.as_tensor(0.5 * (space.low.astype(np.float64) + space.high)).reshape(-1)
        for k, (layer, weight) in enumerate(zip(layers, network.weights, strict=True)):
            last = k == len(layers) - 1
            target = (
                middle if last else torch.full((len(weight),), STEEPEST[net.activation], dtype=torch.float64)
            )
            layer.bias.copy_(target - weight @ value)
            value = ACTIVATIONS[net.activation].function(target)
            slope = weight @ slope
            steps.append(0.1 / float(slope.abs().max()))
        if isinstance(space, spaces.Box) and not policy.squash_output:
            steps.append(0.4 * float((space.high - space.low).reshape(-1)[output]) / float(slope.abs().max()))
    return min(steps)


def centre(chain: Chain) -> np.ndarray:
    """The raw observation that the network sees as zero, one-hot codes left out, flat."""
    normalization = action_map(chain.model, chain.env).normalization
    n_obs = spaces.flatdim(chain.model.observation_space)
    return np.zeros(n_obs) if normalization is None else normalization.mean.numpy().copy()
