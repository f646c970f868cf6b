"""A trained MlpPolicy agent becomes a bounded one of the same function, which trains on under a falling bound."""

from __future__ import annotations

import math
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from robustnn.bounds import certify, lipsdp
from robustnn.errors import InvalidArgumentError
from robustnn.nn.convert import as_explicit
from robustnn.policies import ActionMap, ObservationScale, action_map, flatten_observation
from robustnn.policies.convert import convert_policy
from robustnn.policies.networks import decider_of
from tests.policies.toy import (
    ACTION_KINDS,
    ALGORITHMS,
    OBSERVATION_KINDS,
    OBSERVATIONS,
    algorithm_of,
    is_off_policy,
    sample_observations,
    toy_vec_env,
)

EPS32 = float(np.finfo(np.float32).eps)
NAMES = [name for name in ALGORITHMS if name not in ("SAC, gSDE", "CrossQ")]
# One algorithm for every class of policies.
FAMILIES = ("PPO", "SAC", "TD3", "DQN", "QRDQN")
SAMPLE = sample_observations(OBSERVATIONS, 200)
SCALE = (0.5, 2.0, 4.0)


class Converted(NamedTuple):
    name: str
    source: Any
    model: Any


def mlp_model(
    name: str, observations: str = "vector", actions: str | None = None, env: Any = None, **kwargs: Any
) -> Any:
    """A small agent of any algorithm with SB3's own policy."""
    case, algorithm = ALGORITHMS[name], algorithm_of(name)[0]
    if env is None:
        env = toy_vec_env(OBSERVATION_KINDS[observations], ACTION_KINDS[actions or case.actions[0]], 4)
    policy_kwargs = {"net_arch": [8, 6], **kwargs}
    if name == "QRDQN":
        policy_kwargs.setdefault("n_quantiles", 5)
    policy = "MultiInputPolicy" if observations == "dict" else "MlpPolicy"
    return algorithm(policy, env, policy_kwargs=policy_kwargs, seed=0, device="cpu", **case.settings)


@pytest.fixture(scope="module", params=NAMES)
def converted(request: pytest.FixtureRequest) -> Iterator[Converted]:
    """An agent after real training, and what it is converted to. Tests change neither."""
    source = mlp_model(request.param)
    source.learn(1200)
    yield Converted(request.param, source, convert_policy(source))


def outputs(model: Any, observations: Any = SAMPLE) -> torch.Tensor:
    """Actions, logits or Q-values in float64."""
    flat = torch.from_numpy(flatten_observation(model.observation_space, observations))
    return action_map(model, model.get_env())(flat)


def assert_same_function(model: Any, other: Any, observations: Any = SAMPLE, units: float = 32.0) -> None:
    """Equal to some units of rounding of float32, and so are the actions that predict returns."""
    a, b = outputs(model, observations), outputs(other, observations)
    tolerance = units * EPS32 * (1.0 + float(a.abs().max()))
    assert float((a - b).abs().max()) <= tolerance
    ours, theirs = (m.predict(observations, deterministic=True)[0] for m in (model, other))
    decision = action_map(model, model.get_env())
    if not decision.choices:
        assert np.abs(ours - theirs).max() <= 2.0 * tolerance
    elif decision.kind == "discrete":
        top = a.topk(2).values
        clear = (top[:, 0] - top[:, 1] > 4.0 * tolerance).numpy()
        assert clear.mean() > 0.9
        np.testing.assert_array_equal(ours[clear], theirs[clear])


def values(model: Any) -> torch.Tensor:
    """Values of states, or of actions by the critics and their targets."""
    policy = model.policy
    x = policy.obs_to_tensor(SAMPLE)[0]
    with torch.no_grad():
        if hasattr(policy, "predict_values"):
            return policy.predict_values(x)
        if not hasattr(policy, "critic"):
            return torch.zeros(())
        a = torch.linspace(-1.0, 1.0, 2 * len(SAMPLE)).reshape(-1, 2)
        return torch.stack(
            [torch.cat([*critic(x, a)], dim=-1) for critic in (policy.critic, policy.critic_target)]
        )


