"""Import of ordinary networks: the same function, a bound that holds, and fine-tuning below it."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch import Tensor, nn

from robustnn import LBDN, MLP, ExplicitMLP
from robustnn.bounds import lipsdp, lower_bound
from robustnn.errors import InvalidArgumentError, ShapeError
from robustnn.nn import LipschitzSchedule, as_explicit
from robustnn.params import certified_lipschitz
from tests.networks import ACTIVATION_NAMES, exported, inputs, random_lbdn

MODULES = dict(
    elu=nn.ELU, identity=nn.Identity, leaky_relu=nn.LeakyReLU, relu=nn.ReLU, sigmoid=nn.Sigmoid, softplus=nn.Softplus,
    tanh=nn.Tanh,
)  # fmt: skip


def sequential(widths: tuple[int, ...], activation: str, *, bias: bool = True) -> nn.Sequential:
    modules: list[nn.Module] = []
    for n_in, n_out in zip(widths, widths[1:], strict=False):
        modules += [nn.Linear(n_in, n_out, bias=bias, dtype=torch.float64), MODULES[activation]()]
    return nn.Sequential(*modules[:-1])


def worst_difference(ours: nn.Module, theirs: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        y = theirs(x)
        return float((ours(x) - y).abs().max() / (1 + y.abs().max()))


@pytest.mark.parametrize("block", range(10))
def test_a_hundred_random_networks(block: int) -> None:
    draw = random.Random(block)
    for seed in range(10):
        torch.manual_seed(100 * block + seed)
        widths = tuple(draw.choice((1, 2, 5, 16, 40)) for _ in range(draw.randint(2, 8)))
        activation = draw.choice(ACTIVATION_NAMES)
        plain = sequential(widths, activation, bias=draw.random() < 0.8)
        gain = 10 ** draw.uniform(-1.5, 1.5)
        with torch.no_grad():
            for p in plain.parameters():
                p.mul_(gain)
        net = LBDN.from_mlp(plain)
        product = 1.0
        for module in plain:
            if isinstance(module, nn.Linear):
                product *= float(torch.linalg.matrix_norm(module.weight.detach(), 2))
        assert net.lipschitz == pytest.approx(1.05 * product, rel=1e-12)
        assert net.activation == (activation if len(widths) > 2 else "identity")
        assert worst_difference(net, plain, inputs(widths[0], n=20, size=3.0)) <= 1e-9


def trained(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    plain = sequential((2, 24, 24, 1), ("tanh", "relu")[seed % 2])
    optimizer = torch.optim.Adam(plain.parameters(), lr=0.02)
    x = inputs(2, n=64, seed=seed)
    for _ in range(150):
        optimizer.zero_grad()
        (plain(x) - (3 * x).sin().prod(-1, keepdim=True)).square().mean().backward()
        optimizer.step()
    return plain


@pytest.mark.parametrize("seed", range(10))
def test_ten_trained_networks(seed: int) -> None:
    plain = trained(seed)
    net = LBDN.from_mlp(plain)
    assert worst_difference(net, plain, inputs(2, n=200, size=2.0)) <= 1e-9
    assert lower_bound(exported(net), inputs(2, n=8), iterations=20).value <= net.lipschitz
    tight = LBDN.from_mlp(plain, slack=1.0)
    assert tight.lipschitz == pytest.approx(net.lipschitz / 1.05, rel=1e-12)
    assert worst_difference(tight, plain, inputs(2, n=200, size=2.0)) <= 1e-9


@pytest.mark.parametrize("seed", range(10))
def test_trained_networks_at_their_lipsdp_bound(seed: int) -> None:
    """The bound of the LBDN is the LipSDP bound itself, where H is singular, and its weights have the same one."""
    plain = trained(seed)
    bound = lipsdp(plain, slopes=(0.0, 1.0), iterations=40)
    net = LBDN.from_mlp(plain, bound.value, multipliers=bound.multipliers)
    assert net.lipschitz == bound.value < LBDN.from_mlp(plain, slack=1.0).lipschitz
    assert worst_difference(net, plain, inputs(2, n=200, size=2.0)) <= 1e-9
    # The optimiser stops elsewhere on weights that differ in the last bits; the same multipliers do not.
    assert certified_lipschitz(exported(net), bound.multipliers) == pytest.approx(bound.value, rel=1e-8)
    assert lipsdp(net, slopes=(0.0, 1.0), iterations=0).value <= bound.value * (1 + 1e-9)


@pytest.mark.parametrize("kind", ["sequential", "nested", "mlp", "explicit", "lbdn", "linear"])
def test_kinds_of_networks(kind: str) -> None:
    plain: nn.Module | ExplicitMLP
    if kind == "nested":
        plain = nn.Sequential(
            nn.Sequential(nn.Linear(3, 6), nn.Sequential(nn.Tanh())), nn.Linear(6, 2)
        ).double()
    elif kind == "linear":
        plain = nn.Linear(3, 2).double()
    elif kind == "lbdn":
        plain = random_lbdn((3, (6, 4), 2), activation="tanh", dtype=torch.float64)
    else:
        plain = MLP(3, (6, 4), 2, activation="tanh", dtype=torch.float64)
        plain = {"sequential": plain.to_mlp(), "mlp": plain, "explicit": plain.explicit()}[kind]
    net = LBDN.from_mlp(plain)
    x = inputs(3)
    with torch.no_grad():
        torch.testing.assert_close(net(x), plain(x), rtol=0, atol=1e-12)
        with_bound = LBDN.from_mlp(plain, 2 * net.lipschitz)
        assert with_bound.lipschitz == 2 * net.lipschitz
        torch.testing.assert_close(with_bound(x), plain(x), rtol=0, atol=1e-12)


def test_multipliers_give_a_smaller_bound() -> None:
    """Those of an LBDN prove its own bound, which the product of the norms does not."""
    source = LBDN(3, (16, 16, 16), 2, lipschitz=3.0, activation="tanh", init="balanced", dtype=torch.float64)
    for layer in source.layers[:-1]:
        nn.init.normal_(layer.psi)
    plain = source.to_mlp()
    t = [3.0 * torch.exp(2 * layer.psi.detach()) for layer in source.layers[:-1]]
    net = LBDN.from_mlp(plain, 3.0, multipliers=t)
    assert net.lipschitz == 3.0 < 0.8 * LBDN.from_mlp(plain).lipschitz
    assert worst_difference(net, plain, inputs(3)) <= 1e-12
    smallest = LBDN.from_mlp(plain, multipliers=t, slack=1.0).lipschitz
    assert smallest <= 3.0
    assert LBDN.from_mlp(plain, multipliers=t).lipschitz == pytest.approx(1.05 * smallest, rel=1e-9)
    with pytest.raises(InvalidArgumentError, match="smallest bound that the multipliers prove"):
        LBDN.from_mlp(plain, 0.9 * smallest, multipliers=t)


def test_scales_are_those_of_the_new_bound() -> None:
    plain = sequential((3, 8, 8, 2), "tanh")
    d_x, d_y = [0.1, 1.0, 20.0], [[2.0, 0.5], [0.0, 1.0]]
    net = LBDN.from_mlp(plain, input_scale=d_x, output_scale=d_y)
    assert worst_difference(net, plain, inputs(3)) <= 1e-12
    back = torch.linalg.inv(net.output_scale).mT
    found = lower_bound(
        lambda x: plain(x * net.input_scale) @ back, inputs(3, size=0.01), iterations=100
    ).value
    scaled = [
        plain[0].weight * net.input_scale,
        plain[2].weight,
        torch.linalg.inv(net.output_scale) @ plain[4].weight,
    ]
    product = math.prod(float(torch.linalg.matrix_norm(w.detach(), 2)) for w in scaled)
    assert found <= net.lipschitz == pytest.approx(1.05 * product, rel=1e-12)


def test_in_float32() -> None:
    plain = sequential((3, 32, 32, 2), "relu").float()
    net = LBDN.from_mlp(plain)
    assert all(p.dtype == torch.float32 for p in net.parameters())
    assert worst_difference(net, plain, inputs(3).float()) <= 1e-5
    wide = LBDN.from_mlp(plain, dtype=torch.float64)
    assert worst_difference(wide, plain.double(), inputs(3)) <= 1e-12


def test_the_random_state_and_the_source_are_left_alone() -> None:
    plain = sequential((3, 8, 2), "tanh")
    before = torch.random.get_rng_state()
    net = LBDN.from_mlp(plain)
    assert torch.equal(before, torch.random.get_rng_state())
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
        assert bool(plain(inputs(3)).any())


def test_fine_tuning_under_a_falling_bound() -> None:
    """Import, train on while the bound is lowered to a tenth: the bound holds and the fit is regained."""
    plain = trained(0)
    net = LBDN.from_mlp(plain)
    start = net.lipschitz
    x = inputs(2, n=64, seed=0)
    y = (3 * x).sin().prod(-1, keepdim=True)
    with torch.no_grad():
        before = float((net(x) - y).square().mean())
    final = max(1.5, start / 10)
    schedule = LipschitzSchedule(net, final=final, steps=150)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(300):
        schedule.step()
        optimizer.zero_grad()
        (net(x) - y).square().mean().backward()
        optimizer.step()
    with torch.no_grad():
        after = float((net(x) - y).square().mean())
    assert net.lipschitz == final
    assert lower_bound(exported(net), x[:8], iterations=50).value <= final
    assert after < max(0.02, 5 * before)


@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential(),
        nn.Sequential(nn.Linear(3, 2), nn.Tanh()),
        nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)),
        nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)),
        nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2)),
        nn.Sequential(nn.Linear(3, 4), nn.LeakyReLU(0.2), nn.Linear(4, 2)),
        nn.Sequential(nn.Linear(3, 4), nn.Softplus(beta=2.0), nn.Linear(4, 2)),
        nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.LazyLinear(2)),
        nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 2)),
        nn.Conv1d(1, 1, 1),
        "network",
    ],
)
def test_other_modules_are_refused(module: nn.Module) -> None:
    with pytest.raises(InvalidArgumentError, match="network|activation"):
        as_explicit(module)


def test_a_hook_is_no_part_of_an_ordinary_network() -> None:
    plain = sequential((3, 4, 2), "tanh")
    plain[0].register_forward_hook(lambda module, args, output: 2 * output)
    with pytest.raises(InvalidArgumentError):
        LBDN.from_mlp(plain)


def test_wrong_arguments() -> None:
    plain = sequential((3, 4, 2), "tanh")
    with pytest.raises(InvalidArgumentError, match="product of the spectral norms"):
        LBDN.from_mlp(plain, 1e-3)
    with pytest.raises(InvalidArgumentError, match="slack"):
        LBDN.from_mlp(plain, slack=0.9)
    with pytest.raises(InvalidArgumentError, match="slack"):
        LBDN.from_mlp(plain, multipliers=[torch.ones(4)], slack=0.9)
    with pytest.raises(ShapeError, match="multipliers"):
        LBDN.from_mlp(plain, multipliers=[torch.ones(5)])
    with pytest.raises(ShapeError, match="input_scale"):
        LBDN.from_mlp(plain, input_scale=[1.0])
    with pytest.raises(InvalidArgumentError, match="dtype"):
        LBDN.from_mlp(plain, dtype=torch.int32)
