"""The unbounded network: an ordinary torch MLP under the interface of the LBDN."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from robustnn import MLP
from robustnn.nn import ExplicitModule
from tests.networks import ACTIVATION_NAMES, SHAPES, exported, randomised

MODULES = dict(
    elu=nn.ELU, identity=nn.Identity, leaky_relu=nn.LeakyReLU, relu=nn.ReLU, sigmoid=nn.Sigmoid, softplus=nn.Softplus,
    tanh=nn.Tanh,
)  # fmt: skip


@pytest.mark.parametrize("activation", ACTIVATION_NAMES)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_a_plain_sequential(shape: tuple, activation: str) -> None:
    net = randomised(MLP(*shape, activation=activation, dtype=torch.float64), 1.0)
    widths = (shape[0], *shape[1], shape[2])
    modules: list[nn.Module] = []
    for n_in, n_out, source in zip(widths, widths[1:], net.layers, strict=False):
        linear = nn.Linear(n_in, n_out, dtype=torch.float64)
        linear.load_state_dict(source.state_dict())
        modules += [linear, MODULES[activation]()]
    reference = nn.Sequential(*modules[:-1])
    x = torch.randn(2, 5, shape[0], dtype=torch.float64)
    assert torch.equal(net(x), reference(x))
    net(x).square().sum().backward()
    reference(x).square().sum().backward()
    for ours, theirs in zip(net.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-12)


def test_shares_the_interface_and_claims_no_bound() -> None:
    net = MLP(3, (8,), 2)
    assert isinstance(net, ExplicitModule) and net.lipschitz == math.inf


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_explicit_frozen_and_exported_are_values(dtype: torch.dtype) -> None:
    """All weights of an MLP are its parameters, so each of these would follow the training if it shared memory."""
    net = MLP(3, (8, 4), 2, dtype=dtype)
    x = torch.randn(5, 3, dtype=dtype)
    with torch.no_grad():
        before = net(x)
        network, plain = net.explicit(), net.to_mlp()
        net.freeze()
        for parameter in net.parameters():
            parameter.add_(1.0)
        for function in (network, plain, net):
            assert torch.equal(function(x), before)
        assert not torch.equal(net.unfreeze()(x), before)


def test_explicit_with_gradients_carries_the_graph() -> None:
    net = MLP(3, (8,), 2)
    net.explicit()(torch.randn(5, 3)).sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_copies_and_state_dict() -> None:
    net = MLP(3, (8,), 2).freeze()
    twin = copy.deepcopy(net)
    other = MLP(3, (8,), 2)
    other.load_state_dict(net.state_dict())
    x = torch.randn(5, 3, dtype=torch.float64)
    assert not twin.is_frozen
    assert torch.equal(exported(twin)(x), exported(net)(x)) and torch.equal(
        exported(other)(x), exported(net)(x)
    )


def test_without_bias_and_empty_batch() -> None:
    net = MLP(3, (8,), 2, bias=False)
    assert not any("bias" in name for name, _ in net.named_parameters())
    assert torch.equal(net(torch.zeros(4, 3)), torch.zeros(4, 2))
    assert net(torch.zeros(0, 3)).shape == (0, 2)
