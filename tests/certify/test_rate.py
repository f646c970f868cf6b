"""Certified states along rollouts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize

from robustnn.certify import certification_rate, certified_radius, certify_policy, tolerance_radius
from tests.certify.models import FOUR, model_of
from tests.policies.toy import toy_vec_env

UNEQUAL = (0.1, 0.5, 0.05, 0.5)
EPS = (0.0, 1e-3, 1e-2, 0.1)


def test_the_curve_is_that_of_the_radii() -> None:
    env = toy_vec_env(FOUR, spaces.Discrete(2), 3)
    model = model_of("DQN", spaces.Discrete(2), env=env)
    rate = certification_rate(model, env, EPS, steps=30, scale=UNEQUAL)
    assert rate.radius.shape == rate.episode.shape == rate.step.shape == (90,)
    assert len(np.unique(rate.episode)) == 6 and rate.step.max() == 19  # episodes of 20 steps
    assert (np.diff(rate.rate) <= 0).all() and 0 < rate.rate[2] < 1
    for size, fraction in zip(rate.eps, rate.rate, strict=True):
        assert fraction == pytest.approx(np.mean(rate.radius >= size), abs=1e-12)
    np.testing.assert_array_equal(rate.rate_at(EPS), rate.rate)
    again = certification_rate(model, env, EPS, steps=30, scale=UNEQUAL)
    np.testing.assert_array_equal(again.radius, rate.radius)
    other = certification_rate(model, env, EPS, steps=30, scale=UNEQUAL, seed=1)
    assert (other.radius != rate.radius).any()
    local = certification_rate(model, env, EPS, steps=30, scale=UNEQUAL, local=True)
    assert (local.radius >= rate.radius).all() and local.rate[2] > rate.rate[2]


def test_complete_episodes_are_divided_among_the_environments() -> None:
    env = toy_vec_env(FOUR, spaces.Discrete(2), 2)
    rate = certification_rate(model_of("DQN", spaces.Discrete(2), env=env), env, EPS, episodes=3)
    assert len(rate.radius) == 60
    numbers, counts = np.unique(rate.episode, return_counts=True)
    assert len(numbers) == 3 and (counts == 20).all()


@pytest.mark.parametrize("stacked", [False, True])
def test_radii_are_in_raw_units_behind_wrappers(stacked: bool) -> None:
    env: Any = VecNormalize(toy_vec_env(FOUR, spaces.Discrete(2), 2))
    env.reset()
    for _ in range(50):
        env.step(np.zeros(2, dtype=np.int64))
    env.training = False
    inner = env
    if stacked:
        env = VecFrameStack(env, 2)
    model = model_of("PPO", spaces.Discrete(2), env=env)
    rate = certification_rate(model, env, EPS, steps=10, norm="linf")
    assert rate.norm == "linf" and len(rate.scale) == (8 if stacked else 4)
    # The first states once more, by their raw observations.
    env.seed(0)
    observation = env.reset()
    raw = inner.get_original_obs()
    if stacked:
        raw = np.concatenate([inner.obs_rms.mean + 0 * raw, raw], axis=-1)
        raw[:, :4] = inner.unnormalize_obs(observation[:, :4])
    radius = certified_radius(certify_policy(model, env, norm="linf"), torch.as_tensor(raw))
    np.testing.assert_allclose(rate.radius[:2], radius.numpy(), rtol=1e-3)


def test_continuous_actions_need_a_tolerance() -> None:
    actions = spaces.Box(-1.0, 1.0, (2,))
    env = toy_vec_env(FOUR, actions, 2)
    model = model_of("TD3", actions, env=env)
    rate = certification_rate(model, env, EPS, steps=10, tolerance=(0.05, 0.1))
    assert rate.tolerance == (0.05, 0.1) and rate.radius.shape == (20,)
    env.seed(0)
    first = tolerance_radius(certify_policy(model), env.reset(), (0.05, 0.1))
    np.testing.assert_allclose(rate.radius[:2], first.numpy(), rtol=1e-9)


def test_masks_come_from_the_environments() -> None:
    env = toy_vec_env(FOUR, spaces.Discrete(2), 2)
    model = model_of("MaskablePPO", spaces.Discrete(2), env=env)
    rate = certification_rate(model, env, EPS, steps=10, masked=True)
    assert (rate.radius.reshape(10, 2)[1::2] > 1e5).all()  # one choice is left at every second step
    assert np.isfinite(rate.radius.reshape(10, 2)[::2]).all()
