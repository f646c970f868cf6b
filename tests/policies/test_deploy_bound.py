"""The bound of a deployed policy: it holds, is attained, and is one of the weights as they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO

from robustnn.bounds import lower_bound
from robustnn.policies import (
    LBDNActorCriticPolicy,
    policy_bound,
)
from robustnn.policies.deploy import deploy
from tests.policies.deployable import (
    EPS32,
    EVERY_ALGORITHM,
    WIDE,
    frozen,
    make,
    model_for,
    vec_env_of,
)
from tests.policies.toy import ACTIONS, OBSERVATIONS


@pytest.mark.parametrize("name", EVERY_ALGORITHM)
def test_the_bound_holds_and_is_no_worse_than_that_of_the_live_policy(name: str) -> None:
    model, norm = model_for(name, True, searched=True)
    assert norm is not None
    deployed = deploy(model, norm)
    certificate = deployed.certificate()
    bound, live = deployed.bound(certificate), policy_bound(model, norm)
    assert certificate.verify(deployed.network) == bound.lipschitz <= live.lipschitz * (1 + 1e-6)
    np.testing.assert_allclose(bound.observation_scale, live.observation_scale, rtol=2 * EPS32)
    np.testing.assert_allclose(bound.action_scale, live.action_scale, rtol=2 * EPS32)
    assert (bound.output, bound.names, bound.one_hot) == (live.output, live.names, live.one_hot)
    assert bound.network_sha256 == deployed.action_map().network_sha256
    reached = lower_bound(
        deployed.action_map(),
        torch.as_tensor(norm.obs_rms.mean + 0.3 * np.random.default_rng(0).normal(size=(16, 3)) * 9.0),
        input_scale=torch.tensor(bound.observation_scale, dtype=torch.float64),
        output_scale=torch.tensor(bound.action_scale, dtype=torch.float64),
        iterations=15,
    ).value
    assert reached <= bound.lipschitz * (1 + 1e-9)


def test_the_bound_is_attained_by_a_linear_policy() -> None:
    """One layer: the certified bound is its norm in the stated units, and a change of sensor reaches it."""
    norm = frozen(vec_env_of(WIDE, spaces.Box(-1e6, 1e6, (2,), np.float32)))
    model = make(PPO, LBDNActorCriticPolicy, norm, size=2.0, policy_kwargs={"net_arch": []})
    deployed = deploy(model, norm)
    bound = deployed.bound()
    jacobian = torch.autograd.functional.jacobian(
        deployed.action_map(), torch.as_tensor(norm.obs_rms.mean), vectorize=True
    ).numpy()
    gain = np.linalg.norm(jacobian * np.asarray(bound.observation_scale), 2)
    assert bound.lipschitz * (1 - 1e-6) <= gain <= bound.lipschitz * (1 + 1e-9)


@pytest.mark.parametrize("factor", [-1.0, 30.0])
def test_changed_weights_are_certified_as_they_are(factor: float) -> None:
    """The multipliers of the construction may prove nothing of other weights; the certificate is a true one."""
    deployed = deploy(make(PPO, LBDNActorCriticPolicy, vec_env_of(OBSERVATIONS, ACTIONS)))
    before = deployed.certificate().bound
    with torch.no_grad():
        for layer in deployed.network[::2]:
            layer.weight.mul_(factor)  # type: ignore[operator, union-attr]
    certificate = deployed.certificate()
    assert certificate.verify(deployed.network) == certificate.bound
    if factor > 1:
        reached = lower_bound(
            deployed.network.double(), torch.zeros(8, 3, dtype=torch.float64), iterations=30
        )
        assert before < reached.value <= certificate.bound


def test_a_search_finds_a_bound_that_is_no_worse() -> None:
    deployed = deploy(make(PPO, LBDNActorCriticPolicy, vec_env_of(OBSERVATIONS, ACTIONS)))
    plain, searched = deployed.certificate(), deployed.certificate(search=True)
    assert searched.verify(deployed.network) < 0.9 * plain.bound
