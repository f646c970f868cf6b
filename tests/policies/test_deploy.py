"""Deployed policies: the module, for every algorithm and space, does what `predict` does, on raw observations."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import DQN, PPO, SAC, TD3
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecNormalize
from torch import nn

from robustnn.errors import InvalidArgumentError, NonFiniteError, ShapeError, UnsupportedSpaceError
from robustnn.policies import (
    LBDNActorCriticPolicy,
    LBDNDQNPolicy,
    LBDNSACPolicy,
    LBDNTD3Policy,
    action_map,
    flatten_observation,
)
from robustnn.policies.deploy import DeployedPolicy, deploy
from tests.policies.deployable import (
    ACTION_SPACES,
    BINARY,
    EPS32,
    EVERY_ALGORITHM,
    LIPSCHITZ,
    OBSERVATION_SPACES,
    WIDE,
    as_tensor,
    assert_same,
    contrib,
    frozen,
    make,
    model_for,
    predicted,
    raw_observations,
    vary,
    vec_env_of,
)
from tests.policies.toy import ACTIONS, ASYMMETRIC, OBSERVATIONS


@pytest.mark.parametrize("normalise", [False, True], ids=["raw", "normalised"])
@pytest.mark.parametrize("name", EVERY_ALGORITHM)
def test_module_is_predict_for_every_algorithm(name: str, normalise: bool) -> None:
    model, norm = model_for(name, normalise)
    space = model.observation_space
    deployed = deploy(model, norm)
    observations = raw_observations(space)
    flat = as_tensor(space, observations)
    got = deployed(flat)
    assert not got.requires_grad and got.shape == ((200,) if name.startswith("discrete") else (200, 2))
    assert_same(deployed, got.numpy(), predicted(model, norm, observations), flat)
    assert all(p.dtype == torch.float32 for p in [*deployed.parameters(), *deployed.buffers()])


@pytest.mark.parametrize("name", OBSERVATION_SPACES)
def test_module_is_predict_for_every_observation_space(name: str) -> None:
    space, normalise = OBSERVATION_SPACES[name]
    env = vec_env_of(space, ASYMMETRIC)
    norm = None
    if normalise:
        keys = ["a", "b"] if isinstance(space, spaces.Dict) else None
        norm = VecNormalize(env, norm_obs_keys=keys)
        norm.reset()
        norm.step(np.stack([ASYMMETRIC.sample()] * 2))
        norm.training = False
    model = make(PPO, LBDNActorCriticPolicy, norm or env)
    deployed = deploy(model, norm)
    observations = raw_observations(space)
    flat = as_tensor(space, observations)
    expected = predicted(model, norm, observations)
    assert_same(deployed, deployed(flat).numpy(), expected, flat)
    whole = torch.from_numpy(flatten_observation(space, observations))
    given = flat if not normalise or torch.equal(flat.double(), whole) else whole
    np.testing.assert_array_equal(deployed.predict(observations)[0], deployed(given).numpy())
    one = {k: v[0] for k, v in observations.items()} if isinstance(observations, dict) else observations[0]
    assert deployed.predict(one)[0].shape == (2,)


@pytest.mark.parametrize("policy", [LBDNActorCriticPolicy, "MlpPolicy"])
@pytest.mark.parametrize("name", ACTION_SPACES)
def test_module_is_predict_for_every_action_space(name: str, policy: Any) -> None:
    space = ACTION_SPACES[name]
    model = make(PPO, policy, vec_env_of(OBSERVATIONS, space))
    deployed = deploy(model)
    observations = raw_observations(OBSERVATIONS)
    flat = as_tensor(OBSERVATIONS, observations)
    expected = predicted(model, None, observations)
    got = deployed.predict(observations)[0]
    assert got.shape == expected.shape
    assert_same(deployed, deployed(flat).numpy(), expected.reshape(deployed(flat).shape), flat)
    if isinstance(space, spaces.Box):
        # Limits hold exactly, also those that float32 cannot hold.
        assert (got.astype(np.float64) >= space.low).all() and (got.astype(np.float64) <= space.high).all()
    several = deployed(flat.reshape(4, 50, -1))
    torch.testing.assert_close(several.flatten(0, 1), deployed(flat), rtol=1e-6, atol=1e-6)


def test_a_single_observation_gives_a_single_choice() -> None:
    model = make(DQN, LBDNDQNPolicy, vec_env_of(OBSERVATIONS, spaces.Discrete(3)))
    one = raw_observations(OBSERVATIONS)[0]
    found = deploy(model).predict(one)[0]
    assert found.shape == () and found == model.predict(one, deterministic=True)[0]


def masked_binary(policy: str) -> Any:
    """MaskablePPO, which compares two logits for each of three bits."""
    load = contrib("MaskablePPO", policy)
    return make(*load(), vec_env_of(OBSERVATIONS, BINARY))


@pytest.mark.parametrize("policy", ["LBDNMaskablePolicy", "MlpPolicy"])
def test_two_logits_per_bit(policy: str) -> None:
    model = masked_binary(policy)
    deployed = deploy(model)
    observations = raw_observations(OBSERVATIONS)
    flat = as_tensor(OBSERVATIONS, observations)
    expected = predicted(model, None, observations)
    assert deployed.pipeline.choices == (2, 2, 2) and deployed.logits(flat).shape == (200, 6)
    assert_same(deployed, deployed.predict(observations)[0], expected, flat)
    assert 0.1 < expected.mean() < 0.9
    live = action_map(model)
    assert (live.kind, live.choices) == (deployed.action_map().kind, deployed.action_map().choices)
    np.testing.assert_array_equal(live.decide(flat.double()), deployed.action_map().decide(flat.double()))


def test_unbounded_actions_are_not_clipped() -> None:
    """SB3's algorithms refuse such spaces, its policies do not."""
    space = spaces.Box(np.float32([-0.1, -np.inf]), np.float32([np.inf, np.inf]), dtype=np.float32)
    policy = LBDNActorCriticPolicy(OBSERVATIONS, space, lambda _: 1e-3, lipschitz=LIPSCHITZ)
    vary(policy)
    observations = raw_observations(OBSERVATIONS)
    got = deploy(policy)(torch.from_numpy(observations)).numpy()
    np.testing.assert_allclose(got, policy.predict(observations, deterministic=True)[0], rtol=1e-6, atol=1e-5)
    assert got[:, 0].min() == np.float32(-0.1) and got[:, 1].min() < -0.1


