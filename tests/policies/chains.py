"""Random chains from raw observation to action: any algorithm, spaces, wrappers, scales and weights."""

from __future__ import annotations

from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper, VecFrameStack, VecNormalize
from torch import nn

from robustnn.policies import LBDNActorCriticPolicy, flatten_observation, policy_bound
from tests.policies.toy import ALGORITHMS, algorithm_of

EPS32 = float(np.finfo(np.float32).eps)
EPS64 = float(np.finfo(np.float64).eps)
ACTIVATIONS = (nn.Tanh, nn.ReLU, nn.ELU, nn.Sigmoid, nn.LeakyReLU, nn.Softplus, nn.Identity)
N_ENVS = 24

VECTOR = spaces.Box(-np.inf, np.inf, (3,), np.float32)
ACTIONS = spaces.Box(np.float32([-2.0, 0.0]), np.float32([2.0, 1.0]), dtype=np.float32)
DICT = spaces.Dict(
    {"angle": VECTOR, "mode": spaces.Discrete(3), "speed": spaces.Box(-9, 9, (2,), np.float32)}
)


class FeedEnv(gymnasium.Env[Any, Any]):
    """An environment whose observations are those it is given, one after the other."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space) -> None:
        self.observation_space = observation_space
        self.action_space = action_space
        self.queue: list[Any] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self._next(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self._next(), 0.0, False, False, {}

    def _next(self) -> Any:
        return self.queue.pop(0) if self.queue else self.observation_space.sample()


def feed_env(observation_space: spaces.Space, action_space: spaces.Space, n_envs: int = N_ENVS) -> VecEnv:
    """A vector environment of such environments, with spaces of their own."""
    return DummyVecEnv([lambda: FeedEnv(observation_space, action_space)] * n_envs)


def bounded(env: VecEnv, lipschitz: float = 4.0, **options: Any) -> Any:
    """PPO with a small bounded policy."""
    kwargs = {"lipschitz": lipschitz, "net_arch": [6], **options}
    return PPO(
        LBDNActorCriticPolicy, env, policy_kwargs=kwargs, n_steps=8, batch_size=8, device="cpu", seed=0
    )


def normalised(space: spaces.Space = VECTOR, std: Any = None, **settings: Any) -> VecNormalize:
    """A frozen VecNormalize over two environments, of given standard deviations."""
    env = VecNormalize(feed_env(space, ACTIONS, 2), **settings)
    env.training = False
    if std is not None:
        env.obs_rms.var = np.square(np.asarray(std, np.float64)) - env.epsilon
    return env


class Chain(NamedTuple):
    """A model and the wrappers in front of it."""

    model: Any
    env: VecEnv

    @property
    def frames(self) -> int:
        """How many frames an observation has."""
        stacks = [w for w in wrappers(self.env) if isinstance(w, VecFrameStack)]
        return stacks[0].stacked_obs.n_stack if stacks else 1

    def see(self, sequence: list[list[Any]]) -> tuple[np.ndarray, Any]:
        """Let the wrappers process frames, given as sequence[frame][environment].

        Returns:
            The flat raw observations (the wrappers without normalisation), and what predict receives.
        """
        base = self.env
        while isinstance(base, VecEnvWrapper):
            base = base.venv
        normalise = [w for w in wrappers(self.env) if isinstance(w, VecNormalize)]
        seen = []
        for on in (False, True):
            for wrapper in normalise:
                wrapper.norm_obs = on and hasattr(wrapper, "obs_rms")
            for k, env in enumerate(base.envs):
                env.queue = [frame[k] for frame in sequence]
            observation = self.env.reset()
            for _ in range(len(sequence) - 1):
                actions = np.stack([self.env.action_space.sample() for _ in base.envs])
                observation = self.env.step(actions)[0]
            copied = (
                {k: v.copy() for k, v in observation.items()}
                if isinstance(observation, dict)
                else observation.copy()
            )
            seen.append(copied)
        return flatten_observation(self.model.observation_space, seen[0]), seen[1]

    def frames_of(self, raw: np.ndarray) -> list[list[Any]]:
        """Return flat raw observations as a sequence of frames for all environments, the last one repeated."""
        base = self.env
        while isinstance(base, VecEnvWrapper):
            base = base.venv
        entries = _entries(base.observation_space)
        names = policy_bound(self.model, self.env).names
        fixed = {key: part.sample() for key, part in entries if not isinstance(part, spaces.Box)}
        sequence: list[list[Any]] = [[] for _ in range(self.frames)]
        for row in [*raw, *[raw[-1]] * (base.num_envs - len(raw))]:
            values: dict[str, list[float]] = {}
            for name, value in zip(names, row, strict=True):
                values.setdefault(name, []).append(value)
            for f, frame in enumerate(sequence):
                found = dict(fixed)
                for key, part in entries:
                    if isinstance(part, spaces.Box):
                        flat = [values[f"{key or 'o'}[{k}]"][f] for k in range(int(np.prod(part.shape)))]
                        found[key] = np.reshape(flat, part.shape).astype(part.dtype)
                frame.append(found if "" not in found else found[""])
        return sequence

    def output(self, observation: Any) -> np.ndarray:
        """What `predict` returns, or the logits or values that it compares, flat and in float64."""
        model = self.model
        if isinstance(model.action_space, spaces.Box):
            actions = model.predict(observation, deterministic=True)[0]
            return actions.reshape(len(actions), -1).astype(np.float64)
        policy = model.policy
        policy.set_training_mode(False)
        with torch.no_grad():
            tensor = policy.obs_to_tensor(observation)[0]
            if hasattr(policy, "q_net"):
                values = policy.q_net(tensor)
            elif hasattr(policy, "quantile_net"):
                values = policy.quantile_net(tensor).mean(dim=1)
            else:
                features = policy.extract_features(tensor, policy.pi_features_extractor)
                values = policy.action_net(policy.mlp_extractor.forward_actor(features))
        return values.numpy().astype(np.float64)


def wrappers(env: VecEnv) -> list[VecEnvWrapper]:
    """The wrappers of a vector environment, outermost first."""
    found = []
    while isinstance(env, VecEnvWrapper):
        found.append(env)
        env = env.venv
    return found


def set_statistics(env: VecEnv, rng: np.random.Generator) -> None:
    """Freeze VecNormalize with random statistics, from nearly constant components to large ones."""
    for wrapper in wrappers(env):
        if isinstance(wrapper, VecNormalize):
            wrapper.training = False
            all_rms = wrapper.obs_rms.values() if isinstance(wrapper.obs_rms, dict) else [wrapper.obs_rms]
            for rms in all_rms:
                rms.var = 10.0 ** rng.uniform(-9.0, 4.0, rms.var.shape)
                rms.mean = rng.normal(size=rms.mean.shape) * np.sqrt(rms.var)


def _box(rng: np.random.Generator) -> spaces.Box:
    shape = [(3,), (2,), (5,), (2, 3), (1, 2, 2)][rng.integers(5)]
    return spaces.Box(-np.inf, np.inf, shape, np.float64 if rng.random() < 0.3 else np.float32)


def _observation_space(rng: np.random.Generator, name: str) -> spaces.Space:
    kind = rng.random()
    if kind < 0.5 or (name == "CrossQ" and kind >= 0.6):  # it takes no Dict
        return _box(rng)
    if kind < 0.6:
        return spaces.Box(-50, 50, (3,), np.int32)
    entries: dict[str, spaces.Space] = {"position": _box(rng), "angle": _box(rng)}
    if kind < 0.8:
        entries["mode"] = spaces.Discrete(3)
        entries["bits"] = spaces.MultiBinary(2)
        entries["gears"] = spaces.MultiDiscrete([2, 3])
    return spaces.Dict(entries)


def _action_space(rng: np.random.Generator, kind: str, squash: bool) -> spaces.Space:
    if kind == "discrete":
        return spaces.Discrete(int(rng.integers(2, 5)))
    if kind == "multi-discrete":
        return spaces.MultiDiscrete([3, 2])
    if kind == "multi-binary":
        return spaces.MultiBinary(3)
    shape = (2, 2) if kind == "matrix" else (int(rng.integers(1, 4)),)
    low = rng.normal(size=shape) * 10.0 ** rng.uniform(-2, 2, shape)
    high = low + 10.0 ** rng.uniform(-2, 2, shape)
    if not squash and rng.random() < 0.3:
        low.flat[0], high.flat[0] = 1.5, 1.5
    dtype = np.float64 if rng.random() < 0.2 else np.float32
    return spaces.Box(low.astype(dtype), high.astype(dtype), dtype=dtype)


def wrap(env: VecEnv, rng: np.random.Generator) -> VecEnv:
    """Put VecNormalize and VecFrameStack around an environment, in any order, or not."""
    space = env.observation_space
    entries = space.spaces if isinstance(space, spaces.Dict) else {"": space}
    boxes = [key for key, part in entries.items() if isinstance(part, spaces.Box)]
    stackable = len(boxes) == len(entries)
    floating = all(np.issubdtype(entries[key].dtype, np.floating) for key in boxes)
    settings: dict[str, Any] = {"clip_obs": float(rng.choice([10.0, 0.5, 3.0, np.inf])), "norm_reward": False}
    settings["epsilon"] = float(rng.choice([1e-8, 1e-2]))
    if isinstance(space, spaces.Dict):
        settings["norm_obs_keys"] = boxes if rng.random() < 0.3 else [boxes[rng.integers(len(boxes))]]
    normalise, stack = rng.random() < 0.7, stackable and rng.random() < 0.5
    inside = rng.random() < 0.5 or not floating
    stacking = {"n_stack": int(rng.integers(2, 5)), "channels_order": rng.choice(["first", "last"])}
    if stack and inside:
        env = VecFrameStack(env, **stacking)
    if normalise:
        env = VecNormalize(env, **settings)
    if stack and not inside:
        env = VecFrameStack(env, **stacking)
    return env


def random_chain(name: str, seed: int) -> Chain:
    """A model of an algorithm with random spaces, wrappers, scales, bound and architecture, and fresh weights."""
    rng = np.random.default_rng([sorted(ALGORITHMS).index(name), seed])
    algorithm, policy = algorithm_of(name)
    case = ALGORITHMS[name]
    kind = case.actions[rng.integers(len(case.actions))]
    squash = kind in ("box", "matrix") and (name in ("PPO", "A2C") and rng.random() < 0.4)
    always = name.split(",")[0] in ("SAC", "TD3", "DDPG", "TQC", "CrossQ")
    env = wrap(feed_env(_observation_space(rng, name), _action_space(rng, kind, squash or always)), rng)
    set_statistics(env, rng)
    settings = {"device": "cpu", "seed": seed, **case.settings}
    widths = [int(n) for n in rng.integers(3, 9, rng.integers(0, 4))]
    kwargs: dict[str, Any] = {
        "lipschitz": float(10.0 ** rng.uniform(-1, 2)),
        "net_arch": widths,
        "activation_fn": ACTIVATIONS[rng.integers(len(ACTIVATIONS))],
    }
    n_obs = spaces.flatdim(env.observation_space)
    if rng.random() < 0.5:
        kwargs["observation_scale"] = tuple((10.0 ** rng.uniform(-2, 2, n_obs)).tolist())
    if isinstance(env.action_space, spaces.Box) and rng.random() < 0.5:
        n_act = int(np.prod(env.action_space.shape))
        kwargs["action_scale"] = tuple((10.0 ** rng.uniform(-2, 1, n_act)).tolist())
    if squash:
        settings["use_sde"] = kwargs["squash_output"] = True
    elif kind == "box" and name in ("PPO", "A2C") and rng.random() < 0.3:
        settings["use_sde"] = True
    if name == "QRDQN":
        kwargs["n_quantiles"] = int(rng.integers(1, 7))
    return Chain(algorithm(policy, env, policy_kwargs=kwargs, **settings), env)


def random_mlp_chain(name: str, seed: int) -> Chain:
    """The same with SB3's own policy of the algorithm: up to two hidden layers of six units, fresh weights."""
    rng = np.random.default_rng([sorted(ALGORITHMS).index(name), seed, 1])
    algorithm, _ = algorithm_of(name)
    case = ALGORITHMS[name]
    kind = case.actions[seed % len(case.actions)]
    env = wrap(feed_env(_observation_space(rng, name), _action_space(rng, kind, True)), rng)
    set_statistics(env, rng)
    kwargs: dict[str, Any] = {
        "net_arch": [6, 6][: seed % 3],
        "activation_fn": ACTIVATIONS[seed % len(ACTIVATIONS)],
    }
    if name == "CrossQ":
        kwargs["batch_norm"] = False
    if name == "QRDQN":
        kwargs["n_quantiles"] = 4
    policy = "MultiInputPolicy" if isinstance(env.observation_space, spaces.Dict) else "MlpPolicy"
    settings = {"device": "cpu", "seed": seed, **case.settings}
    return Chain(algorithm(policy, env, policy_kwargs=kwargs, **settings), env)