def log_std(model: Any) -> torch.Tensor | None:
    """The logarithm of the standard deviation of a Gaussian policy."""
    policy = model.policy
    if not hasattr(getattr(policy, "actor", None), "get_action_dist_params"):
        return getattr(policy, "log_std", None)
    with torch.no_grad():
        return policy.actor.get_action_dist_params(policy.obs_to_tensor(SAMPLE)[0])[1]


def proved(source: Any) -> float:
    """LipSDP bound of the function in the norms of the bounded policy, from SB3's modules alone."""
    decider = decider_of(source)
    network = as_explicit(nn.Sequential(*decider.body))
    output_scale = None
    if decider.squash:
        space = source.action_space
        output_scale = torch.as_tensor(2.0 / (space.high - space.low)).reshape(-1)
    if decider.n_quantiles:
        output_scale = torch.full((network.out_features,), math.sqrt(decider.n_quantiles))
    return lipsdp(network, output_scale=output_scale, slopes=(0.0, 1.0)).value


def test_the_function_is_preserved(converted: Converted) -> None:
    _, source, model = converted
    assert type(model) is type(source)
    assert float(outputs(source).std()) > 1e-3
    assert_same_function(source, model)


def test_the_bound_is_that_of_lipsdp_and_certified(converted: Converted) -> None:
    _, source, model = converted
    gamma, least = model.policy.lipschitz, proved(source)
    assert gamma == pytest.approx(1.05 * least, rel=64 * EPS32)
    certificate = certify(model.policy.lbdn)
    assert certificate.verify(model.policy.lbdn) <= gamma
    assert certificate.bound == pytest.approx(least, rel=1024 * EPS32)
    assert model.policy.bound().lipschitz == gamma == model.policy_kwargs["lipschitz"]


def test_critics_and_standard_deviation_are_preserved(converted: Converted) -> None:
    name, source, model = converted
    torch.testing.assert_close(values(model), values(source), rtol=0.0, atol=0.0)
    given = log_std(source)
    if given is not None:
        torch.testing.assert_close(log_std(model), given, rtol=4 * EPS32, atol=4 * EPS32)
    assert (given is not None) == (name in ("PPO", "A2C", "TRPO", "SAC", "TQC"))


def test_targets_are_preserved(converted: Converted) -> None:
    name, source, model = converted
    x = source.policy.obs_to_tensor(SAMPLE)[0]
    for target in ("actor_target", "q_net_target", "quantile_net_target"):
        if hasattr(source.policy, target):
            with torch.no_grad():
                ours, theirs = (getattr(m.policy, target)(x) for m in (model, source))
            torch.testing.assert_close(ours, theirs, rtol=32 * EPS32, atol=32 * EPS32)
            break
    else:
        assert name not in ("TD3", "DDPG", "DQN", "QRDQN")
    nets = list(model.policy.bounded_networks())
    assert {net.lipschitz for net in nets} == {model.policy.lipschitz}


def test_the_state_of_the_training_goes_with_it(converted: Converted) -> None:
    name, source, model = converted
    assert model.num_timesteps == source.num_timesteps >= 1200
    assert (model.seed, model.get_env()) == (0, source.get_env())
    assert model.lr_schedule(0.5) == source.lr_schedule(0.5)
    for key in ("_n_updates", "_n_calls", "gamma", "exploration_rate"):
        assert getattr(model, key, None) == getattr(source, key, None)
    if is_off_policy(name):
        assert model.replay_buffer is source.replay_buffer
        assert model.replay_buffer.pos == 300
    if name in ("SAC", "TQC"):
        assert torch.equal(model.log_ent_coef, source.log_ent_coef)
        assert float(model.log_ent_coef.detach()) != 0.0
    kept = 0
    for key in model._get_torch_save_params()[0]:
        if not key.endswith("optimizer"):
            continue
        ours, theirs = attrgetter(key)(model), attrgetter(key)(source)
        assert ours.param_groups[0]["lr"] == theirs.param_groups[0]["lr"]
        shapes = [state["exp_avg"].shape for state in ours.state.values() if "exp_avg" in state]
        assert set(shapes) <= {p.shape for group in theirs.param_groups for p in group["params"]}
        kept += len(ours.state)
    # Value network or critics and the entropy coefficient; DQN and QR-DQN have nothing that stays.
    assert kept == {
        "PPO": 7, "A2C": 7, "TRPO": 6, "MaskablePPO": 6, "SAC": 13, "TD3": 12, "DDPG": 6, "TQC": 13,
    }.get(name, 0)  # fmt: skip