@pytest.mark.parametrize("stacked_inside", [False, True])
def test_frames_are_stacked_inside_and_outside_of_the_normalisation(stacked_inside: bool) -> None:
    env = vec_env_of(WIDE, ACTIONS)
    if stacked_inside:
        chain: VecEnv = frozen(VecFrameStack(env, 3))
    else:
        chain = VecFrameStack(frozen(env), 3)
    model = make(PPO, LBDNActorCriticPolicy, chain)
    deployed = deploy(model, chain)
    assert deployed.pipeline.frames == 3 and len(deployed.pipeline.names) == 9
    raw = np.concatenate([raw_observations(WIDE)] * 3, axis=-1)
    if stacked_inside:
        seen = chain.normalize_obs(raw)  # type: ignore[attr-defined]
    else:
        seen = np.concatenate([chain.venv.normalize_obs(raw[:, :3])] * 3, axis=-1)  # type: ignore[attr-defined]
    expected = model.predict(seen, deterministic=True)[0]
    np.testing.assert_allclose(deployed(torch.from_numpy(raw)).numpy(), expected, rtol=0, atol=2e-6)


def test_a_mean_that_is_large_beside_the_deviation_keeps_its_digits() -> None:
    """A pressure of 101325 that varies by 0.1: float32 has no room for the difference to a rounded mean."""
    space = spaces.Box(np.float32(101320), np.float32(101330), (2,), np.float32)
    norm = VecNormalize(vec_env_of(space, ACTIONS))
    norm.obs_rms.mean, norm.obs_rms.var = np.array([101325.0012, 101324.9]), np.array([0.01, 4.0])
    norm.training = False
    model = make(PPO, LBDNActorCriticPolicy, norm)
    observations = np.float32([[101325.0, 101324.9], [101325.08, 101326.0], [101324.9, 101325.0]])
    expected = model.predict(norm.normalize_obs(observations), deterministic=True)[0]
    np.testing.assert_allclose(deploy(model, norm)(torch.from_numpy(observations)), expected, atol=1e-6)


