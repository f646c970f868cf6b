from __future__ import annotations

from typing import Any

import pytest
import torch

from robustnn.closedloop import Delay, MaximalActionDifference, NoPerturbation, UniformBall, evaluate
from robustnn.closedloop.faults import FAULTS, FaultSet
from robustnn.closedloop.registry import (
    ATTACKS,
    PERTURBATIONS,
    perturbation_from_config,
    register_perturbation,
    size_parameter,
)
from robustnn.envs import Pendulum
from robustnn.errors import InvalidArgumentError

# Parameters without a default besides the size.
MORE: dict[str, dict[str, Any]] = {"coloured": {"correlation_time": 3.0}, "outliers": {"size": 1.0}}
PARTS = {"critic", "policy", "plant", "env"}


def feedback(observation: torch.Tensor) -> torch.Tensor:
    return -observation[..., 1:2]


def config_of(name: str) -> dict[str, Any]:
    size = size_parameter(name)
    if size is None:
        return {"name": name}
    from inspect import signature

    needed = {
        key: 1.0
        for key, p in signature(PERTURBATIONS[name]).parameters.items()
        if p.default is p.empty and key not in PARTS
    }
    whole = size == "steps"
    return {"name": name, **needed, size: 1 if whole else 0.1}


@pytest.mark.parametrize("name", [name for name in PERTURBATIONS if name not in ATTACKS or name == "mad"])
def test_what_describes_itself_is_built_again(name: str) -> None:
    made = perturbation_from_config(config_of(name))
    assert made.describe() == perturbation_from_config(made.describe()).describe()
    assert made.name == name


@pytest.mark.parametrize("name", ["trajectory-paper", "trajectory-strong", "trajectory-strongest"])
def test_settings_of_the_trajectory_attack(name: str) -> None:
    made = perturbation_from_config({"name": name, "eps": 0.1, "norm": "linf"})
    assert made == perturbation_from_config(made.describe()) and made.describe()["norm"] == "linf"


def test_faults_and_their_sets_have_the_same_format() -> None:
    assert set(FAULTS) < set(PERTURBATIONS)
    config = {"name": "faults", "observation": [{"name": "white", "std": 0.1}], "parameters": {"mass": 1.1}}
    made = perturbation_from_config(config)
    assert isinstance(made, FaultSet) and made == FaultSet.from_config(config)


def test_a_delay_is_the_fault_of_this_name() -> None:
    plant = Pendulum()
    same = perturbation_from_config(Delay(3).describe())
    returns = [evaluate(feedback, plant, p, episodes=3, steps=20).returns for p in (Delay(3), same, None)]
    assert (returns[0] == returns[1]).all() and (returns[0] != returns[2]).any()


LEARNING: list[dict[str, Any]] = [
    {"name": "robust-sarsa", "episodes": 2, "trials": 1, "iterations": 2},
    {"name": "snooping-mad", "episodes": 2, "iterations": 5},
    {"name": "learned-adversary", "timesteps": 256, "trials": 2},
    {"name": "critic"},
]


@pytest.mark.parametrize("config", LEARNING, ids=lambda config: config["name"])
def test_attacks_that_need_more_than_plain_values(config: dict[str, Any]) -> None:
    plant = Pendulum(horizon=20)

    def value(observation: torch.Tensor) -> torch.Tensor:
        return observation[..., 0]

    parts: dict[str, Any] = {"policy": lambda: feedback, "plant": lambda: plant, "env": lambda: plant}
    if config["name"] == "critic":
        parts, config = {"critic": lambda: value}, {**config, "takes": "observation"}
    made = perturbation_from_config({**config, "eps": 0.1}, parts)
    assert made.describe()["eps"] == 0.1 and config["name"] in ATTACKS
    result = evaluate(feedback, plant, made, episodes=2, steps=5)
    assert result.returns.shape == (2,)
    with pytest.raises(InvalidArgumentError, match="Give also"):
        perturbation_from_config({**config, "eps": 0.1})


def test_a_new_kind_is_registered_once() -> None:
    def half(eps: float) -> UniformBall:
        return UniformBall(0.5 * eps)

    try:
        register_perturbation("half", half, attack=True)
        assert perturbation_from_config({"name": "half", "eps": 0.2}) == UniformBall(0.1)
        with pytest.raises(InvalidArgumentError, match="name: expected a new one"):
            register_perturbation("half", half)
        register_perturbation("half", lambda: NoPerturbation(), replace=True)
        assert size_parameter("half") is None
    finally:
        PERTURBATIONS.pop("half", None)
        ATTACKS.pop("half", None)
    with pytest.raises(InvalidArgumentError, match="kind: expected a parameter eps"):
        register_perturbation("nothing", lambda: NoPerturbation(), attack=True)
    with pytest.raises(InvalidArgumentError, match="name: expected letters"):
        register_perturbation("a b", half)
    assert ATTACKS["mad"] is MaximalActionDifference


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "fog"}, "perturbation: expected a mapping with a name of none, gaussian"),
        ({"name": ["mad"]}, "perturbation: expected a mapping"),
        ("mad", "perturbation: expected a mapping"),
        ({"eps": 0.1}, "perturbation: expected a mapping"),
        ({"name": "mad"}, r"Give also \['eps'\]"),
        ({"name": "mad", "eps": 0.1, "radius": 1}, r"got \['radius'\]"),
        ({"name": "mad", "eps": -0.1}, "eps: expected a finite number >= 0"),
        (
            {"name": "uniform", "eps": 0.1, "scale": 3.0},
            "perturbation 'uniform': expected parameters of the right",
        ),
    ],
)
def test_wrong_configurations(config: Any, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        perturbation_from_config(config)
