"""Faults in front of a vectorised environment: the same as in front of each of its environments."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from robustnn.closedloop import TorchVecEnv
from robustnn.closedloop.faults import Bias, FaultSet, FaultyEnv, Gain, Quantisation, SignalDelay, WhiteNoise
from robustnn.envs import Pendulum
from robustnn.errors import InvalidArgumentError, ShapeError, UnsupportedSpaceError
from robustnn.policies import LBDNActorCriticPolicy, LogLipschitz
from robustnn.training import FaultyVecEnv
from tests.policies.toy import OBSERVATIONS, ToyEnv, toy_vec_env

DELAYS = FaultSet(
    observation=[SignalDelay(2), Quantisation(0.25), Gain(0.5, 0.5)], action=[SignalDelay(1), Bias(0.4)]
)


class UnevenEnv(ToyEnv):
    """Episodes of a length of its own; the reward tells which action arrived."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, _, _, _, _ = super().step(action)
        return observation, float(np.sum(action)), self._steps >= self.length, False, {}


def run(env: Any, steps: int = 25) -> list[Any]:
    env.seed(5)
    found = [env.reset()]
    actions = np.random.default_rng(0).uniform(-1, 1, (steps, env.num_envs, 2)).astype(np.float32)
    for action in actions:
        observation, rewards, dones, infos = env.step(action)
        found += [observation, rewards, dones]
        found += [info["terminal_observation"] for info in infos if "terminal_observation" in info]
    return found


def test_faults_without_randomness_equal_those_of_single_environments() -> None:
    lengths = (3, 4, 7, 7)
    together = FaultyVecEnv(DummyVecEnv([lambda n=n: UnevenEnv(n) for n in lengths]), DELAYS)
    alone = DummyVecEnv([lambda n=n: FaultyEnv(UnevenEnv(n), DELAYS) for n in lengths])
    for ours, theirs in zip(run(together), run(alone), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert len(together._groups) <= len(lengths)


def pendulum(faults: FaultSet, n: int = 64, horizon: int = 10) -> FaultyVecEnv:
    return FaultyVecEnv(TorchVecEnv(Pendulum(horizon=horizon), n), faults)


def test_random_faults_are_seeded_and_new_in_every_episode() -> None:
    faults = FaultSet(observation=[Bias((0.1, 0.1, 1.0), random=True)])
    runs = []
    for seed in (3, 3, 4):
        env, plain = pendulum(faults), TorchVecEnv(Pendulum(horizon=10), 64)
        env.seed(seed)
        plain.seed(seed)
        offsets = [env.reset() - plain.reset()]
        for _ in range(25):
            action = np.zeros((64, 1))
            (seen, *_, infos), (true, *_, expected) = env.step(action), plain.step(action)
            offsets.append(seen - true)
            for one, other in zip(infos, expected, strict=True):
                if "terminal_observation" in one:
                    np.testing.assert_array_equal(
                        one["true_terminal_observation"], other["terminal_observation"]
                    )
                    assert not np.array_equal(one["terminal_observation"], other["terminal_observation"])
        runs.append(np.stack(offsets))
    np.testing.assert_array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])
    tolerance = 8 * np.finfo(np.float32).eps * 10
    episodes = runs[0][:10], runs[0][10:20]
    assert all(np.ptp(one, axis=0).max() < tolerance for one in episodes)
    assert np.abs(episodes[0][0] - episodes[1][0]).min(0).max() > 0.0
    assert np.abs(runs[0]).max(axis=(0, 1)) == pytest.approx([0.1, 0.1, 1.0], rel=0.1)


def test_white_noise_of_all_copies_is_independent() -> None:
    env, plain = pendulum(FaultSet(observation=[WhiteNoise(0.3)]), 2000), TorchVecEnv(Pendulum(), 2000)
    env.seed(0)
    plain.seed(0)
    noise = env.reset() - plain.reset()
    assert noise.std() == pytest.approx(0.3, rel=5 / (2 * 6000) ** 0.5)
    assert np.abs(np.corrcoef(noise.T) - np.eye(3)).max() < 5 / 2000**0.5


def test_training_with_faults_and_another_plant() -> None:
    env = pendulum(FaultSet([WhiteNoise(0.05)], [SignalDelay(1)], {"gravity": 1.1}), 16)
    assert env.get_attr("plant", 0)[0].gravity == pytest.approx(1.1 * Pendulum().gravity)
    model = PPO(
        LBDNActorCriticPolicy, VecNormalize(env), n_steps=16, batch_size=64, device="cpu", seed=0,
        policy_kwargs={"lipschitz": 5.0, "net_arch": [8]},
    )  # fmt: skip
    model.learn(512, callback=LogLipschitz(empirical_every=None))
    assert model.num_timesteps == 512


def test_mistakes() -> None:
    with pytest.raises(UnsupportedSpaceError, match="action_space: expected a Box"):
        FaultyVecEnv(toy_vec_env(OBSERVATIONS, spaces.Discrete(2)), DELAYS)
    with pytest.raises(InvalidArgumentError, match="faults.parameters: expected none"):
        FaultyVecEnv(toy_vec_env(), FaultSet(parameters={"mass": 2.0}))
    with pytest.raises(ShapeError, match="std: expected one number or 3"):
        pendulum(FaultSet(observation=[WhiteNoise((1.0, 2.0))])).reset()
