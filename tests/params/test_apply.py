"""The network without its weights: the same function and derivatives as with them, and when it is chosen."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from benchmarks.sandwich import TARGETS
from robustnn import LBDN
from robustnn.params import apply
from robustnn.params.apply import lbdn_apply
from robustnn.params.arrays import TORCH
from robustnn.params.fused import RADIUS_LIMIT, block_inverse
from robustnn.params.maps import lbdn_to_explicit
from tests.networks import ACTIVATION_NAMES, SHAPES, inputs, random_lbdn

EPS = torch.finfo(torch.float64).eps
GAMMA = 3.0


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluate without the weights whatever the shape."""
    monkeypatch.setattr(apply, "_pays", lambda *args: True)


def merged(net: LBDN, x: Tensor) -> Tensor:
    return lbdn_to_explicit(net.direct(), net.activation)(x)


def outputs_and_gradients(function, net: LBDN, x: Tensor) -> list[Tensor]:  # type: ignore[no-untyped-def]
    x = x.clone().requires_grad_()
    y = function(net, x)
    generator = torch.Generator().manual_seed(3)
    cotangent = torch.randn(y.shape, generator=generator, dtype=y.dtype)
    return [y.detach(), *torch.autograd.grad(y, (x, *net.parameters()), cotangent)]


def assert_same(net: LBDN, x: Tensor, factor: float = 5000.0) -> None:
    ours = outputs_and_gradients(lambda net, x: net(x), net, x)
    theirs = outputs_and_gradients(merged, net, x)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=factor * EPS * (1 + float(b.abs().max())))


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("activation", ACTIVATION_NAMES)
@pytest.mark.parametrize("shape", [*SHAPES, (70, (60,), 50)])
def test_function_and_gradients_are_those_of_the_weights(shape: tuple, activation: str) -> None:
    net = random_lbdn(shape, lipschitz=GAMMA, activation=activation, dtype=torch.float64)
    assert_same(net, inputs(shape[0]))


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("matrix", [True, False])
@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_scales_trained_bounds_and_biases(bias: bool, trained: bool, matrix: bool) -> None:
    d_x: Tensor = torch.tensor([0.5, 2.0, 3.0]).double()
    d_y: Tensor = torch.tensor([3.0, 0.25]).double()
    if matrix:
        d_x, d_y = d_x.diag() + 0.1, d_y.diag() - 0.1
        d_x[0, 1], d_y[0, 1] = 0.4, 0.3  # not symmetric
    net = random_lbdn(
        (3, (8, 5), 2), activation="tanh", dtype=torch.float64, bias=bias, lipschitz=GAMMA,
        trainable_lipschitz=trained, input_scale=d_x, output_scale=d_y,
    )  # fmt: skip
    assert_same(net, inputs(3))


