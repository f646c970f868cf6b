"""The stated bound against what `predict` does: it holds whatever was trained, and it is attained."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize
from torch import nn

from robustnn.bounds import lower_bound
from robustnn.errors import InvalidArgumentError
from robustnn.policies import action_map
from tests.policies.toy import (
    ACTIONS,
    ASYMMETRIC,
    OBSERVATIONS,
    make_steep,
    randomise,
    toy_model,
    toy_vec_env,
)

EPS32 = float(np.finfo(np.float32).eps)
EPS64 = float(np.finfo(np.float64).eps)
FOUR_ACTIONS = spaces.Box(np.float32([-2, -1, 0, 5]), np.float32([2, 7, 0.1, 6]), dtype=np.float32)
SQUASH: dict[str, Any] = {"use_sde": True, "policy_kwargs": {"squash_output": True}}

# name: (observation space, action space, settings of the model, VecNormalize in front)
CHAINS: dict[str, tuple[spaces.Space, spaces.Space, dict[str, Any], bool]] = {
    "plain": (OBSERVATIONS, ACTIONS, {}, False),
    "a2c": (OBSERVATIONS, ACTIONS, {"algorithm": A2C}, False),
    "asymmetric": (OBSERVATIONS, ASYMMETRIC, {}, False),
    "four actions": (OBSERVATIONS, FOUR_ACTIONS, {}, True),
    "matrix observation": (spaces.Box(-9, 9, (2, 2), np.float64), spaces.Box(-1, 1, (2, 1)), {}, True),
    "normalised": (OBSERVATIONS, ACTIONS, {}, True),
    "normalised, asymmetric": (OBSERVATIONS, ASYMMETRIC, {"policy_kwargs": {"lipschitz": 30.0}}, True),
    "scales": (
        OBSERVATIONS,
        ASYMMETRIC,
        {"policy_kwargs": {"observation_scale": (0.1, 3.0, 20.0), "action_scale": [2.0, 0.3]}},
        False,
    ),
    "scales, normalised": (
        OBSERVATIONS,
        ACTIONS,
        {"policy_kwargs": {"observation_scale": (0.1, 3.0, 20.0), "action_scale": (0.05, 4.0)}},
        True,
    ),
    "sde": (OBSERVATIONS, ACTIONS, {"use_sde": True}, False),
    "squash": (OBSERVATIONS, ACTIONS, SQUASH, False),
    "squash, asymmetric": (OBSERVATIONS, ASYMMETRIC, SQUASH, True),
    "squash, scales": (
        OBSERVATIONS,
        FOUR_ACTIONS,
        {
            "use_sde": True,
            "learning_rate": 0.03,
            "policy_kwargs": {
                "squash_output": True,
                "observation_scale": (0.2, 1.0, 5.0),
                "action_scale": (1.0, 0.1, 3.0, 0.5),
            },
        },
        True,
    ),
    "no hidden layer": (OBSERVATIONS, ACTIONS, {"policy_kwargs": {"net_arch": []}}, True),
    "relu, apart": (
        OBSERVATIONS,
        ACTIONS,
        {"policy_kwargs": {"activation_fn": nn.ReLU, "share_features_extractor": False}},
        True,
    ),
    "discrete": (OBSERVATIONS, spaces.Discrete(4), {}, False),
    "discrete, normalised": (
        OBSERVATIONS,
        spaces.Discrete(3),
        {"policy_kwargs": {"observation_scale": (0.5, 1.0, 9.0)}},
        True,
    ),
}


def build(name: str, train: bool) -> tuple[Any, Any]:
    """A model of the table and its vector environment, with frozen statistics."""
    observation_space, action_space, settings, normalise = CHAINS[name]
    env = toy_vec_env(observation_space, action_space)
    if normalise:
        env = VecNormalize(env)
    settings = {"learning_rate": 0.1, **settings}
    model = toy_model(env, **settings)
    if train:
        model.learn(100)
    elif normalise:
        model.learn(64)  # statistics
    if normalise:
        env.training = False
    return model, env


def raw_observations(model: Any, env: Any, n: int, seed: int = 1) -> np.ndarray:
    """Observations around the normal range of the toy, in its own units."""
    shape = model.observation_space.shape
    sizes = 0.1 + np.arange(int(np.prod(shape))).reshape(shape)
    return 0.3 + sizes * np.random.default_rng(seed).normal(size=(n, *shape))


def predict(model: Any, env: Any, observations: np.ndarray) -> np.ndarray:
    """Flattened deterministic actions of raw observations, as a user gets them; logits for Discrete."""
    if isinstance(env, VecNormalize):
        observations = env.normalize_obs(observations)
    if isinstance(model.action_space, spaces.Discrete):
        with torch.no_grad():
            tensor = model.policy.obs_to_tensor(observations)[0]
            features = model.policy.pi_features_extractor(tensor.float())
            return model.policy.action_net(features).numpy()
    return model.predict(observations, deterministic=True)[0].reshape(len(observations), -1)


def empirical(model: Any, env: Any) -> float:
    """Gradient ascent on the whole path in float64, in the norms that the bound states."""
    bound = model.policy.bound(env)
    flat = raw_observations(model, env, 32).reshape(32, -1)
    return lower_bound(
        action_map(model.policy, env),
        torch.as_tensor(flat),
        input_scale=torch.tensor(bound.observation_scale, dtype=torch.float64),
        output_scale=torch.tensor(bound.action_scale, dtype=torch.float64),
        iterations=60,
        lr=0.05,
    ).value


@pytest.mark.parametrize("name", CHAINS)
def test_bound_holds_after_training_and_for_any_weights(name: str) -> None:
    model, env = build(name, train=True)
    bound = model.policy.bound(env)
    before = CHAINS[name][2].get("policy_kwargs", {}).get("lipschitz", 4.0)
    assert bound.lipschitz == before
    assert empirical(model, env) <= bound.lipschitz * (1 + 64 * EPS64)
    for size in (0.3, 3.0, 100.0):
        randomise(model.policy, size)
        assert empirical(model, env) <= bound.lipschitz * (1 + 64 * EPS64)


@pytest.mark.parametrize("name", [name for name in CHAINS if "relu" not in name])
def test_bound_is_attained(name: str) -> None:
    model, env = build(name, train=False)
    make_steep(model.policy)
    bound = model.policy.bound(env)
    # At the observation that the network sees as zero. Beside it, the largest change of the finite-difference
    # quotient of predict itself.
    norm = action_map(model.policy, env).normalization
    centre = np.zeros(len(bound.observation_scale)) if norm is None else norm.mean.numpy()
    scale, out = np.asarray(bound.observation_scale), np.asarray(bound.action_scale)
    jacobian = torch.autograd.functional.jacobian(
        action_map(model.policy, env), torch.as_tensor(centre), vectorize=True
    )
    gain = np.linalg.norm(jacobian.numpy() * scale / out[:, None], 2)
    assert 0.999 * bound.lipschitz <= gain <= bound.lipschitz * (1 + 64 * EPS64)
    # plain: the worst pair of an unweighted norm
    plain = np.linalg.norm(jacobian.numpy(), 2)
    assert plain <= bound.plain * (1 + 64 * EPS64)

    shape = (2, *model.observation_space.shape)
    quotients = []
    for k in range(min(len(scale), len(out))):
        step = np.zeros_like(scale)
        step[k] = 0.02 / bound.lipschitz * scale[k]
        pair = np.stack([centre - step, centre + step])
        a, b = predict(model, env, pair.reshape(shape))
        quotients.append(np.linalg.norm((b - a) / out) / np.linalg.norm(2 * step / scale))
    assert 0.9 * bound.lipschitz <= max(quotients) <= bound.lipschitz * 1.001


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("size", [0.0, 1.0])
def test_difference_quotients_of_predict_stay_below(name: str, size: float) -> None:
    model, env = build(name, train=size == 0.0)
    if size:
        randomise(model.policy, size)
    bound = model.policy.bound(env)
    scale, out = np.asarray(bound.observation_scale), np.asarray(bound.action_scale)
    shape = (-1, *model.observation_space.shape)
    first = raw_observations(model, env, 400)
    generator = np.random.default_rng(2)
    for radius in (0.05, 0.5, 20.0):
        direction = generator.normal(size=(400, len(scale)))
        direction *= radius / np.linalg.norm(direction, axis=-1, keepdims=True)
        second = (first.reshape(400, -1) + direction * scale).reshape(shape)
        change = (predict(model, env, first) - predict(model, env, second)) / out
        # Rounding of the actions and observations themselves, in float32.
        slack = 64 * EPS32 * (1 + np.abs(predict(model, env, first) / out).max())
        assert (np.linalg.norm(change, axis=-1) <= bound.lipschitz * radius * (1 + 8 * EPS32) + slack).all()
        assert (np.linalg.norm(change, axis=-1) <= bound.action_change(direction * scale) + slack).all()


@pytest.mark.parametrize("name", CHAINS)
def test_the_weights_of_the_bound_are_those_the_user_stated(name: str) -> None:
    model, env = build(name, train=False)
    stated = CHAINS[name][2].get("policy_kwargs", {})
    n_obs, bound = spaces.flatdim(model.observation_space), model.policy.bound()
    n_out = spaces.flatdim(model.action_space)
    np.testing.assert_allclose(
        bound.observation_scale, stated.get("observation_scale", (1.0,) * n_obs), rtol=EPS32
    )
    np.testing.assert_allclose(bound.action_scale, stated.get("action_scale", (1.0,) * n_out), rtol=4 * EPS32)
    assert model.policy.bound(env).action_scale == bound.action_scale


def test_bound_follows_the_statistics_of_the_environment() -> None:
    model, env = build("normalised", train=False)
    std = np.sqrt(env.obs_rms.var + env.epsilon)
    np.testing.assert_allclose(model.policy.bound(env).observation_scale, std, rtol=4 * EPS32)
    assert model.policy.bound(env).plain == pytest.approx(4.0 / std.min(), rel=4 * EPS32)
    assert model.policy.bound().plain == pytest.approx(4.0)
    env.norm_obs = False
    assert model.policy.bound(env).plain == pytest.approx(4.0)


@pytest.mark.parametrize("outside", [False, True], ids=["below", "above"])
def test_a_frame_stack_on_either_side_of_the_normalisation(outside: bool) -> None:
    env = VecNormalize(toy_vec_env() if outside else VecFrameStack(toy_vec_env(), 2))
    stacked = VecFrameStack(env, 2) if outside else env
    model = toy_model(stacked)
    model.learn(64)
    env.training = False
    bound = model.policy.bound(stacked)
    std = np.sqrt(env.obs_rms.var + env.epsilon)
    np.testing.assert_allclose(bound.observation_scale, np.tile(std, 2) if outside else std, rtol=4 * EPS32)
    assert bound.frames == 2 and bound.names == ("o[0]", "o[1]", "o[2]") * 2
    if outside:
        assert bound.per_frame == pytest.approx(np.sqrt(2.0) * bound.plain, rel=4 * EPS32)


def test_statistics_of_a_dict() -> None:
    space = spaces.Dict({"b": OBSERVATIONS, "a": spaces.Discrete(2), "c": spaces.Box(-9.0, 9.0, (2,))})
    env = VecNormalize(toy_vec_env(space), norm_obs_keys=["b"])
    model = toy_model(env)
    model.learn(64)
    env.training = False
    std = np.sqrt(env.obs_rms["b"].var + env.epsilon)
    bound = model.policy.bound(env)
    np.testing.assert_allclose(bound.observation_scale, [1.0, 1.0, *std, 1.0, 1.0], rtol=4 * EPS32)
    assert bound.plain == pytest.approx(4.0 / min(1.0, std.min()), rel=4 * EPS32)


def test_statistics_that_still_change_are_refused() -> None:
    env = VecNormalize(toy_vec_env())
    model = toy_model(env)
    with pytest.raises(InvalidArgumentError, match="frozen"):
        model.policy.bound(env)
    assert model.policy.bound(env, require_frozen=False).lipschitz == 4.0


def test_training_moved_the_weights() -> None:
    """The settings of this module train: its claims are not about fresh networks."""
    fresh, _ = build("plain", train=False)
    trained, _ = build("plain", train=True)
    pairs = zip(fresh.policy.action_net.parameters(), trained.policy.action_net.parameters(), strict=True)
    assert max(float((a - b).detach().abs().max()) for a, b in pairs) > 0.5


def test_ppo_is_the_default_of_the_toy() -> None:
    assert isinstance(build("plain", train=False)[0], PPO)
