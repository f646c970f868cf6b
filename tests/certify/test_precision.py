"""What certificates allow for where the policy computes in another precision than the observation has, or overflows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from robustnn.certify import action_change, certified_radius, certify_policy, distribution_change
from robustnn.errors import NonFiniteError
from tests.certify.models import model_of, states
from tests.policies.toy import randomise

FLOAT64 = spaces.Box(-np.inf, np.inf, (4,), np.float64)
WIDE = spaces.Box(-np.inf, np.inf, (4,), np.float32)


def undecided(model: Any, observations: torch.Tensor) -> None:
    """Shift an output so that the two choices are about equally frequent."""
    with torch.no_grad():
        outputs = certify_policy(model).path.network(observations)
        model.policy.lbdn.layers[-1].bias[1] += (outputs[:, 0] - outputs[:, 1]).median()


@pytest.mark.parametrize("algorithm", ["DQN", "PPO"])
def test_observations_are_rounded_to_float32_whatever_the_policy_computes_in(algorithm: str) -> None:
    model = model_of(algorithm, spaces.Discrete(2), FLOAT64, policy_kwargs={"lipschitz": 50.0})
    model.policy.double()
    centre = 1000.0 + states(400)
    undecided(model, centre)
    certificate = certify_policy(model)
    decide = certificate.path.action_map.decide
    choice = decide(centre)
    a, b = centre[choice == 0][0], centre[choice == 1][0]
    for _ in range(60):  # to where the choice changes
        middle = 0.5 * (a + b)
        a, b = (middle, b) if int(decide(middle)) == 0 else (a, middle)
    direction = states(1)[0]
    near = (
        a
        + torch.linspace(-1e-2, 1e-2, 20001, dtype=torch.float64).unsqueeze(-1) * direction / direction.norm()
    )
    wrong = model.predict(near.numpy(), deterministic=True)[0] != decide(near).numpy()
    assert wrong.any()
    assert float(certified_radius(certificate, near)[torch.as_tensor(wrong)].max()) == 0.0
    with torch.no_grad():
        model.policy.lbdn.layers[-1].bias[0] += 100.0
    assert float(certified_radius(certify_policy(model), centre).min()) > 0.0


@pytest.mark.parametrize("algorithm", ["TD3", "SAC"])
def test_actions_of_a_float64_policy_are_within_the_certified_change(algorithm: str) -> None:
    model = model_of(algorithm, spaces.Box(-2.0, 2.0, (2,)), FLOAT64)
    model.policy.double()
    observations = 1000.0 + states(500)
    change = action_change(certify_policy(model), observations, 0.0)
    got = torch.as_tensor(model.predict(observations.numpy(), deterministic=True)[0])
    assert bool(((got - change.action).abs() <= change.component).all())


@pytest.mark.parametrize("algorithm", ["DQN", "QRDQN"])
def test_values_that_overflow_decide_nothing(algorithm: str) -> None:
    model = model_of(algorithm, spaces.Discrete(3), WIDE, steps=0, policy_kwargs={"lipschitz": 50.0})
    randomise(model.policy, 1.0)
    certificate = certify_policy(model)
    assert float(certified_radius(certificate, 1e30 * states(20)).min()) > 0.0
    assert float(certified_radius(certificate, 1e38 * states(20)).max()) == 0.0
    with pytest.raises(NonFiniteError, match="too large for the network"):
        model.predict(np.full((20, 4), 3e38, np.float32) * np.sign(states(20).numpy()), deterministic=True)


def test_no_ball_reaches_to_where_numbers_overflow() -> None:
    model = model_of(
        "PPO", spaces.Discrete(2), WIDE, steps=0, policy_kwargs={"lipschitz": 1e-30, "net_arch": []}
    )
    with torch.no_grad():
        model.policy.lbdn.layers[-1].bias.copy_(torch.tensor([1e10, -1e10]))
    certificate = certify_policy(model)
    limit = certificate.path.overflow_radius(states(3), certificate.unit)
    assert bool((certified_radius(certificate, states(3)) <= limit).all())
    assert 1e37 < float(limit.min()) <= float(limit.max()) < 1e39
    small = certify_policy(
        model_of("PPO", spaces.Discrete(2), WIDE, policy_kwargs={"observation_scale": (1e-30, 1.0, 1.0, 1.0)})
    )
    zero = torch.zeros(1, 4, dtype=torch.float64)
    assert float(small.path.overflow_radius(zero, small.unit)) < 1e9


def test_changes_are_unlimited_where_numbers_may_overflow() -> None:
    td3 = certify_policy(model_of("TD3", spaces.Box(-2.0, 1.0, (2,)), WIDE))
    change = action_change(td3, states(2), 3e38)
    furthest = torch.maximum(1.0 - change.action, change.action + 2.0)
    np.testing.assert_allclose(change.component, furthest, rtol=1e-4)
    assert bool((change.component >= furthest).all())
    assert bool(((change.low <= -2.0) & (change.high >= 1.0)).all())
    for actions in (spaces.Discrete(3), spaces.Box(-1.0, 1.0, (2,))):
        ppo = certify_policy(model_of("PPO", actions, WIDE, policy_kwargs={"lipschitz": 1e-30}))
        far = distribution_change(ppo, states(2), 3e38)
        assert bool(far.kl.isinf().all()) and bool((far.tv == 1.0).all())
        assert float(distribution_change(ppo, states(2), 1e3).kl.max()) < 1e-6
    with pytest.raises(NonFiniteError, match="action"):
        model = model_of("TD3", spaces.Box(-2.0, 1.0, (2,)), WIDE, steps=0, policy_kwargs={"lipschitz": 50.0})
        randomise(model.policy, 1.0)
        model.predict(3e38 * np.sign(states(20).float().numpy()), deterministic=True)


@pytest.mark.parametrize("above, certified", [(5e7, True), (2e8, False)])
def test_a_choice_that_is_not_allowed_may_be_made_all_the_same(above: float, certified: bool) -> None:
    """MaskablePPO replaces the logit of such a choice by -1e8, and other normalised logits may be less."""
    model = model_of("MaskablePPO", spaces.Discrete(3))
    with torch.no_grad():
        model.policy.lbdn.layers[-1].bias[2] += above
        model.policy.lbdn.layers[-1].bias[1] -= 1e3
    masks = np.array([[True, True, False]] * 20)
    taken = model.predict(states(20).float().numpy(), deterministic=True, action_masks=masks)[0]
    assert (taken == (0 if certified else 2)).all()
    radius = certified_radius(certify_policy(model), states(20), action_masks=masks)
    assert bool((radius > 0.0).all()) == certified and bool((radius == 0.0).all()) != certified
