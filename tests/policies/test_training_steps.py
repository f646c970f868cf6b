"""What the policies do to make a training step cheaper: it is the same step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from stable_baselines3 import A2C
from torch import nn

from robustnn import LBDN
from robustnn.nn.module import switch_mode
from robustnn.policies.base import LipschitzPolicy
from tests.policies.toy import ALGORITHMS, any_model, toy_model


def modes(policy: Any) -> dict[str, bool]:
    return {name: module.training for name, module in policy.named_modules()}


def counts(policy: Any) -> dict[str, int]:
    return {name: module._changes for name, module in policy.named_modules() if hasattr(module, "_changes")}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_modes_are_those_of_sb3_after_every_switch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All modules, targets included, and every layer learns that it was switched to training."""
    ours, theirs = any_model(name).policy, any_model(name).policy
    for mode in (False, True, True, False, True):
        ours.set_training_mode(mode)
        with monkeypatch.context() as patch:
            patch.delattr(LipschitzPolicy, "set_training_mode")
            theirs.set_training_mode(mode)
        assert modes(ours) == modes(theirs)
        assert counts(ours) == counts(theirs)


class Loud(nn.Module):
    """A layer with a `train` of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Dropout()
        self.calls: list[bool] = []

    def train(self, mode: bool = True) -> Loud:
        self.calls.append(mode)
        return super().train(mode)


def test_a_train_method_of_another_kind_is_called() -> None:
    loud = Loud()
    net = nn.Sequential(nn.Linear(2, 2), nn.Sequential(loud), LBDN(2, (3,), 1))
    switch_mode(net, False)
    assert not any(module.training for module in net.modules())
    switch_mode(net, True)
    assert all(module.training for module in net.modules())
    assert loud.calls == [False, True]


def test_training_mode_drops_frozen_weights() -> None:
    net = LBDN(2, (3,), 1).freeze()
    switch_mode(net, False)
    assert net.is_frozen
    switch_mode(net, True)
    assert not net.is_frozen
    net.freeze()
    switch_mode(net.layers[0], True)
    assert not net.is_frozen


@pytest.mark.filterwarnings("ignore")  # the compiler's own deprecations
def test_a_compiled_module_is_switched() -> None:
    net = LBDN(2, (3,), 1)
    compiled = torch.compile(net, backend="eager")
    for mode in (False, True):
        switch_mode(compiled, mode)
        assert net.training == mode and compiled.training == mode


def test_the_optimiser_of_a2c_takes_all_parameters_at_once_and_the_same_steps() -> None:
    models = []
    for foreach in (True, False):
        model = toy_model(algorithm=A2C)  # seeds torch as well
        models.append(model)
        (group,) = model.policy.optimizer.param_groups
        assert group["foreach"] is True
        group["foreach"] = foreach
        model.learn(100)
    for ours, theirs in zip(models[0].policy.parameters(), models[1].policy.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_choice_of_the_user_stands() -> None:
    kwargs = {
        "optimizer_class": torch.optim.RMSprop,
        "optimizer_kwargs": {"foreach": False, "alpha": 0.99, "eps": 1e-5, "weight_decay": 0.0},
    }
    model = toy_model(algorithm=A2C, policy_kwargs=kwargs)
    assert model.policy.optimizer.param_groups[0]["foreach"] is False
