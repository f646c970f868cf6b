"""The inverse map: there and back, against the dense LMI, and what it says of a bound that is not proved."""

from __future__ import annotations

import random
import re
from itertools import accumulate

import pytest
import torch
from torch import Tensor

from robustnn import LBDN, ExplicitMLP
from robustnn.errors import InvalidArgumentError, ShapeError
from robustnn.linalg import inverse_cayley
from robustnn.params import (
    LBDNParams,
    certified_lipschitz,
    explicit_to_lbdn,
    lbdn_to_explicit,
    product_multipliers,
)
from tests.networks import SHAPES, exported, random_lbdn, tight_lbdn

EPS = torch.finfo(torch.float64).eps


def multipliers_of(net: LBDN) -> list[Tensor]:
    """T_k = gamma Psi_k^2: what the parameterisation itself proves its bound with."""
    return [net.lipschitz * torch.exp(2 * p.psi.detach().double()) for p in net.layers if p.psi is not None]


def there_and_back(net: LBDN) -> float:
    """Largest relative change of a weight on the way explicit -> direct -> explicit."""
    network = exported(net)
    found = explicit_to_lbdn(network, multipliers_of(net), net.lipschitz)
    with torch.no_grad():
        back = lbdn_to_explicit(found, net.activation)
    assert found.lipschitz == net.lipschitz
    for ours, theirs in zip(back.biases, network.biases, strict=True):
        assert (ours is None and theirs is None) or torch.equal(ours, theirs)
    return max(
        float((a - b).norm() / b.norm())
        for a, b in zip(back.weights, network.weights, strict=True)
        if b.any()
    )


def dense_lmi(network: ExplicitMLP, multipliers: list[Tensor], gamma: float) -> float:
    """Least eigenvalue of the LipSDP matrix at unit diagonal, written out block by block."""
    weights = [w.double() for w in network.weights]
    lam = [t / gamma for t in multipliers]
    diagonal = [torch.full((weights[0].shape[1],), gamma).double(), *(2 * t for t in lam)]
    diagonal.append(torch.full((weights[-1].shape[0],), gamma).double())
    starts = list(accumulate((len(d) for d in diagonal), initial=0))
    h = torch.diag(torch.cat(diagonal))
    for k, w in enumerate(weights):
        block = -(lam[k].unsqueeze(-1) * w) if k < len(lam) else -w
        h[starts[k + 1] : starts[k + 2], starts[k] : starts[k + 1]] = block
        h[starts[k] : starts[k + 1], starts[k + 1] : starts[k + 2]] = block.mT
    root = torch.cat(diagonal).sqrt()
    return float(torch.linalg.eigvalsh(h / root / root.unsqueeze(-1))[0])


@pytest.mark.parametrize("depth", range(1, 13))
def test_there_and_back(depth: int) -> None:
    """Widths 1 to 64, gamma from 1e-3 to 1e3, parameters of all sizes."""
    draw = random.Random(depth)
    for seed, exponent in enumerate((-3, -2, -1, 0, 1, 2, 3)):
        widths = tuple(draw.choice((1, 2, 3, 7, 16, 33, 64)) for _ in range(depth))
        shape = (draw.randint(1, 64), widths, draw.randint(1, 64))
        size = 10 ** draw.uniform(-1, 1)
        net = random_lbdn(shape, size, seed, lipschitz=10.0**exponent, activation="tanh", dtype=torch.float64)
        with torch.no_grad():
            for layer in net.layers[:-1]:
                layer.psi.div_(size)  # psi is a logarithm: its size is its own
        assert there_and_back(net) <= 1e-10


@pytest.mark.parametrize("size", [1e-3, 1e2, 1e3])
@pytest.mark.parametrize("shape", SHAPES)
def test_there_and_back_with_parameters_of_other_sizes(shape: tuple, size: float) -> None:
    net = random_lbdn(shape, size, lipschitz=3.0, dtype=torch.float64)
    with torch.no_grad():
        for layer in net.layers[:-1]:
            layer.psi.div_(size)
    assert there_and_back(net) <= 1e-10


@pytest.mark.parametrize("width, depth", [(1, 0), (1, 3), (4, 2), (16, 6)])
def test_there_and_back_at_the_bound(width: int, depth: int) -> None:
    """H is singular: the last factor A is zero to rounding."""
    assert there_and_back(tight_lbdn(width, depth, "relu", lipschitz=7.0)) <= 1e-10