def test_float64_sensors_keep_the_digits_that_float32_has_no_room_for() -> None:
    """A position of 1e6 that varies by 0.01, which float32 rounds to sixteenths."""
    space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    norm = VecNormalize(vec_env_of(space, ACTIONS))
    norm.obs_rms.mean, norm.obs_rms.var = np.array([1e6, 0.0]), np.array([1e-4, 1.0])
    norm.training = False
    model = make(PPO, LBDNActorCriticPolicy, norm)
    observations = norm.obs_rms.mean + np.random.default_rng(0).normal(size=(50, 2)) * [0.01, 1.0]
    expected = predicted(model, norm, observations)
    deployed = deploy(model)
    np.testing.assert_allclose(deployed.predict(observations)[0], expected, atol=2e-6)
    np.testing.assert_allclose(deployed(torch.from_numpy(observations)), expected, atol=2e-6)
    assert deployed(torch.from_numpy(observations)).dtype == torch.float32
    assert np.abs(deployed(torch.from_numpy(observations).float()).numpy() - expected).max() > 0.1


@pytest.mark.parametrize("algorithm, policy", [(TD3, LBDNTD3Policy), (DQN, LBDNDQNPolicy)])
def test_what_overflows_is_refused(algorithm: Any, policy: Any) -> None:
    space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
    actions = spaces.Discrete(3) if algorithm is DQN else ACTIONS
    deployed = deploy(make(algorithm, policy, vec_env_of(space, actions), policy_kwargs={"lipschitz": 50.0}))
    signs = np.sign(np.random.default_rng(0).normal(size=(20, 3)))
    with pytest.raises(NonFiniteError, match="action.*too large"):
        deployed.predict((3e38 * signs).astype(np.float32))
    assert np.isfinite(deployed.predict((1e30 * signs).astype(np.float32))[0]).all()


def test_scores_are_what_the_policy_compares() -> None:
    env = vec_env_of(OBSERVATIONS, spaces.Discrete(4))
    flat = as_tensor(OBSERVATIONS, raw_observations(OBSERVATIONS))
    ppo = make(PPO, LBDNActorCriticPolicy, env)
    with torch.no_grad():
        logits = ppo.policy.get_distribution(flat).distribution.logits
    ours = deploy(ppo).logits(flat).log_softmax(-1)
    torch.testing.assert_close(ours, logits, rtol=0, atol=1e-5)
    dqn = make(DQN, LBDNDQNPolicy, env)
    with torch.no_grad():
        torch.testing.assert_close(deploy(dqn).values(flat), dqn.q_net(flat), rtol=1e-6, atol=1e-5)
    with pytest.raises(UnsupportedSpaceError, match="logits: expected"):
        deploy(dqn).logits(flat)
    with pytest.raises(UnsupportedSpaceError, match="values: expected"):
        deploy(ppo).values(flat)


def test_the_module_holds_plain_layers_only() -> None:
    deployed = deploy(make(SAC, LBDNSACPolicy, vec_env_of(OBSERVATIONS, ACTIONS)))
    kinds = {type(module) for module in deployed.modules()} - {DeployedPolicy, nn.Sequential}
    assert kinds == {nn.Linear, nn.ReLU}
    assert not any(p.requires_grad for p in deployed.parameters()) and not deployed.training
    assert "output=action" in repr(deployed)


def test_it_is_a_copy() -> None:
    norm = frozen(vec_env_of(WIDE, ACTIONS))
    model = make(PPO, LBDNActorCriticPolicy, norm)
    deployed = deploy(model, norm)
    flat = as_tensor(WIDE, raw_observations(WIDE))
    before = deployed(flat)
    vary(model.policy, seed=9)
    norm.obs_rms.mean += 1.0
    norm.obs_rms.var *= 2.0
    assert torch.equal(deployed(flat), before)


