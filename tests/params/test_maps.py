"""Direct parameters to explicit weights: against the paper's layers in numpy, its certificate, and torch.func."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustnn import LBDN, SandwichLayer
from robustnn.linalg import spectral_norm
from robustnn.params import (
    LBDNParams,
    SandwichParams,
    lbdn_to_explicit,
    sandwich_factors,
    sandwich_to_explicit,
)
from robustnn.params.fused import RADIUS_LIMIT, LBDNConversion, psi_limit
from robustnn.params.maps import merged_weights
from tests.networks import ACTIVATION_NAMES, SHAPES, SIZES, exported, inputs, random_lbdn

EPS = torch.finfo(torch.float64).eps
GAMMA = 3.0

NUMPY_ACTIVATIONS = {
    "elu": lambda v: np.where(v > 0, v, np.expm1(np.minimum(v, 0))),
    "identity": lambda v: v,
    "leaky_relu": lambda v: np.where(v > 0, v, 0.01 * v),
    "relu": lambda v: np.maximum(v, 0),
    "sigmoid": lambda v: 0.5 * (1 + np.tanh(v / 2)),
    "softplus": lambda v: np.logaddexp(0, v),
    "tanh": np.tanh,
}


def by_layers(net: LBDN, x: Tensor) -> np.ndarray:
    """The network as the paper prints it: sqrt(gamma), sandwich layers with Z of the Cayley map, sqrt(gamma)."""
    sigma = NUMPY_ACTIVATIONS[net.activation]
    h = math.sqrt(net.lipschitz) * x.numpy()
    for k, layer in enumerate(net.layers):
        w, alpha = layer.weight.detach().numpy(), float(layer.alpha.detach())
        w = alpha * w / np.sqrt((w**2).sum())
        n = w.shape[1]
        u, v = w[:n], w[n:]
        z = u - u.T + v.T @ v
        inverse = np.linalg.inv(np.eye(n) + z)
        a_t, b = inverse @ (np.eye(n) - z), (-2 * v @ inverse).T
        bias = 0.0 if layer.bias is None else layer.bias.detach().numpy()
        if k == len(net.layers) - 1:
            return math.sqrt(net.lipschitz) * h @ b.T + bias
        psi = np.exp(layer.psi.detach().numpy())
        h = math.sqrt(2) * (psi * sigma(math.sqrt(2) / psi * (h @ b.T) + bias)) @ a_t.T
    raise AssertionError("the last layer returns")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ACTIVATION_NAMES)
@pytest.mark.parametrize("shape", SHAPES)
def test_network_is_the_papers_layers(shape: tuple, activation: str, bias: bool) -> None:
    net = random_lbdn(shape, lipschitz=GAMMA, activation=activation, bias=bias, dtype=torch.float64)
    x = inputs(shape[0])
    expected = by_layers(net, x)
    scale = 1 + np.abs(expected).max()
    with torch.no_grad():
        np.testing.assert_allclose(net(x), expected, rtol=0, atol=2000 * EPS * scale)
    np.testing.assert_allclose(net(x).detach(), expected, rtol=0, atol=2000 * EPS * scale)


def test_scales_are_folded_into_the_first_and_last_weight() -> None:
    d_x, d_y = torch.tensor([0.1, 5.0, 2.0]).double(), torch.tensor([3.0, 0.25]).double()
    net = random_lbdn((3, (8,), 2), lipschitz=GAMMA, dtype=torch.float64, bias=False)
    weighted = LBDN(
        3, (8,), 2, lipschitz=GAMMA, dtype=torch.float64, bias=False, input_scale=d_x, output_scale=d_y
    )
    weighted.load_state_dict(net.state_dict(), strict=False)
    x = inputs(3)
    torch.testing.assert_close(weighted(x), d_y * net(x / d_x), rtol=0, atol=100 * EPS)


def tensors_of(net: LBDN) -> list[Tensor]:
    layers = net.direct().layers
    given = (
        [p.weight for p in layers] + [p.alpha for p in layers] + [p.psi for p in layers if p.psi is not None]
    )
    return [t.detach().clone().requires_grad_() for t in given]


def both_maps(net: LBDN) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """Weights and gradients (of one random functional) by the fused node and by the reference map."""
    limit = psi_limit(torch.float64)
    results = []
    for convert in (lambda *t: LBDNConversion.apply(merged_weights, GAMMA, limit, *t),
                    lambda *t: merged_weights(GAMMA, limit, *t)):  # fmt: skip
        leaves = tensors_of(net)
        weights = convert(*leaves)
        generator = torch.Generator().manual_seed(5)
        cotangents = [torch.randn(w.shape, generator=generator, dtype=w.dtype) for w in weights]
        results += [list(weights), list(torch.autograd.grad(weights, leaves, cotangents))]
    return tuple(results)  # type: ignore[return-value]


def assert_same(actual: list[Tensor], expected: list[Tensor], factor: float = 500.0) -> None:
    for ours, theirs in zip(actual, expected, strict=True):
        atol = factor * EPS * (1 + float(theirs.detach().abs().max()))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shape", [*SHAPES, (70, (60,), 50), (8, (8, 8, 3, 8), 8)])
def test_fused_conversion_equals_the_reference(shape: tuple, seed: int) -> None:
    weights, grads, weights_reference, grads_reference = both_maps(
        random_lbdn(shape, seed=seed, dtype=torch.float64)
    )
    assert_same(weights, weights_reference)
    assert_same(grads, grads_reference, factor=5000)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("grad", [True, False])
def test_a_trace_follows_the_parameters(grad: bool) -> None:
    """Nothing of the conversion becomes a constant of the trace."""
    net = random_lbdn((3, (5, 5), 2), dtype=torch.float64)

    def function(*parameters: Tensor) -> tuple[Tensor, ...]:
        layers = [SandwichParams(*parameters[4 * k : 4 * k + 4]) for k in range(2)]
        last = SandwichParams(*parameters[8:10], None, parameters[10])
        return lbdn_to_explicit(LBDNParams((*layers, last), 2.0), "tanh").weights

    with torch.set_grad_enabled(grad):
        traced = torch.jit.trace(function, tuple(net.parameters()), check_trace=False)
        other = tuple(random_lbdn((3, (5, 5), 2), seed=1, dtype=torch.float64).parameters())
        assert_same(list(traced(*other)), list(function(*other)))


@pytest.mark.parametrize("psi", [-400.0, 400.0])
def test_fused_conversion_in_the_clamped_region(psi: float) -> None:
    """Outside the limits of psi and alpha the value stops moving and the gradient is exactly zero."""
    net = random_lbdn((3, (4, 4), 2), dtype=torch.float64)
    with torch.no_grad():
        net.layers[0].psi[1] = psi
        net.layers[1].alpha.fill_(-2 * RADIUS_LIMIT)
    weights, grads, weights_reference, grads_reference = both_maps(net)
    for ours, theirs in zip(weights + grads, weights_reference + grads_reference, strict=True):
        ours, theirs = ours.detach(), theirs.detach()
        assert bool(ours.isfinite().all())
        # Entries span 270 decades, so they are compared one by one; alpha = 1e3 costs digits (alpha^2 eps).
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7 * float(theirs.abs().max()) + 1e-300)
    grad_psi, grad_alpha = grads[6], grads[4]
    assert float(grad_psi[1]) == 0.0 and bool((grad_psi[[0, 2, 3]] != 0).any())
    assert float(grad_alpha) == 0.0


def test_fused_conversion_at_a_zero_weight() -> None:
    net = random_lbdn((3, (4,), 2), dtype=torch.float64)
    with torch.no_grad():
        net.layers[0].weight.zero_()
    weights, grads, weights_reference, grads_reference = both_maps(net)
    assert_same(weights, weights_reference)
    assert_same(grads, grads_reference)
    assert bool((weights[0] == 0).all()), "a zero weight has gain zero"
    assert bool((grads[0] != 0).any()), "and a way out of it"


@pytest.mark.parametrize("shape", [(1, (1,), 1), (3, (), 2), (2, (3, 1), 2)])
def test_derivatives_of_the_fused_conversion(shape: tuple) -> None:
    leaves = tensors_of(random_lbdn(shape, size=0.7, dtype=torch.float64))
    limit = psi_limit(torch.float64)

    def convert(*tensors: Tensor) -> tuple[Tensor, ...]:
        return LBDNConversion.apply(merged_weights, GAMMA, limit, *tensors)

    assert torch.autograd.gradcheck(convert, leaves)
    assert torch.autograd.gradgradcheck(convert, leaves)


def test_backward_inside_autocast_is_in_full_precision() -> None:
    net = random_lbdn((3, (8,), 2))
    weights = net.explicit().weights
    expected = torch.autograd.grad(sum(w.square().sum() for w in weights), net.layers[0].weight)[0]
    weights = net.explicit().weights
    loss = sum(w.square().sum() for w in weights)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (actual,) = torch.autograd.grad(loss, net.layers[0].weight)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_gradients_reach_every_parameter_and_scale_of_the_network() -> None:
    net = random_lbdn((3, (5, 4), 2), lipschitz=GAMMA, activation="tanh", dtype=torch.float64)
    x = inputs(3)

    def function(*parameters: Tensor) -> Tensor:
        return torch.func.functional_call(
            net, dict(zip(dict(net.named_parameters()), parameters, strict=True)), x
        )

    assert torch.autograd.gradcheck(function, tuple(net.parameters()))


def certificate(net: LBDN) -> float:
    """Least eigenvalue of the LipSDP matrix with Lambda_k = Psi_k^2 on the shipped weights, unit diagonal.

    H has the diagonal blocks gamma I, 2 Lambda_0, ..., 2 Lambda_{L-1}, gamma I and the blocks -Lambda_k W_k
    and -W_L below them. The weighted norms are divided out.
    """
    network = exported(net)
    weights = list(network.weights)
    if net.input_scale is not None:
        weights[0] = weights[0] * net.input_scale.double()
    if net.output_scale is not None:
        weights[-1] = weights[-1] / net.output_scale.double().unsqueeze(-1)
    limit = psi_limit(net.layers[0].weight.dtype)
    roots = [torch.full((weights[0].shape[1],), 0.5 * math.log(net.lipschitz), dtype=torch.float64)]
    roots += [
        p.psi.detach().double().clamp(-limit, limit) + 0.5 * math.log(2)
        for p in net.layers
        if p.psi is not None
    ]
    roots += [torch.full((weights[-1].shape[0],), 0.5 * math.log(net.lipschitz), dtype=torch.float64)]
    sizes = [len(r) for r in roots]
    starts = np.concatenate(([0], np.cumsum(sizes)))
    h = torch.eye(sum(sizes), dtype=torch.float64)
    for k, w in enumerate(weights):
        # Lambda_k W_k = (root_{k+1}^2 / 2) W_k between the hidden layers, W_L at the end; over both roots.
        log_rows = roots[k + 1] - math.log(2) if k < len(weights) - 1 else -roots[k + 1]
        block = -(log_rows.exp()[:, None] * w) * (-roots[k]).exp()
        rows, columns = slice(starts[k + 1], starts[k + 2]), slice(starts[k], starts[k + 1])
        h[rows, columns] = block
        h[columns, rows] = block.mT
    return float(torch.linalg.eigvalsh(h)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shape", [*SHAPES, (2, (64, 64), 1), (3, (80,), 2)])
def test_certificate_of_the_shipped_weights(shape: tuple, size: float, dtype: torch.dtype) -> None:
    """The theorem: H >= 0 whatever the parameters. Rounding of the weights and of H is all that is left."""
    eps = torch.finfo(dtype).eps
    for seed in range(2):
        net = random_lbdn(shape, size, seed, lipschitz=GAMMA, dtype=dtype)
        assert certificate(net) >= -4 * eps - 200 * EPS
    scales = dict(input_scale=np.geomspace(1e-3, 10, shape[0]), output_scale=np.geomspace(5, 0.1, shape[2]))
    assert (
        certificate(random_lbdn(shape, size, lipschitz=1e-4, dtype=dtype, **scales)) >= -4 * eps - 200 * EPS
    )


def test_certificate_can_fail() -> None:
    """The check above would notice a bound that is exceeded by a thousandth, where the bound is attained."""
    net = random_lbdn((4, (4,), 4), dtype=torch.float64, bias=False)
    with torch.no_grad():
        for layer in net.layers:
            layer.weight[: layer.out_features].zero_()
    assert certificate(net) >= -200 * EPS
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LBDN, "lipschitz", property(lambda self: 0.5 * self._lipschitz))
        assert certificate(net) < -1e-3


@pytest.mark.parametrize("n_in, n_out", [(1, 64), (3, 64), (3, 80), (200, 3), (1, 1)])
@pytest.mark.parametrize("size", SIZES)
def test_adversarial_directions(n_in: int, n_out: int, size: float) -> None:
    """X = 0 and a thin, large Y: the unit matrix in S drowns first there."""
    for x_size in (0.0, 1e-3):
        weight = torch.randn(n_out + n_in, n_out, dtype=torch.float64)
        weight[:n_out] *= x_size
        params = SandwichParams(weight, torch.tensor(size, dtype=torch.float64), None, None)
        with torch.no_grad():
            q = torch.cat(sandwich_factors(params))
        assert float(spectral_norm(q)) <= 1 + (20 + n_out) * EPS


@pytest.mark.parametrize("activation", ACTIVATION_NAMES)
def test_a_chain_of_sandwich_layers_is_the_network(activation: str) -> None:
    net = random_lbdn((3, (6, 5), 2), lipschitz=GAMMA, activation=activation, dtype=torch.float64)
    chain = nn.Sequential(
        SandwichLayer(3, 6, activation=activation, dtype=torch.float64),
        SandwichLayer(6, 5, activation=activation, dtype=torch.float64),
        SandwichLayer(5, 2, activation=activation, output=True, dtype=torch.float64),
    )
    for target, source in zip(chain, net.layers, strict=True):
        target.load_state_dict(source.state_dict())
    x = inputs(3)
    bias = net.layers[-1].bias
    expected = math.sqrt(GAMMA) * (chain(math.sqrt(GAMMA) * x) - bias) + bias
    torch.testing.assert_close(net(x), expected, rtol=0, atol=500 * EPS)


def test_single_layer_by_formula() -> None:
    layer = SandwichLayer(3, 4, activation="tanh", dtype=torch.float64)
    nn.init.normal_(layer.psi)
    a_t, b_t = sandwich_factors(layer.direct())
    psi = layer.psi.exp()
    x = inputs(3)
    expected = math.sqrt(2) * (psi * torch.tanh(math.sqrt(2) / psi * (x @ b_t) + layer.bias)) @ a_t.mT
    torch.testing.assert_close(
        sandwich_to_explicit(layer.direct(), "tanh")(x), expected, rtol=0, atol=100 * EPS
    )


@pytest.mark.parametrize("grad", [True, False])
def test_vmap_over_stacked_parameters_is_the_loop(grad: bool) -> None:
    nets = [random_lbdn((3, (6, 5), 2), seed=s, lipschitz=GAMMA, dtype=torch.float64) for s in range(3)]
    parameters, buffers = torch.func.stack_module_state(nets)
    x = inputs(3)
    with torch.set_grad_enabled(grad):
        call = lambda p, b: torch.func.functional_call(nets[0], (p, b), x)  # noqa: E731
        stacked = torch.func.vmap(call)(parameters, buffers)
        expected = torch.stack([net(x) for net in nets])
    torch.testing.assert_close(stacked, expected, rtol=0, atol=500 * EPS)


def test_vmap_over_a_stack_gives_the_gradients_of_the_loop() -> None:
    nets = [random_lbdn((3, (6,), 2), seed=s, dtype=torch.float64) for s in range(3)]
    parameters, _ = torch.func.stack_module_state(nets)
    x = inputs(3)
    loss = lambda p: torch.func.functional_call(nets[0], p, x).square().sum()  # noqa: E731
    grads = torch.func.vmap(torch.func.grad(loss))({k: v.detach() for k, v in parameters.items()})
    for s, net in enumerate(nets):
        net(x).square().sum().backward()
        for name, parameter in net.named_parameters():
            torch.testing.assert_close(grads[name][s], parameter.grad, rtol=0, atol=1e4 * EPS)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch's own, once
def test_jacrev_and_hessian() -> None:
    net = random_lbdn((3, (6,), 1), lipschitz=GAMMA, activation="tanh", dtype=torch.float64)
    x = inputs(3)[0]
    jacobian = torch.func.jacrev(net)(x)[0]
    hessian = torch.func.hessian(lambda z: net(z)[0])(x)
    step = 1e-5
    for i in range(3):
        e = step * torch.eye(3, dtype=torch.float64)[i]
        slope = (net(x + e) - net(x - e)) / (2 * step)
        torch.testing.assert_close(slope[0], jacobian[i], rtol=0, atol=1e-8)
        curvature = (torch.func.jacrev(net)(x + e)[0] - torch.func.jacrev(net)(x - e)[0]) / (2 * step)
        torch.testing.assert_close(curvature, hessian[i], rtol=0, atol=1e-8)


def test_hessian_of_a_loss_in_the_parameters() -> None:
    """Second derivatives in the parameters: the fused node's double backward is the reference's."""
    net = random_lbdn((2, (3,), 1), activation="tanh", dtype=torch.float64)
    x = inputs(2)
    weight = net.layers[0].weight
    (first,) = torch.autograd.grad(net(x).square().sum(), weight, create_graph=True)
    direction = inputs(weight.shape[1], n=weight.shape[0], seed=3)
    (product,) = torch.autograd.grad((first * direction).sum(), weight)

    def loss(w: Tensor) -> Tensor:
        return torch.func.functional_call(net, {"layers.0.weight": w}, x).square().sum()

    step = 1e-5
    plus, minus = (torch.func.grad(loss)(weight.detach() + s * direction) for s in (step, -step))
    torch.testing.assert_close(product, (plus - minus) / (2 * step), rtol=0, atol=1e-7)


def test_gradient_path_agrees_with_the_exported_weights() -> None:
    """In float32 training sees the weights that are shipped, to a few eps of float32."""
    for shape in SHAPES:
        net = random_lbdn(shape, lipschitz=GAMMA)
        with torch.no_grad():
            shipped = net.explicit()
        for ours, theirs in zip(net.explicit().weights, shipped.weights, strict=True):
            bound = 500 * torch.finfo(torch.float32).eps * (1 + float(theirs.abs().max()))
            torch.testing.assert_close(ours.detach(), theirs, rtol=0, atol=bound)


@pytest.mark.parametrize("value", [-1e4, 1e4])
def test_extreme_psi_is_one_network_with_and_without_gradients(value: float) -> None:
    """psi is clamped at the limit of float32 in both, though one of them converts in float64."""
    net = LBDN(3, (4, 4), 2)
    with torch.no_grad():
        net.layers[0].psi.fill_(value)
        net.layers[1].psi.fill_(-value)
        shipped = net.explicit()
    for ours, theirs in zip(net.explicit().weights, shipped.weights, strict=True):
        assert bool(theirs.isfinite().all())
        torch.testing.assert_close(ours.detach(), theirs, rtol=1e-3, atol=1e-5 * float(theirs.abs().max()))


def test_params_by_value_need_no_module() -> None:
    fresh = [SandwichParams(torch.randn(5, 2), torch.tensor(1.0), torch.zeros(2), torch.zeros(2)),
             SandwichParams(torch.randn(3, 1), torch.tensor(1.0), None, None)]  # fmt: skip
    network = lbdn_to_explicit(LBDNParams(tuple(fresh), 2.0), "relu")
    assert network(torch.zeros(7, 3)).shape == (7, 1)