def test_there_and_back_with_singular_factors() -> None:
    """A_0 with zero eigenvalues needs the pseudo-inverse: what it removes, no later layer sees."""
    net = random_lbdn((5, (4, 4), 3), dtype=torch.float64)
    b = torch.zeros(5, 4, dtype=torch.float64)
    b[0, 0] = b[1, 1] = 1.0
    x, y = inverse_cayley(torch.diag(torch.tensor([0.0, 0.0, 1.0, 1.0]).double()), b)
    with torch.no_grad():
        net.layers[0].weight.copy_(torch.cat((x, y)))
        net.layers[0].alpha.copy_(net.layers[0].weight.norm())
    assert there_and_back(net) <= 1e-10


def test_there_and_back_with_scales() -> None:
    torch.manual_seed(3)
    matrix = torch.eye(3).double() + 0.3 * torch.randn(3, 3).double()
    for scale in (torch.tensor([0.1, 5.0, 2.0]).double(), matrix):
        for name in ("input_scale", "output_scale"):
            net = random_lbdn((3, (8, 5), 3), lipschitz=3.0, dtype=torch.float64, **{name: scale})
            found = explicit_to_lbdn(exported(net), multipliers_of(net), 3.0, **{name: scale})
            assert torch.equal(getattr(found, name), scale) and getattr(found, name) is not scale
            with torch.no_grad():
                back = lbdn_to_explicit(found, "relu")
            for ours, theirs in zip(back.weights, exported(net).weights, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_parameters_in_float32() -> None:
    """The margin is that of the target: the float32 network needs a slightly larger bound."""
    net = random_lbdn((3, (8, 5), 2), lipschitz=3.0, dtype=torch.float64)
    found = explicit_to_lbdn(exported(net), multipliers_of(net), 3.0, dtype=torch.float32)
    assert all(t.dtype == torch.float32 for layer in found.layers for t in layer if t is not None)
    with torch.no_grad():
        back = lbdn_to_explicit(found, "relu")
    for ours, theirs in zip(back.weights, exported(net).weights, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=1e-5)


def test_result_shares_no_memory_with_the_network() -> None:
    net = random_lbdn((3, (8,), 2), dtype=torch.float64)
    network = exported(net)
    found = explicit_to_lbdn(network, multipliers_of(net), 1.0)
    before = [b.clone() for b in network.biases]
    for layer in found.layers:
        layer.bias.fill_(9.0)
    assert all(torch.equal(a, b) for a, b in zip(before, network.biases, strict=True))


# The bound that multipliers prove -------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_certified_lipschitz_is_the_edge_of_the_dense_lmi(seed: int) -> None:
    torch.manual_seed(seed)
    network = exported(random_lbdn((3, (6, 5), 2), seed=seed, dtype=torch.float64))
    multipliers, _ = product_multipliers(network)
    multipliers = [t * (1 + 0.3 * torch.rand_like(t)) for t in multipliers]
    gamma = certified_lipschitz(network, multipliers)
    assert dense_lmi(network, multipliers, gamma * (1 + 1e-6)) > 0
    assert dense_lmi(network, multipliers, gamma * (1 - 1e-6)) < 0


@pytest.mark.parametrize("shape", SHAPES)
def test_product_multipliers_prove_the_product(shape: tuple) -> None:
    torch.manual_seed(1)
    network = exported(random_lbdn(shape, dtype=torch.float64)).map(lambda t: t * torch.randn(()).exp())
    product = 1.0
    for weight in network.weights:
        product *= float(torch.linalg.svdvals(weight)[0])
    for factor in (1.0, 1.05, 50.0):
        multipliers, gamma = product_multipliers(network, factor * product * (1 + 1e-12))
        assert dense_lmi(network, multipliers, gamma) >= -1e-7
        assert certified_lipschitz(network, multipliers) <= gamma * (1 + 1e-9)
    assert product_multipliers(network)[1] == pytest.approx(1.05 * product, rel=1e-12)
    assert product_multipliers(network, slack=2.0)[1] == pytest.approx(2 * product, rel=1e-12)
    with pytest.raises(InvalidArgumentError, match="product of the spectral norms"):
        product_multipliers(network, 0.99 * product)


def test_a_bound_that_is_not_proved_is_refused_with_the_one_that_is() -> None:
    net = random_lbdn((3, (8, 5), 2), lipschitz=3.0, dtype=torch.float64)
    network, multipliers = exported(net), multipliers_of(net)
    least = certified_lipschitz(network, multipliers)
    assert least <= 3.0
    with pytest.raises(InvalidArgumentError, match="least eigenvalue") as caught:
        explicit_to_lbdn(network, multipliers, 0.999 * least)
    named = float(re.search(r"at least ([0-9.e+-]+)", str(caught.value))[1])
    assert named == pytest.approx(least, rel=1e-6)
    explicit_to_lbdn(network, multipliers, named * (1 + 1e-6))


def test_multipliers_that_prove_nothing_are_refused() -> None:
    net = random_lbdn((3, (8, 5), 2), lipschitz=3.0, dtype=torch.float64)
    wrong = [1e-3 * t for t in multipliers_of(net)]
    assert certified_lipschitz(exported(net), wrong) == float("inf")
    with pytest.raises(InvalidArgumentError, match="They prove none"):
        explicit_to_lbdn(exported(net), wrong, 1e6)


def test_any_single_weight_moved_outwards_is_refused() -> None:
    """At the edge of the LMI a change along the worst direction by 1e-6 is noticed."""
    net = tight_lbdn(3, 1, "relu")
    network = exported(net)
    grown = ExplicitMLP((network.weights[0] * (1 + 1e-6), network.weights[1]), network.biases, "relu")
    explicit_to_lbdn(network, multipliers_of(net), 1.0)
    with pytest.raises(InvalidArgumentError, match="at least"):
        explicit_to_lbdn(grown, multipliers_of(net), 1.0)


def test_degenerate_networks() -> None:
    """Zero weights, dead layers, and no hidden layer at all."""
    zeros = ExplicitMLP((torch.zeros(4, 3), torch.zeros(2, 4)), (torch.ones(4), None), "relu").to(
        dtype=torch.float64
    )
    multipliers, gamma = product_multipliers(zeros)
    found = explicit_to_lbdn(zeros, multipliers, gamma)
    with torch.no_grad():
        assert all(not w.any() for w in lbdn_to_explicit(found, "relu").weights)
    assert all(float(layer.alpha) > 0 for layer in found.layers), "gradients must find a way out"
    affine = ExplicitMLP((torch.tensor([[3.0, 4.0]]).double(),), (None,), "relu")
    assert product_multipliers(affine, slack=1.0)[1] == pytest.approx(5.0, rel=1e-14)
    found = explicit_to_lbdn(affine, [], 5.0)
    with torch.no_grad():
        torch.testing.assert_close(
            lbdn_to_explicit(found, "relu").weights[0], affine.weights[0], rtol=0, atol=1e-13
        )


def test_wrong_arguments() -> None:
    net = random_lbdn((3, (8, 5), 2), dtype=torch.float64)
    network, t = exported(net), multipliers_of(net)
    with pytest.raises(ShapeError, match="multipliers"):
        explicit_to_lbdn(network, t[::-1], 1.0)
    with pytest.raises(InvalidArgumentError, match=r"multipliers\[1\].*positive"):
        explicit_to_lbdn(network, [t[0], 0 * t[1]], 1.0)
    with pytest.raises(InvalidArgumentError, match="lipschitz"):
        explicit_to_lbdn(network, t, -1.0)
    with pytest.raises(InvalidArgumentError, match="stack"):
        explicit_to_lbdn(ExplicitMLP.stack([network, network]), t, 1.0)
    with pytest.raises(InvalidArgumentError, match="finite"):
        explicit_to_lbdn(network.map(lambda w: w * float("nan")), t, 1.0)
    with pytest.raises(InvalidArgumentError, match="float64"):
        explicit_to_lbdn(network, [1e80 * x for x in t], 1.0, dtype=torch.float32)
    with pytest.raises(InvalidArgumentError, match="slack"):
        product_multipliers(network, slack=0.5)


def test_a_bound_given_as_a_tensor_is_the_same_map() -> None:
    """The trained bound multiplies from outside the fused conversion; values and gradients agree with the number."""
    for shape in SHAPES:
        net = random_lbdn(shape, lipschitz=2.5, dtype=torch.float64)
        params = net.direct()
        gamma = torch.tensor(2.5, dtype=torch.float64, requires_grad=True)
        by_tensor = lbdn_to_explicit(LBDNParams(params.layers, gamma), "relu")
        by_number = lbdn_to_explicit(params, "relu")
        for ours, theirs in zip(by_tensor.weights, by_number.weights, strict=True):
            torch.testing.assert_close(
                ours, theirs, rtol=0, atol=100 * EPS * float(theirs.detach().abs().max())
            )
        # d/dgamma of the sum, by differences of the number.
        (slope,) = torch.autograd.grad(sum(w.sum() for w in by_tensor.weights), gamma)
        sides = [
            float(
                sum(
                    w.detach().sum()
                    for w in lbdn_to_explicit(params._replace(lipschitz=2.5 + h), "relu").weights
                )
            )
            for h in (-1e-5, 1e-5)
        ]
        assert float(slope) == pytest.approx((sides[1] - sides[0]) / 2e-5, rel=1e-7, abs=1e-8)
