"""The hand-written passes on numpy views and on tensors: one function, and when which of the two serves."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustnn import LBDN
from robustnn.params import apply, arrays, fused
from robustnn.params.arrays import LARGEST_PRODUCT, TORCH, namespace_for
from robustnn.params.fused import RADIUS_LIMIT, merged_by_value, psi_limit
from robustnn.params.maps import lbdn_to_explicit, merged_weights
from tests.networks import ACTIVATION_NAMES, SHAPES, inputs, random_lbdn

GAMMA = 3.0

DTYPES = [torch.float32, torch.float64]


def through_weights(net: LBDN, x: Tensor) -> Tensor:
    return lbdn_to_explicit(net.direct(), net.activation)(x)


def without_weights(net: LBDN, x: Tensor) -> Tensor:
    return net(x)


@pytest.fixture(params=[through_weights, without_weights])
def function(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    monkeypatch.setattr(apply, "_pays", lambda *args: True)
    yield request.param


def outputs_and_gradients(function, net: LBDN, x: Tensor) -> list[Tensor]:  # type: ignore[no-untyped-def]
    x = x.clone().requires_grad_()
    y = function(net, x)
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(3), dtype=y.dtype)
    wanted = [p for p in net.parameters() if p.requires_grad]
    return [y.detach(), *torch.autograd.grad(y, (x, *wanted), cotangent)]


def on_tensors(function, net: LBDN, x: Tensor) -> list[Tensor]:  # type: ignore[no-untyped-def]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrays, "LARGEST_PRODUCT", 0)
        return outputs_and_gradients(function, net, x)


def assert_close(ours: list[Tensor], theirs: list[Tensor], factor: float = 5000.0) -> None:
    for a, b in zip(ours, theirs, strict=True):
        eps = torch.finfo(b.dtype).eps
        torch.testing.assert_close(a, b, rtol=0, atol=factor * eps * (1 + float(b.abs().max())))


def counted(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Inverses that numpy's namespace computes from now on."""
    calls: list[object] = []
    original = arrays.NumpyArrays.inverse
    monkeypatch.setattr(arrays.NumpyArrays, "inverse", staticmethod(lambda s: calls.append(s) or original(s)))
    return calls


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATION_NAMES)
@pytest.mark.parametrize("shape", [*SHAPES, (5, (64, 64), 2)])
def test_both_give_the_same(function, shape, activation, dtype, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    net = random_lbdn(shape, lipschitz=GAMMA, activation=activation, dtype=dtype, size=0.5)
    x = inputs(shape[0]).to(dtype)
    calls = counted(monkeypatch)
    ours = outputs_and_gradients(function, net, x)
    assert len(calls) == len(net.layers)
    theirs = on_tensors(function, net, x)
    assert len(calls) == len(net.layers)
    assert_close(ours, theirs)


def test_parameters_that_are_not_trained_or_not_contiguous(function) -> None:  # type: ignore[no-untyped-def]
    net = random_lbdn((4, (6, 6), 2), lipschitz=GAMMA, activation="tanh", dtype=torch.float64)
    x = inputs(4)
    expected = on_tensors(function, net, x)
    weight = net.layers[1].weight
    weight.data = weight.data.mT.contiguous().mT
    assert_close(outputs_and_gradients(function, net, x), expected)
    net.layers[0].weight.requires_grad_(False)
    net.layers[1].psi.requires_grad_(False)
    assert_close(outputs_and_gradients(function, net, x), on_tensors(function, net, x))


def test_cotangents_of_any_layout(function) -> None:  # type: ignore[no-untyped-def]
    net = random_lbdn((4, (6, 6), 2), activation="relu", dtype=torch.float64)
    x, parameters = inputs(4), list(net.parameters())
    expected = torch.autograd.grad(function(net, x), parameters, torch.ones(6, 2, dtype=x.dtype))
    expanded = torch.autograd.grad(function(net, x).sum(), parameters)
    turned = torch.autograd.grad(function(net, x), parameters, torch.ones(2, 6, dtype=x.dtype).mT)
    assert_close(list(expanded), list(expected))
    assert_close(list(turned), list(expected))


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e38])
@pytest.mark.parametrize("name", ["weight", "alpha", "psi", "bias"])
def test_overflow_gives_no_warning_and_shows_as_with_tensors(function, name, value) -> None:  # type: ignore[no-untyped-def]
    net = random_lbdn((4, (6, 6), 2), activation="relu")
    with torch.no_grad():
        getattr(net.layers[0], name).view(-1)[0] = value
    x = inputs(4).float()
    for ours, theirs in zip(
        outputs_and_gradients(function, net, x), on_tensors(function, net, x), strict=True
    ):
        assert bool(ours.isfinite().all()) == bool(theirs.isfinite().all())


