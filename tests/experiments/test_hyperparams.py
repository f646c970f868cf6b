"""Hyper-parameter files of RL Baselines3 Zoo: parsed by its rules, every entry builds a model that trains.

The rules are those of rl_zoo3 2.9 (`exp_manager.py`, `utils.py`): YAML without tags, expressions in strings, dotted
names of policies, wrappers and callbacks, `lin_` schedules, VecNormalize with the discount of the algorithm.
"""

from __future__ import annotations

import functools
import importlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import stable_baselines3
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecNormalize
from torch import nn  # noqa: F401 (a name that expressions in the files may use)

from robustnn.policies import FreezeWeights, LipschitzPolicy, policy_bound

yaml = pytest.importorskip("yaml", reason="PyYAML reads the files, as RL Baselines3 Zoo does")

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "hyperparams"
FILES = sorted(FOLDER.glob("*.yml"))
ALGORITHMS = {"a2c": "A2C", "ddpg": "DDPG", "dqn": "DQN", "ppo": "PPO", "sac": "SAC", "td3": "TD3"}
CONTRIB = {"crossq": "CrossQ", "qrdqn": "QRDQN", "tqc": "TQC", "trpo": "TRPO"}
DISCRETE = {"CartPole-v1", "LunarLander-v3", "Acrobot-v1"}
# Numbers of sensors and motors (negative: of discrete actions) of environments that need further libraries.
SIZES = {
    "LunarLander-v3": (8, -4),
    "LunarLanderContinuous-v3": (8, 2),
    "HalfCheetah-v5": (17, 6),
    "Hopper-v5": (11, 3),
}


class StandIn(gymnasium.Env[np.ndarray, Any]):
    """Random observations in the spaces of an environment that is not installed."""

    def __init__(self, name: str) -> None:
        n_obs, n_act = SIZES[name]
        self.observation_space = spaces.Box(-np.inf, np.inf, (n_obs,), np.float32)
        self.action_space = (
            spaces.Discrete(-n_act) if n_act < 0 else spaces.Box(-1.0, 1.0, (n_act,), np.float32)
        )
        self._steps = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._steps += 1
        return self.observation_space.sample(), float(np.mean(action)), False, self._steps >= 15, {}


def read(path: Path) -> dict[str, dict[str, Any]]:
    content: dict[str, dict[str, Any]] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content


ENTRIES = [(path.stem, name) for path in FILES for name in read(path)]


def algorithm_of(name: str) -> type[BaseAlgorithm]:
    if name in ALGORITHMS:
        return getattr(stable_baselines3, ALGORITHMS[name])
    return getattr(pytest.importorskip("sb3_contrib"), CONTRIB[name])


def named(dotted: str) -> Any:
    module, _, name = dotted.rpartition(".")
    return getattr(importlib.import_module(module), name)


class Linear:
    """The schedule of `lin_x`: from x down to zero."""

    def __init__(self, start: float) -> None:
        self.start = start

    def __call__(self, remaining: float) -> float:
        return remaining * self.start


@dataclass
class Experiment:
    """An entry as RL Baselines3 Zoo understands it: what belongs to the environment, and the rest for the model."""

    n_timesteps: int
    n_envs: int
    settings: dict[str, Any]
    normalize: dict[str, Any] | None = None
    frame_stack: int | None = None
    env_wrapper: Any = None
    noise: tuple[str, float] | None = None
    callbacks: list[BaseCallback] = field(default_factory=list)


