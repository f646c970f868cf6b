"""Contract of the convolutional network: bound in pairs, pooling, export, and use by value."""

from __future__ import annotations

import copy
import math
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from robustnn.bounds import certify_cnn, image_lower_bound
from robustnn.errors import InvalidArgumentError, NonFiniteError, ShapeError
from robustnn.nn import (
    AveragePool2d,
    ConvLBDN,
    DepthToSpace,
    MaxPool2d,
    SpaceToDepth,
    as_explicit,
    cnn_to_onnx,
)
from robustnn.nn.module import ExplicitModule
from tests.conv_cases import (
    DTYPES,
    KINDS,
    SIZES,
    Kind,
    given_away,
    images,
    isometric,
    jacobian,
    norm,
    randomise,
    settings,
)
from tests.networks import ACTIVATION_NAMES

EPS = torch.finfo(torch.float64).eps
GAMMA = 3.0
SPEC = [(4, 3), ("average", 2), (5, 3, 2), ("max", 2, 1)]


def make(kind: Kind = KINDS[0], size: float = 1.0, **kwargs: object) -> ConvLBDN:
    keywords: dict = {"lipschitz": GAMMA, **settings(kind), **kwargs}
    return randomise(ConvLBDN((2, 9, 8), SPEC, (6,), 3, **keywords), size)  # type: ignore[return-value]


def exported(net: ConvLBDN) -> object:
    with torch.no_grad():
        return net.explicit().to(dtype=torch.float64)


def x(n: int = 4) -> torch.Tensor:
    return images(2, (9, 8), n)


# The bound ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_bound_is_proved(kind: Kind, dtype: torch.dtype) -> None:
    for size in (*SIZES[::2], 1e12):
        assert 0.0 < certify_cnn(make(kind, size, dtype=dtype)).value <= GAMMA


@pytest.mark.parametrize("activation", ACTIVATION_NAMES)
def test_bound_holds_under_gradient_ascent(activation: str) -> None:
    for kind in KINDS[:4]:
        net = make(kind, activation=activation)
        found = image_lower_bound(exported(net), x(), iterations=10)  # type: ignore[arg-type]
        assert found.value <= certify_cnn(net).value


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_bound_is_attained(kind: Kind, dtype: torch.dtype) -> None:
    """Isometric convolutions, constant images through the mean, and an output layer that is an isometry (A = 0)."""
    net = ConvLBDN(
        (1, 8, 8), [(4, 4, 2), ("average", 2), (4, 1)], (), 16, lipschitz=GAMMA, dtype=dtype,
        **settings(kind),
    )  # fmt: skip
    with torch.no_grad():
        for k, layer in enumerate(net.features):
            if not isinstance(layer, AveragePool2d):
                isometric(layer, math.pi / 4)  # type: ignore[arg-type]
                layer.bias.fill_(50.0 * 10**k)  # type: ignore[operator, union-attr]
        last = net.layers[0]
        last.weight.zero_()  # type: ignore[operator]
        last.weight[16:].copy_(torch.eye(16))  # type: ignore[index]
        last.alpha.fill_(4.0)  # type: ignore[operator]
    found = norm(jacobian(exported(net), images(1, (8, 8), n=1)))  # type: ignore[arg-type]
    rounding = sum(given_away(layer) for layer in net.features if not isinstance(layer, AveragePool2d))  # type: ignore[arg-type]
    assert GAMMA * (1 - rounding - 20 * torch.finfo(dtype).eps) <= found <= GAMMA


def test_bound_after_training() -> None:
    net = ConvLBDN((2, 9, 8), SPEC, (6,), 3, lipschitz=GAMMA)
    inputs, target = x(16).float(), images(3, (1, 1), n=16).flatten(1).float()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    first = last = 0.0
    for step in range(60):
        optimizer.zero_grad()
        loss = (net(inputs) - 3 * target).square().mean()
        loss.backward()
        optimizer.step()
        first, last = (loss.item(), first) if step == 0 else (first, loss.item())
    assert last < 0.5 * first
    found = image_lower_bound(exported(net), inputs[:4].double(), iterations=30)  # type: ignore[arg-type]
    assert 0.2 * GAMMA < found.value <= certify_cnn(net).value <= GAMMA