def test_the_choice() -> None:
    plain = torch.zeros(8, 4)
    assert namespace_for([plain, nn.Parameter(plain)], LARGEST_PRODUCT) is not TORCH
    assert namespace_for([plain], LARGEST_PRODUCT + 1) is TORCH
    for other in (
        plain.mT,
        torch.zeros(8, 4, device="meta"),
        plain.as_subclass(type("Special", (Tensor,), {})),
    ):
        assert namespace_for([plain, other], 1) is TORCH
    assert namespace_for([plain.bfloat16()], 1) is TORCH


@pytest.mark.parametrize("largest", [0, LARGEST_PRODUCT])
@pytest.mark.parametrize("radius", [1.0, 8.0, 60.0, RADIUS_LIMIT])
def test_polished_where_the_rounding_could_show(radius, largest, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """Weights for float32 are orthogonal to a fiftieth of its eps, polished or not; for float64 to a few of its own."""
    monkeypatch.setattr(arrays, "LARGEST_PRODUCT", largest)
    n, calls = 48, []
    original = fused._polished
    monkeypatch.setattr(fused, "_polished", lambda *args: calls.append(args) or original(*args))
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(2 * n, n, generator=generator, dtype=torch.float64)
    tensors = (
        weight,
        weight,
        torch.tensor(radius).double(),
        torch.tensor(radius).double(),
        torch.zeros(n).double(),
    )
    limit = psi_limit(torch.float32)
    for target, tolerance in ((torch.float32, 0.02), (torch.float64, 100.0)):
        del calls[:]
        weights = merged_by_value(1.0, limit, tensors, torch.float64, target)
        assert bool(calls) == (target == torch.float64 or radius > 300.0)
        with torch.no_grad():
            exact = merged_weights(1.0, limit, *tensors)
        for ours, theirs in zip(weights, exact, strict=True):
            error = float(torch.linalg.matrix_norm(ours - theirs, ord=2))
            # The reference has the same condition number: 1 + alpha^2 in all.
            assert error <= tolerance * torch.finfo(target).eps * (
                1.0 if target == torch.float32 else 1 + radius**2
            )
        # W_0 = sqrt(2) B_0 and W_1 = sqrt(2) B_1 A_0^T with A A^T + B B^T = I.
        norm = np.linalg.norm(weights[0].numpy(), 2) / math.sqrt(2.0)
        assert norm <= 1.0 + tolerance * torch.finfo(target).eps


def trained(activation: str) -> tuple[LBDN, Tensor]:
    """A deep network after some training, and inputs."""
    torch.manual_seed(1)
    net = LBDN(2, (24,) * 10, 1, lipschitz=10.0, activation=activation)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    x = torch.rand(64, 2) * 2 - 1
    target = 2 * torch.sin(8 * x[:, :1]) * torch.cos(5 * x[:, 1:])
    for _ in range(60):
        loss = (net(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net, x


@pytest.mark.parametrize("largest", [0, LARGEST_PRODUCT])
def test_gradients_of_a_trained_deep_network_are_as_accurate_as_by_autograd(function, largest, monkeypatch) -> None:  # type: ignore[no-untyped-def] # fmt: skip
    """What float32 leaves off is the condition of the network: the plain map by autograd leaves the same.

    Not relu, where a rounding error may carry a unit across the kink.
    """
    net, x = trained("tanh")
    monkeypatch.setattr(arrays, "LARGEST_PRODUCT", largest)
    cotangent = torch.randn(len(x), 1, generator=torch.Generator().manual_seed(0))

    def gradients(function, dtype: torch.dtype) -> Tensor:  # type: ignore[no-untyped-def]
        net.to(dtype)
        parts = torch.autograd.grad(function(net, x.to(dtype)), list(net.parameters()), cotangent.to(dtype))
        return torch.cat([part.double().reshape(-1) for part in parts])

    ours = gradients(function, torch.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused.LBDNConversion, "applicable", staticmethod(lambda: False))
        plain = gradients(through_weights, torch.float32)
        exact = gradients(through_weights, torch.float64)
    errors = [float((g - exact).norm() / exact.norm()) for g in (ours, plain)]
    assert errors[0] <= 2.0 * errors[1] + 1e-6
    assert errors[0] <= 1e-5
