"""Every algorithm: its policy trains within its bound, and files and copies give it back to the last bit."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cloudpickle
import numpy as np
import pytest
import torch
from stable_baselines3 import SAC, TD3, HerReplayBuffer
from stable_baselines3.common.envs import BitFlippingEnv
from torch import Tensor, nn

from robustnn.bounds import lower_bound
from robustnn.policies import LBDNSACPolicy, LBDNTD3Policy, action_map, flatten_observation
from tests.policies.toy import (
    ACTION_KINDS,
    ALGORITHMS,
    OBSERVATIONS,
    algorithm_of,
    any_model,
    is_off_policy,
    make_steep,
    randomise,
    sample_observations,
    toy_vec_env,
)

EPS32 = float(np.finfo(np.float32).eps)
SAMPLE = sample_observations(OBSERVATIONS, 50)
PAIRS = {
    "actor": "actor_target",
    "critic": "critic_target",
    "q_net": "q_net_target",
    "quantile_net": "quantile_net_target",
}


class Trained(NamedTuple):
    name: str
    model: Any
    start: list[Tensor]


@pytest.fixture(scope="module", params=ALGORITHMS)
def trained(request: pytest.FixtureRequest) -> Iterator[Trained]:
    """A model after 3,000 steps in ten environments. Tests change copies of it only."""
    model = any_model(request.param, n_envs=10)
    start = [p.detach().clone() for p in model.policy.parameters()]
    model.learn(3000)
    end = [p.detach().clone() for p in model.policy.parameters()]
    yield Trained(request.param, model, start)
    assert all(map(torch.equal, end, model.policy.parameters())), "a test has changed the model"


def actions(model: Any) -> np.ndarray:
    return model.predict(SAMPLE, deterministic=True)[0]


def outputs(model: Any) -> Tensor:
    """Actions, or the logits or Q-values that decide, in float64."""
    return action_map(model)(torch.as_tensor(flatten_observation(OBSERVATIONS, SAMPLE)))


def values(policy: Any) -> Tensor:
    """What the policy computes besides actions: values of states or of actions, by targets as well."""
    x = policy.obs_to_tensor(SAMPLE)[0]
    with torch.no_grad():
        if hasattr(policy, "predict_values"):
            return policy.predict_values(x)
        if hasattr(policy, "critic"):
            critics = [getattr(policy, name) for name in ("critic", "critic_target") if hasattr(policy, name)]
            a = torch.linspace(-1.0, 1.0, 100).reshape(50, 2)
            return torch.cat([q.flatten() for critic in critics for q in critic(x, a)])
        return torch.cat(
            [net(x).flatten() for net in policy.children() if hasattr(net, "features_extractor")]
        )


def same(model: Any, other: Any) -> None:
    """Equal actions, values, state dict and bound of two models or policies, to the last bit."""
    np.testing.assert_array_equal(actions(model), actions(other))
    a, b = getattr(model, "policy", model), getattr(other, "policy", other)
    assert type(a) is type(b)
    assert torch.equal(values(a), values(b))
    states = a.state_dict(), b.state_dict()
    assert list(states[0]) == list(states[1])
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]) if isinstance(value, Tensor) else value == states[1][key], (
            key
        )
    assert a.lipschitz == b.lipschitz
    assert a.bound() == b.bound()


def optimizers(policy: nn.Module) -> list[torch.optim.Optimizer]:
    found = [getattr(module, "optimizer", None) for module in policy.modules()]
    return [optimizer for optimizer in found if isinstance(optimizer, torch.optim.Optimizer)]


def test_training_respects_the_bound(trained: Trained) -> None:
    policy, declared = trained.model.policy, ALGORITHMS[trained.name].lipschitz
    bound = policy.bound()
    assert policy.lipschitz == declared
    # The scales of the float32 network are rounded to the safe side.
    assert declared * (1.0 - 2 * EPS32) <= bound.plain <= declared
    reached = lower_bound(
        action_map(trained.model),
        torch.as_tensor(flatten_observation(OBSERVATIONS, SAMPLE)),
        input_scale=torch.tensor(bound.observation_scale, dtype=torch.float64),
        output_scale=torch.tensor(bound.action_scale, dtype=torch.float64),
        iterations=60,
    ).value
    assert 0.0 < reached <= declared
    if is_off_policy(trained.name):
        assert trained.model._n_updates > 250


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_bound_is_attained(name: str) -> None:
    policy = any_model(name, policy_kwargs={"activation_fn": nn.Tanh}).policy
    make_steep(policy)
    bound = policy.bound()
    function, origin = policy.action_map(), torch.zeros(3, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(function, origin)
    weighted = jacobian / torch.tensor(bound.action_scale, dtype=torch.float64).unsqueeze(-1)
    steepest = float(torch.linalg.matrix_norm(weighted, 2))
    assert bound.lipschitz * (1.0 - 64 * EPS32) < steepest <= bound.lipschitz


def test_every_parameter_moves_and_has_one_optimizer(trained: Trained) -> None:
    policy = trained.model.policy
    named = dict(policy.named_parameters())
    still = [
        name for (name, p), start in zip(named.items(), trained.start, strict=True) if torch.equal(p, start)
    ]
    assert still == []
    stepped = [id(p) for o in optimizers(policy) for group in o.param_groups for p in group["params"]]
    assert len(set(stepped)) == len(stepped)
    assert set(stepped) == {id(p) for name, p in named.items() if "target" not in name}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_targets_start_equal_and_seeds_decide(name: str) -> None:
    policy, twin, other = (any_model(name, seed=seed).policy for seed in (3, 3, 4))
    for online, target in PAIRS.items():
        if hasattr(policy, target):
            first, second = getattr(policy, online), getattr(policy, target)
            assert first is not second and not second.training
            assert all(map(torch.equal, first.parameters(), second.parameters()))
            assert not {id(p) for p in first.parameters()} & {id(p) for p in second.parameters()}
    assert all(map(torch.equal, policy.parameters(), twin.parameters()))
    assert not np.array_equal(actions(policy), actions(other)) or not torch.equal(
        values(policy), values(other)
    )
    assert not all(map(torch.equal, policy.lbdn.parameters(), other.lbdn.parameters()))


def test_model_files(trained: Trained, tmp_path: Path) -> None:
    trained.model.save(tmp_path / "model.zip")
    loaded = algorithm_of(trained.name)[0].load(tmp_path / "model.zip", device="cpu")
    same(trained.model, loaded)
    for a, b in zip(optimizers(trained.model.policy), optimizers(loaded.policy), strict=True):
        first, second = a.state_dict(), b.state_dict()
        assert first["param_groups"] == second["param_groups"]
        for k, state in first["state"].items():
            for key, value in state.items():
                assert torch.equal(torch.as_tensor(value), torch.as_tensor(second["state"][k][key]))


def test_policy_files(trained: Trained, tmp_path: Path) -> None:
    trained.model.policy.save(str(tmp_path / "policy.pt"))
    same(trained.model.policy, algorithm_of(trained.name)[1].load(str(tmp_path / "policy.pt"), device="cpu"))


def through_torch(policy: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(policy, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda policy: pickle.loads(pickle.dumps(policy)),
    "cloudpickle": lambda policy: cloudpickle.loads(cloudpickle.dumps(policy)),
    "torch": through_torch,
}


@pytest.mark.parametrize("kind", COPIES)
def test_copies_of_the_policy(trained: Trained, kind: str) -> None:
    policy = trained.model.policy
    reference = outputs(policy)
    copied = COPIES[kind](policy)
    same(policy, copied)
    own = {id(p) for p in copied.parameters()}
    assert all(id(p) in own for o in optimizers(copied) for group in o.param_groups for p in group["params"])
    if hasattr(copied, "critic"):
        assert all(q is getattr(copied.critic, f"qf{k}") for k, q in enumerate(copied.critic.q_networks))
    randomise(copied, 1.0)
    assert not torch.equal(outputs(copied), reference)
    assert torch.equal(outputs(policy), reference)


def test_a_copy_of_the_model_trains_on(trained: Trained) -> None:
    model = copy.deepcopy(trained.model)
    same(trained.model, model)
    for name in (*PAIRS, *PAIRS.values()):
        if hasattr(model, name):
            assert getattr(model, name) is getattr(model.policy, name)
    model.learn(160, reset_num_timesteps=False)
    assert not torch.equal(outputs(model), outputs(trained.model))
    assert model.policy.lipschitz == trained.model.policy.lipschitz


def test_training_goes_on_after_load_as_if_there_had_been_no_file(trained: Trained, tmp_path: Path) -> None:
    model = copy.deepcopy(trained.model)
    model.save(tmp_path / "model.zip")
    loaded = algorithm_of(trained.name)[0].load(tmp_path / "model.zip", device="cpu")
    if is_off_policy(trained.name):
        model.save_replay_buffer(tmp_path / "buffer.pkl")
        loaded.load_replay_buffer(tmp_path / "buffer.pkl")
    for each in (model, loaded):
        actions_space = ACTION_KINDS[ALGORITHMS[trained.name].actions[0]]
        each.set_env(toy_vec_env(OBSERVATIONS, actions_space, n_envs=10), force_reset=True)
        each.set_random_seed(3)
        np.random.seed(3)
        each.learn(160, reset_num_timesteps=False)
    same(model, loaded)
    assert not torch.equal(outputs(model), outputs(trained.model))
    bound = loaded.policy.bound()
    assert bound.plain <= ALGORITHMS[trained.name].lipschitz


def test_parameters_and_vectors(trained: Trained) -> None:
    model = trained.model
    other = any_model(trained.name, seed=1)
    assert not all(map(torch.equal, model.policy.parameters(), other.policy.parameters()))
    other.set_parameters(model.get_parameters())
    same(model, other)
    third = any_model(trained.name, seed=2).policy
    vector = model.policy.parameters_to_vector()
    assert vector.shape == (sum(p.numel() for p in model.policy.parameters()),)
    third.load_from_vector(vector)
    np.testing.assert_array_equal(actions(third), actions(model))


def test_the_map_by_value_is_predict(trained: Trained) -> None:
    policy = trained.model.policy
    function = policy.action_map()
    flat = torch.as_tensor(flatten_observation(OBSERVATIONS, SAMPLE))
    if function.choices:
        np.testing.assert_array_equal(function.decide(flat).numpy(), actions(policy))
        return
    size = max(1.0, float(np.abs(SAMPLE).max())) * policy.bound().plain
    np.testing.assert_allclose(function(flat).numpy(), actions(policy), rtol=0, atol=32 * EPS32 * size)


def test_natural_gradients_pass_through_the_network() -> None:
    # TRPO differentiates twice; a wrong Fisher product would fail the line search or leave the trust region.
    model = any_model("TRPO", n_steps=128, batch_size=64)
    model.learn(1024)
    logged = model.logger.name_to_value
    assert logged["train/is_line_search_success"] == 1.0
    assert 0.2 * model.target_kl < logged["train/kl_divergence_loss"] <= model.target_kl


@pytest.mark.parametrize(("algorithm", "policy"), [(SAC, LBDNSACPolicy), (TD3, LBDNTD3Policy)])
def test_hindsight_replay(algorithm: Any, policy: Any, tmp_path: Path) -> None:
    settings = {"learning_starts": 40, "batch_size": 16, "buffer_size": 500, "device": "cpu", "seed": 0}
    kwargs = {"lipschitz": 3.0, "net_arch": [8], "observation_scale": {"desired_goal": [2.0, 2.0, 2.0]}}
    env = BitFlippingEnv(n_bits=3, continuous=True)  # at most three steps an episode
    model = algorithm(policy, env, replay_buffer_class=HerReplayBuffer, policy_kwargs=kwargs, **settings)
    model.learn(250)
    assert model._n_updates >= 200
    bound = model.policy.bound()
    assert bound.lipschitz == 3.0 and all(bound.one_hot) and len(bound.observation_scale) == 9
    observation = {key: space.sample() for key, space in env.observation_space.spaces.items()}
    model.save(tmp_path / "model.zip")
    loaded = algorithm.load(
        tmp_path / "model.zip", env=BitFlippingEnv(n_bits=3, continuous=True), device="cpu"
    )
    got = model.predict(observation, deterministic=True)[0]
    np.testing.assert_array_equal(loaded.predict(observation, deterministic=True)[0], got)
    flat = torch.as_tensor(flatten_observation(model.observation_space, observation))
    np.testing.assert_allclose(action_map(model)(flat), got, rtol=0, atol=64 * EPS32)
    model.save_replay_buffer(tmp_path / "buffer.pkl")
    loaded.load_replay_buffer(tmp_path / "buffer.pkl")
    loaded.learn(50, reset_num_timesteps=False)
    assert loaded.policy.lipschitz == 3.0


@pytest.mark.parametrize("name", ALGORITHMS)
def test_nothing_stays_behind_on_another_device(name: str) -> None:
    kwargs = {"observation_scale": [1.0, 2.0, 3.0], "trainable_lipschitz": True}
    if ALGORITHMS[name].actions[0] == "box":
        kwargs["action_scale"] = [1.0, 2.0]
    policy = any_model(name, policy_kwargs=kwargs).policy.to("meta")
    assert {t.device.type for t in (*policy.parameters(), *policy.buffers())} == {"meta"}
    unregistered = [
        key for module in policy.modules() for key, v in vars(module).items() if isinstance(v, Tensor)
    ]
    assert unregistered == []


@pytest.mark.gpu
@pytest.mark.parametrize("name", ALGORITHMS)
def test_on_a_gpu_and_back(name: str, tmp_path: Path) -> None:
    model = any_model(name, n_envs=10, device="cuda")
    model.learn(400)
    assert {p.device.type for p in model.policy.parameters()} == {"cuda"}
    model.save(tmp_path / "model.zip")
    loaded = algorithm_of(name)[0].load(tmp_path / "model.zip", device="cpu")
    assert {p.device.type for p in loaded.policy.parameters()} == {"cpu"}
    bounds = loaded.policy.bound(), model.policy.bound()
    assert bounds[0].plain == bounds[1].plain
    loaded.set_env(model.get_env())
    loaded.learn(100, reset_num_timesteps=False)
    back = algorithm_of(name)[0].load(tmp_path / "model.zip", env=model.get_env(), device="cuda")
    back.learn(100, reset_num_timesteps=False)
    assert {s.device.type for o in optimizers(back.policy) for s in o.param_groups[0]["params"]} == {"cuda"}
    np.testing.assert_array_equal(actions(copy.deepcopy(back.policy)), actions(back))
