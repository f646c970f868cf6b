"""The MLP with bounded spectral norms: the bound holds after any step, is attained, and is known to `policy_bound`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, PPO, SAC, TD3
from torch import nn

from robustnn.bounds import lower_bound
from robustnn.errors import InvalidArgumentError, NonFiniteError, ShapeError
from robustnn.nn import MLP
from robustnn.policies import FreezeWeights, LogLipschitz, policy_bound
from robustnn.training import SpectralActorCriticPolicy, SpectralNet, SpectralSACPolicy, SpectralTD3Policy
from tests.policies.toy import ASYMMETRIC, OBSERVATIONS, toy_model, toy_vec_env

EPS32, EPS64 = torch.finfo(torch.float32).eps, torch.finfo(torch.float64).eps
SCALE = (0.5, 1.0, 3.0)
OFF_POLICY = {"learning_starts": 16, "batch_size": 16, "train_freq": 1, "gradient_steps": 1}
ALGORITHMS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "PPO": (PPO, SpectralActorCriticPolicy, {"n_steps": 16, "batch_size": 16, "n_epochs": 2}),
    "A2C": (A2C, SpectralActorCriticPolicy, {"n_steps": 16}),
    "SAC": (SAC, SpectralSACPolicy, OFF_POLICY),
    "TD3": (TD3, SpectralTD3Policy, OFF_POLICY),
}


def network(size: float = 1.0, dtype: torch.dtype = torch.float32, **options: Any) -> SpectralNet:
    torch.manual_seed(0)
    net = SpectralNet(3, (16, 8), 2, **{"lipschitz": 4.0, "activation": "tanh", "dtype": dtype, **options})
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(size)
    return net


def model(name: str, lipschitz: float = 5.0, **options: Any) -> Any:
    algorithm, policy, settings = ALGORITHMS[name]
    kwargs = {"lipschitz": lipschitz, "net_arch": [8, 8], "observation_scale": SCALE, **options}
    env = toy_vec_env(OBSERVATIONS, ASYMMETRIC)
    return algorithm(policy, env, policy_kwargs=kwargs, device="cpu", seed=0, **settings)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1e-3, 1.0, 3.0, 1e4])
def test_no_layer_exceeds_its_bound_and_large_ones_attain_it(dtype: torch.dtype, size: float) -> None:
    net = network(size, dtype)
    bound, eps = 4.0 ** (1 / 3), torch.finfo(dtype).eps
    norms = net.spectral_norms()
    # Measuring has the accuracy of float64.
    assert all(norm <= bound * (1 + 16 * EPS64) for norm in norms)
    if size >= 3.0:
        assert all(norm >= bound * (1 - 200 * max(eps, EPS64)) for norm in norms)


def test_a_small_weight_is_used_as_it_is() -> None:
    net = network(1e-3)
    mlp = MLP(3, (16, 8), 2, activation="tanh")
    with torch.no_grad():
        for ours, theirs in zip(net.parameters(), mlp.parameters(), strict=True):
            theirs.copy_(ours)
    x = torch.randn(32, 3)
    with torch.no_grad():
        assert torch.equal(net(x), mlp(x))


def test_the_bound_of_the_network_holds_and_is_nearly_attained() -> None:
    # Identities in the first columns: every layer passes its top direction on to the next.
    net = SpectralNet(3, (8, 8), 3, lipschitz=6.0, activation="relu", dtype=torch.float64)
    with torch.no_grad():
        for layer in net.layers:
            layer.weight.copy_(3.0 * torch.eye(*layer.weight.shape))
            layer.bias.zero_()
    x = torch.full((4, 3), 2.0, dtype=torch.float64)
    gain = lower_bound(net, x, iterations=5).value
    assert 6.0 * (1 - 1e3 * EPS64) <= gain <= 6.0 * (1 + 1e3 * EPS64)


def test_random_networks_stay_below_the_bound_with_and_without_gradients() -> None:
    net = network(3.0, torch.float64, output_scale=torch.tensor([0.5, 2.0], dtype=torch.float64))
    starts = torch.randn(16, 3, dtype=torch.float64)
    found = lower_bound(net, starts, output_scale=net.output_scale, iterations=100).value
    assert 0.1 * 4.0 < found <= 4.0  # the norms of random layers are not met together
    x = torch.randn(8, 3, dtype=torch.float64)
    with torch.no_grad():
        without = net(x)
    assert torch.equal(net(x).detach(), without)


def test_gradient_of_the_constraint() -> None:
    net = network(3.0, torch.float64)
    x = torch.randn(4, 3, dtype=torch.float64)
    parameters = tuple(p for p in net.parameters())

    def function(*values: torch.Tensor) -> torch.Tensor:
        named = dict(zip(dict(net.named_parameters()), values, strict=True))
        return torch.func.functional_call(net, named, (x,))

    assert torch.autograd.gradcheck(function, tuple(p.detach().requires_grad_() for p in parameters))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_training_keeps_the_bound_and_policy_bound_knows_it(name: str) -> None:
    agent = model(name)
    agent.learn(96, callback=[FreezeWeights(), LogLipschitz(empirical_every=None)])
    with torch.no_grad():  # far outside
        for parameter in agent.policy.lbdn.parameters():
            parameter.mul_(20.0)
    declared = policy_bound(agent, method="declared")
    assert declared == agent.policy.bound() and declared.lipschitz == 5.0
    assert declared.observation_scale == SCALE
    assert [stage.note for stage in declared.stages if stage.name == "network"] == ["by construction"]
    policy_map = agent.policy.action_map()
    starts = torch.randn(64, 3, dtype=torch.float64)
    gain = lower_bound(
        policy_map,
        starts,
        input_scale=torch.tensor(declared.observation_scale, dtype=torch.float64),
        output_scale=torch.tensor(declared.action_scale, dtype=torch.float64),
        iterations=60,
    ).value
    assert 0.05 < gain <= declared.lipschitz
    assert policy_bound(agent, method="lipsdp").lipschitz <= declared.lipschitz * (1 + 1e-6)


@pytest.mark.parametrize("name", ["PPO", "TD3"])
def test_save_and_load(name: str, tmp_path: Path) -> None:
    agent = model(name)
    agent.learn(48)
    agent.policy.set_lipschitz(7.0)
    agent.save(tmp_path / "model")
    agent.policy.save(tmp_path / "policy")
    x = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
    expected = agent.predict(x, deterministic=True)[0]
    for loaded in (
        type(agent).load(tmp_path / "model", device="cpu").policy,
        type(agent.policy).load(tmp_path / "policy", device="cpu"),
    ):
        assert loaded.bound() == agent.policy.bound() and loaded.lipschitz == 7.0
        np.testing.assert_array_equal(loaded.predict(x, deterministic=True)[0], expected)


def test_actions_start_small_and_every_parameter_trains() -> None:
    agent = model("PPO", activation_fn=nn.ReLU)
    x = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
    outputs = agent.policy.lbdn(torch.as_tensor(x)).detach()
    assert float(outputs.abs().max()) < 0.2
    before = {key: p.detach().clone() for key, p in agent.policy.named_parameters()}
    agent.learn(32)
    assert not [key for key, p in agent.policy.named_parameters() if torch.equal(p, before[key])]


def test_mistakes() -> None:
    with pytest.raises(InvalidArgumentError, match="trainable_lipschitz.*Only an LBDN"):
        model("PPO", trainable_lipschitz=True)
    with pytest.raises(InvalidArgumentError, match="lipschitz: expected a bound > 0"):
        toy_model(policy=SpectralActorCriticPolicy)
    with pytest.raises(ShapeError, match="output_scale"):
        network(output_scale=torch.ones(3))
    net = network()
    with torch.no_grad():
        net.layers[0].weight[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="finite"):
        net(torch.zeros(1, 3))
