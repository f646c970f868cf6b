"""A LipSDP computation turns any network into an LBDN of that function and that bound, a hundred times over."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from robustnn import LBDN, MLP, ExplicitMLP
from robustnn.bounds import UpperBound, certify, lipsdp, lower_bound
from robustnn.errors import InvalidArgumentError
from tests.networks import ACTIVATION_NAMES, exported, inputs

FUNCTION, BOUND = 1e-9, 1e-6  # largest absolute error of an output, relative error of the bound


def random_mlp(seed: int) -> ExplicitMLP:
    """One to six hidden layers of 1 to 32 units, weights from a tenth to three times those of a fresh network."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    hidden = [draw.randint(1, 32) for _ in range(draw.randint(1, 6))]
    activation = draw.choice(ACTIVATION_NAMES)
    net = MLP(draw.randint(1, 8), hidden, draw.randint(1, 8), activation=activation, dtype=torch.float64)
    size = 10.0 ** draw.uniform(-1.0, 0.5)
    return exported(net).map(lambda t: size * t)


def trained_mlp(seed: int) -> ExplicitMLP:
    """Forty steps of Adam on a random regression."""
    draw = random.Random(1000 + seed)
    torch.manual_seed(seed)
    n_in, n_out = draw.randint(1, 4), draw.randint(1, 3)
    activation = ACTIVATION_NAMES[seed % len(ACTIVATION_NAMES)]
    net = MLP(
        n_in, [draw.randint(8, 32)] * draw.randint(1, 3), n_out, activation=activation, dtype=torch.float64
    )
    x, y = inputs(n_in, n=64, seed=seed), inputs(n_out, n=64, seed=seed + 1)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = (net(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    return exported(net)


def check(network: ExplicitMLP, bound: UpperBound, net: LBDN, x: Tensor) -> None:
    """The same outputs, the same bound, and a certificate of it from the imported parameters alone."""
    with torch.no_grad():
        assert float((net(x) - network(x)).abs().max()) <= FUNCTION
    assert net.lipschitz == pytest.approx(bound.value, rel=BOUND)
    assert certify(net).bound <= bound.value * (1 + BOUND)


def import_by_lipsdp(network: ExplicitMLP) -> None:
    x = inputs(network.in_features, n=16, size=2.0)
    plain = LBDN.from_mlp(network)
    with torch.no_grad():
        assert float((plain(x) - network(x)).abs().max()) <= FUNCTION
    bound = lipsdp(network, slopes=(0.0, 1.0), iterations=40)
    check(network, bound, LBDN.from_mlp(network, multipliers=bound.multipliers, slack=1.0), x)
    check(network, bound, LBDN.from_mlp(network, bound.value, multipliers=bound.multipliers), x)
    found = lower_bound(network, x, iterations=20).value
    own = lipsdp(network, iterations=20).value  # with the slopes of the activation itself
    assert found <= own * (1 + 4 * torch.finfo(torch.float64).eps)
    assert found <= bound.value <= plain.lipschitz


@pytest.mark.parametrize("block", range(10))
def test_a_hundred_random_networks(block: int) -> None:
    for seed in range(10 * block, 10 * block + 10):
        import_by_lipsdp(random_mlp(seed))


@pytest.mark.parametrize("seed", range(10))
def test_ten_trained_networks(seed: int) -> None:
    import_by_lipsdp(trained_mlp(seed))


@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
def test_below_the_bound_of_the_multipliers_there_is_no_import(activation: str) -> None:
    """The bound of the import is not a number beside the network: a slightly smaller one is refused."""
    network = exported(MLP(3, (16, 16), 2, activation=activation, dtype=torch.float64))
    bound = lipsdp(network, slopes=(0.0, 1.0), iterations=40)
    with pytest.raises(InvalidArgumentError, match="lipschitz: expected at least"):
        LBDN.from_mlp(network, bound.value * (1 - 1e-4), multipliers=bound.multipliers)
