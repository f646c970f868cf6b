"""Models of every algorithm and space that are deployed in tests, and what `predict` does of raw observations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize
from torch import Tensor, nn

from robustnn.nn import SandwichLayer
from robustnn.policies import (
    LBDNActorCriticPolicy,
    LBDNDQNPolicy,
    LBDNSACPolicy,
    LBDNTD3Policy,
    flatten_observation,
)
from robustnn.policies.deploy import DeployedPolicy
from tests.policies.toy import ASYMMETRIC, OBSERVATIONS

EPS32 = float(np.finfo(np.float32).eps)


LIPSCHITZ = 6.0
FOLDER = ["certificate.json", "certificate.safetensors", "policy.json", "policy.onnx"]  # sorted


class SampledEnv(gymnasium.Env[Any, Any]):
    """Observations are samples of the space, far from zero mean and unit size."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space) -> None:
        self.observation_space, self.action_space = observation_space, action_space
        self._steps = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(0)
        self._steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._steps += 1
        return self.observation_space.sample(), float(np.mean(action)), False, self._steps >= 10, {}

    def action_masks(self) -> np.ndarray:
        n = self.action_space.n  # type: ignore[attr-defined]
        return np.ones(2 * n if isinstance(self.action_space, spaces.MultiBinary) else n, dtype=bool)  # type: ignore[attr-defined]


def vec_env_of(observation_space: spaces.Space, action_space: spaces.Space) -> VecEnv:
    observation_space.seed(0)
    return DummyVecEnv([lambda: Monitor(SampledEnv(observation_space, action_space))] * 2)


def make(
    algorithm: Any, policy: Any, env: VecEnv, size: float = 0.5, policy_kwargs: Any = None, **settings: Any
) -> Any:
    """A model with parameters of `vary`; off-policy buffers are tiny."""
    kwargs = {"net_arch": [12, 12], **(policy_kwargs or {})}
    if policy != "MlpPolicy" and policy != "MultiInputPolicy":
        kwargs.setdefault("lipschitz", LIPSCHITZ)
    if hasattr(algorithm, "_store_transition"):
        settings.setdefault("buffer_size", 10)
    model = algorithm(policy, env, policy_kwargs=kwargs, device="cpu", seed=0, **settings)
    vary(model.policy, size)
    return model


