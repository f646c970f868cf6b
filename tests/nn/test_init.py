"""Initialisations: what each one claims, and the gradient factor per layer that it leaves."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from robustnn import LBDN
from robustnn.bounds import lower_bound
from robustnn.errors import InvalidArgumentError, ShapeError
from robustnn.nn import balanced_, zero_output_
from robustnn.params import ACTIVATIONS, sandwich_factors
from tests.networks import ACTIVATION_NAMES, SHAPES, exported, inputs

EPS = torch.finfo(torch.float64).eps
K = torch.tensor([[-1.0, -1.7, 0.2], [0.3, 2.0, 0.0]], dtype=torch.float64)
NORM = float(torch.linalg.svdvals(K)[0])


def gradient_factor(net: LBDN) -> float:
    """Geometric mean over the hidden layers of what backpropagation leaves of a gradient's length."""
    h = inputs(net.in_features, n=256).requires_grad_()
    states = [h]
    for layer in net.layers[:-1]:
        states.append(layer(states[-1]))
    cotangent = inputs(states[-1].shape[-1], n=256, seed=7)
    grads = torch.autograd.grad(states[-1], states[0], cotangent)
    return float((grads[0].norm() / cotangent.norm()) ** (1 / (len(states) - 1)))


# Balanced -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_balanced_layers_are_semi_orthogonal(shape: tuple) -> None:
    net = LBDN(*shape, init="balanced", dtype=torch.float64)
    for layer in net.layers:
        a_t, b_t = sandwich_factors(layer.direct())
        product = 2 * a_t @ b_t.mT
        values = torch.linalg.svdvals(product.detach())
        torch.testing.assert_close(values, torch.ones_like(values), rtol=0, atol=50 * EPS)
        assert not layer.bias.any() and (layer.psi is None or not layer.psi.any())


def test_balanced_weights_of_equal_widths_are_orthogonal() -> None:
    net = LBDN(8, (8, 8, 8), 8, lipschitz=4.0, init="balanced", dtype=torch.float64)
    eye = torch.eye(8, dtype=torch.float64)
    weights = exported(net).weights
    for w, gain in zip(weights, (4.0, 1.0, 1.0, 2.0), strict=True):
        torch.testing.assert_close(w @ w.mT, gain * eye, rtol=0, atol=1e-13)
    total = torch.linalg.multi_dot(weights[::-1])
    assert float(torch.linalg.matrix_norm(total, 2)) == pytest.approx(4.0 / math.sqrt(2), rel=1e-13)


def test_gradient_factor_per_layer() -> None:
    """Depth 10, width 64, relu: balanced keeps 1/sqrt2 per layer (relu halves the energy), the published one less."""
    factors: dict[str, list[float]] = {"default": [], "balanced": [], "balanced, bias 0.5": []}
    for seed in range(3):
        torch.manual_seed(seed)
        net = LBDN(64, (64,) * 10, 1, dtype=torch.float64)
        factors["default"].append(gradient_factor(net))
        factors["balanced"].append(gradient_factor(balanced_(net)))
        factors["balanced, bias 0.5"].append(gradient_factor(balanced_(net, bias=0.5)))
    means = {name: sum(values) / 3 for name, values in factors.items()}
    assert 0.55 < means["default"] < 0.65
    assert means["balanced"] == pytest.approx(math.sqrt(0.5), abs=0.02)
    assert means["balanced, bias 0.5"] > 0.75


# Zero output ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_zero_output(shape: tuple) -> None:
    net = LBDN(*shape, lipschitz=50.0, init="zero_output", dtype=torch.float64)
    x = inputs(shape[0])
    with torch.no_grad():
        assert not net(x).any()
    (net(x) - 1.0).square().sum().backward()
    output = net.layers[-1]
    assert bool(output.weight.grad[output.out_features :].any()), "the output can leave zero"
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(30):
        optimizer.zero_grad()
        (net(x) - x.sum(-1, keepdim=True)).square().sum().backward()
        optimizer.step()
    assert float(net(x).detach().abs().max()) > 0.05


def test_initialisers_drop_frozen_weights_and_return_the_network() -> None:
    net = LBDN(3, (8,), 2).freeze()
    assert balanced_(net) is net and not net.is_frozen
    assert zero_output_(net.freeze()) is net and not net.is_frozen
    with pytest.raises(InvalidArgumentError, match="bias"):
        balanced_(net, bias=-1.0)
    with pytest.raises(InvalidArgumentError, match="init.*balanced.*nought"):
        LBDN(3, (8,), 2, init="nought")
    balanced_(LBDN(3, (8,), 2, bias=False))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("init", ["balanced", "zero_output"])
def test_initialisations_in_every_dtype(init: str, dtype: torch.dtype) -> None:
    net = LBDN(3, (8, 5), 2, init=init, dtype=dtype)
    assert all(bool(p.isfinite().all()) for p in net.parameters())
    assert all(p.dtype == dtype for p in net.parameters())


# From a linear map ----------------------------------------------------------------------------------------


def region(n: int, radius: float) -> Tensor:
    """Points on the sphere of the radius and inside it."""
    x = inputs(3, n=n)
    x = radius * x / x.norm(dim=-1, keepdim=True)
    return torch.cat((x, 0.3 * x, torch.zeros(1, 3, dtype=torch.float64)))


