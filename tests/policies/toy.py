"""A small environment with any spaces, models of every algorithm for it, and policies with any parameters."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from robustnn.errors import RobustNNError
from robustnn.nn.lbdn import LBDN
from robustnn.policies import LBDNActorCriticPolicy
from robustnn.policies.networks import decider_of

OBSERVATIONS = spaces.Box(-5.0, 5.0, (3,), np.float32)
ACTIONS = spaces.Box(-1.0, 1.0, (2,), np.float32)
ASYMMETRIC = spaces.Box(np.float32([-0.5, 2.0]), np.float32([3.0, 2.5]), dtype=np.float32)

# Every kind of observation and of action that a policy takes.
OBSERVATION_KINDS: dict[str, spaces.Space] = {
    "vector": OBSERVATIONS,
    "matrix, float64": spaces.Box(-9.0, 9.0, (2, 2), np.float64),
    "integers": spaces.Box(-100, 100, (3,), np.int64),
    "discrete": spaces.Discrete(4),
    "multi-discrete": spaces.MultiDiscrete([3, 2]),
    "multi-binary": spaces.MultiBinary(3),
    "binary matrix": spaces.MultiBinary([2, 2]),
    "dict": spaces.Dict(
        {
            "z": OBSERVATIONS,
            "a": spaces.Discrete(3),
            "m": spaces.MultiDiscrete([2, 3]),
            "b": spaces.MultiBinary(2),
        }
    ),
}
ACTION_KINDS: dict[str, spaces.Space] = {
    "box": spaces.Box(np.float32([-2.0, -1.0]), np.float32([1.5, 2.0]), dtype=np.float32),
    "matrix": spaces.Box(-2.0, 2.0, (2, 2), np.float32),
    "discrete": spaces.Discrete(3),
    "multi-discrete": spaces.MultiDiscrete([3, 2, 2]),
    "multi-binary": spaces.MultiBinary(3),
}  # fmt: skip


class ToyEnv(gymnasium.Env[Any, Any]):
    """Observations are random and of unequal size; the reward asks the action to follow the first of them."""

    def __init__(
        self, observation_space: spaces.Space = OBSERVATIONS, action_space: spaces.Space = ACTIONS
    ) -> None:
        self.observation_space = observation_space
        self.action_space = action_space
        self._steps = 0

    def _observation(self) -> Any:
        space = self.observation_space
        if isinstance(space, spaces.Dict):
            return {key: self._one(part) for key, part in space.spaces.items()}
        return self._one(space)

    def _one(self, space: spaces.Space) -> Any:
        if not isinstance(space, spaces.Box):
            values = (
                self.np_random.integers(0, 2, space.shape)
                if isinstance(space, spaces.MultiBinary)
                else self.np_random.integers(0, space.n if isinstance(space, spaces.Discrete) else space.nvec)
            )
            self._first = float(np.reshape(values, -1)[0])
            return np.asarray(values, space.dtype)
        shape = space.shape or ()
        sizes = 0.1 + np.arange(int(np.prod(shape))).reshape(shape)
        noise = self.np_random.normal(size=shape)
        self._first = float(noise.reshape(-1)[0])
        return (0.3 + sizes * noise).astype(space.dtype)

    def action_masks(self) -> np.ndarray:
        """What MaskablePPO asks for: every second step the first choice of all is not allowed."""
        space = self.action_space
        counts = {spaces.Discrete: lambda: space.n, spaces.MultiDiscrete: lambda: space.nvec.sum()}
        masks = np.ones(int(counts.get(type(space), lambda: 2 * space.n)()), dtype=bool)
        masks[0] = self._steps % 2 == 0
        return masks

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._steps = 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
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


class Algorithm(NamedTuple):
    """Where an algorithm and its policy class live, the kinds of actions it takes, and settings for small models."""

    algorithm: str
    policy: str
    actions: tuple[str, ...]
    settings: dict[str, Any] = {}  # noqa: RUF012
    lipschitz: float = 4.0


_ON_POLICY = {"n_steps": 16, "learning_rate": 3e-3}
_MINIBATCHES = {**_ON_POLICY, "batch_size": 32}
_OFF_POLICY = {
    "learning_starts": 32,
    "batch_size": 32,
    "buffer_size": 5000,
    "train_freq": 1,
    "learning_rate": 3e-3,
    "gradient_steps": 1,
}
_Q_LEARNING = {**_OFF_POLICY, "target_update_interval": 64, "exploration_fraction": 0.5}
_BOXES = ("box", "matrix")
_CHOICES = ("discrete", "multi-discrete", "multi-binary")

ALGORITHMS: dict[str, Algorithm] = {
    "PPO": Algorithm(
        "stable_baselines3.PPO", "LBDNActorCriticPolicy", _BOXES + _CHOICES, {**_MINIBATCHES, "n_epochs": 2}
    ),
    "A2C": Algorithm("stable_baselines3.A2C", "LBDNActorCriticPolicy", _BOXES + _CHOICES, _ON_POLICY),
    "TRPO": Algorithm("sb3_contrib.TRPO", "LBDNActorCriticPolicy", _BOXES + _CHOICES, _MINIBATCHES),
    "MaskablePPO": Algorithm(
        "sb3_contrib.MaskablePPO", "contrib.LBDNMaskablePolicy", _CHOICES, {**_MINIBATCHES, "n_epochs": 2}
    ),
    "SAC": Algorithm("stable_baselines3.SAC", "LBDNSACPolicy", _BOXES, _OFF_POLICY),
    "SAC, gSDE": Algorithm("stable_baselines3.SAC", "LBDNSACPolicy", _BOXES, {**_OFF_POLICY, "use_sde": True}),
    "TD3": Algorithm("stable_baselines3.TD3", "LBDNTD3Policy", _BOXES, _OFF_POLICY),
    "DDPG": Algorithm("stable_baselines3.DDPG", "LBDNTD3Policy", _BOXES, _OFF_POLICY),
    "TQC": Algorithm("sb3_contrib.TQC", "contrib.LBDNTQCPolicy", _BOXES, _OFF_POLICY),
    "CrossQ": Algorithm("sb3_contrib.CrossQ", "contrib.LBDNCrossQPolicy", _BOXES, _OFF_POLICY),
    "DQN": Algorithm("stable_baselines3.DQN", "LBDNDQNPolicy", ("discrete",), _Q_LEARNING, 20.0),
    "QRDQN": Algorithm("sb3_contrib.QRDQN", "contrib.LBDNQRDQNPolicy", ("discrete",), _Q_LEARNING, 20.0),
}  # fmt: skip


def algorithm_of(name: str) -> tuple[type[BaseAlgorithm], Any]:
    """The algorithm of a name and its bounded policy class; skips where sb3-contrib is missing."""
    module, _, attribute = ALGORITHMS[name].algorithm.rpartition(".")
    algorithm = getattr(pytest.importorskip(module), attribute)
    inside, _, policy = f"robustnn.policies.{ALGORITHMS[name].policy}".rpartition(".")
    return algorithm, getattr(importlib.import_module(inside), policy)


def any_model(
    name: str,
    observations: str = "vector",
    actions: str | None = None,
    policy_kwargs: dict[str, Any] | None = None,
    n_envs: int = 2,
    **settings: Any,
) -> Any:
    """A small model of any algorithm, with spaces of the given kinds (by default the first that it takes)."""
    algorithm, policy = algorithm_of(name)
    case = ALGORITHMS[name]
    env = toy_vec_env(OBSERVATION_KINDS[observations], ACTION_KINDS[actions or case.actions[0]], n_envs)
    kwargs: dict[str, Any] = {"net_arch": [8, 8], "lipschitz": case.lipschitz, **(policy_kwargs or {})}
    if name == "QRDQN":
        kwargs.setdefault("n_quantiles", 5)
    settings = {"device": "cpu", "seed": 0, **case.settings, **settings}
    return algorithm(policy, env, policy_kwargs=kwargs, **settings)


def is_off_policy(name: str) -> bool:
    """Whether an algorithm has a replay buffer."""
    algorithm = algorithm_of(name)[0]
    assert issubclass(algorithm, (OffPolicyAlgorithm, OnPolicyAlgorithm))
    return issubclass(algorithm, OffPolicyAlgorithm)


def sample_observations(space: spaces.Space, n: int, seed: int = 0) -> Any:
    """A batch of observations as `predict` takes them, in the usual range of the environment."""
    env = ToyEnv(space)
    env.reset(seed=seed)
    rows = [env._observation() for _ in range(n)]
    if isinstance(space, spaces.Dict):
        return {key: np.stack([row[key] for row in rows]) for key in space.spaces}
    return np.stack(rows)


def randomise(policy: torch.nn.Module, size: float, seed: int = 0) -> None:
    """Overwrite every parameter by normal samples of a size."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.copy_(size * torch.randn(parameter.shape, generator=generator))