def random_frames(chain: Chain, rng: np.random.Generator) -> list[list[Any]]:
    """Frames for all environments; of every two environments the second sees the first's with an error."""
    base = chain.env
    while isinstance(base, VecEnvWrapper):
        base = base.venv
    space = base.observation_space
    spread = _spread(chain, space)
    sequence = []
    for _ in range(chain.frames):
        frame: list[Any] = []
        for _ in range(base.num_envs // 2):
            first = {key: _sample(part, *spread[key], rng) for key, part in _entries(space)}
            size = 10.0 ** rng.uniform(-2, 1)
            second = {
                key: _moved(part, first[key], spread[key][1], size, rng) for key, part in _entries(space)
            }
            frame += [first, second] if isinstance(space, spaces.Dict) else [first[""], second[""]]
        sequence.append(frame)
    return sequence


def _entries(space: spaces.Space) -> list[tuple[str, spaces.Space]]:
    return list(space.spaces.items()) if isinstance(space, spaces.Dict) else [("", space)]


def _spread(chain: Chain, space: spaces.Space) -> dict[str, tuple[Any, Any]]:
    """Mean and size of the components of one frame."""
    result: dict[str, tuple[Any, Any]] = {key: (0.0, 1.0) for key, _ in _entries(space)}
    for wrapper in wrappers(chain.env):
        if isinstance(wrapper, VecNormalize):
            all_rms = wrapper.obs_rms if isinstance(wrapper.obs_rms, dict) else {"": wrapper.obs_rms}
            for key, rms in all_rms.items():
                shape = dict(_entries(space))[key].shape
                if rms.mean.shape == shape:
                    result[key] = rms.mean, np.sqrt(rms.var)
                else:  # statistics of stacked frames: those of the first
                    window = tuple(slice(0, n) for n in shape)
                    result[key] = rms.mean[window], np.sqrt(rms.var[window])
    return result


def _sample(part: spaces.Space, mean: Any, size: Any, rng: np.random.Generator) -> Any:
    if not isinstance(part, spaces.Box):
        part.seed(int(rng.integers(2**31)))
        return part.sample()
    values = mean + size * 1.5 * rng.normal(size=part.shape)
    if not np.issubdtype(part.dtype, np.floating):
        values = np.clip(20 * values, -50, 50)
    return values.astype(part.dtype)


def _moved(part: spaces.Space, value: Any, size: Any, step: float, rng: np.random.Generator) -> Any:
    if not isinstance(part, spaces.Box):
        return value if rng.random() < 0.7 else part.sample()
    moved = value + step * size * rng.normal(size=part.shape) * (rng.random(part.shape) < 0.5)
    if not np.issubdtype(part.dtype, np.floating):
        moved = np.clip(np.round(moved), -50, 50)
    return moved.astype(part.dtype)