@pytest.mark.parametrize("excess", [1.0, 1.001, 4.0])
@pytest.mark.parametrize("widths", [(), (2,), (16, 5), (3, 2, 8)])
@pytest.mark.parametrize("activation", ACTIVATION_NAMES)
def test_starts_as_the_linear_map(activation: str, widths: tuple[int, ...], excess: float) -> None:
    """Exactly, where the activation has a stretch of slope one; else with the error stated. Also at ||K|| = gamma."""
    slope = ACTIVATIONS[activation].slope_max
    gamma = excess * NORM / slope ** len(widths)
    net = LBDN.from_linear(
        K, widths, lipschitz=gamma, activation=activation, region=2.0, tolerance=1e-4, dtype=torch.float64
    )
    assert net.lipschitz == gamma and net.activation == activation
    x = region(500, 2.0)
    with torch.no_grad():
        error = float((net(x) - x @ K.mT).norm(dim=-1).max())
    if activation in ("tanh", "sigmoid") and widths:
        assert error <= 1e-4 * NORM * 2.0
        assert error > 1e-7, "and it is an approximation"
    else:
        assert error <= 1e-11
    assert lower_bound(exported(net), x[::50], iterations=10).value <= gamma * (1 + 4 * EPS)


def test_outside_the_region_a_relu_network_is_another() -> None:
    net = LBDN.from_linear(K, (16,), lipschitz=5.0, region=2.0, dtype=torch.float64)
    x = 10 * region(50, 2.0)
    with torch.no_grad():
        assert float((net(x) - x @ K.mT).abs().max()) > 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_from_linear_with_scales(dtype: torch.dtype) -> None:
    """gamma and the region are those of the weighted norms."""
    torch.manual_seed(2)
    matrix = torch.eye(3).double() + 0.3 * torch.randn(3, 3).double()
    d_y = torch.tensor([0.5, 4.0]).double()
    for d_x in (torch.tensor([0.1, 1.0, 3.0]).double(), matrix):
        full = d_x if d_x.ndim == 2 else torch.diag(d_x)
        norm = float(torch.linalg.svdvals(K @ full / d_y.unsqueeze(-1))[0])
        net = LBDN.from_linear(
            K, (8, 8), lipschitz=norm * (1 + 1e-5), input_scale=d_x, output_scale=d_y, region=2.0, dtype=dtype
        )
        x = region(200, 2.0) @ full.mT
        with torch.no_grad():
            y = net(x.to(dtype)).double()
        torch.testing.assert_close(y, x @ K.mT, rtol=0, atol=1e-11 if dtype == torch.float64 else 2e-4)
        with pytest.raises(InvalidArgumentError, match="norm of the gain"):
            LBDN.from_linear(K, (8, 8), lipschitz=0.99 * norm, input_scale=d_x, output_scale=d_y)


def test_idle_units_are_alive() -> None:
    """All units get gradients within a few steps, although the output does not see the idle ones at the start."""
    for gamma in (NORM, 2 * NORM):
        net = LBDN.from_linear(K, (12, 12), lipschitz=gamma, region=2.0, dtype=torch.float64)
        start = [w.clone() for w in exported(net).weights]
        assert float(start[-1][:, 2:].abs().max()) <= 1e-13
        x = region(100, 2.0)
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        for _ in range(20):
            optimizer.zero_grad()
            (net(x) - x[:, :2].sin()).square().mean().backward()
            optimizer.step()
        end = exported(net).weights
        assert bool((end[-1][:, 2:].abs() > 1e-4).any(dim=0).all())


def test_rank_and_degenerate_gains() -> None:
    rank_one = torch.outer(torch.ones(4), torch.arange(1.0, 6.0)).double()
    net = LBDN.from_linear(rank_one, (1, 1), lipschitz=20.0, dtype=torch.float64)
    x = inputs(5)
    x = x / x.norm(dim=-1, keepdim=True)
    with torch.no_grad():
        torch.testing.assert_close(net(x), x @ rank_one.mT, rtol=0, atol=1e-11)
        zero = LBDN.from_linear(torch.zeros(2, 3), (4,), lipschitz=1.0, dtype=torch.float64)
        assert not zero(inputs(3)).any()
    with pytest.raises(InvalidArgumentError, match="rank of the gain"):
        LBDN.from_linear(K, (1,), lipschitz=5.0)


def test_from_linear_wrong_arguments() -> None:
    with pytest.raises(InvalidArgumentError, match="lipschitz.*norm of the gain"):
        LBDN.from_linear(K, (8,), lipschitz=0.9 * NORM)
    with pytest.raises(InvalidArgumentError, match="4\\^L"):
        LBDN.from_linear(K, (8,), lipschitz=2 * NORM, activation="sigmoid")
    with pytest.raises(ShapeError, match="gain"):
        LBDN.from_linear([1.0, 2.0], (8,), lipschitz=9.0)  # type: ignore[list-item]
    with pytest.raises(InvalidArgumentError, match="gain"):
        LBDN.from_linear("K", (8,), lipschitz=9.0)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="gain"):
        LBDN.from_linear(K * math.nan, (8,), lipschitz=9.0)
    for name in ("region", "tolerance"):
        with pytest.raises(InvalidArgumentError, match=name):
            LBDN.from_linear(K, (8,), lipschitz=9.0, **{name: 0.0})
