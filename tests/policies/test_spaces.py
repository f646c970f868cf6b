"""Every algorithm with every kind of observation and action: trains, is copied, and decides as its map by value."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from robustnn.policies import LBDNActorCriticPolicy, LBDNSACPolicy, ObservationScale, flatten_observation
from robustnn.policies.observation import component_names, is_one_hot, size_of
from tests.policies.toy import (
    ACTION_KINDS,
    ALGORITHMS,
    OBSERVATION_KINDS,
    OBSERVATIONS,
    any_model,
    make_steep,
    randomise,
    sample_observations,
)

EPS32 = float(np.finfo(np.float32).eps)
CASES = [
    (name, observations, actions)
    for name, algorithm in ALGORITHMS.items()
    for actions in algorithm.actions
    for observations in OBSERVATION_KINDS
    if (name, observations) != ("CrossQ", "dict")  # which sb3-contrib cannot train
]


def one_of(observations: Any, k: int) -> Any:
    if isinstance(observations, Mapping):
        return {key: value[k] for key, value in observations.items()}
    return observations[k]


def randomise_around(policy: Any, flat: np.ndarray) -> None:
    """Any parameters for which decisions depend on the observation and not on the bias."""
    randomise(policy, 0.5)
    with torch.no_grad():
        policy.lbdn.layers[-1].bias -= policy.lbdn(torch.as_tensor(flat).float()).mean(0)


@pytest.mark.parametrize(("name", "observations", "actions"), CASES)
def test_trains_and_decides(name: str, observations: str, actions: str) -> None:
    small = {"learning_starts": 8, "n_steps": 8, "batch_size": 16}
    settings = {key: value for key, value in small.items() if key in ALGORITHMS[name].settings}
    model = any_model(name, observations, actions, {"net_arch": [6]}, **settings)
    before = [p.detach().clone() for p in model.policy.parameters()]
    model.learn(16)
    assert not all(map(torch.equal, before, model.policy.parameters()))
    policy = copy.deepcopy(model.policy)
    batch = sample_observations(OBSERVATION_KINDS[observations], 20)
    flat = flatten_observation(OBSERVATION_KINDS[observations], batch)
    randomise_around(policy, flat)
    predicted = policy.predict(batch, deterministic=True)[0]
    space = ACTION_KINDS[actions]
    assert predicted.shape == (20, *space.shape)
    assert all(space.contains(space.dtype.type(action)) for action in predicted)
    function, bound = policy.action_map(), policy.bound()
    assert flat.shape == (20, len(bound.observation_scale)) and len(bound.one_hot) in (0, flat.shape[1])
    if function.choices:
        np.testing.assert_array_equal(function.decide(torch.as_tensor(flat)).numpy(), predicted)
        assert len(np.unique(predicted, axis=0)) > 1
    else:
        atol = 64 * EPS32 * max(1.0, np.abs(flat).max()) * bound.lipschitz
        by_value = function(torch.as_tensor(flat)).numpy().reshape(predicted.shape)
        np.testing.assert_allclose(by_value, predicted, rtol=0, atol=atol)

    alone = policy.predict(one_of(batch, 3), deterministic=True)[0]
    assert np.shape(alone) == space.shape
    np.testing.assert_allclose(
        alone, predicted[3], rtol=0, atol=64 * EPS32 * max(1.0, np.abs(flat).max()) * 20.0
    )


def test_a_flat_observation_is_what_the_extractor_makes_of_it() -> None:
    for space in OBSERVATION_KINDS.values():
        policy = LBDNActorCriticPolicy(space, ACTION_KINDS["box"], lambda _: 1e-3, lipschitz=1.0, net_arch=[])
        batch = sample_observations(space, 10)
        tensor = policy.obs_to_tensor(batch)[0]
        features = policy.extract_features(tensor)
        flat = flatten_observation(space, batch)
        np.testing.assert_array_equal(features.numpy(), flat.astype(np.float32))
        np.testing.assert_array_equal(flatten_observation(space, one_of(batch, 2)), flat[2])
        assert flat.shape == (10, size_of(space)) == (10, len(component_names(space)))
        assert flat.shape == (10, spaces.flatdim(space))
        one_hot = is_one_hot(space)
        assert one_hot.shape == flat[0].shape and np.isin(flat[:, one_hot], (0.0, 1.0)).all()
        entries = space.spaces.values() if isinstance(space, spaces.Dict) else [space]
        assert (~one_hot).sum() == sum(size_of(part) for part in entries if isinstance(part, spaces.Box))


def test_the_scale_of_a_dict_follows_its_keys() -> None:
    space = OBSERVATION_KINDS["dict"]
    extractor = ObservationScale(space, {"m": [1.0, 2.0, 3.0, 4.0, 5.0], "z": (0.5, 0.25, 8.0)})
    names = component_names(space)
    expected = {
        "m[0]": 1.0,
        "m[1]": 2.0,
        "m[2]": 3.0,
        "m[3]": 4.0,
        "m[4]": 5.0,
        "z[0]": 0.5,
        "z[1]": 0.25,
        "z[2]": 8.0,
    }
    assert [expected.get(name, 1.0) for name in names] == extractor.scale.tolist()
    batch = sample_observations(space, 4)
    policy = LBDNActorCriticPolicy(
        space, ACTION_KINDS["box"], lambda _: 1e-3, lipschitz=1.0, observation_scale={"z": (0.5, 0.25, 8.0)}
    )
    features = policy.extract_features(policy.obs_to_tensor(batch)[0]).numpy()
    where = [k for k, name in enumerate(names) if name.startswith("z")]
    np.testing.assert_array_equal(features[:, where], batch["z"] / np.float32([0.5, 0.25, 8.0]))
    # The keys may come in any order.
    shuffled = {key: batch[key] for key in ("z", "m", "b", "a")}
    np.testing.assert_array_equal(
        policy.predict(shuffled, deterministic=True)[0], policy.predict(batch, deterministic=True)[0]
    )


def test_scales_are_rounded_to_the_safe_side() -> None:
    values = tuple(np.random.default_rng(0).uniform(0.1, 10.0, 200).tolist())
    space = spaces.Box(-1.0, 1.0, (200,), np.float32)
    divided = ObservationScale(space, values).scale.double().numpy()
    assert (divided >= values).all() and (divided <= np.array(values) * (1 + EPS32)).all()
    assert not (divided == np.float32(values)).all()
    narrow = spaces.Box(np.zeros(200, np.float32), np.float32(values))
    for kwargs in ({}, {"action_scale": values[::-1]}):
        policy = LBDNSACPolicy(OBSERVATIONS, narrow, lambda _: 1e-3, lipschitz=3.0, net_arch=[4], **kwargs)
        declared = np.array(kwargs.get("action_scale", np.ones(200)))
        stated = np.array(policy.bound().action_scale)
        assert (stated <= declared).all() and (stated >= declared * (1 - 2 * EPS32)).all()


@pytest.mark.parametrize("observations", ["vector", "dict"])
def test_the_bound_between_two_observations(observations: str) -> None:
    # Jumps of discrete parts are differences of the flat observation like any other.
    model = any_model("SAC", observations)
    space = OBSERVATION_KINDS[observations]
    first, second = sample_observations(space, 200, 1), sample_observations(space, 200, 2)
    randomise_around(model.policy, flatten_observation(space, first))
    bound = model.policy.bound()
    a, b = (model.predict(batch, deterministic=True)[0].astype(np.float64) for batch in (first, second))
    distance = flatten_observation(space, first) - flatten_observation(space, second)
    moved = np.linalg.norm((a - b) / np.asarray(bound.action_scale), axis=-1)
    assert (moved <= bound.action_change(distance) + 64 * EPS32 * np.abs(a).max()).all()
    assert moved.max() > 0.1


def test_masked_actions_are_decided_among_those_allowed() -> None:
    for actions in ALGORITHMS["MaskablePPO"].actions:
        model = any_model("MaskablePPO", "vector", actions)
        randomise(model.policy, 0.5)
        batch = sample_observations(OBSERVATIONS, 50)
        function = model.policy.action_map()
        logits = function(torch.as_tensor(batch).double())
        groups = logits.split(function.choices, dim=-1)
        masks = np.ones((50, logits.shape[-1]), dtype=bool)
        masks[:, 0] = False
        got = model.predict(batch, deterministic=True, action_masks=masks)[0].reshape(50, -1)
        allowed = torch.cat(
            [groups[0].clone().index_fill(1, torch.tensor([0]), -torch.inf), *groups[1:]], dim=-1
        )
        expected = [group.argmax(-1).numpy() for group in allowed.split(function.choices, dim=-1)]
        np.testing.assert_array_equal(got, np.stack(expected, axis=-1))
        assert (got[:, 0] > 0).all()


@pytest.mark.parametrize("name", ["PPO", "MaskablePPO", "DQN", "QRDQN"])
def test_the_difference_of_two_logits_moves_by_at_most_root_two_gamma(name: str) -> None:
    policy = any_model(name, actions="discrete", policy_kwargs={"activation_fn": torch.nn.Tanh}).policy
    make_steep(policy)
    jacobian = torch.autograd.functional.jacobian(policy.action_map(), torch.zeros(3, dtype=torch.float64))
    steepest = max(float((jacobian[i] - jacobian[j]).norm()) for i in range(3) for j in range(i))
    limit = np.sqrt(2.0) * policy.bound().lipschitz
    assert limit * (1 - 64 * EPS32) < steepest <= limit * (1 + 1e-15)