def test_set_lipschitz_changes_the_function() -> None:
    net = make(lipschitz=1.0, dtype=torch.float64).freeze()
    for parameter in (layer.bias for layer in (*net.features, *net.layers) if hasattr(layer, "bias")):
        parameter.data.zero_()
    with torch.no_grad():
        before = net.unfreeze()(x())
        net.set_lipschitz(4.0)
        # relu is positively homogeneous: without biases the output is proportional to the bound.
        torch.testing.assert_close(net(x()), 4.0 * before, rtol=1e-12, atol=1e-12)
    assert net.lipschitz == 4.0 and "lipschitz=4" in repr(net)


# All forms are one function -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_all_forms_agree(kind: Kind, dtype: torch.dtype) -> None:
    net = make(kind, 0.7, dtype=dtype)
    inputs = x().to(dtype)
    live = net(inputs).detach()
    assert live.shape == (4, 3)
    with torch.no_grad():
        plain = net(inputs)
        forms = [net.explicit()(inputs), copy.deepcopy(net)(inputs), pickle.loads(pickle.dumps(net))(inputs)]
        if kind[0] == "kernel":
            forms.append(net.to_cnn()(inputs))
        else:
            with pytest.raises(InvalidArgumentError, match="explicit kernels"):
                net.to_cnn()
        with net.frozen():
            forms.append(net(inputs))
    tolerance = 200 * torch.finfo(dtype).eps
    torch.testing.assert_close(live, plain, rtol=tolerance, atol=tolerance)
    for form in forms:
        torch.testing.assert_close(form, plain, rtol=tolerance, atol=tolerance)


def test_network_is_the_chain_of_its_layers() -> None:
    """The factors folded into weights are those of pooling and of the bound, no more."""
    net = make(size=0.7, dtype=torch.float64)
    h = math.sqrt(GAMMA) * x()
    for layer in net.features:
        h = layer(h)
    h = h.flatten(1)
    h = net.layers[0](h * math.sqrt(math.sqrt(GAMMA)))
    h = math.sqrt(math.sqrt(GAMMA)) * (h @ net.layers[1].explicit().weights[0].mT) + net.layers[1].bias
    first = net.layers[0].bias
    assert first is not None
    torch.testing.assert_close(net(x()), h, rtol=1e-11, atol=1e-11)


def test_plain_network_has_ordinary_modules_only() -> None:
    plain = make().to_cnn()
    kinds = {type(module) for module in plain}
    assert kinds == {nn.Conv2d, nn.ReLU, nn.ZeroPad2d, nn.AvgPool2d, nn.MaxPool2d, nn.Flatten, nn.Linear} - (
        set() if nn.ZeroPad2d in kinds else {nn.ZeroPad2d}
    )
    assert not any(isinstance(module, ExplicitModule) for module in plain.modules())


def test_state_dict_carries_the_bound() -> None:
    net, other = make(), make(lipschitz=99.0)
    other.load_state_dict(net.state_dict())
    assert other.lipschitz == GAMMA
    with torch.no_grad():
        assert torch.equal(other(x().float()), net(x().float()))


def test_all_parameters_exist_before_the_first_call_and_are_trained() -> None:
    for kind in KINDS:
        net = ConvLBDN((2, 9, 8), SPEC, (6,), 3, activation="tanh", **settings(kind))
        names = {name for name, _ in net.named_parameters()}
        net(x().float()).square().sum().backward()
        assert {name for name, _ in net.named_parameters()} == names
        assert all(p.grad is not None and float(p.grad.abs().max()) > 0 for p in net.parameters())


