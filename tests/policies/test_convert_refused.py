"""Agents and options that cannot be converted: refused, with the reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, DQN
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from robustnn.errors import InvalidArgumentError, UnsupportedSpaceError
from robustnn.policies.convert import convert_policy
from tests.policies.test_convert import mlp_model
from tests.policies.toy import (
    ACTION_KINDS,
    OBSERVATION_KINDS,
    toy_model,
    toy_vec_env,
)


class OwnPolicy(ActorCriticPolicy):
    """A subclass that may compute anything."""


class OwnExtractor(BaseFeaturesExtractor):
    """An extractor of unknown gain."""

    def __init__(self, observation_space: Any) -> None:
        super().__init__(observation_space, 3)

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return 2.0 * observations


def recurrent() -> Any:
    contrib = pytest.importorskip("sb3_contrib")
    return contrib.RecurrentPPO("MlpLstmPolicy", toy_vec_env(), device="cpu")


def images() -> Any:
    space = OBSERVATION_KINDS["vector"].__class__(0, 255, (36, 36, 3), np.uint8)
    return DQN("CnnPolicy", toy_vec_env(space, ACTION_KINDS["discrete"]), device="cpu", buffer_size=10)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mlp_model("CrossQ"), "without batch renormalisation"),
        (lambda: mlp_model("SAC, gSDE"), "without gSDE"),
        (lambda: A2C("MlpPolicy", toy_vec_env(), use_sde=True, device="cpu"), "without gSDE"),
        (recurrent, "without memory"),
        (lambda: toy_model(), "has a bound already"),
        (lambda: toy_model(policy=OwnPolicy), "OwnPolicy"),
        (
            lambda: toy_model(policy="MlpPolicy", policy_kwargs={"features_extractor_class": OwnExtractor}),
            "OwnExtractor",
        ),
        (lambda: toy_model(policy="MlpPolicy", policy_kwargs={"activation_fn": nn.GELU}), "gelu"),
        (lambda: toy_model(policy="MlpPolicy").policy, "model: expected a model"),
        (lambda: None, "model: expected a model"),
    ],
)
def test_agents_that_cannot_be_converted(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        convert_policy(make())


def test_images_are_refused() -> None:
    with pytest.raises((InvalidArgumentError, UnsupportedSpaceError), match="CnnPolicy|NatureCNN|image"):
        convert_policy(images())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"slack": 0.9}, "slack: expected a factor >= 1"),
        ({"lipschitz": -1.0}, "lipschitz: expected a finite number > 0"),
        ({"observation_scale": (1.0, 2.0)}, r"observation_scale: expected shape \(3,\)"),
        ({"lipschitz_penalty": 1.0}, "lipschitz_penalty"),
    ],
)
def test_wrong_options(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        convert_policy(mlp_model("PPO"), **arguments)