def make_steep(policy: Any) -> None:
    """Set the weights so that the network's slope at zero is its bound, times a projection (tanh or relu-free).

    The output bias is the middle of the action range, where nothing is clipped. Quantiles are all equal.
    """
    steepen(policy.lbdn, decider_of(policy).n_quantiles or 1)
    space = policy.action_space
    if isinstance(space, spaces.Box) and not policy.squash_output and space.is_bounded():
        with torch.no_grad():
            policy.lbdn.layers[-1].bias.copy_(torch.as_tensor(0.5 * (space.low + space.high)).reshape(-1))


def steepen(network: LBDN, copies: int = 1) -> None:
    """Set the weights of a network so that its slope at zero is its bound, times a projection.

    With X = 0 and Y = y times an identity, M = 1/(1 + y^2), A = 2 M - I and B = -2 y M. A hidden layer's
    2 A^T B is a reflection for y = sqrt(2) - 1, and an output layer's B for y = 1. The outputs are `copies` equal
    groups, whose mean has the norm 1 / sqrt(copies).
    """
    layers: list[Any] = list(network.layers)
    with torch.no_grad():
        for layer in layers:
            n_out = layer.out_features
            last = layer is layers[-1]
            groups = copies if last else 1
            rows = min(layer.in_features, n_out // groups)
            layer.weight.zero_()
            size = 1.0 if last else math.sqrt(2.0) - 1.0
            identity = torch.eye(rows, n_out // groups).tile(groups) / math.sqrt(groups)
            layer.weight[n_out : n_out + rows] = size * identity
            layer.alpha.copy_(layer.weight.norm())
            if layer.psi is not None:
                layer.psi.zero_()
            layer.bias.zero_()


def assert_refused(call: Callable[[], Any], error: type[Exception], words: tuple[str, ...]) -> None:
    """A call raises an error that says what was expected, what came and how to mend it, with some words in it."""
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert all(word in message for word in words), message
    if isinstance(caught.value, RobustNNError):
        assert "expected" in message and "got" in message and message.rstrip().endswith("."), message
