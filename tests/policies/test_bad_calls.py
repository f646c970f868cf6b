"""Wrong input to the policies: each call fails with a message that names the argument, expected and got."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.torch_layers import NatureCNN
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecNormalize
from torch import nn

from robustnn.errors import (
    CheckpointError,
    InvalidArgumentError,
    NonFiniteError,
    ShapeError,
    UnsupportedSpaceError,
)
from robustnn.policies import ActionMap, LBDNActorCriticPolicy, ObservationScale, action_map
from robustnn.policies.scaling import Bound
from tests.policies.toy import (
    ACTIONS,
    OBSERVATIONS,
    ToyEnv,
    assert_refused,
    randomise,
    toy_model,
    toy_vec_env,
)

SQUASHED = {"use_sde": True, "squash_output": True}


def policy(
    observation_space: spaces.Space = OBSERVATIONS, action_space: spaces.Space = ACTIONS, **kwargs: Any
) -> LBDNActorCriticPolicy:
    kwargs = {"lipschitz": 4.0, "net_arch": [8], **kwargs}
    return LBDNActorCriticPolicy(observation_space, action_space, lambda _: 1e-3, **kwargs)


def discrete(**kwargs: Any) -> LBDNActorCriticPolicy:
    return policy(action_space=spaces.Discrete(3), **kwargs)


def normalised(env: VecEnv) -> VecNormalize:
    return VecNormalize(env, training=False)


def normalised_twice() -> Any:
    return normalised(normalised(toy_vec_env()))


def parametric_activation() -> Any:
    return toy_model(policy="MlpPolicy", policy_kwargs={"activation_fn": lambda: nn.LeakyReLU(0.3)}).policy


def stack_of_unequal_tasks() -> ActionMap:
    wide = spaces.Box(-2.0, 2.0, (2,))
    return ActionMap.stack([action_map(policy()), action_map(policy(action_space=wide))])


def stack_of_mixed_normalisation() -> ActionMap:
    env = VecNormalize(toy_vec_env())
    return ActionMap.stack([action_map(policy()), action_map(policy(), env)])


def huge_weights() -> Any:
    broken = policy()
    broken.action_net.layers[0].weight.data[0, 0] = torch.inf
    return broken.predict(np.zeros(3, np.float32), deterministic=True)


def nan_in_mean() -> Any:
    broken = policy()
    randomise(broken, 1.0)
    return broken(torch.full((1, 3), torch.nan))


OBSERVATION = np.zeros(3, np.float32)

# name: (call, error, words that the message must contain)
CALLS: dict[str, tuple[Callable[[], Any], type[Exception], tuple[str, ...]]] = {
    "no bound": (lambda: policy(lipschitz=None), InvalidArgumentError, ("lipschitz", "got None")),
    "nan bound": (lambda: policy(lipschitz=float("nan")), NonFiniteError, ("lipschitz", "got nan")),
    "infinite bound": (lambda: policy(lipschitz=float("inf")), NonFiniteError, ("lipschitz", "got inf")),
    "zero bound": (lambda: policy(lipschitz=0), InvalidArgumentError, ("lipschitz", "> 0", "got 0")),
    "negative bound": (lambda: policy(lipschitz=-1.0), InvalidArgumentError, ("lipschitz", "got -1.0")),
    "boolean bound": (lambda: policy(lipschitz=True), InvalidArgumentError, ("lipschitz", "got True")),
    "text bound": (lambda: policy(lipschitz="5"), InvalidArgumentError, ("lipschitz", "got '5'")),
    "list bound": (lambda: policy(lipschitz=[5.0]), InvalidArgumentError, ("lipschitz", "got [5.0]")),
    "bound by position through PPO": (
        lambda: PPO(LBDNActorCriticPolicy, toy_vec_env(), device="cpu"),
        InvalidArgumentError,
        ("lipschitz", "policy_kwargs"),
    ),
    "observation scale too short": (
        lambda: policy(observation_scale=(1.0, 2.0)), ShapeError, ("observation_scale", "(3,)", "(2,)"),
    ),
    "observation scale too deep": (
        lambda: policy(observation_scale=np.ones((3, 1))), ShapeError, ("observation_scale", "(3,)", "(3, 1)"),
    ),
    "observation scale a number": (
        lambda: policy(observation_scale=2.0), InvalidArgumentError, ("observation_scale", "sequence", "2.0"),
    ),
    "observation scale a text": (
        lambda: policy(observation_scale="abc"), InvalidArgumentError, ("observation_scale", "'abc'"),
    ),
    "observation scale negative": (
        lambda: policy(observation_scale=(1.0, -2.0, 1.0)), InvalidArgumentError, ("observation_scale[1]", "-2.0"),
    ),
    "observation scale zero": (
        lambda: policy(observation_scale=(0.0, 1.0, 1.0)), InvalidArgumentError, ("observation_scale[0]", "0.0"),
    ),
    "observation scale nan": (
        lambda: policy(observation_scale=(1.0, 1.0, np.nan)), NonFiniteError, ("observation_scale[2]", "nan"),
    ),
    "observation scale of texts": (
        lambda: policy(observation_scale=("a", "b", "c")), InvalidArgumentError, ("observation_scale[0]", "'a'"),
    ),
    "observation scale vanishes in float32": (
        lambda: policy(observation_scale=(1e-60, 1.0, 1.0)), InvalidArgumentError, ("observation_scale[0]", "1e-60"),
    ),
    "observation scale overflows in float32": (
        lambda: policy(observation_scale=(1e60, 1.0, 1.0)), InvalidArgumentError, ("observation_scale[0]", "1e+60"),
    ),
    "action scale of discrete actions": (
        lambda: discrete(action_scale=(1.0, 1.0, 1.0)), InvalidArgumentError, ("action_scale", "None", "discrete"),
    ),
    "action scale too long": (
        lambda: policy(action_scale=(1.0, 1.0, 1.0)), ShapeError, ("action_scale", "(2,)", "(3,)"),
    ),
    "action scale negative": (
        lambda: policy(action_scale=(-1.0, 1.0)), InvalidArgumentError, ("action_scale[0]", "-1.0"),
    ),
    "action scale nan": (
        lambda: policy(action_scale=(1.0, np.nan), **SQUASHED), NonFiniteError, ("action_scale[1]", "nan"),
    ),
    "action scale a number": (
        lambda: policy(action_scale=0.5), InvalidArgumentError, ("action_scale", "sequence", "0.5"),
    ),
    "squashing without sde": (lambda: policy(squash_output=True), AssertionError, ("squash_output", "use_sde")),
    "image extractor": (
        lambda: policy(features_extractor_class=NatureCNN),
        InvalidArgumentError,
        ("features_extractor_class", "NatureCNN", "observation_scale"),
    ),
    "extractor settings": (
        lambda: policy(features_extractor_kwargs={"features_dim": 8}),
        InvalidArgumentError,
        ("features_extractor_",),
    ),
    "gelu": (lambda: policy(activation_fn=nn.GELU), InvalidArgumentError, ("activation", "[0, 1]", "gelu")),
    "activation object": (
        lambda: policy(activation_fn=nn.Tanh()), InvalidArgumentError, ("activation", "Tanh()", "class"),
    ),
    "penalty on a fixed bound": (
        lambda: policy(lipschitz_penalty=0.5), InvalidArgumentError, ("lipschitz_penalty", "0.5", "trainable_"),
    ),
    "negative penalty": (
        lambda: policy(trainable_lipschitz=True, lipschitz_penalty=-1.0),
        InvalidArgumentError,
        ("lipschitz_penalty", "-1.0"),
    ),
    "penalty not finite": (
        lambda: policy(trainable_lipschitz=True, lipschitz_penalty=np.inf),
        NonFiniteError,
        ("lipschitz_penalty", "inf"),
    ),
    "trainable in words": (
        lambda: policy(trainable_lipschitz="no"), InvalidArgumentError, ("trainable_lipschitz", "True or", "'no'"),
    ),
    "critic without slope": (
        lambda: policy(lipschitz_critic=0.0), InvalidArgumentError, ("lipschitz_critic", "> 0", "0.0"),
    ),
    "critic with a flag": (
        lambda: policy(lipschitz_critic=True), InvalidArgumentError, ("lipschitz_critic", "True"),
    ),
    "new bound of zero": (lambda: policy().set_lipschitz(0.0), InvalidArgumentError, ("lipschitz", "0.0")),
    "unknown argument": (lambda: policy(lipshitz=3.0), TypeError, ("lipshitz",)),
    "negative width": (lambda: policy(net_arch=[8, -1]), InvalidArgumentError, ("net_arch[1]", "-1")),
    "fractional width": (
        lambda: policy(net_arch={"pi": [8.5]}), InvalidArgumentError, ("net_arch['pi'][0]", "integer", "8.5"),
    ),
    "width as a number": (lambda: policy(net_arch=64), InvalidArgumentError, ("net_arch", "sequence", "64")),
    "unknown key of net_arch": (
        lambda: policy(net_arch={"policy": [8]}), InvalidArgumentError, ("net_arch", "'pi'", "'policy'"),
    ),
    "net_arch of a list of dicts": (
        lambda: policy(net_arch=[{"qf": [8]}]), InvalidArgumentError, ("net_arch", "'vf'", "unknown 'qf'"),
    ),
    "nan observation": (
        lambda: policy().predict(np.array([0.0, np.nan, 0.0])), NonFiniteError, ("observation", "1 of 3"),
    ),
    "infinite observation": (
        lambda: policy().predict(np.array([[0.0, np.inf, 0.0]] * 2)), NonFiniteError, ("observation", "2 of 6"),
    ),
    "nan in a tuple": (lambda: policy().predict((0.0, np.nan, 0.0)), NonFiniteError, ("observation", "1 of 3")),
    "observation beyond float32": (
        lambda: policy().predict(np.array([1e300, 0.0, 0.0])), NonFiniteError, ("observation", "1 of 3"),
    ),
    "dict observation": (
        lambda: policy().predict({"x": OBSERVATION}), InvalidArgumentError, ("observation", "array", "dict"),
    ),
    "text observation": (lambda: policy().predict("up"), InvalidArgumentError, ("observation", "array", "str")),
    "no observation": (lambda: policy().predict(None), InvalidArgumentError, ("observation",)),
    "observation with its info": (
        lambda: policy().predict((OBSERVATION, {})), ValueError, ("tuple", "predict", "reset"),
    ),
    "observation of another size": (lambda: policy().predict(np.zeros(4)), ValueError, ("(4,)", "(3,)")),
    "weights not finite": (huge_weights, NonFiniteError, ("parameter", "weight", "finite")),
    "mean not finite": (nan_in_mean, NonFiniteError, ("mean action", "finite")),
    "environment that is no VecEnv": (
        lambda: policy().bound(ToyEnv()), InvalidArgumentError, ("vec_env", "VecEnv", "ToyEnv"),  # type: ignore[arg-type]
    ),
    "statistics of another size": (
        lambda: policy().bound(normalised(toy_vec_env(spaces.Box(-1, 1, (5,))))), ShapeError, ("vec_env", "3", "5"),
    ),
    "statistics that still change": (
        lambda: policy().bound(VecNormalize(toy_vec_env())), InvalidArgumentError, ("vec_env", "training=True"),
    ),
    "frames that the policy was not made for": (
        lambda: policy().bound(VecFrameStack(normalised(toy_vec_env()), 2)), ShapeError, ("vec_env", "3", "6"),
    ),
    "normalised twice": (lambda: policy().bound(normalised_twice()), InvalidArgumentError, ("vec_env", "2 nested")),
    "environment with a dict": (
        lambda: policy().bound(toy_vec_env(spaces.Dict({"x": OBSERVATIONS}))), ShapeError, ("vec_env", "'x'"),
    ),
    "observation change of another size": (
        lambda: policy().bound().action_change(np.ones(2)), ShapeError, ("observation_change", "(..., 3)", "(2,)"),
    ),
    "observation change a number": (
        lambda: Bound(1.0, (1.0,), (1.0,)).action_change(1.0), ShapeError, ("observation_change", "()"),
    ),
    "map of an environment": (
        lambda: action_map(toy_vec_env()), InvalidArgumentError, ("policy", "PPO", "DummyVecEnv"),
    ),
    "map of a value network": (
        lambda: action_map(policy().value_net), InvalidArgumentError, ("policy", "Linear", "model.policy"),
    ),
    "decision about continuous actions": (
        lambda: action_map(policy()).decide(torch.zeros(3)), UnsupportedSpaceError, ("action_space", "discrete", "Box"),
    ),
    "map of a parametric activation": (
        lambda: action_map(parametric_activation()), InvalidArgumentError, ("network", "LeakyReLU", "0.3"),
    ),
    "map input of another dtype": (
        lambda: action_map(policy())(torch.zeros(1, 3)), InvalidArgumentError, ("float64", "float32"),
    ),
    "map input of another size": (
        lambda: action_map(policy())(torch.zeros(4, dtype=torch.float64)), ShapeError, ("(..., 3)", "(4,)"),
    ),
    "stack of nothing": (lambda: ActionMap.stack([]), InvalidArgumentError, ("at least one",)),
    "stack of unequal tasks": (stack_of_unequal_tasks, InvalidArgumentError, ("maps", "index 1")),
    "stack of mixed normalisation": (stack_of_mixed_normalisation, InvalidArgumentError, ("maps", "mixture")),
    "scale of another size": (
        lambda: ObservationScale(OBSERVATIONS, (1.0,)), ShapeError, ("observation_scale", "(3,)", "(1,)"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_bad_call(name: str) -> None:
    assert_refused(*CALLS[name])


def test_good_calls_beside_the_bad_ones() -> None:
    policy(observation_scale=[1, 2, 3], action_scale=np.array([1.0, 2.0]), lipschitz=np.float32(3))
    policy(net_arch=()), policy(net_arch={"pi": (8,)}), policy(net_arch=None)
    policy(observation_scale=torch.tensor([1.0, 2.0, 3.0]))
    policy().predict([0.0, 1.0, 2.0]), policy().predict((0.0, 1.0, 2.0)), policy().predict(np.arange(3))


@pytest.fixture
def files(tmp_path: Path) -> SimpleNamespace:
    """A saved model, a saved policy, and damaged or foreign files beside them."""
    model = toy_model()
    names = SimpleNamespace(**{name: tmp_path / name for name in ("model.zip", "policy.pt")})
    paths = SimpleNamespace(
        model=getattr(names, "model.zip"),
        policy=getattr(names, "policy.pt"),
        cut_model=tmp_path / "cut.zip",
        cut_policy=tmp_path / "cut.pt",
        text=tmp_path / "text.pt",
        empty=tmp_path / "empty.pt",
        tensor=tmp_path / "tensor.pt",
        mlp=tmp_path / "mlp.pt",
        poisoned=tmp_path / "poisoned.pt",
        missing=tmp_path / "missing.pt",
    )
    model.save(paths.model)
    model.policy.save(str(paths.policy))
    paths.cut_model.write_bytes(paths.model.read_bytes()[:2000])
    paths.cut_policy.write_bytes(paths.policy.read_bytes()[:2000])
    paths.text.write_text("no checkpoint")
    paths.empty.write_bytes(b"")
    torch.save(torch.zeros(3), paths.tensor)
    toy_model(policy="MlpPolicy").policy.save(str(paths.mlp))
    saved = torch.load(paths.policy, weights_only=False)
    saved["state_dict"]["action_net._extra_state"] = {"lipschitz": -3.0}
    torch.save(saved, paths.poisoned)
    return paths


@pytest.mark.parametrize("name", ["cut_policy", "text", "empty", "tensor", "mlp", "model", "poisoned"])
def test_damaged_and_foreign_policy_files(files: SimpleNamespace, name: str) -> None:
    path = getattr(files, name)
    with pytest.raises(CheckpointError, match=r"^path: expected .*got .*" + path.name) as caught:
        LBDNActorCriticPolicy.load(str(path), device="cpu")
    assert caught.value.__cause__ is not None


def test_damaged_model_files(files: SimpleNamespace) -> None:
    for path in (files.cut_model, files.text):
        with pytest.raises(ValueError, match="wasn't a zip-file"):
            PPO.load(path, device="cpu")
    with pytest.raises(FileNotFoundError):
        LBDNActorCriticPolicy.load(str(files.missing), device="cpu")


@pytest.mark.parametrize("value", [{"lipschitz": -1.0}, {"lipschitz": float("nan")}, {}, None, 3.0])
def test_a_state_dict_with_a_damaged_bound(value: Any) -> None:
    model = toy_model()
    state = dict(model.policy.state_dict())
    state["action_net._extra_state"] = value
    with pytest.raises(CheckpointError, match="lipschitz"):
        model.policy.load_state_dict(state)
    assert model.policy.lipschitz == 4.0


@pytest.mark.parametrize("key", ["action_net.output_scale", "features_extractor.scale"])
@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_a_state_dict_with_a_damaged_scale(key: str, bad: float) -> None:
    model = toy_model(policy_kwargs={"action_scale": (1.0, 1.0), "observation_scale": (1.0, 1.0, 1.0)})
    state = copy.deepcopy(model.policy.state_dict())
    state[key][1] = bad
    with pytest.raises(CheckpointError, match="scale"):
        model.policy.load_state_dict(state)