def vary(policy: nn.Module, size: float = 0.5, seed: int = 0) -> None:
    """Parameters with which the outputs differ visibly from one observation to another."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in policy.modules():
            if isinstance(module, nn.Linear):
                module.weight.copy_(size * torch.randn(module.weight.shape, generator=generator))
            if isinstance(module, SandwichLayer):
                module.weight.copy_(torch.randn(module.weight.shape, generator=generator))
                module.alpha.fill_(2.0 if module.psi is None else module.weight.norm() / 2)
            if isinstance(module, (nn.Linear, SandwichLayer)) and module.bias is not None:
                module.bias.copy_(size * torch.randn(module.bias.shape, generator=generator))


def contrib(name: str, policy: str | None = None) -> Callable[[], tuple[Any, Any]]:
    """An algorithm of sb3-contrib and its policy class, imported when it is used."""

    def load() -> tuple[Any, Any]:
        algorithms = pytest.importorskip("sb3_contrib")
        if policy in (None, "MlpPolicy"):
            return getattr(algorithms, name), policy or LBDNActorCriticPolicy
        from robustnn.policies import contrib as own

        return getattr(algorithms, name), getattr(own, policy)  # type: ignore[arg-type]

    return load


def sb3(algorithm: Any, policy: Any) -> Callable[[], tuple[Any, Any]]:
    return lambda: (algorithm, policy)


SQUASHED: dict[str, Any] = {"use_sde": True, "policy_kwargs": {"squash_output": True}}


# name: (algorithm and policy, kind of action, settings)
CONTINUOUS: dict[str, tuple[Callable[[], tuple[Any, Any]], dict[str, Any]]] = {
    "PPO": (sb3(PPO, LBDNActorCriticPolicy), {}),
    "PPO, squashed": (sb3(PPO, LBDNActorCriticPolicy), SQUASHED),
    "PPO, MLP": (sb3(PPO, "MlpPolicy"), {}),
    "A2C": (sb3(A2C, LBDNActorCriticPolicy), {"policy_kwargs": {"activation_fn": nn.ReLU}}),
    "TRPO": (contrib("TRPO"), {}),
    "SAC": (sb3(SAC, LBDNSACPolicy), {}),
    "SAC, gSDE": (sb3(SAC, LBDNSACPolicy), {"use_sde": True}),
    "SAC, MLP": (sb3(SAC, "MlpPolicy"), {}),
    "SAC, MLP, gSDE": (sb3(SAC, "MlpPolicy"), {"use_sde": True}),
    "TD3": (sb3(TD3, LBDNTD3Policy), {}),
    "TD3, MLP": (sb3(TD3, "MlpPolicy"), {}),
    "DDPG": (sb3(DDPG, LBDNTD3Policy), {}),
    "TQC": (contrib("TQC", "LBDNTQCPolicy"), {}),
    "TQC, MLP": (contrib("TQC", "MlpPolicy"), {}),
    "CrossQ": (contrib("CrossQ", "LBDNCrossQPolicy"), {}),
}


DISCRETE: dict[str, tuple[Callable[[], tuple[Any, Any]], dict[str, Any]]] = {
    "PPO": (sb3(PPO, LBDNActorCriticPolicy), {}),
    "A2C, MLP": (sb3(A2C, "MlpPolicy"), {}),
    "DQN": (sb3(DQN, LBDNDQNPolicy), {}),
    "DQN, MLP": (sb3(DQN, "MlpPolicy"), {}),
    "QRDQN": (contrib("QRDQN", "LBDNQRDQNPolicy"), {"policy_kwargs": {"n_quantiles": 5}}),
    "QRDQN, MLP": (contrib("QRDQN", "MlpPolicy"), {"policy_kwargs": {"n_quantiles": 5}}),
    "MaskablePPO": (contrib("MaskablePPO", "LBDNMaskablePolicy"), {}),
}


BINARY = spaces.MultiBinary(3)


EVERY_ALGORITHM = [*CONTINUOUS, *(f"discrete {name}" for name in DISCRETE)]


WIDE = spaces.Box(np.float32([-1, 90, -3000]), np.float32([3, 110, 5000]), dtype=np.float32)


def frozen(env: VecEnv, steps: int = 30) -> VecNormalize:
    """VecNormalize with the statistics of a few steps."""
    normalised = VecNormalize(env, clip_obs=1.5)
    normalised.reset()
    for _ in range(steps):
        normalised.step(np.stack([env.action_space.sample()] * env.num_envs))
    normalised.training = False
    return normalised


def model_for(name: str, normalise: bool, *, searched: bool = False) -> tuple[Any, VecNormalize | None]:
    """A model of one of EVERY_ALGORITHM, and the normalisation in front of it.

    Args:
        name: The algorithm.
        normalise: Whether observations are normalised; otherwise a bounded policy has an observation scale.
        searched: Whether a certificate is asked for, which a policy of SB3 must be small for.
    """
    discrete = name.startswith("discrete ")
    load, settings = (DISCRETE if discrete else CONTINUOUS)[name.removeprefix("discrete ")]
    algorithm, policy = load()
    env = vec_env_of(WIDE if normalise else OBSERVATIONS, spaces.Discrete(4) if discrete else ASYMMETRIC)
    norm = frozen(env) if normalise else None
    kwargs = dict(settings.get("policy_kwargs", {}))
    if policy == "MlpPolicy":
        kwargs |= {"net_arch": [4]} if searched else {}
    elif not normalise:
        kwargs["observation_scale"] = (0.5, 2.0, 7.0)
    return make(algorithm, policy, norm or env, **{**settings, "policy_kwargs": kwargs}), norm


def raw_observations(space: spaces.Space, n: int = 200) -> Any:
    """A batch of samples, some of them far outside; a dict of batches for a Dict."""
    space.seed(3)
    samples = [space.sample() for _ in range(n)]
    if isinstance(space, spaces.Dict):
        return {key: np.stack([sample[key] for sample in samples]) for key in space.spaces}
    batch = np.stack(samples)
    if isinstance(space, spaces.Box):
        batch[: n // 4] *= 20
    return batch


def predicted(model: Any, env: Any, observations: Any) -> np.ndarray:
    """What a user gets from `predict`, of raw observations."""
    if env is not None:
        observations = env.normalize_obs(observations)
    return np.asarray(model.predict(observations, deterministic=True)[0])


def as_tensor(space: spaces.Space, observations: Any) -> Tensor:
    return torch.from_numpy(flatten_observation(space, observations)).float()


def assert_same(deployed: DeployedPolicy, got: np.ndarray, expected: np.ndarray, flat: Tensor) -> None:
    """Equal to 1e-6 of what the numbers may be; greedy decisions wherever they are none of rounding."""
    assert float(deployed.scores(flat).std(0).min()) > 0.02  # a constant would prove nothing
    if deployed.pipeline.kind == "box":
        limits = deployed.pipeline.limits()
        assert limits is not None
        size = 1.0 + np.maximum(np.abs(expected), limits[0].abs().numpy())
        # Numbers inside the network are larger where observations are far outside.
        size[: len(size) // 4] += float(deployed.scores(flat).abs().amax())
        np.testing.assert_array_less(np.abs(got - expected), 1e-6 * size)
        return
    scores = deployed.scores(flat)
    top = [group.sort(dim=-1).values for group in scores.split(deployed.pipeline.choices, dim=-1)]
    if deployed.pipeline.kind == "multibinary":
        margin = scores.abs()
    else:
        margin = torch.stack([t[:, -1] - t[:, -2] for t in top], dim=-1)
    clear = (margin > 1e-6 * (1.0 + scores.abs().amax())).numpy()
    assert clear.mean() > 0.9
    if deployed.pipeline.kind == "discrete":
        clear = clear[:, 0]
    np.testing.assert_array_equal(got[clear], expected[clear])


DICT = spaces.Dict(
    {
        "a": spaces.Box(-5.0, 40.0, (2,), np.float32),
        "switch": spaces.Discrete(3),
        "b": spaces.Box(-0.01, 0.01, (2, 2), np.float64),
        "bits": spaces.MultiBinary(3),
    }
)


OBSERVATION_SPACES: dict[str, tuple[spaces.Space, bool]] = {
    "matrix": (spaces.Box(-4.0, 9.0, (2, 3), np.float32), True),
    "double": (spaces.Box(-4.0, 9.0, (3,), np.float64), True),
    "discrete": (spaces.Discrete(5), False),
    "multidiscrete": (spaces.MultiDiscrete([3, 2]), False),
    "multibinary": (spaces.MultiBinary(4), False),
    "dict": (DICT, False),
    "dict, normalised": (DICT, True),
}


ACTION_SPACES: dict[str, spaces.Space] = {
    "box": ASYMMETRIC,
    "matrix": spaces.Box(-0.5, 0.25, (2, 2), np.float32),
    "double": spaces.Box(np.array([0.1, -0.3]), np.array([0.7, 1 / 3]), dtype=np.float64),
    "discrete": spaces.Discrete(5),
    "multidiscrete": spaces.MultiDiscrete([3, 2, 4]),
    "multibinary": spaces.MultiBinary(3),
}