def experiment(entry: dict[str, Any]) -> Experiment:
    settings = dict(entry)
    for key in ("learning_rate", "clip_range", "clip_range_vf", "delta_std"):
        value = settings.get(key)
        if isinstance(value, str):
            kind, start = value.split("_")
            assert kind == "lin", f"{key}: {value}"
            settings[key] = Linear(float(start))
        elif value is not None:
            assert isinstance(value, (int, float)), f"{key}: {value!r} is no number in YAML 1.1"
            settings[key] = float(value)
    if isinstance(settings.get("train_freq"), list):
        settings["train_freq"] = tuple(settings["train_freq"])
    for key in ("policy_kwargs", "replay_buffer_class", "replay_buffer_kwargs"):
        if isinstance(settings.get(key), str):
            settings[key] = eval(settings[key])
    normalize = settings.pop("normalize", False)
    if isinstance(normalize, str):
        normalize = eval(normalize)
    elif normalize is True:
        normalize = {}
    if normalize is not False and "gamma" in settings:
        normalize["gamma"] = settings["gamma"]
    noise = settings.pop("noise_type", None)
    noise_std = settings.pop("noise_std", None)
    callbacks = settings.pop("callback", [])
    wrapper = settings.pop("env_wrapper", None)
    assert wrapper is None or isinstance(wrapper, str)
    settings["policy"] = named(settings["policy"])
    return Experiment(
        int(settings.pop("n_timesteps")),
        settings.pop("n_envs", 1),
        settings,
        None if normalize is False else normalize,
        settings.pop("frame_stack", None),
        None if wrapper is None else named(wrapper),
        None if noise is None else (noise.strip(), float(noise_std)),
        [named(name)() for name in (callbacks if isinstance(callbacks, list) else [callbacks])],
    )


def vec_env_of(env_id: str, chosen: Experiment) -> VecEnv:
    made: Any = env_id if installed(env_id) else lambda: StandIn(env_id)
    env: VecEnv = make_vec_env(made, n_envs=chosen.n_envs, seed=0, wrapper_class=chosen.env_wrapper)
    if chosen.normalize is not None:
        env = VecNormalize(env, **chosen.normalize)
    return env if chosen.frame_stack is None else VecFrameStack(env, chosen.frame_stack)


def model_of(algorithm: str, chosen: Experiment, env: VecEnv, **changes: Any) -> BaseAlgorithm:
    settings = {**chosen.settings, **changes}
    if chosen.noise is not None:
        assert isinstance(env.action_space, spaces.Box)
        kind, std = chosen.noise
        classes = {"normal": NormalActionNoise, "ornstein-uhlenbeck": OrnsteinUhlenbeckActionNoise}
        n = env.action_space.shape[0]
        settings["action_noise"] = classes[kind](mean=np.zeros(n), sigma=std * np.ones(n))
    return algorithm_of(algorithm)(env=env, seed=0, device="cpu", **settings)


@functools.cache
def installed(env_id: str) -> bool:
    try:
        gymnasium.make(env_id).close()
    except gymnasium.error.DependencyNotInstalled:
        return False
    return True


def test_there_is_a_file_for_every_algorithm() -> None:
    assert {path.stem for path in FILES} == {*ALGORITHMS, *CONTRIB}
    for path in FILES:
        names = set(read(path))
        assert "default" in names and len(names) >= 4
        assert (
            f"--algo {path.stem} " in path.read_text() and f"hyperparams/{path.stem}.yml" in path.read_text()
        )


