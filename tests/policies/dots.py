"""Policies of images on the small task of the dot, and what several tests do with them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from stable_baselines3 import A2C, DQN, PPO
from torch import Tensor

from robustnn.envs.dot_image import DotImageEnv, dot_frame
from robustnn.nn import ConvLBDN
from robustnn.policies import LBDNCnnPolicy

LAYERS: dict[str, Any] = {"conv": [(6, 3, 2)], "net_arch": [16]}

FRAMES = np.stack([dot_frame(column) for column in range(12)])


def make(policy: Any = LBDNCnnPolicy, algorithm: Any = PPO, env: Any = None, **kwargs: Any) -> Any:
    options = {"lipschitz": 20.0, **LAYERS, **kwargs}
    settings: dict[str, Any] = {
        PPO: {"n_steps": 256, "batch_size": 64, "n_epochs": 8, "gamma": 0.5, "learning_rate": 1e-3},
        A2C: {"n_steps": 16},
        DQN: {"learning_starts": 8, "buffer_size": 64, "target_update_interval": 16},
    }[algorithm]
    return algorithm(
        policy, DotImageEnv() if env is None else env, policy_kwargs=options, seed=0, device="cpu", **settings
    )


def raw_function(net: ConvLBDN) -> Any:
    """The map from raw pixels to outputs that the float32 weights define, in float64."""
    with torch.no_grad():
        network = net.explicit().to(dtype=torch.float64)
    return lambda raw: network(raw / 255.0)


def steep_(net: ConvLBDN, steps: int = 150) -> Tensor:
    """Train a network to change as much as it can along one direction; return points on the way, in raw pixels."""
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(net.input_shape, generator=generator)
    u /= u.norm()
    middle = 0.5 + 0.05 * torch.randn(8, *net.input_shape, generator=generator)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        change = net(middle + 0.05 * u) - net(middle - 0.05 * u)
        target = torch.tensor([1.0, -1.0]) * (0.1 * net.lipschitz / math.sqrt(2.0))
        torch.nn.functional.mse_loss(change, target.expand_as(change)).backward()
        optimizer.step()
    return 255.0 * middle.double()