@pytest.mark.usefixtures("always")
def test_outside_the_limits_and_at_a_zero_weight() -> None:
    net = random_lbdn((3, (4, 4), 2), activation="tanh", dtype=torch.float64)
    with torch.no_grad():
        net.layers[0].psi[1] = 400.0
        net.layers[1].alpha.fill_(-2 * RADIUS_LIMIT)
        net.layers[2].weight.zero_()
    x = inputs(3)
    ours = outputs_and_gradients(lambda net, x: net(x), net, x)
    theirs = outputs_and_gradients(merged, net, x)
    for a, b in zip(ours, theirs, strict=True):
        assert bool(a.isfinite().all())
        # alpha = 1e3 costs digits (alpha^2 eps).
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7 * float(b.abs().max()) + 1e-300)
    gradients = dict(zip(["y", "x", *dict(net.named_parameters())], ours, strict=True))
    assert float(gradients["layers.0.psi"][1]) == 0.0
    assert float(gradients["layers.1.alpha"]) == 0.0


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("shape", [(1, (1,), 1), (3, (), 2), (2, (3, 1), 2)])
def test_derivatives(shape: tuple) -> None:
    net = random_lbdn(shape, size=0.7, lipschitz=GAMMA, activation="tanh", dtype=torch.float64)
    names = list(dict(net.named_parameters()))

    def function(x: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(net, dict(zip(names, parameters, strict=True)), x)

    arguments = (inputs(shape[0], n=2).requires_grad_(), *net.parameters())
    assert torch.autograd.gradcheck(function, arguments)
    assert torch.autograd.gradgradcheck(function, arguments)


@pytest.mark.usefixtures("always")
def test_batched_cotangents_and_a_second_backward_pass() -> None:
    net = random_lbdn((3, (6, 5), 2), lipschitz=GAMMA, activation="tanh", dtype=torch.float64)
    parameters = list(net.parameters())
    y = net(inputs(3, n=1))[0]
    rows = [torch.autograd.grad(y[i], parameters, retain_graph=True) for i in range(2)]
    again = torch.autograd.grad(y[0], parameters, retain_graph=True)
    both = torch.autograd.grad(y, parameters, torch.eye(2, dtype=y.dtype), is_grads_batched=True)
    for first, second, repeated, batched in zip(*rows, again, both, strict=True):
        assert torch.equal(first, repeated)
        torch.testing.assert_close(batched, torch.stack((first, second)), rtol=0, atol=1e4 * EPS)


@pytest.mark.usefixtures("always")
def test_an_input_changed_in_place_is_noticed() -> None:
    net = random_lbdn((3, (6,), 2), dtype=torch.float64)
    x = inputs(3)
    y = net(x)
    x.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.usefixtures("always")
def test_backward_inside_autocast_is_in_full_precision() -> None:
    net, x = random_lbdn((3, (8,), 2)), inputs(3).float()
    weight = net.layers[0].weight
    (expected,) = torch.autograd.grad(net(x).square().sum(), weight)
    loss = net(x).square().sum()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (actual,) = torch.autograd.grad(loss, weight)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.parametrize("n", [511, 512, 1025])
def test_inverse_with_the_gram_matrix_by_blocks(n: int) -> None:
    scaled = torch.randn(n + 3, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x, y = scaled[:n], scaled[n:]
    same, m = block_inverse(TORCH, scaled)
    turned = block_inverse(TORCH, scaled.mT.contiguous().mT)[1]
    s = torch.eye(n, dtype=torch.float64) + x - x.mT + y.mT @ y
    assert torch.equal(same, y)
    for inverse in (m, turned):
        torch.testing.assert_close(inverse @ s, torch.eye(n, dtype=torch.float64), rtol=0, atol=100 * n * EPS)


@pytest.mark.parametrize("width, batch", TARGETS)
def test_the_choice_goes_by_shape(width: int, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(apply, "lbdn_to_explicit", lambda *args: calls.append(args) or (lambda x: x))
    monkeypatch.setattr(apply.LBDNApplication, "apply", staticmethod(lambda *args: torch.zeros(batch, width)))
    net = LBDN(width, (width,), width)
    lbdn_apply(net.direct(), "relu", torch.zeros(batch, width))
    assert bool(calls) == (3 * width + 9 * batch > 11 * width + 3 * batch)


@pytest.mark.parametrize("width, batch", TARGETS)
def test_gradients_in_single_precision(width: int, batch: int) -> None:
    """Within 1e-5 of those in double precision: every weight, psi and bias, and the radii of all layers together.

    Not relu: a rounding error that carries one unit across the kink changes the gradient by more than that.
    """
    torch.manual_seed(0)
    net = LBDN(width, (width, width), width, lipschitz=GAMMA, activation="tanh")
    for layer in net.layers:
        nn.init.normal_(layer.bias, std=0.3)
        if layer.psi is not None:
            nn.init.normal_(layer.psi, std=0.3)
    x, cotangent = torch.randn(batch, width), torch.randn(batch, width)
    names = dict(net.named_parameters())
    single = torch.autograd.grad(net(x), names.values(), cotangent)
    net.double()
    double = torch.autograd.grad(net(x.double()), net.parameters(), cotangent.double())
    pairs = {name: pair for name, *pair in zip(names, single, double, strict=True)}
    radii = [pairs.pop(name) for name in names if name.endswith("alpha")]
    pairs["alpha"] = [torch.stack(column) for column in zip(*radii, strict=True)]
    for name, (ours, exact) in pairs.items():
        error = (ours.double() - exact).norm() / exact.norm()
        assert float(error) <= 1e-5, f"{name}: {float(error):.1e}"