@pytest.mark.parametrize(("algorithm", "name"), ENTRIES)
def test_entries_are_read_as_meant(algorithm: str, name: str) -> None:
    entry = read(FOLDER / f"{algorithm}.yml")[name]
    chosen = experiment(entry)
    policy = chosen.settings["policy"]
    assert isinstance(policy, type) and issubclass(policy, LipschitzPolicy)
    assert [type(callback) for callback in chosen.callbacks] == [FreezeWeights]
    assert chosen.n_timesteps >= 10_000
    kwargs = chosen.settings["policy_kwargs"]
    assert kwargs["lipschitz"] > 0.0
    # YAML 1.1 reads 1e-3 as a string; only schedules, expressions, names and modes are strings.
    for key, value in entry.items():
        assert not (isinstance(value, str) and re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", value)), key
    # A fixed scale and moving statistics would scale observations twice.
    normalised = chosen.normalize is not None and chosen.normalize.get("norm_obs", True)
    assert not (normalised and "observation_scale" in kwargs)
    if name != "default":
        assert gymnasium.spec(name).id == name
        discrete = algorithm in ("dqn", "qrdqn")
        assert name in DISCRETE or not discrete
        assert name not in DISCRETE or algorithm not in ("sac", "tqc", "crossq", "td3", "ddpg")


@pytest.mark.parametrize("name", SIZES)
def test_stand_ins_have_the_spaces_of_the_environment(name: str) -> None:
    if not installed(name):
        pytest.skip(f"{name} needs a library that is not installed")
    env, other = gymnasium.make(name), StandIn(name)
    assert env.observation_space.shape == other.observation_space.shape
    assert env.action_space == other.action_space or env.action_space.shape == other.action_space.shape


def shortened(algorithm: type[BaseAlgorithm], settings: dict[str, Any]) -> dict[str, Any]:
    """The same settings with a rollout, a buffer and a start that fit a test of a second."""
    if not issubclass(algorithm, OffPolicyAlgorithm):
        n_steps = min(16, settings.get("n_steps", 16))
        return {"n_steps": n_steps} | ({"n_epochs": 1} if "n_epochs" in settings else {})
    steps = {"learning_starts": 20, "buffer_size": 200, "batch_size": 16}
    if isinstance(settings.get("train_freq", 1), int) and settings.get("train_freq", 1) > 1:
        steps |= {"train_freq": 8, "gradient_steps": 2}
    return steps


@pytest.mark.parametrize(("algorithm", "name"), ENTRIES)
@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
@pytest.mark.filterwarnings("ignore:The `n_steps")
def test_entries_build_models_that_train(algorithm: str, name: str) -> None:
    default = name == "default"
    env_id = ("CartPole-v1" if algorithm in ("dqn", "qrdqn") else "Pendulum-v1") if default else name
    chosen = experiment(read(FOLDER / f"{algorithm}.yml")[name])
    env = vec_env_of(env_id, chosen)
    changes = shortened(algorithm_of(algorithm), chosen.settings)
    if chosen.settings.get("batch_size", 0) > 64:
        changes.setdefault("batch_size", 16)
    model = model_of(algorithm, chosen, env, **changes)
    before = {
        key: value.clone()
        for key, value in model.policy.state_dict().items()
        if isinstance(value, torch.Tensor)
    }
    # Two rollouts: a schedule that falls to zero is there at the end of the last.
    model.learn(max(32, 2 * chosen.n_envs * changes.get("n_steps", 0)), callback=chosen.callbacks)
    after = model.policy.state_dict()
    assert any(not torch.equal(value, after[key]) for key, value in before.items())
    if isinstance(env, VecNormalize):
        env.training = False
    bound = policy_bound(model, env)
    kwargs = chosen.settings["policy_kwargs"]
    assert bound.lipschitz == pytest.approx(kwargs["lipschitz"], rel=1e-12)
    if "observation_scale" in kwargs:
        np.testing.assert_allclose(bound.observation_scale, kwargs["observation_scale"], rtol=1e-6)
    observation = env.reset()
    assert np.isfinite(model.predict(observation, deterministic=True)[0]).all()


def test_rules_of_the_zoo() -> None:
    """Each rule that no entry may need at present, on a made-up one."""
    chosen = experiment(
        {
            "policy": "robustnn.policies.LBDNSACPolicy",
            "policy_kwargs": "dict(lipschitz=2.0, net_arch=[4], activation_fn=nn.Tanh)",
            "normalize": "dict(norm_obs=True, norm_reward=False)",
            "gamma": 0.9,
            "frame_stack": 3,
            "env_wrapper": "gymnasium.wrappers.FlattenObservation",
            "train_freq": [1, "episode"],
            "learning_rate": "lin_0.01",
            "n_timesteps": 1e4,
            "noise_type": " normal ",
            "noise_std": 0.1,
            "buffer_size": 100,
        }
    )
    assert chosen.settings["learning_rate"](0.5) == 0.005
    assert chosen.settings["train_freq"] == (1, "episode")
    assert chosen.normalize == {"norm_obs": True, "norm_reward": False, "gamma": 0.9}
    env = vec_env_of("Pendulum-v1", chosen)
    model = model_of("sac", chosen, env)
    assert env.observation_space.shape == (9,)
    env.venv.training = False  # type: ignore[attr-defined]
    assert policy_bound(model, env).frames == 3