def test_conversion_leaves_the_given_model_and_all_generators_alone() -> None:
    source = mlp_model("SAC")
    source.learn(200)
    before = [p.detach().clone() for p in source.policy.parameters()]
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    model = convert_policy(source)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()
    model.learn(100, reset_num_timesteps=False)
    assert all(map(torch.equal, before, source.policy.parameters()))
    assert source.num_timesteps == 200
    assert source.policy_kwargs == {"net_arch": [8, 6], "use_sde": False}


@pytest.mark.parametrize("converted", FAMILIES, indirect=True)
def test_a_model_from_a_file_trains_on_within_a_falling_bound(converted: Converted, tmp_path: Path) -> None:
    _, source, _ = converted
    source.save(tmp_path / "mlp.zip")
    model = convert_policy(type(source).load(tmp_path / "mlp.zip", device="cpu"))
    assert model.get_env() is None
    assert_same_function(source, model)
    before = outputs(model)
    model.set_env(toy_vec_env(source.observation_space, source.action_space, 4))
    for fraction in (0.9, 0.5):
        bound = fraction * model.policy.lipschitz
        model.policy.set_lipschitz(bound)
        model.learn(200, reset_num_timesteps=False)
        assert certify(model.policy.lbdn).bound <= bound == model.policy.lipschitz
    assert model.num_timesteps >= source.num_timesteps + 400
    assert not torch.equal(outputs(model), before)
    model.save(tmp_path / "lbdn.zip")
    again = type(source).load(tmp_path / "lbdn.zip", env=model.get_env(), device="cpu")
    assert torch.equal(outputs(model), outputs(again))
    assert again.policy.lipschitz == model.policy.lipschitz
    again.learn(64, reset_num_timesteps=False)


@pytest.mark.parametrize("converted", FAMILIES, indirect=True)
def test_a_scale_changes_the_norm_and_not_the_function(converted: Converted) -> None:
    _, source, plain = converted
    model = convert_policy(source, observation_scale=SCALE)
    assert_same_function(source, model)
    torch.testing.assert_close(values(model), values(source), rtol=64 * EPS32, atol=64 * EPS32)
    given = log_std(source)
    if given is not None:
        torch.testing.assert_close(log_std(model), given, rtol=64 * EPS32, atol=64 * EPS32)
    bound, other = model.policy.bound(), plain.policy.bound().lipschitz
    assert bound.observation_scale == pytest.approx(SCALE, rel=4 * EPS32)
    # Two bounds of one function in different norms.
    assert min(SCALE) * other * (1 - 1e-6) <= bound.lipschitz <= max(SCALE) * other * (1 + 1e-6)


@pytest.mark.parametrize("name", ["PPO", "SAC"])
def test_a_scale_that_is_there_is_kept_or_replaced(name: str) -> None:
    extractor = {
        "features_extractor_class": ObservationScale,
        "features_extractor_kwargs": {"scale": SCALE},
    }
    source = mlp_model(name, **extractor)
    kept = convert_policy(source)
    assert kept.policy.observation_scale == SCALE
    assert_same_function(source, kept)
    other = convert_policy(source, observation_scale=(1.0, 3.0, 1.0))
    assert other.policy.observation_scale == (1.0, 3.0, 1.0)
    assert_same_function(source, other)
    torch.testing.assert_close(values(other), values(source), rtol=64 * EPS32, atol=64 * EPS32)


@pytest.mark.parametrize(
    ("name", "observations", "actions"),
    [
        ("PPO", "dict", "multi-discrete"), ("PPO", "matrix, float64", "multi-binary"), ("PPO", "discrete", "discrete"),
        ("SAC", "dict", "matrix"), ("TD3", "multi-binary", "box"), ("DQN", "dict", "discrete"),
    ],
)  # fmt: skip
def test_other_spaces(name: str, observations: str, actions: str) -> None:
    source = mlp_model(name, observations, actions)
    source.learn(100)
    sample = sample_observations(source.observation_space, 100)
    assert_same_function(source, convert_policy(source), sample)


