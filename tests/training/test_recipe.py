"""The recommended recipe in one call."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO

from robustnn.closedloop import TorchVecEnv
from robustnn.envs import Pendulum
from robustnn.errors import InvalidArgumentError
from robustnn.policies import LBDNActorCriticPolicy, convert_policy, policy_bound
from robustnn.training import robust_fine_tune, robustify

PLANT = Pendulum(horizon=20)
FEW: dict[str, Any] = {"eps": 0.3, "steps": 4, "seed": 3}


def agent(policy: Any = "MlpPolicy", **more: Any) -> PPO:
    kwargs = {"net_arch": [8, 8], **more}
    return PPO(policy, TorchVecEnv(PLANT, 2), policy_kwargs=kwargs, seed=0, device="cpu")


def numbers(model: PPO) -> list[torch.Tensor]:
    return [value.clone() for value in model.policy.state_dict().values() if isinstance(value, torch.Tensor)]


def test_it_is_conversion_and_then_training_through_the_plant() -> None:
    model = agent()
    before = numbers(model)
    found = robustify(model, PLANT, **FEW)
    assert all(torch.equal(a, b) for a, b in zip(before, numbers(model), strict=True))
    by_hand = convert_policy(agent())
    tuning = robust_fine_tune(by_hand, PLANT, learning_rate=2e-3, window=20, **FEW)
    assert all(torch.equal(a, b) for a, b in zip(numbers(found.model), numbers(by_hand), strict=True))
    assert found.tuning == tuning
    assert isinstance(found.model.policy, LBDNActorCriticPolicy)


def test_the_bound_is_that_of_the_trained_policy_and_holds() -> None:
    model = agent()
    found = robustify(model, PLANT, **FEW)
    assert found.lipschitz == convert_policy(model).policy.lipschitz
    bound = policy_bound(found.model).plain
    rng = np.random.default_rng(0)
    one = rng.normal(size=(500, 3)).astype(np.float32)
    two = one + 1e-2 * rng.normal(size=one.shape).astype(np.float32)
    change = np.linalg.norm(
        found.model.predict(one, deterministic=True)[0] - found.model.predict(two, deterministic=True)[0],
        axis=1,
    )
    assert (change <= bound * np.linalg.norm(one.astype(float) - two, axis=1) * (1 + 1e-5) + 1e-6).all()


def test_a_bounded_policy_is_trained_in_place() -> None:
    model = agent(LBDNActorCriticPolicy, lipschitz=8.0)
    found = robustify(model, PLANT, **FEW)
    assert found.model is model
    assert found.lipschitz == 8.0
    with pytest.raises(InvalidArgumentError, match="lipschitz: expected None for a policy that has a bound"):
        robustify(model, PLANT, lipschitz=4.0, **FEW)


def test_a_bound_below_what_is_proved_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="lipschitz"):
        robustify(agent(), PLANT, lipschitz=1e-6, **FEW)


def test_what_is_no_agent_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="model: expected an agent of Stable-Baselines3, got str"):
        robustify("agent.zip", PLANT, **FEW)
