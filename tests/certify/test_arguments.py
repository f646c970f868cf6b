"""Wrong calls are answered with what was expected and what to do."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecNormalize

from robustnn.certify import (
    action_change,
    attack_decision,
    certification_rate,
    certified_radius,
    certify_policy,
    distribution_change,
    tolerance_radius,
)
from robustnn.errors import InvalidArgumentError, NonFiniteError, ShapeError, UnsupportedSpaceError
from tests.certify.models import FOUR, model_of, states
from tests.policies.toy import toy_vec_env

X = states(3)
DICT = spaces.Dict({"a": FOUR, "b": spaces.Discrete(2)})


@cache
def model(kind: str = "discrete") -> Any:
    actions = {
        "discrete": spaces.Discrete(2),
        "box": spaces.Box(-1.0, 1.0, (2,)),
        "binary": spaces.MultiBinary(2),
        "dict": spaces.Discrete(2),
    }[kind]
    algorithm = "PPO" if kind != "discrete" else "DQN"
    return model_of(algorithm, actions, DICT if kind == "dict" else FOUR, steps=0)


@cache
def certificate(kind: str = "discrete") -> Any:
    return certify_policy(model(kind), method="declared")


def training_env() -> Any:
    return VecNormalize(toy_vec_env(FOUR, spaces.Discrete(2), 1))


CASES: list[tuple[Callable[[], Any], type[Exception], tuple[str, ...]]] = [
    (lambda: certify_policy(model(), norm="l1"), InvalidArgumentError, ("norm", "'l2' or 'linf'", "'l1'")),
    (lambda: certify_policy(model(), method="best"), InvalidArgumentError, ("method", "'auto'", "'best'")),
    (lambda: certify_policy(model(), iterations=0), InvalidArgumentError, ("iterations", ">= 1")),
    (lambda: certify_policy(model(), scale=(1, 2)), ShapeError, ("scale", "4 numbers", "2")),
    (lambda: certify_policy(model(), scale=(1, 1, 1, -1)), InvalidArgumentError, ("scale[3]", ">= 0", "-1")),
    (lambda: certify_policy(model(), scale=0.1), InvalidArgumentError, ("scale", "sequence of 4", "0.1")),
    (lambda: certify_policy(model(), scale=(0, 0, 0, 0)), UnsupportedSpaceError, ("scale", "zeros only")),
    (lambda: certify_policy(model(), scale={"a": (1,)}), InvalidArgumentError, ("scale", "a sequence")),
    (
        lambda: certify_policy(model("dict"), scale={"c": (1,)}),
        InvalidArgumentError,
        ("scale", "'a', 'b'", "c"),
    ),
    (lambda: certify_policy(model("dict"), scale={"a": (1,)}), ShapeError, ("scale['a']", "4 numbers", "1")),
    (lambda: certify_policy(model(), training_env()), InvalidArgumentError, ("vec_env", "frozen")),
    (lambda: certify_policy(torch.nn.Linear(2, 2)), InvalidArgumentError, ("policy", "Linear")),
    (lambda: certified_radius(certificate(), X[:, :3]), ShapeError, ("observation", "(..., 4)", "(3, 3)")),
    (lambda: certified_radius(certificate(), X * torch.nan), NonFiniteError, ("observation", "NaN")),
    (lambda: certified_radius(certificate(), np.full(4, np.inf)), NonFiniteError, ("observation",)),
    (
        lambda: certified_radius(certificate("box"), X),
        UnsupportedSpaceError,
        ("action_space", "discrete", "Box"),
    ),
    (
        lambda: certified_radius(certificate(), X, action_masks=np.ones((3, 3), bool)),
        ShapeError,
        ("action_masks", "(3, 2)", "(3, 3)"),
    ),
    (
        lambda: certified_radius(certificate(), X, action_masks=np.zeros((3, 2), bool)),
        InvalidArgumentError,
        ("action_masks", "at least one"),
    ),
    (
        lambda: certified_radius(certificate("binary"), X, action_masks=np.ones((3, 2), bool)),
        InvalidArgumentError,
        ("action_masks", "None"),
    ),
    (
        lambda: action_change(certificate(), X, 0.1),
        UnsupportedSpaceError,
        ("action_space", "Box", "discrete"),
    ),
    (lambda: action_change(certificate("box"), X, -0.1), InvalidArgumentError, ("eps", ">= 0", "-0.1")),
    (lambda: tolerance_radius(certificate(), X, 0.1), UnsupportedSpaceError, ("action_space", "Box")),
    (lambda: tolerance_radius(certificate("box"), X, 0.0), InvalidArgumentError, ("tolerance", "> 0")),
    (lambda: tolerance_radius(certificate("box"), X, (0.1,)), ShapeError, ("tolerance", "2 numbers", "1")),
    (lambda: distribution_change(certificate("box"), X, -1.0), InvalidArgumentError, ("eps", ">= 0")),
    (lambda: attack_decision(model("box"), certificate("box"), X, 0.1), UnsupportedSpaceError, ("discrete",)),
    (lambda: attack_decision(model(), certificate(), X, -0.1), InvalidArgumentError, ("radius", ">= 0")),
    (
        lambda: attack_decision(model(), certificate(), X, torch.inf),
        InvalidArgumentError,
        ("radius", "finite"),
    ),
    (
        lambda: attack_decision(model(), certificate(), X, torch.ones(2)),
        ShapeError,
        ("radius", "(3,)", "(2,)"),
    ),
    (
        lambda: attack_decision(model(), certificate(), X, 0.1, iterations=0),
        InvalidArgumentError,
        ("iterations", ">= 1"),
    ),
    (
        lambda: certification_rate(model(), toy_vec_env(FOUR, spaces.Discrete(2), 1), [0.1]),
        InvalidArgumentError,
        ("episodes, steps", "None"),
    ),
    (
        lambda: certification_rate(model(), toy_vec_env(FOUR, spaces.Discrete(2), 1), [-0.1], steps=1),
        InvalidArgumentError,
        ("eps", ">= 0"),
    ),
    (
        lambda: certification_rate(
            model(), toy_vec_env(FOUR, spaces.Discrete(2), 1), [0.1], steps=1, tolerance=1.0
        ),
        InvalidArgumentError,
        ("tolerance", "discrete"),
    ),
]


@pytest.mark.parametrize("case", range(len(CASES)))
def test_wrong_calls(case: int) -> None:
    call, error, words = CASES[case]
    with pytest.raises(error) as caught:
        call()
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_only_discrete_observations_are_refused() -> None:
    with pytest.raises(UnsupportedSpaceError, match="zeros only"):
        certify_policy(model_of("DQN", spaces.Discrete(2), spaces.Discrete(5), steps=0))
