"""The predict path by value is what `predict` does, for policies of this package and for ordinary ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from robustnn.policies import ActionMap, ObservationScale, action_map
from tests.policies.test_bound import CHAINS, EPS32, build, predict, raw_observations
from tests.policies.toy import ASYMMETRIC, make_steep, randomise, toy_model, toy_vec_env


@pytest.mark.parametrize("name", CHAINS)
def test_action_map_is_predict(name: str) -> None:
    model, env = build(name, train=True)
    policy_map = action_map(model.policy, env)
    assert isinstance(policy_map, ActionMap)
    shape = (-1, *model.observation_space.shape)
    usual = raw_observations(model, env, 200)
    for observations in (
        usual,
        30.0 * usual,
        1e6 * usual,
        np.zeros_like(usual[:1]),
        np.full_like(usual[:1], -1e9),
    ):
        expected = predict(model, env, observations)
        rounded = observations if isinstance(env, VecNormalize) else observations.astype(np.float32)
        got = policy_map(torch.as_tensor(rounded.reshape(len(rounded), -1).astype(np.float64))).numpy()
        size = np.abs(observations).max() / min(model.policy.bound(env).observation_scale)
        scale = 1.0 + np.abs(expected).max() + model.policy.bound(env).lipschitz * min(size, 1e3)
        np.testing.assert_allclose(got, expected, rtol=0, atol=200 * EPS32 * scale)
        if isinstance(model.action_space, spaces.Box):
            low, high = model.action_space.low.reshape(-1), model.action_space.high.reshape(-1)
            assert (got >= low).all() and (got <= high).all()
    if isinstance(model.action_space, spaces.Box) and model.action_space.is_bounded():
        make_steep(model.policy)  # large observations now reach the limits: the map clips as predict does
        far = usual * 1e6
        expected = predict(model, env, far.reshape(shape))
        got = action_map(model.policy, env)(torch.as_tensor(far.reshape(len(far), -1))).numpy()
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_action_map_keeps_the_dtype_asked_for_and_carries_no_graph() -> None:
    model, env = build("normalised", train=False)
    for dtype in (torch.float32, torch.float64):
        x = torch.zeros(2, 3, dtype=dtype)
        y = model.policy.action_map(env, dtype=dtype)(x)
        assert y.dtype == dtype and not y.requires_grad


def test_changes_after_action_map_was_made_do_not_reach_it() -> None:
    model, env = build("normalised", train=False)
    before = action_map(model.policy, env)
    x = torch.zeros(1, 3, dtype=torch.float64)
    value = before(x)
    randomise(model.policy, 1.0)
    env.obs_rms.mean += 3.0
    env.obs_rms.var *= 2.0
    torch.testing.assert_close(before(x), value, rtol=0, atol=0)


MLP_CHAINS: dict[str, dict[str, Any]] = {
    "flatten": {},
    "scaled": {
        "policy_kwargs": {
            "features_extractor_class": ObservationScale,
            "features_extractor_kwargs": {"scale": (0.5, 2.0, 4.0)},
        }
    },
    "relu": {"policy_kwargs": {"activation_fn": nn.ReLU, "net_arch": {"pi": [16], "vf": [4]}}},
    "empty": {"policy_kwargs": {"net_arch": []}},
    "apart": {"policy_kwargs": {"share_features_extractor": False}},
    "squash": {"use_sde": True, "policy_kwargs": {"squash_output": True}},
    "leaky relu": {"policy_kwargs": {"activation_fn": nn.LeakyReLU}},
}


@pytest.mark.parametrize("name", MLP_CHAINS)
@pytest.mark.parametrize("normalise", [False, True])
def test_action_map_of_mlp_policy_is_predict(name: str, normalise: bool) -> None:
    env = toy_vec_env(action_space=ASYMMETRIC)
    if normalise:
        env = VecNormalize(env)
    model = toy_model(env, policy="MlpPolicy", learning_rate=0.05, **MLP_CHAINS[name])
    model.learn(100)
    observations = raw_observations(model, env, 100).astype(np.float32)
    for size in (1.0, 50.0):
        expected = predict(model, env, size * observations)
        got = action_map(model.policy, env)(torch.as_tensor(size * observations).double()).numpy()
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4)


def test_normalisation_without_clipping() -> None:
    env = VecNormalize(toy_vec_env(), clip_obs=float("inf"))
    model = toy_model(env)
    model.learn(64)
    env.training = False
    observations = 100 * raw_observations(model, env, 10)
    got = action_map(model.policy, env)(torch.as_tensor(observations)).numpy()
    np.testing.assert_allclose(got, predict(model, env, observations), atol=1e-4)
    assert model.policy.bound(env).lipschitz == 4.0
