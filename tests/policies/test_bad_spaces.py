"""Spaces, options and observations that a policy of some algorithm cannot take: each message names what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from robustnn.errors import (
    InvalidArgumentError,
    NonFiniteError,
    ShapeError,
    UnsupportedSpaceError,
)
from robustnn.policies import ObservationScale, flatten_observation, policy_bound
from tests.policies.toy import (
    ACTION_KINDS,
    ACTIONS,
    OBSERVATION_KINDS,
    OBSERVATIONS,
    algorithm_of,
    any_model,
    assert_refused,
)

IMAGE = spaces.Box(0, 255, (36, 36, 3), np.uint8)
DICT = OBSERVATION_KINDS["dict"]
ENTRIES = {"z": np.zeros(3), "a": 1, "m": [1, 2], "b": [0, 1]}


def policy(
    name: str = "PPO",
    observations: spaces.Space = OBSERVATIONS,
    actions: spaces.Space | None = None,
    **kwargs: Any,
) -> Any:
    default = spaces.Discrete(3) if name in ("MaskablePPO", "DQN", "QRDQN") else ACTIONS
    kwargs = {"lipschitz": 4.0, "net_arch": [8], **kwargs}
    return algorithm_of(name)[1](observations, actions or default, lambda _: 1e-3, **kwargs)


def box(low: Any, high: Any, dtype: Any = np.float32) -> spaces.Box:
    return spaces.Box(np.array(low, dtype), np.array(high, dtype), dtype=dtype)


def flat(space: spaces.Space, value: Any) -> Any:
    return flatten_observation(space, value)


def recurrent() -> Any:
    algorithm = pytest.importorskip("sb3_contrib").RecurrentPPO
    return policy_bound(algorithm("MlpLstmPolicy", "Pendulum-v1", n_steps=16, batch_size=16, device="cpu"))


# name: (call, error, words that the message must contain)
CALLS: dict[str, tuple[Callable[[], Any], type[Exception], tuple[str, ...]]] = {
    # Observations
    "image": (lambda: policy(observations=IMAGE), UnsupportedSpaceError, ("observation_space", "image", "uint8")),
    "image in a dict": (
        lambda: policy(observations=spaces.Dict({"x": OBSERVATIONS, "eye": IMAGE})),
        UnsupportedSpaceError,
        ("observation_space['eye']", "image", "uint8"),
    ),
    "nested dict": (
        lambda: policy(observations=spaces.Dict({"x": spaces.Dict({"y": OBSERVATIONS})})),
        UnsupportedSpaceError,
        ("observation_space['x']", "flat Dict", "Dict('y'"),
    ),
    "empty dict": (lambda: policy(observations=spaces.Dict()), UnsupportedSpaceError, ("observation_space", "empty")),
    "tuple": (
        lambda: policy("SAC", spaces.Tuple((OBSERVATIONS, OBSERVATIONS))),
        UnsupportedSpaceError,
        ("observation_space", "Box", "Tuple"),
    ),
    "text": (lambda: policy("DQN", spaces.Text(5)), UnsupportedSpaceError, ("observation_space", "Text")),
    "number without axis": (
        lambda: policy(observations=spaces.Box(-1, 1, ())), UnsupportedSpaceError, ("observation_space", "one axis"),
    ),
    "no component": (
        lambda: policy(observations=spaces.Box(-1, 1, (0,))), UnsupportedSpaceError, ("observation_space", "not empty"),
    ),
    "no component of a dict": (
        lambda: policy("TD3", spaces.Dict({"x": OBSERVATIONS, "y": spaces.Box(-1, 1, (2, 0))})),
        UnsupportedSpaceError,
        ("observation_space['y']", "not empty"),
    ),
    "discrete from one": (
        lambda: policy(observations=spaces.Discrete(3, start=1)),
        UnsupportedSpaceError,
        ("observation_space", "start at 0", "start=1"),
    ),
    "multi-discrete from one": (
        lambda: policy(observations=spaces.Dict({"x": spaces.MultiDiscrete([2, 2], start=[0, 1])})),
        UnsupportedSpaceError,
        ("observation_space['x']", "start at 0"),
    ),
    "multi-discrete matrix": (
        lambda: policy("QRDQN", spaces.MultiDiscrete([[2, 2], [3, 3]])),
        UnsupportedSpaceError,
        ("observation_space", "one axis", "MultiDiscrete"),
    ),
    "dict for CrossQ": (
        lambda: policy("CrossQ", DICT), UnsupportedSpaceError, ("observation_space", "no Dict", "LBDNCrossQPolicy"),
    ),
    # Actions
    "one action": (
        lambda: policy(actions=spaces.Discrete(1)),
        UnsupportedSpaceError,
        ("action_space", "two choices", "Discrete(1)"),
    ),
    "one action each": (
        lambda: policy("MaskablePPO", actions=spaces.MultiDiscrete([1, 1])),
        UnsupportedSpaceError,
        ("action_space", "two choices", "MultiDiscrete"),
    ),
    "actions from one": (
        lambda: policy("DQN", actions=spaces.Discrete(3, start=1)),
        UnsupportedSpaceError,
        ("action_space", "start at 0"),
    ),
    "binary action matrix": (
        lambda: policy(actions=spaces.MultiBinary([2, 2])), UnsupportedSpaceError, ("action_space", "one axis"),
    ),
    "no action component": (
        lambda: policy(actions=spaces.Box(-1, 1, (0,))), UnsupportedSpaceError, ("action_space", "one component"),
    ),
    "dict of actions": (
        lambda: policy(actions=spaces.Dict({"x": ACTIONS})), UnsupportedSpaceError, ("action_space", "Box", "Dict"),
    ),
    "continuous actions for DQN": (
        lambda: policy("DQN", actions=ACTIONS),
        UnsupportedSpaceError,
        ("action_space", "Discrete", "LBDNDQNPolicy", "Box"),
    ),
    "several actions for QRDQN": (
        lambda: policy("QRDQN", actions=ACTION_KINDS["multi-discrete"]),
        UnsupportedSpaceError,
        ("action_space", "Discrete"),
    ),
    "masked continuous actions": (
        lambda: policy("MaskablePPO", actions=ACTIONS), UnsupportedSpaceError, ("action_space", "LBDNMaskablePolicy"),
    ),
    "discrete actions for SAC": (
        lambda: policy("SAC", actions=spaces.Discrete(2)),
        UnsupportedSpaceError,
        ("action_space", "Box", "Discrete(2)"),
    ),
    "unbounded actions for SAC": (
        lambda: policy("SAC", actions=box([-np.inf], [np.inf])),
        UnsupportedSpaceError,
        ("action_space", "finite", "inf"),
    ),
    "half-bounded actions for TD3": (
        lambda: policy("TD3", actions=box([0, 0], [1, np.inf])), UnsupportedSpaceError, ("action_space", "finite"),
    ),
    "unbounded squashed actions for PPO": (
        lambda: policy(actions=box([-np.inf] * 2, [np.inf] * 2), use_sde=True, squash_output=True),
        UnsupportedSpaceError,
        ("action_space", "squashed", "inf"),
    ),
    "squashed actions without range": (
        lambda: policy("TQC", actions=box([0, 1], [0, 2])), UnsupportedSpaceError, ("action_space", "low < high"),
    ),
    "a range that overflows": (
        lambda: policy("SAC", actions=box([-3e38], [3e38])), UnsupportedSpaceError, ("action_space", "finite"),
    ),
    "squashed integers": (
        lambda: policy("TD3", actions=box([0], [9], np.int64)),
        UnsupportedSpaceError,
        ("action_space", "floating", "int64"),
    ),
    # Options
    "unknown key of a scale": (
        lambda: policy(observations=DICT, observation_scale={"z": [1, 1, 1], "y": [1.0]}),
        InvalidArgumentError,
        ("observation_scale", "'z'", "got ['y']"),
    ),
    "scale of a dict entry too long": (
        lambda: policy("SAC", DICT, observation_scale={"a": [1.0] * 4}),
        ShapeError,
        ("observation_scale['a']", "(3,)", "(4,)"),
    ),
    "negative scale in a dict": (
        lambda: policy("DQN", DICT, observation_scale={"z": [1.0, -2.0, 1.0]}),
        InvalidArgumentError,
        ("observation_scale['z'][1]", "-2.0"),
    ),
    "flat scale of a dict too short": (
        lambda: policy(observations=DICT, observation_scale=[1.0, 2.0]),
        ShapeError,
        ("observation_scale", "(13,)", "(2,)"),
    ),
    "dict of scales for a vector": (
        lambda: policy("TD3", observation_scale={"z": [1.0]}), InvalidArgumentError, ("observation_scale", "no Dict"),
    ),
    "scaled image": (lambda: ObservationScale(IMAGE), UnsupportedSpaceError, ("observation_space", "image")),
    "penalty on a fixed bound": (
        lambda: policy("SAC", lipschitz_penalty=1.0),
        InvalidArgumentError,
        ("lipschitz_penalty", "trainable_lipschitz"),
    ),
    "critic of DQN": (
        lambda: policy("DQN", lipschitz_critic=2.0), InvalidArgumentError, ("lipschitz_critic", "LBDNDQNPolicy", "2.0"),
    ),
    "critic of QRDQN": (
        lambda: policy("QRDQN", lipschitz_critic=2.0), InvalidArgumentError, ("lipschitz_critic", "LBDNQRDQNPolicy"),
    ),
    "critic of CrossQ": (
        lambda: policy("CrossQ", lipschitz_critic=2.0), InvalidArgumentError, ("lipschitz_critic", "LBDNCrossQPolicy"),
    ),
    "negative critic": (
        lambda: policy("TD3", lipschitz_critic=-2.0), InvalidArgumentError, ("lipschitz_critic", "> 0", "-2.0"),
    ),
    "action scale of DQN": (
        lambda: policy("DQN", action_scale=[1.0] * 3), InvalidArgumentError, ("action_scale", "discrete"),
    ),
    "SAC without critic widths": (
        lambda: policy("SAC", net_arch={"pi": [8]}), InvalidArgumentError, ("net_arch", "'qf'", "no 'qf'"),
    ),
    "SAC with widths of PPO": (
        lambda: policy("SAC", net_arch={"pi": [8], "vf": [8]}), InvalidArgumentError, ("net_arch", "unknown 'vf'"),
    ),
    "TD3 with a standard deviation": (
        lambda: policy("TD3", net_arch={"pi": [8], "qf": [8], "std": [8]}),
        InvalidArgumentError,
        ("net_arch", "unknown 'std'"),
    ),
    "PPO with widths of SAC": (
        lambda: policy(net_arch={"pi": [8], "qf": [8]}), InvalidArgumentError, ("net_arch", "'vf'", "unknown 'qf'"),
    ),
    "DQN with a dict": (lambda: policy("DQN", net_arch={"pi": [8]}), InvalidArgumentError, ("net_arch", "list")),
    "DQN with an empty dict": (lambda: policy("DQN", net_arch={}), InvalidArgumentError, ("net_arch", "list", "{}")),
    "list of dicts for TD3": (
        lambda: policy("TD3", net_arch=[{"pi": [8]}]), InvalidArgumentError, ("net_arch[0]", "integer", "'pi'"),
    ),
    "width of a critic": (
        lambda: policy("TQC", net_arch={"pi": [8], "qf": [0]}),
        InvalidArgumentError,
        ("net_arch['qf'][0]", ">= 1", "got 0"),
    ),
    "swish": (lambda: policy("SAC", activation_fn=nn.SiLU), InvalidArgumentError, ("activation", "[0, 1]", "silu")),
    "extractor": (
        lambda: policy("DQN", features_extractor_class=nn.Flatten), InvalidArgumentError, ("features_extractor_class",),
    ),
    "recurrent policy": (recurrent, InvalidArgumentError, ("policy", "memory", "RecurrentActorCriticPolicy")),
    # Observations by value
    "array for a dict": (
        lambda: flat(DICT, np.zeros(3)), InvalidArgumentError, ("observation", "['a', 'b', 'm', 'z']", "ndarray"),
    ),
    "dict for an array": (
        lambda: flat(OBSERVATIONS, {"z": 1.0}), InvalidArgumentError, ("observation", "array", "dict"),
    ),
    "key that is missing": (lambda: flat(DICT, {"z": np.zeros(3)}), InvalidArgumentError, ("observation", "got ['z']")),
    "key too many": (
        lambda: flat(DICT, {**ENTRIES, "y": 0}), InvalidArgumentError, ("observation", "got ['a', 'b', 'm', 'y', 'z']"),
    ),
    "value too large": (
        lambda: flat(DICT, {**ENTRIES, "a": 3}), InvalidArgumentError, ("observation['a']", "from 0 to 2", "got 3"),
    ),
    "value below zero": (
        lambda: flat(spaces.Discrete(3), -1), InvalidArgumentError, ("observation", "0 to 2", "got -1"),
    ),
    "value between": (lambda: flat(spaces.Discrete(3), [0.0, 1.5]), InvalidArgumentError, ("observation", "1.5")),
    "values out of range": (
        lambda: flat(DICT, {**ENTRIES, "m": [1, 3]}),
        InvalidArgumentError,
        ("observation['m']", "[1, 2]", "got [1.0, 3.0]"),
    ),
    "binary two": (
        lambda: flat(DICT, {**ENTRIES, "b": [0, 2]}), InvalidArgumentError, ("observation['b']", "from 0 to 1", "2.0"),
    ),
    "nan as a value": (lambda: flat(spaces.Discrete(3), np.nan), InvalidArgumentError, ("observation", "nan")),
    "shape of an entry": (
        lambda: flat(DICT, {**ENTRIES, "z": np.zeros(4)}), ShapeError, ("observation['z']", "(3,)", "(4,)"),
    ),
    "shape of a batch": (
        lambda: flat(OBSERVATIONS, np.zeros((2, 2, 3))), ShapeError, ("observation", "(3,)", "(2, 2, 3)"),
    ),
    "batches of two sizes": (
        lambda: flat(DICT, {**ENTRIES, "z": np.zeros((5, 3))}), ShapeError, ("observation", "one batch size", "(5,)"),
    ),
    "text as an entry": (
        lambda: flat(DICT, {**ENTRIES, "z": "up"}), InvalidArgumentError, ("observation['z']", "numbers", "str"),
    ),
    "predict without a key": (
        lambda: policy(observations=DICT).predict({"z": np.zeros(3)}),
        InvalidArgumentError,
        ("observation", "got ['z']"),
    ),
    "predict out of range": (
        lambda: policy("DQN", spaces.Discrete(4)).predict(np.array(4)),
        InvalidArgumentError,
        ("observation", "0 to 3", "4"),
    ),
    "predict from nan in a dict": (
        lambda: policy("SAC", DICT).predict({**ENTRIES, "z": np.array([0.0, np.nan, 0.0])}),
        NonFiniteError,
        ("observation['z']", "1 of 3"),
    ),
    "predict from an array": (
        lambda: policy("TD3", DICT).predict(np.zeros(3)), InvalidArgumentError, ("observation", "dict", "ndarray"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_bad_call(name: str) -> None:
    assert_refused(*CALLS[name])


def test_good_calls_beside_the_bad_ones() -> None:
    policy(observations=DICT, observation_scale={"z": np.array([1.0, 2.0, 3.0]), "a": torch.ones(3)})
    policy("TD3", net_arch=(8, 8)), policy("SAC", net_arch={"pi": (8,), "qf": [8], "std": [4]})
    policy(net_arch={}), policy("DQN", net_arch=()), policy("SAC", actions=spaces.Box(-1, 1, ()))
    policy(actions=spaces.MultiDiscrete([1, 2])), policy(observations=spaces.Discrete(1))
    policy(observations=spaces.Box(0, 255, (3, 3), np.uint8)), policy(actions=box([0], [9], np.int64))
    for entries in (ENTRIES, {key: np.stack([value] * 4) for key, value in ENTRIES.items()}):
        assert flat(DICT, entries).shape[-1] == 13
        policy(observations=DICT).predict(entries)


def test_an_old_form_of_net_arch_still_works_with_sb3s_warning() -> None:
    with pytest.warns(UserWarning, match="shared layers"):
        made = policy(net_arch=[{"pi": [7], "vf": [5]}])
    assert made.lbdn.hidden_features == (7,) and made.net_arch == {"pi": [7], "vf": [5]}


def test_algorithms_pass_the_messages_on() -> None:
    with pytest.raises(UnsupportedSpaceError, match="observation_space: expected no Dict"):
        any_model("CrossQ", "dict")
    with pytest.raises(InvalidArgumentError, match="lipschitz: expected a bound > 0, got None"):
        any_model("SAC", policy_kwargs={"lipschitz": None})
