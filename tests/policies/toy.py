"""A small environment with any spaces, and policies for it with any parameters."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from robustnn.policies import LBDNActorCriticPolicy

OBSERVATIONS = spaces.Box(-5.0, 5.0, (3,), np.float32)
ACTIONS = spaces.Box(-1.0, 1.0, (2,), np.float32)
ASYMMETRIC = spaces.Box(np.float32([-0.5, 2.0]), np.float32([3.0, 2.5]), dtype=np.float32)


class ToyEnv(gymnasium.Env[np.ndarray, Any]):
    """Observations are random and of unequal size; the reward asks the action to follow the first of them."""

    def __init__(
        self, observation_space: spaces.Space = OBSERVATIONS, action_space: spaces.Space = ACTIONS
    ) -> None:
        self.observation_space = observation_space
        self.action_space = action_space
        self._steps = 0

    def _observation(self) -> np.ndarray:
        shape = self.observation_space.shape or ()
        sizes = 0.1 + np.arange(int(np.prod(shape))).reshape(shape)
        noise = self.np_random.normal(size=shape)
        self._first = float(noise.reshape(-1)[0])
        return (0.3 + sizes * noise).astype(self.observation_space.dtype)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._steps = 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        reward = -abs(float(np.mean(action)) - self._first)
        self._steps += 1
        return self._observation(), reward, False, self._steps >= 20, {}


def toy_vec_env(
    observation_space: spaces.Space = OBSERVATIONS, action_space: spaces.Space = ACTIONS, n_envs: int = 2
) -> VecEnv:
    """SB3's vector environment of toys."""
    make: Callable[[], gymnasium.Env] = lambda: Monitor(ToyEnv(observation_space, action_space))  # noqa: E731
    return DummyVecEnv([make] * n_envs)


def toy_model(
    env: VecEnv | None = None,
    algorithm: type[BaseAlgorithm] = PPO,
    policy: Any = LBDNActorCriticPolicy,
    policy_kwargs: dict[str, Any] | None = None,
    **settings: Any,
) -> Any:
    """A small model with short rollouts; `lipschitz` is 4 unless `policy_kwargs` says otherwise."""
    kwargs: dict[str, Any] = {"net_arch": [8, 8], **(policy_kwargs or {})}
    if policy is LBDNActorCriticPolicy:
        kwargs.setdefault("lipschitz", 4.0)
    if algorithm is PPO:
        settings = {"batch_size": 16, "n_epochs": 2, **settings}
    settings = {"n_steps": 16, "device": "cpu", "seed": 0, **settings}
    return algorithm(policy, toy_vec_env() if env is None else env, policy_kwargs=kwargs, **settings)


def randomise(policy: torch.nn.Module, size: float, seed: int = 0) -> None:
    """Overwrite every parameter by normal samples of a size."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.copy_(size * torch.randn(parameter.shape, generator=generator))


def make_steep(policy: LBDNActorCriticPolicy) -> None:
    """Set the weights so that the network's slope at zero is its bound, times a projection (tanh or relu-free).

    With X = 0 and Y = y times an identity, M = 1/(1 + y^2), A = 2 M - I and B = -2 y M. A hidden layer's
    2 A^T B is a reflection for y = sqrt(2) - 1, and an output layer's B for y = 1. The output bias is the
    middle of the action range, where nothing is clipped.
    """
    layers = list(policy.action_net.layers)
    with torch.no_grad():
        for k, layer in enumerate(layers):
            n_out = layer.out_features
            rows = min(layer.in_features, n_out)
            layer.weight.zero_()
            size = 1.0 if k == len(layers) - 1 else math.sqrt(2.0) - 1.0
            layer.weight[n_out : n_out + rows, :rows] = size * torch.eye(rows)
            layer.alpha.copy_(layer.weight.norm())
            if layer.psi is not None:
                layer.psi.zero_()
            layer.bias.zero_()
        space = policy.action_space
        if isinstance(space, spaces.Box) and not policy.squash_output and space.is_bounded():
            layers[-1].bias.copy_(torch.as_tensor(0.5 * (space.low + space.high)).reshape(-1))
