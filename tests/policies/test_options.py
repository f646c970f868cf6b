"""Options of the policies: all are stored in files, and those about the bound do what they say."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from robustnn.bounds import lower_bound
from robustnn.errors import InvalidArgumentError
from robustnn.nn.lbdn import LBDN
from robustnn.policies.base import LipschitzPolicy
from tests.policies.toy import (
    ACTION_KINDS,
    ALGORITHMS,
    OBSERVATIONS,
    algorithm_of,
    any_model,
    sample_observations,
    steepen,
)

EPS32 = float(np.finfo(np.float32).eps)
SAMPLE = sample_observations(OBSERVATIONS, 30)

# Every option at a value that is not its default, in groups.
BOUND: dict[str, Any] = {
    "lipschitz": 2.5,
    "observation_scale": (0.5, 2.0, 3.0),
    "trainable_lipschitz": True,
    "lipschitz_penalty": 0.25,
}
TRAINING: dict[str, Any] = {
    "activation_fn": nn.ELU,
    "normalize_images": False,
    "optimizer_class": torch.optim.RMSprop,
    "optimizer_kwargs": {"alpha": 0.9, "eps": 1e-3, "weight_decay": 0.01},
}
ON_POLICY: dict[str, Any] = {
    **BOUND, **TRAINING, "net_arch": {"pi": [5, 4], "vf": [6]}, "ortho_init": False,
    "share_features_extractor": False, "lipschitz_critic": 7.0, "action_scale": (0.2, 4.0),
}  # fmt: skip
SDE: dict[str, Any] = {"use_sde": True, "log_std_init": -0.7, "use_expln": True}
OFF_POLICY: dict[str, Any] = {
    **BOUND, **TRAINING, "net_arch": {"pi": [5, 4], "qf": [6]}, "share_features_extractor": True, "n_critics": 3,
    "lipschitz_critic": 7.0, "action_scale": (0.2, 4.0),
}  # fmt: skip
GAUSSIAN: dict[str, Any] = {**SDE, "clip_mean": 1.5}
BATCH_NORM: dict[str, Any] = {
    "batch_norm": False, "batch_norm_momentum": 0.2, "batch_norm_eps": 0.03, "renorm_warmup_steps": 77,
}  # fmt: skip
EVERYTHING: dict[str, dict[str, Any]] = {
    "PPO": {**ON_POLICY, **SDE, "full_std": False, "squash_output": True},
    "MaskablePPO": {name: value for name, value in ON_POLICY.items() if name != "action_scale"},
    "SAC": {**OFF_POLICY, **GAUSSIAN},
    "TD3": OFF_POLICY,
    "DQN": {**BOUND, **TRAINING, "net_arch": [6, 5]},
    "TQC": {**OFF_POLICY, **GAUSSIAN, "n_quantiles": 4},
    "CrossQ": {
        name: value
        for name, value in {**OFF_POLICY, **GAUSSIAN, **BATCH_NORM}.items()
        if name != "lipschitz_critic"
    },
    "QRDQN": {**BOUND, **TRAINING, "net_arch": [6, 5], "n_quantiles": 4},
}
# Accepted with one value only: the class does not support others, and says so.
REFUSED: dict[str, set[str]] = {
    "MaskablePPO": {"action_scale"},
    "DQN": {"action_scale", "lipschitz_critic"},
    "CrossQ": {"lipschitz_critic"},
    "QRDQN": {"action_scale", "lipschitz_critic"},
}
GIVEN_BY_US = {"features_extractor_class", "features_extractor_kwargs"}


def build(name: str, **options: Any) -> Any:
    return algorithm_of(name)[1](
        OBSERVATIONS, ACTION_KINDS[ALGORITHMS[name].actions[0]], lambda _: 1e-3, **options
    )


def arguments(policy: type) -> dict[str, inspect.Parameter]:
    """Those of the first class of SB3 behind the policy, and ours."""
    theirs = next(cls for cls in policy.__mro__ if not cls.__module__.startswith("robustnn"))
    found = {
        **inspect.signature(theirs.__init__).parameters,
        **inspect.signature(LipschitzPolicy.__init__).parameters,
    }
    return {
        name: p
        for name, p in found.items()
        if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and name != "self"
    }


def described(policy: Any) -> dict[str, Any]:
    """Structure and settings that no state dict shows."""
    modules = dict(policy.named_modules())
    found: dict[str, Any] = {"modules": repr(policy)}
    for path, other in policy.named_modules(remove_duplicate=False):  # which modules are one and the same
        found[f"{path} is"] = next(name for name, module in modules.items() if module is other)
    for path, module in modules.items():
        holders = {
            path: vars(module),
            f"{path} dist": vars(getattr(module, "action_dist", SimpleNamespace())),
        }
        optimizer = getattr(module, "optimizer", None)
        if optimizer is not None:
            holders[f"{path} {type(optimizer)}"] = {**optimizer.defaults, "lr": None}
        for holder, settings in holders.items():
            for key, value in settings.items():
                if isinstance(value, (bool, int, float, str)) and (key[0] != "_" or key == "_squash_output"):
                    found[f"{holder}.{key}"] = value
    return found


@pytest.mark.parametrize("name", EVERYTHING)
def test_no_option_is_forgotten(name: str) -> None:
    known = arguments(algorithm_of(name)[1])
    given = set(EVERYTHING[name])
    assert set(known) == given | REFUSED.get(name, set()) | GIVEN_BY_US | {
        "observation_space", "action_space", "lr_schedule",
    }  # fmt: skip
    assert all(EVERYTHING[name][option] != known[option].default for option in given)
    data = build(name, **EVERYTHING[name])._get_constructor_parameters()
    assert set(data) == set(known) - GIVEN_BY_US
    assert data["lipschitz"] == pytest.approx(2.5, rel=2 * EPS32)  # the logarithm is what is trained
    assert {option: data[option] for option in given - {"lipschitz"}} == {
        option: EVERYTHING[name][option] for option in given - {"lipschitz"}
    }


@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize("name", EVERYTHING)
def test_a_policy_file_has_all_options(name: str, everything: bool, tmp_path: Path) -> None:
    policy = build(name, **(EVERYTHING[name] if everything else {"lipschitz": 2.5}))
    policy.save(str(tmp_path / "policy.pt"))
    loaded = type(policy).load(str(tmp_path / "policy.pt"), device="cpu")
    assert described(loaded) == described(policy)
    first, second = policy._get_constructor_parameters(), loaded._get_constructor_parameters()
    first.pop("lr_schedule"), second.pop("lr_schedule")
    assert first == second
    torch.manual_seed(0)
    expected = policy.predict(SAMPLE, deterministic=True)[0]
    np.testing.assert_array_equal(loaded.predict(SAMPLE, deterministic=True)[0], expected)


@pytest.mark.parametrize("name", EVERYTHING)
def test_a_model_with_all_options_trains_and_is_stored(name: str, tmp_path: Path) -> None:
    options = dict(EVERYTHING[name])
    sde = options.pop("use_sde", False)  # an argument of the algorithms
    settings = {"use_sde": sde} if sde else {}
    model = any_model(name, policy_kwargs=options, **settings)
    before = [p.detach().clone() for p in model.policy.parameters()]
    model.learn(120)
    named = zip(model.policy.named_parameters(), before, strict=True)
    assert [key for (key, p), start in named if torch.equal(p, start)] == []
    model.save(tmp_path / "model.zip")
    loaded = type(model).load(tmp_path / "model.zip", device="cpu")
    assert described(loaded.policy) == described(model.policy)
    for vector in (SAMPLE, SAMPLE[0]):
        got, expected = (m.predict(vector, deterministic=True)[0] for m in (loaded, model))
        np.testing.assert_array_equal(got, expected)
    assert loaded.policy.bound() == model.policy.bound()


def test_defaults_of_the_optimizers() -> None:
    expected = {
        "PPO": {"eps": 1e-5}, "SAC": {}, "TD3": {}, "DQN": {}, "MaskablePPO": {"eps": 1e-5}, "TQC": {},
        "CrossQ": {"betas": (0.5, 0.999)},
    }  # fmt: skip
    plain = torch.optim.Adam([torch.zeros(1)]).defaults
    for name, settings in expected.items():
        policy = build(name, lipschitz=2.5)
        assert policy._actor_optimizer().defaults == {**plain, "fused": True, "lr": 1e-3, **settings}
        given = build(name, lipschitz=2.5, optimizer_kwargs={"eps": 0.1})._actor_optimizer()
        assert given.defaults == {**plain, "lr": 1e-3, "eps": 0.1}
    assert any_model("QRDQN").policy.optimizer.defaults["eps"] == 0.01 / 32  # the algorithm's own


@pytest.mark.parametrize("name", ALGORITHMS)
def test_gamma_is_trained_and_a_penalty_lowers_it(name: str) -> None:
    gammas = {}
    for weight in (0.0, 30.0):
        if weight and name == "TRPO":
            continue  # refused, see below
        kwargs = {"trainable_lipschitz": True, "lipschitz_penalty": weight}
        model = any_model(name, policy_kwargs=kwargs)
        assert len(hooks(model.policy)) == (weight > 0.0)
        start = model.policy.lipschitz
        assert start == pytest.approx(ALGORITHMS[name].lipschitz, rel=4 * EPS32)
        model.learn(130)
        gammas[weight] = model.policy.lipschitz
        assert gammas[weight] != start
        assert model.policy.bound().lipschitz == gammas[weight]
        if weight:
            assert gammas[weight] < 0.985 * min(start, gammas[0.0])


def test_trpo_takes_no_penalty() -> None:
    kwargs = {"trainable_lipschitz": True, "lipschitz_penalty": 1.0}
    with pytest.raises(InvalidArgumentError, match=r"lipschitz_penalty: expected 0 .*TRPO.*got 1\.0"):
        any_model("TRPO", policy_kwargs=kwargs).learn(64)


def hooks(policy: Any) -> list[Any]:
    return list(policy._actor_optimizer()._optimizer_step_pre_hooks.values())


def log_gamma(policy: Any) -> float:
    return policy.lbdn.log_lipschitz.detach().item()


def through_model_file(policy: Any, model: Any, path: Path) -> Any:
    model.save(path)
    return type(model).load(path, device="cpu").policy


def through_policy_file(policy: Any, model: Any, path: Path) -> Any:
    policy.save(str(path))
    return type(policy).load(str(path), device="cpu")


WAYS: dict[str, Callable[[Any, Any, Path], Any]] = {
    "itself": lambda policy, model, path: policy,
    "deepcopy": lambda policy, model, path: copy.deepcopy(policy),
    "shallow copy": lambda policy, model, path: copy.copy(policy),
    "pickle": lambda policy, model, path: pickle.loads(pickle.dumps(policy)),
    "deepcopy of the model": lambda policy, model, path: copy.deepcopy(model).policy,
    "copy of a copy": lambda policy, model, path: copy.deepcopy(pickle.loads(pickle.dumps(policy))),
    "model file": through_model_file,
    "policy file": through_policy_file,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["PPO", "SAC", "TD3", "DQN"])
def test_the_penalty_acts_once_after_copies_and_files(name: str, way: str, tmp_path: Path) -> None:
    weight = 0.125
    kwargs = {
        "trainable_lipschitz": True, "lipschitz_penalty": weight, "lipschitz": 2.0,
        "optimizer_class": torch.optim.SGD,
    }  # fmt: skip
    model = any_model(name, policy_kwargs=kwargs)
    policy = WAYS[way](model.policy, model, tmp_path / "file")
    optimizer = policy._actor_optimizer()
    for group in optimizer.param_groups:
        group["lr"] = 1.0
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    before, gamma = log_gamma(policy), policy.lipschitz
    optimizer.step()
    assert log_gamma(policy) == pytest.approx(before - weight * gamma, rel=4 * EPS32)
    # A gamma that was fixed after all is left alone.
    policy.lbdn.log_lipschitz.requires_grad_(False).grad = None
    optimizer.step()
    assert log_gamma(policy) == pytest.approx(before - weight * gamma, rel=4 * EPS32)


def critics(policy: Any) -> list[LBDN]:
    if hasattr(policy, "critic"):
        return list(policy.critic.q_networks)
    return [policy.value_net]


@pytest.mark.parametrize("name", ["PPO", "A2C", "TRPO", "MaskablePPO", "SAC", "TD3", "DDPG", "TQC"])
def test_the_critic_obeys_its_bound(name: str, tmp_path: Path) -> None:
    bound = 1.5
    kwargs = {"lipschitz_critic": bound, "activation_fn": nn.Tanh, "observation_scale": (1.0, 2.0, 4.0)}
    if name == "TQC":
        kwargs["n_quantiles"] = 5
    model = any_model(name, policy_kwargs=kwargs)
    model.learn(100)
    n_in = critics(model.policy)[0].in_features
    starts = torch.randn(16, n_in, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def value(network: LBDN) -> Callable[[Tensor], Tensor]:
        with torch.no_grad():
            explicit = network.explicit().to(dtype=torch.float64)
        return lambda x: explicit(x).mean(-1, keepdim=True)

    for network in critics(model.policy):
        assert 0.0 < lower_bound(value(network), starts, iterations=25).value <= bound
    model.save(tmp_path / "model.zip")
    model.policy.save(str(tmp_path / "policy.pt"))
    x = model.policy.obs_to_tensor(SAMPLE)[0]
    a = torch.linspace(-1, 1, 60).reshape(30, 2)
    for loaded in (
        type(model).load(tmp_path / "model.zip", device="cpu").policy,
        type(model.policy).load(str(tmp_path / "policy.pt"), device="cpu"),
    ):
        assert [net.lipschitz for net in critics(loaded)] == [bound] * len(critics(loaded))
        with torch.no_grad():
            if hasattr(loaded, "critic"):
                assert all(map(torch.equal, loaded.critic(x, a), model.policy.critic(x, a)))
                assert all(map(torch.equal, loaded.critic_target(x, a), model.policy.critic_target(x, a)))
            else:
                assert torch.equal(loaded.predict_values(x), model.policy.predict_values(x))
    # No smaller number would do.
    steep = critics(model.policy)[0]
    steepen(steep, steep.out_features)
    slope = torch.autograd.functional.jacobian(value(steep), torch.zeros(n_in, dtype=torch.float64))
    assert bound * (1.0 - 64 * EPS32) < float(slope.norm()) <= bound


NETWORKS = {"PPO": 1, "MaskablePPO": 1, "SAC": 1, "TD3": 2, "TQC": 1, "CrossQ": 1, "DQN": 2, "QRDQN": 2}


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize(("name", "count"), NETWORKS.items())
def test_set_lipschitz_acts_on_the_actor_and_its_target(
    name: str, count: int, trainable: bool, tmp_path: Path
) -> None:
    model = any_model(name, policy_kwargs={"trainable_lipschitz": trainable})
    policy = model.policy
    start = policy.action_map()(torch.as_tensor(SAMPLE).double())
    policy.set_lipschitz(0.5)
    model.save(tmp_path / "model.zip")
    policy.save(str(tmp_path / "policy.pt"))
    loaded = type(model).load(tmp_path / "model.zip", device="cpu").policy
    again = type(policy).load(str(tmp_path / "policy.pt"), device="cpu")
    for each in (policy, copy.deepcopy(policy), loaded, again):
        networks = [module for module in each.modules() if isinstance(module, LBDN)]
        assert networks == list(each.bounded_networks()) and len(networks) == count
        assert [net.lipschitz for net in networks] == pytest.approx([0.5] * count, rel=4 * EPS32)
        assert each.lipschitz == each.bound().lipschitz == networks[0].lipschitz
        assert not torch.equal(each.action_map()(torch.as_tensor(SAMPLE).double()), start)
    model.learn(80)
    assert trainable or [net.lipschitz for net in policy.bounded_networks()] == [0.5] * count


@pytest.mark.parametrize("name", ["SAC", "TD3", "TQC"])
@pytest.mark.parametrize("width", [1e-4, 1.0, 1e4])
def test_first_actions_are_in_the_middle_of_any_range(name: str, width: float) -> None:
    space = spaces.Box(np.float32([-width, 0.0]), np.float32([width, 2 * width]), dtype=np.float32)
    policy = algorithm_of(name)[1](OBSERVATIONS, space, lambda _: 1e-3, lipschitz=4.0, net_arch=[8, 8])
    scaled = policy.scale_action(policy.predict(SAMPLE, deterministic=True)[0])
    assert np.abs(scaled).max() < 0.9