@pytest.mark.parametrize(
    ("name", "activation"),
    [("PPO", nn.ReLU), ("PPO", nn.ELU), ("PPO", nn.Softplus), ("SAC", nn.Tanh), ("DQN", nn.LeakyReLU),
     ("TD3", nn.Sigmoid)],
)  # fmt: skip
def test_other_activations(name: str, activation: type[nn.Module]) -> None:
    source = mlp_model(name, activation_fn=activation)
    source.learn(64)
    model = convert_policy(source)
    assert_same_function(source, model)
    assert model.policy.lbdn.activation == as_explicit(nn.Sequential(*decider_of(source).body)).activation


@pytest.mark.parametrize("name", ["PPO", "SAC", "TD3", "DQN"])
def test_the_bound_of_a_linear_policy_is_attained(name: str) -> None:
    source = mlp_model(name, net_arch=[])
    model = convert_policy(source, slack=1.0 + 64 * EPS32)
    assert_same_function(source, model)
    network = action_map(model).network
    scale = 1.0
    if model.policy.squash_output:
        scale = torch.as_tensor(0.5 * (model.action_space.high - model.action_space.low))[:, None].double()
    gain = float(torch.linalg.matrix_norm(scale * network.weights[0], 2))
    assert gain <= model.policy.lipschitz <= gain * (1 + 128 * EPS32)


def test_a_wider_bound_may_be_asked_for_and_a_narrower_one_is_refused() -> None:
    source = mlp_model("PPO")
    least = proved(source)
    model = convert_policy(source, lipschitz=10.0 * least)
    assert model.policy.lipschitz == 10.0 * least
    assert_same_function(source, model)
    with pytest.raises(InvalidArgumentError, match="lipschitz: expected at least") as caught:
        convert_policy(source, lipschitz=0.9 * least)
    named = float(str(caught.value).split("at least ")[1].split(",")[0])
    assert named == pytest.approx(least, rel=64 * EPS32)


def test_a_steeper_target_becomes_a_copy_of_the_network() -> None:
    source = mlp_model("TD3")
    source.learn(100)
    with torch.no_grad():
        source.policy.actor_target.mu[0].weight *= 2.0
    actor, target = convert_policy(source).policy.bounded_networks()
    assert actor.lipschitz == target.lipschitz
    for ours, theirs in zip(target.parameters(), actor.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_trained_bound_starts_at_the_proved_one() -> None:
    source = mlp_model("SAC")
    source.learn(100)
    model = convert_policy(source, trainable_lipschitz=True, lipschitz_penalty=10.0)
    before = model.policy.lipschitz
    assert before == pytest.approx(1.05 * proved(source), rel=64 * EPS32)
    assert_same_function(source, model)
    model.learn(200, reset_num_timesteps=False)
    assert model.policy.lipschitz < before


def test_normalised_observations_stay_normalised() -> None:
    env = VecNormalize(toy_vec_env(n_envs=4))
    source = mlp_model("PPO", env=env)
    source.learn(200)
    env.training = False
    model = convert_policy(source)
    assert model.get_vec_normalize_env() is env
    assert_same_function(source, model)
    bound = model.policy.bound(env)
    flat = torch.from_numpy(SAMPLE.astype(np.float64))
    decision: ActionMap = action_map(model, env)
    jacobians = torch.func.vmap(torch.func.jacrev(decision))(flat)
    gains = torch.linalg.matrix_norm(jacobians * torch.tensor(bound.observation_scale), 2)
    assert 0.1 * bound.lipschitz < float(gains.max()) <= bound.lipschitz


def test_rms_prop_and_own_optimiser_settings_are_kept() -> None:
    model = convert_policy(mlp_model("A2C"))
    assert isinstance(model.policy.optimizer, type(mlp_model("A2C").policy.optimizer))
    settings = {"optimizer_class": torch.optim.AdamW, "optimizer_kwargs": {"weight_decay": 0.5}}
    optimizer = convert_policy(mlp_model("TD3", **settings)).policy.actor.optimizer
    assert type(optimizer) is torch.optim.AdamW
    assert optimizer.param_groups[0]["weight_decay"] == 0.5


def test_every_algorithm_of_sb3_is_covered() -> None:
    assert {PPO, A2C, SAC, TD3, DQN} <= {algorithm_of(name)[0] for name in NAMES}
