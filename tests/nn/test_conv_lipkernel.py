"""The LipKernel layer: the bound in pairs, its two certificates, and the interface of the other convolutions."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import nn

import robustnn.nn.conv_lipkernel as module
from experiments.classification_study.config import Config, Model
from experiments.classification_study.networks import build, n_parameters
from robustnn.bounds import (
    certify_cnn,
    circular_singular_values,
    completed_kernel,
    image_lower_bound,
    roesser_residual,
)
from robustnn.bounds.conv import kernel_symbol
from robustnn.errors import CertificateError, InvalidArgumentError, NonFiniteError, ShapeError
from robustnn.nn import ConvLBDN, LipKernelConv1d, LipKernelConv2d, SandwichConv2d
from robustnn.params import merge_pointwise
from robustnn.params.conv_lipkernel import contraction, gramian, innovation, lipkernel_margin, storage_factor
from tests.conv_cases import DTYPES, IMAGES, images, jacobian, norm, randomise, shipped

EPS = torch.finfo(torch.float64).eps
F64 = torch.float64
CASES = ((2, 3, 3, 1), (3, 2, 3, 2), (2, 2, (2, 3), 1), (1, 2, 1, 1), (2, 3, (3, 4), 2))
SIZES = (0.0, 1e-8, 1e-2, 1.0, 30.0, 1e6)
PADDINGS = ("zeros", "circular")
LOW, HIGH, LIMIT = 1e-4, 1e3, 1e3  # of R, and of a free matrix


def make(case: tuple, size: float = 1.0, seed: int = 0, **settings: object) -> LipKernelConv2d:
    return randomise(LipKernelConv2d(*case, **settings), size, seed)  # type: ignore[return-value, arg-type]


def mixed(case: tuple, seed: int, **settings: object) -> LipKernelConv2d:
    """A layer whose parameters are of different sizes, from 1e-8 to 1e6."""
    layer = make(case, 1.0, seed, **settings)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(SIZES[1:][int(torch.randint(5, (), generator=generator))])
    return layer


# The bound ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("case", CASES)
def test_bound_holds_and_is_proved(case: tuple, padding: str, dtype: torch.dtype) -> None:
    layers = [make(case, size, padding=padding, dtype=dtype) for size in SIZES]
    layers += [mixed(case, seed, padding=padding, dtype=dtype) for seed in range(1, 5)]
    for k, layer in enumerate(layers):
        bound = certify_cnn(layer).value
        assert 0.0 <= bound <= 1.0
        image = IMAGES[k % 2]
        for activation in ("identity", "relu"):
            layer.activation = activation
            found = norm(jacobian(shipped(layer, image), images(case[0], image, n=1)))  # type: ignore[arg-type]
            assert found <= bound + 4 * EPS


def test_bound_holds_while_gradients_are_on() -> None:
    """Training evaluates the same weights as everything else, rounded once."""
    for dtype in DTYPES:
        layer = mixed((2, 3, 3), 2, dtype=dtype)
        with torch.no_grad():
            other = layer.explicit()
        for live, fixed in zip(layer.explicit().weights, other.weights, strict=True):
            # In float64 a matrix inverse by LAPACK and one by autograd round differently.
            torch.testing.assert_close(live.detach(), fixed, rtol=2 * torch.finfo(dtype).eps, atol=1e3 * EPS)


def single_tap(tap: str, padding: str, dtype: torch.dtype) -> tuple[LipKernelConv2d, float]:
    """A layer that is a number times a shift of the image, and the number."""
    layer = make((2, 2, 3), 0.0, padding=padding, activation="identity", dtype=dtype)
    free = LIMIT / math.sqrt(2)  # H and Y at their limits, in two entries
    assert layer.rows is not None and layer.columns is not None
    with torch.no_grad():
        layer.weight[2:].copy_(
            math.tan(math.pi / 8) * torch.eye(2)
        )  # A and S are cos and sin of a quarter of pi
        layer.alpha.fill_(math.sqrt(2) * math.tan(math.pi / 8))
        index = {"oldest": 0, "middle": 2}[tap]
        layer.core[index : index + 2, index : index + 2] = free * torch.eye(2)
        if tap == "middle":
            for storage in (layer.rows, layer.columns):
                storage[:2, :2] = free * torch.eye(2)
    g = (free**2 if tap == "middle" else 0.0, 0.0)
    r = [(LOW + x) / (1.0 + x / HIGH) for x in g]
    p = (1.0 / (1.0 + r[0] + r[1]), 1.0 / (1.0 + r[1]))
    energy = p[0] if tap == "oldest" else p[1] - p[0]
    return layer, energy * free / math.sqrt(1.0 + free**2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("tap", ["oldest", "middle"])
def test_bound_is_attained_but_for_the_limits(tap: str, padding: str, dtype: torch.dtype) -> None:
    layer, gain = single_tap(tap, padding, dtype)
    values = torch.linalg.svdvals(jacobian(shipped(layer, (5, 8)), images(2, (5, 8), n=1)))  # type: ignore[arg-type]
    expected = gain * lipkernel_margin(2, 2, (3, 3), dtype) ** 2
    assert gain > 0.997 and float(values[0]) == pytest.approx(
        expected, rel=8 * torch.finfo(dtype).eps + 1e-13
    )
    if padding == "circular" or tap == "middle":
        assert float(values[-1]) == pytest.approx(float(values[0]), rel=8 * torch.finfo(dtype).eps)
    assert float(values[0]) <= certify_cnn(layer).value <= 1.0


# The certificates -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_the_matrix_inequality_of_the_exported_kernel(case: tuple, dtype: torch.dtype) -> None:
    for size in SIZES[1:]:
        assert roesser_residual(make(case, size, dtype=dtype)) >= -8 * EPS


def test_the_matrix_inequality_sees_a_kernel_that_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, gain = single_tap("oldest", "zeros", F64)
    assert 0.0 <= roesser_residual(layer) < 1.0 - gain**2  # nothing to spare
    margin = 1.0 / math.sqrt(gain)  # the margin is in the inner and in the outer kernel
    monkeypatch.setattr(module, "lipkernel_margin", lambda *_: margin + 1e-5)
    assert roesser_residual(layer) < -1e-6
    assert certify_cnn(layer).value > 1.0
    layer.weight.data.zero_()
    with pytest.raises(CertificateError, match="S is singular"):
        roesser_residual(layer)


@pytest.mark.parametrize("case", CASES)
def test_the_kernel_is_a_part_of_an_isometry(case: tuple) -> None:
    for size in SIZES:
        layer = make(case, size, dtype=F64)
        whole, n_out = completed_kernel(layer), layer.out_channels
        symbol = kernel_symbol(whole, (5, 7))
        gram = symbol @ symbol.mH
        torch.testing.assert_close(gram, torch.eye(n_out).to(gram).expand_as(gram), rtol=0, atol=1e3 * EPS)
        n_in = layer.kernel().shape[1]
        torch.testing.assert_close(
            whole[:, n_out : n_out + n_in], layer.kernel().detach(), rtol=0, atol=8 * EPS
        )
        assert whole[:, :n_out].flatten(2)[..., 1:].count_nonzero() == 0
        torch.testing.assert_close(
            whole[:, :n_out, 0, 0], layer.factors().outer.detach(), rtol=0, atol=8 * EPS
        )


@pytest.mark.parametrize(("channels", "taps"), [(2, 2), (3, 4), (1, 9)])
def test_factor_of_the_storage(channels: int, taps: int) -> None:
    """F is that of the bounded real lemma, built anew from the shift matrices."""
    states = (taps - 1) * channels
    generator = torch.Generator().manual_seed(1)
    for size in (0.0, 0.3, 5.0, 1e6):
        h = size * torch.randn(states, states, generator=generator, dtype=F64)
        values = torch.linalg.eigvalsh(innovation(h))
        assert LOW * (1 - 1e-8) <= float(values[0]) and float(values[-1]) <= HIGH * (1 + 1e-8)
        p = torch.linalg.inv(gramian(h, channels, taps))
        shift = torch.zeros(states, states + channels, dtype=F64)
        shift[:, channels:] = torch.eye(states)
        expected = torch.block_diag(p, torch.eye(channels, dtype=F64)) - shift.mT @ p @ shift
        factor = storage_factor(h, channels, taps, h)
        torch.testing.assert_close(factor.mT @ factor, expected, rtol=1e-11, atol=1e-11)
        taps_of_filter = factor.unflatten(1, (taps, channels)).transpose(1, 2).unsqueeze(-2)
        values = circular_singular_values(taps_of_filter, (1, 2 * taps + 1))
        torch.testing.assert_close(values, torch.ones_like(values), rtol=0, atol=200 * EPS)


@pytest.mark.parametrize("shape", [(3, 5), (4, 4), (6, 2)])
def test_every_strict_contraction_is_reached_once(shape: tuple[int, int]) -> None:
    wanted = torch.randn(*shape, generator=torch.Generator().manual_seed(2), dtype=F64)
    wanted *= 0.95 / norm(wanted)
    omega = wanted if shape[0] <= shape[1] else wanted.mT
    # C^T C = (I - Omega Omega^T)^-1 with C lower triangular: a Cholesky factorisation from the last row up.
    flipped = torch.linalg.inv(torch.eye(len(omega), dtype=F64) - omega @ omega.mT).flip(0, 1)
    c = torch.linalg.cholesky(flipped).mT.flip(0, 1)
    y = c @ omega
    torch.testing.assert_close(
        contraction(y if y.shape == wanted.shape else y.mT), wanted, rtol=0, atol=1e-13
    )


def test_kernels_that_are_no_part_of_an_orthogonal_one() -> None:
    """The singular values of [A B] vary over frequency, which those of an orthogonal kernel do not."""
    layer = make((2, 3, 3), 1.0, dtype=F64)
    with torch.no_grad():
        b = layer.kernel()
        a = nn.functional.pad(layer.factors().outer[..., None, None], (0, 2, 0, 2))
        values = circular_singular_values(torch.cat((a, b), dim=1), (8, 8))
    assert values.max() <= 1.0 + 10 * EPS and float(values[:, -1].max() - values[:, -1].min()) > 1e-3


# Use ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("padding", PADDINGS)
def test_all_forms_agree(padding: str, dtype: torch.dtype) -> None:
    layer = make((2, 3, (3, 4), 2), 0.7, padding=padding, activation="tanh", image_size=(7, 7), dtype=dtype)
    x = images(2, (7, 7)).to(dtype)
    live = layer(x)
    assert live.shape == (4, 3, 4, 4)
    live.square().sum().backward()
    assert all(p.grad is not None and float(p.grad.abs().max()) > 0 for p in layer.parameters())
    other = LipKernelConv2d(2, 3, (3, 4), 2, padding=padding, activation="tanh", dtype=dtype)
    other.load_state_dict(layer.state_dict())
    with torch.no_grad():
        forms = [layer(x), other(x), copy.deepcopy(layer)(x), pickle.loads(pickle.dumps(layer))(x)]
        forms += [layer.to_cnn()(x), layer.explicit()(x), torch.func.vmap(layer)(x)]
        with layer.frozen():
            forms.append(layer(x))
            assert torch.equal(layer(x.roll(1, -1)[..., :5]), other(x.roll(1, -1)[..., :5]))
    tolerance = 200 * torch.finfo(dtype).eps
    for form in forms:
        torch.testing.assert_close(form, live.detach(), rtol=tolerance, atol=tolerance)


def test_gradients() -> None:
    layer = make((1, 2, (2, 3)), 0.7, activation="tanh", dtype=F64)
    names = [name for name, _ in layer.named_parameters()]
    x = images(1, (2, 4), 2).requires_grad_()

    def function(x: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    assert len(names) == 7
    assert torch.autograd.gradcheck(function, (x, *layer.parameters()), atol=1e-6)


def test_gradients_at_zero_are_finite() -> None:
    layer = make((2, 3, 3), 0.0)
    layer(images(2, (5, 5)).float()).sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in layer.parameters())


@pytest.mark.parametrize("causal", [False, True])
def test_sequences(causal: bool) -> None:
    layer = randomise(LipKernelConv1d(2, 3, 4, causal=causal, length=10, dtype=F64), 0.7)
    x = images(2, (1, 10)).squeeze(-2)
    changed = x.clone()
    changed[..., 6:] += 1.0
    y, z = layer(x), layer(changed)
    first = 6 if causal else 4  # a window of four sees two entries ahead
    assert torch.equal(y[..., :first], z[..., :first]) and not torch.equal(y[..., first], z[..., first])
    assert certify_cnn(layer).value <= 1.0 and roesser_residual(layer) >= -8 * EPS  # type: ignore[arg-type]
    with torch.no_grad():
        torch.testing.assert_close(layer.to_cnn()(x), layer(x), rtol=1e-12, atol=1e-12)  # type: ignore[operator]
    strided = randomise(LipKernelConv1d(2, 3, 4, 3, causal=causal, dtype=F64))
    assert strided(x).shape == (4, 3, 4) and f"causal={causal}" in repr(strided)
    found = norm(jacobian(shipped(strided, (1, 10)), x[:1].unsqueeze(-2)))  # type: ignore[arg-type]
    assert found <= certify_cnn(strided).value <= 1.0  # type: ignore[arg-type]


def test_bad_calls() -> None:
    for arguments, settings, message in (
        ((0, 1, 3), {}, "in_channels"),
        ((1, 1, 0), {}, "kernel_size"),
        ((1, 1, 3, (1, 2, 3)), {}, "stride"),
        ((1, 1, 3), {"padding": "same"}, "padding"),
        ((1, 1, 3), {"activation": "sine"}, "activation"),
        ((1, 1, 3), {"dtype": torch.int32}, "dtype"),
    ):
        with pytest.raises(InvalidArgumentError, match=message):
            LipKernelConv2d(*arguments, **settings)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="parametrization: expected one of kernel, fft, lipkernel"):
        ConvLBDN((1, 5, 5), [(2, 3)], (), 2, parametrization="roesser")
    layer = LipKernelConv2d(2, 3, 3)
    with pytest.raises(ShapeError, match="Channels come before rows"):
        layer(torch.zeros(1, 5, 5))
    with pytest.raises(InvalidArgumentError, match="image_size"):
        layer.to_cnn()
    with pytest.raises(InvalidArgumentError, match="Use certify_cnn"):
        roesser_residual(SandwichConv2d(1, 1, 3))  # type: ignore[arg-type]
    layer.core.data[0, 0] = math.nan
    with pytest.raises(NonFiniteError, match="core"), torch.no_grad():
        layer.explicit()


# Networks -------------------------------------------------------------------------------------------------

SPEC = [(4, 3), ("average", 2), (5, 3, 2), ("max", 2, 1)]


def net_of(size: float = 1.0, **settings: object) -> ConvLBDN:
    keywords: dict = {"lipschitz": 3.0, "parametrization": "lipkernel", **settings}
    return randomise(ConvLBDN((2, 9, 8), SPEC, (6,), 3, **keywords), size)  # type: ignore[return-value]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("padding", PADDINGS)
def test_bound_of_a_network(padding: str, dtype: torch.dtype) -> None:
    for size in SIZES:
        net = net_of(size, padding=padding, dtype=dtype)
        bound = certify_cnn(net).value
        with torch.no_grad():
            network = net.explicit().to(dtype=F64)
        assert image_lower_bound(network, images(2, (9, 8)), iterations=3).value <= bound <= 3.0


def test_bound_of_a_network_is_attained_but_for_the_limits() -> None:
    """Two layers that shift the image, always active, and an output layer that is an isometry (A = 0)."""
    net = ConvLBDN(
        (2, 6, 6), [(2, 3), (2, 3)], (), 72, lipschitz=3.0, parametrization="lipkernel", padding="circular",
        dtype=F64,
    )  # fmt: skip
    layer, gain = single_tap("middle", "circular", F64)
    with torch.no_grad():
        for k, own in enumerate(net.features):
            own.load_state_dict(layer.state_dict())
            own.bias.fill_(50.0 * 10**k)  # type: ignore[operator, union-attr]
        last = net.layers[0]
        last.weight.zero_()  # type: ignore[operator]
        last.weight[72:].copy_(torch.eye(72))  # type: ignore[index]
        last.alpha.fill_(math.sqrt(72))  # type: ignore[operator]
        found = norm(jacobian(net.explicit(), images(2, (6, 6), n=1)))
    assert 0.99 * 3.0 < found <= certify_cnn(net).value <= 3.0
    assert found == pytest.approx(3.0 * gain**2, rel=1e5 * EPS)


def test_bound_of_a_trained_network() -> None:
    torch.manual_seed(0)
    net = ConvLBDN((2, 9, 8), SPEC, (6,), 3, lipschitz=3.0, parametrization="lipkernel")
    inputs, target = images(2, (9, 8), 16).float(), images(3, (1, 1), n=16).flatten(1).float()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (net(inputs) - 3 * target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    with torch.no_grad():
        network = net.explicit().to(dtype=F64)
    found = image_lower_bound(network, inputs[:4].double(), iterations=30)
    assert 0.2 * 3.0 < found.value <= certify_cnn(net).value <= 3.0


def test_network_is_an_ordinary_one() -> None:
    net = net_of(0.7, dtype=F64)
    x = images(2, (9, 8))
    spec = [(4, 3), (5, 3, 2)]
    bare = randomise(ConvLBDN((2, 9, 8), spec, (6,), 3, parametrization="lipkernel", dtype=F64), 0.7)
    with torch.no_grad():
        for network in (net, bare):
            torch.testing.assert_close(network.to_cnn()(x), network(x), rtol=1e-11, atol=1e-11)  # type: ignore[operator]
        merged = merge_pointwise(bare.explicit())  # type: ignore[operator]
        torch.testing.assert_close(merged(x), bare(x), rtol=1e-11, atol=1e-11)
        assert len(merged.stages) == len(bare.explicit().stages) - len(spec)  # type: ignore[operator]
    other = ConvLBDN((2, 9, 8), SPEC, (6,), 3, parametrization="lipkernel", dtype=F64)
    other.load_state_dict(net.state_dict())
    assert other.lipschitz == 3.0 and torch.equal(other(x), net(x))


def test_network_of_the_classification_study() -> None:
    config = Config("digits", "small", ("lipkernel", "plain"), (1.0,), equal_parameters=True)
    mean = torch.zeros(1)
    ours, plain = (
        build(config, model, (1, 8, 8), 10, mean) for model in (Model("lipkernel", 1.0), Model("plain", None))
    )
    assert any(isinstance(layer, LipKernelConv2d) for layer in ours.net.features)
    assert n_parameters(ours) == pytest.approx(n_parameters(plain), rel=0.1)
    assert certify_cnn(ours.net).value <= 1.0
