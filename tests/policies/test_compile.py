"""`torch.compile` of policies and of the networks in them: the same training, copies and files."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from robustnn.policies import FreezeWeights, action_map, policy_bound
from tests.policies.toy import any_model, sample_observations

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # the compiler's own deprecations
]

# Tracing takes another path through the conversion, whose rounding is amplified by the training.
TOLERANCE = 1e-6
STEPS = 48


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch._dynamo.reset()


def actions(model: Any, n: int = 7) -> np.ndarray:
    return model.predict(sample_observations(model.observation_space, n), deterministic=True)[0]


def assert_same_training(model: Any, other: Any) -> None:
    for a, b in zip(model.policy.parameters(), other.policy.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=TOLERANCE, atol=TOLERANCE)
    np.testing.assert_allclose(actions(model), actions(other), rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("callback", [None, FreezeWeights])
@pytest.mark.parametrize("name", ["PPO", "SAC"])
def test_a_compiled_policy(name: str, callback: Any, tmp_path: Path) -> None:
    """As SB3 recommends it: `model.policy = th.compile(model.policy)`."""
    plain = any_model(name).learn(STEPS, callback=callback and callback())
    model = any_model(name)
    model.policy = torch.compile(model.policy, backend="eager")
    model.learn(STEPS, callback=callback and callback())
    assert_same_training(model, plain)
    x = model.policy.obs_to_tensor(sample_observations(model.observation_space, 7))[0]
    with torch.no_grad():
        for a, b in zip(
            model.policy(x, deterministic=True), plain.policy(x, deterministic=True), strict=True
        ):
            torch.testing.assert_close(a, b, rtol=TOLERANCE, atol=TOLERANCE)
    # The guarantee and the files are those of the policy inside.
    assert policy_bound(model).plain == policy_bound(plain).plain == model.policy.bound().plain
    assert torch.equal(action_map(model.policy)(x.double()), action_map(model.policy._orig_mod)(x.double()))
    model.save(tmp_path / "model.zip")
    loaded = type(model).load(tmp_path / "model.zip", device="cpu")
    np.testing.assert_array_equal(actions(loaded), actions(model))


@pytest.mark.parametrize("callback", [None, FreezeWeights])
@pytest.mark.parametrize("name", ["PPO", "TD3"])
def test_compiled_networks(name: str, callback: Any) -> None:
    """In place, so that the updates use them as well. The compiler sees the conversion and no kept weights."""
    plain = any_model(name).learn(STEPS, callback=callback and callback())
    model = any_model(name)
    for net in model.policy.bounded_networks():
        net.compile(backend="eager")
    model.learn(STEPS, callback=callback and callback())
    assert_same_training(model, plain)
    model.policy.compile(backend="eager")
    before = actions(model)
    for copied in (copy.deepcopy(model.policy), pickle.loads(pickle.dumps(model.policy))):
        assert copied._compiled_call_impl is None  # as with any module of torch
        assert all(net._compiled_call_impl is None for net in copied.bounded_networks())
        observations = sample_observations(model.observation_space, 7)
        np.testing.assert_allclose(
            copied.predict(observations, deterministic=True)[0], before, rtol=TOLERANCE, atol=TOLERANCE
        )


def test_a_compiled_network_that_is_frozen() -> None:
    net = any_model("PPO").policy.lbdn
    compiled = torch.compile(net, backend="eager")
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = net(x)
        torch.testing.assert_close(compiled(x), expected, rtol=TOLERANCE, atol=TOLERANCE)
        with net.frozen():
            torch.testing.assert_close(compiled(x), expected, rtol=TOLERANCE, atol=TOLERANCE)
            net.layers[0].load_state_dict({k: v + 0.5 for k, v in net.layers[0].state_dict().items()})
            changed = net(x)
            assert float((changed - expected).abs().max()) > 1e-3
            torch.testing.assert_close(compiled(x), changed, rtol=TOLERANCE, atol=TOLERANCE)