def test_transforms() -> None:
    net = make(dtype=torch.float64)
    whole = net(x())
    torch.testing.assert_close(torch.func.vmap(net)(x()), whole, rtol=1e-12, atol=1e-12)
    each = torch.func.vmap(torch.func.jacrev(net))(x())
    assert each.shape == (4, 3, 2, 9, 8)
    assert norm(each[0].reshape(3, -1).detach()) <= GAMMA


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind[0] == "kernel"])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "tanh"])
def test_onnx(kind: Kind, activation: str, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    net = make(kind, 0.7, activation=activation)
    cnn_to_onnx(net, tmp_path / "net.onnx")
    session = runtime.InferenceSession(str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"])
    (found,) = session.run(["output"], {"input": x().float().numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), net(x().float()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("padding", ["zeros", "circular"])
@pytest.mark.parametrize("spec", [SPEC, [(4, 3), (5, 2, 2)]])
def test_pointwise_networks_merge_into_ordinary_ones(spec: list, padding: str) -> None:
    net = ConvLBDN((2, 9, 8), spec, (6,), 3, outer="pointwise", padding=padding, dtype=torch.float64)
    randomise(net, 0.7)
    plain = net.to_cnn(merge=True)
    with torch.no_grad():
        torch.testing.assert_close(plain(x()), net(x()), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(plain(x()), net.to_cnn()(x()), rtol=1e-12, atol=1e-12)
    convolutions = [module for module in plain if isinstance(module, nn.Conv2d)]
    left = 2 if spec is SPEC else 0  # what a pooling keeps from merging
    assert len(convolutions) == 2 + left
    with torch.no_grad():  # other convolutions stay as they are
        kernels = make(dtype=torch.float64)
        assert len(kernels.to_cnn(merge=True)) == len(kernels.to_cnn())


@pytest.mark.filterwarnings("ignore")  # the compiler's own deprecations
@pytest.mark.parametrize("kind", KINDS[1:3])
def test_compile_and_export(kind: Kind) -> None:
    net = randomise(ConvLBDN((1, 4, 5), [(2, 2)], (), 2, **settings(kind)), 0.7)
    inputs = images(1, (4, 5)).float()
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    tolerance = dict(rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(compiled(inputs), net(inputs), **tolerance)
    with torch.no_grad():
        torch.testing.assert_close(compiled(inputs), net(inputs), **tolerance)
        program = torch.export.export(net, (inputs,))
        torch.testing.assert_close(program.module()(inputs), net(inputs), **tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_does_not_touch_the_certificate(kind: Kind) -> None:
    net = make(kind, 0.7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = certify_cnn(net)
        assert net(x().float()).dtype == torch.bfloat16
    assert inside == certify_cnn(net)


def test_half_precision_of_a_spectrum_is_refused() -> None:
    with torch.no_grad(), pytest.raises(InvalidArgumentError, match=r"\.float\(\)"):
        make(KINDS[2]).bfloat16()(x().bfloat16())


def test_onnx_refuses_a_spectrum(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    with pytest.raises(InvalidArgumentError, match="explicit kernels"):
        cnn_to_onnx(make(KINDS[2]), tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


# Pooling and down-sampling --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size, stride", [(2, None), (3, None), (3, 2), (3, 1), ((2, 3), (1, 2)), (4, 3), (2, 3)]
)
def test_average_pooling(size: object, stride: object) -> None:
    pool = AveragePool2d(size, stride)  # type: ignore[arg-type]
    values = [norm(jacobian(pool, images(1, (n, n), n=1))) for n in (9, 24)]
    assert max(values) <= 1.0 + 4 * EPS
    assert values[1] > 0.97  # towards one as the border loses weight
    if stride is None:
        assert values[0] == pytest.approx(1.0, abs=1e-14)


@pytest.mark.parametrize(
    "size, stride", [(2, None), (3, None), (3, 2), (3, 1), ((2, 3), (1, 2)), (4, 3), (2, 3)]
)
def test_max_pooling(size: object, stride: object) -> None:
    pool = MaxPool2d(size, stride)  # type: ignore[arg-type]
    for seed in range(3):
        assert norm(jacobian(pool, images(1, (9, 9), n=1, seed=seed))) <= 1.0 + 4 * EPS
    # A pixel in as many windows as any, raised above the others, attains the bound.
    (rows, columns), (down, across) = pool.kernel_size, pool.stride
    counts = torch.zeros(9, 9)
    for i in range(0, 9 - rows + 1, down):
        for j in range(0, 9 - columns + 1, across):
            counts[i : i + rows, j : j + columns] += 1
    peak = torch.zeros(1, 1, 9, 9, dtype=torch.float64)
    peak.view(-1)[counts.argmax()] = 1.0
    assert norm(pool(peak).flatten(1)) == pytest.approx(1.0, abs=1e-14)


def test_space_to_depth_is_an_invertible_isometry() -> None:
    inputs = images(3, (6, 9))
    y = SpaceToDepth((2, 3))(inputs)
    assert y.shape == (4, 18, 3, 3)
    assert torch.equal(DepthToSpace((2, 3))(y), inputs) and float(y.norm()) == pytest.approx(
        float(inputs.norm())
    )
    assert torch.equal(SpaceToDepth(2)(inputs[..., :6]), nn.functional.pixel_unshuffle(inputs[..., :6], 2))
    assert SpaceToDepth(4)(inputs).shape == (4, 48, 2, 3)
    with pytest.raises(ShapeError, match="multiple of 4"):
        DepthToSpace(2)(inputs)


# Bad calls ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape, conv, words",
    [
        ((3, 8), [(4, 3)], "input_shape"),
        ("abc", [(4, 3)], "input_shape"),
        ((3, 8, 0), [(4, 3)], r"input_shape\[2\]"),
        ((3, 8, 8), [4], r"conv\[0\]"),
        ((3, 8, 8), [(4,)], r"conv\[0\]"),
        ((3, 8, 8), [(4, 3), ("median", 2)], r"conv\[1\]"),
        ((3, 8, 8), [("max", 9)], r"conv\[0\]"),
        ((3, 8, 8), [(4, -1)], "kernel_size"),
    ],
)
def test_bad_arguments(shape: object, conv: list, words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        ConvLBDN(shape, conv, (), 2)  # type: ignore[arg-type]


def test_bad_inputs() -> None:
    net = make()
    with pytest.raises(ShapeError, match=r"\(9, 8\)"):
        net(torch.zeros(1, 2, 8, 8))
    with pytest.raises(InvalidArgumentError, match="to_cnn"):
        net.to_mlp()
    with pytest.raises(ShapeError, match="at least"):
        MaxPool2d(3)(torch.zeros(1, 1, 2, 5))
    with torch.no_grad():
        net.layers[0].weight[0, 0] = math.inf  # type: ignore[index]
        with pytest.raises(NonFiniteError, match=r"layers\.0\.weight"):
            net.explicit()


def test_functions_for_dense_networks_say_where_to_go() -> None:
    net = ConvLBDN((2, 9, 8), SPEC, (6,), 3, lipschitz=GAMMA)
    with pytest.raises(
        InvalidArgumentError, match="network: expected a network of dense layers, got ConvLBDN"
    ):
        as_explicit(net)


def test_a_network_is_for_images_of_one_size() -> None:
    net = ConvLBDN((1, 8, 9), [(2, 3)], (), 2)
    for call in (lambda: net.explicit((9, 8)), lambda: net.to_cnn((5, 5)), lambda: certify_cnn(net, (9, 8))):
        with pytest.raises(InvalidArgumentError, match=r"image_size: expected \(8, 9\)"):
            call()
    assert certify_cnn(net, (8, 9)).value == certify_cnn(net).value
    with pytest.raises(InvalidArgumentError, match="Divide integer pixels by 255"):
        net(torch.zeros(1, 1, 8, 9, dtype=torch.uint8))
    with pytest.raises(InvalidArgumentError, match="stride"):
        ConvLBDN((1, 8, 8), [(2, 3, 0)], (), 2)