@pytest.mark.parametrize("name", ["box", "multidiscrete", "multibinary", "discrete"])
def test_copies_files_and_exports_compute_the_same(name: str) -> None:
    norm = frozen(vec_env_of(WIDE, ACTION_SPACES[name]))
    model = make(PPO, LBDNActorCriticPolicy, norm)
    deployed = deploy(model, norm)
    flat = as_tensor(WIDE, raw_observations(WIDE))
    expected = deployed(flat)
    stream = io.BytesIO()
    torch.save(deployed.state_dict(), stream)
    stream.seek(0)
    vary(model.policy, seed=5)
    other = deploy(model, norm)
    assert not torch.equal(other(flat), expected)
    other.load_state_dict(torch.load(stream, weights_only=True))
    exported = torch.export.export(
        deployed, (flat[:2],), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},), strict=False
    )
    copies = (
        pickle.loads(pickle.dumps(deployed)),
        copy.deepcopy(deployed),
        other,
        exported.module(),
    )
    for again in copies:
        torch.testing.assert_close(again(flat), expected, rtol=EPS32, atol=EPS32)
    x = flat[:3].clone().requires_grad_()
    if name == "box":
        deployed(x).sum().backward()
        assert x.grad is not None and bool(x.grad.isfinite().all())


def test_evaluate_policy_takes_it_on_raw_observations() -> None:
    env = vec_env_of(WIDE, ACTIONS)
    norm = frozen(env)
    model = make(PPO, LBDNActorCriticPolicy, norm)
    norm.norm_reward = False
    expected, _ = evaluate_policy(model, norm, n_eval_episodes=4)
    got, _ = evaluate_policy(deploy(model, norm), env, n_eval_episodes=4)  # type: ignore[arg-type]
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_statistics_are_those_of_the_model_and_must_be_frozen() -> None:
    env = vec_env_of(WIDE, ACTIONS)
    norm = frozen(env)
    model = make(PPO, LBDNActorCriticPolicy, norm)
    norm.training = True
    for given in (norm, None):
        with pytest.raises(InvalidArgumentError, match="frozen statistics"):
            deploy(model, given)
    norm.training = False
    flat = as_tensor(WIDE, raw_observations(WIDE))
    assert torch.equal(deploy(model)(flat), deploy(model, norm)(flat))
    assert deploy(model).bound() == deploy(model, norm).bound()
    with pytest.raises(InvalidArgumentError, match="VecNormalize of the model"):
        deploy(model, env)
    observations = raw_observations(WIDE)
    on_normalised = deploy(model.policy)(torch.from_numpy(norm.normalize_obs(observations)))
    np.testing.assert_allclose(on_normalised, predicted(model, norm, observations), atol=1e-6)
    norm.norm_obs = False
    assert deploy(model).pipeline.normalization is None


def test_bad_calls_are_refused() -> None:
    env = vec_env_of(OBSERVATIONS, ACTIONS)
    model = make(PPO, LBDNActorCriticPolicy, env)
    deployed = deploy(model)
    with pytest.raises(InvalidArgumentError, match="policy: expected the policy of"):
        deploy(nn.Linear(2, 2))
    with pytest.raises(InvalidArgumentError, match="vec_env"):
        deploy(model, OBSERVATIONS)  # type: ignore[arg-type]
    with pytest.raises(NonFiniteError):
        deployed.predict(np.float32([np.nan, 0, 0]))
    with pytest.raises(InvalidArgumentError, match="deterministic"):
        deployed.predict(np.zeros(3, np.float32), deterministic=False)
    with pytest.raises(ShapeError):
        deployed.predict(np.zeros(4, np.float32))
    other = deploy(make(PPO, LBDNActorCriticPolicy, vec_env_of(OBSERVATIONS, spaces.Discrete(3))))
    with pytest.raises(ShapeError, match="2 outputs"):
        DeployedPolicy(other.explicit(), deployed.pipeline, deployed.proof)
    fixed = spaces.Box(np.float32([0, 1]), np.float32([1, 1]), dtype=np.float32)
    with pytest.raises(UnsupportedSpaceError, match="finite limits low < high"):
        deploy(make(SAC, "MlpPolicy", vec_env_of(OBSERVATIONS, fixed)))
    with pytest.raises(UnsupportedSpaceError, match="integers overflow"):
        deploy(make(SAC, "MlpPolicy", vec_env_of(OBSERVATIONS, spaces.Box(-128, 127, (2,), np.int8))))
