"""The other convolutional layers and networks: the bound in pairs, and the interface of ConvLBDN."""

from __future__ import annotations

import copy
import math
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from robustnn.bounds import certify_cnn, circular_singular_values, cnn_multipliers, image_lower_bound
from robustnn.errors import InvalidArgumentError
from robustnn.nn import (
    AOLConv2d,
    ConvAOL,
    ConvCayley,
    ConvCNN,
    ConvSLL,
    OrthogonalConv2d,
    PlainConv2d,
    SLLConv2d,
    cnn_to_onnx,
)
from tests.conv_cases import DTYPES, IMAGES, images, jacobian, norm, randomise, shipped

EPS = torch.finfo(torch.float64).eps
LAYERS = (AOLConv2d, OrthogonalConv2d, SLLConv2d)
NETS = (ConvAOL, ConvCayley, ConvSLL)
PADDINGS = ("circular", "zeros")
SIZES = (1e-6, 1.0, 1e3, 1e15)
SPEC = [(4, 3), ("average", 2), (5, 3, 2), ("max", 2, 1)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("cls", LAYERS)
def test_jacobian_and_certificate_of_a_layer(
    cls: type, padding: str, stride: int, dtype: torch.dtype
) -> None:
    for n_in, n_out in ((2, 3), (3, 2)):
        for image in IMAGES[:1] if n_in == 3 else IMAGES[1:]:
            for size in SIZES:
                layer = randomise(
                    cls(n_in, n_out, 3, stride, padding=padding, image_size=image, dtype=dtype), size
                )
                found = norm(jacobian(shipped(layer, image), images(n_in, image, n=1)))  # type: ignore[arg-type]
                # Where a stride does not divide a periodic image there is no factor of one to spare.
                assert found <= certify_cnn(layer).value * (1 + 4 * EPS) <= 1.0 + 4 * EPS  # type: ignore[arg-type]


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("sizes", [(2, 3, 1), (3, 2, 1), (3, 3, 1), (2, 5, 2), (1, 7, 2)])
def test_an_orthogonal_convolution_preserves_norms(sizes: tuple[int, int, int], padding: str) -> None:
    n_in, n_out, stride = sizes
    layer = randomise(
        OrthogonalConv2d(
            n_in,
            n_out,
            3,
            stride,
            padding=padding,
            activation="identity",
            image_size=(6, 8),
            dtype=torch.float64,
        )
    )
    if padding == "zeros":
        with torch.no_grad():
            values = circular_singular_values(layer.kernel(), (6 // stride, 8 // stride))  # type: ignore[operator]
    else:
        values = torch.linalg.svdvals(jacobian(shipped(layer, (6, 8)), images(n_in, (6, 8), n=1)))  # type: ignore[arg-type]
        values = values[: min(n_in * 48, n_out * 48 // stride**2)]
    assert values.min() >= 1 - 1e-11 and values.max() <= 1 + 200 * EPS


def test_an_aol_layer_of_orthogonal_taps_attains_its_bound() -> None:
    layer = AOLConv2d(2, 2, 3, padding="circular", activation="identity", dtype=torch.float64)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[0, 0, 1, 2], layer.weight[1, 1, 0, 0] = 3.0, 1e-3
    values = torch.linalg.svdvals(jacobian(shipped(layer, (5, 6)), images(2, (5, 6), n=1)))
    assert values.tolist() == pytest.approx([1.0] * len(values), abs=1e-11)


def test_aol_is_the_published_rescaling() -> None:
    layer = randomise(AOLConv2d(2, 3, 3, dtype=torch.float64))
    p = layer.weight.detach()
    sums = torch.zeros(2, dtype=torch.float64)
    padded = nn.functional.pad(p, (2, 2, 2, 2))
    for dy in range(-2, 3):
        for dx in range(-2, 3):
            sums += torch.einsum("oiyx,ojyx->ij", padded, padded.roll((dy, dx), (-2, -1))).abs().sum(1)
    torch.testing.assert_close(layer.kernel(), p / sums.sqrt()[:, None, None], rtol=1e-12, atol=1e-12)


def test_an_sll_block_reflects() -> None:
    """With orthonormal shifts as rows and all units active, I - 2 W W^T = -I: norm one, and no identity."""
    block = SLLConv2d(2, 2, 3, padding="circular", dtype=torch.float64)
    with torch.no_grad():
        block.weight.zero_()
        block.weight[0, 0, 0, 1], block.weight[1, 1, 2, 2] = 3.0, 0.2
        block.bias.fill_(50.0)  # type: ignore[union-attr]
    found = jacobian(shipped(block, (5, 6)), images(2, (5, 6), n=1))  # type: ignore[arg-type]
    torch.testing.assert_close(found, -torch.eye(60, dtype=torch.float64), rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("cls", NETS)
def test_bound_of_a_network(cls: type, padding: str, dtype: torch.dtype) -> None:
    for size in SIZES:
        net = randomise(cls((2, 9, 8), SPEC, (6,), 3, lipschitz=3.0, padding=padding, dtype=dtype), size)
        bound = certify_cnn(net).value  # type: ignore[arg-type]
        with torch.no_grad():
            network = net.explicit().to(dtype=torch.float64)  # type: ignore[operator]
        assert (
            image_lower_bound(network, images(2, (9, 8)), iterations=3).value <= bound <= 3.0 * (1 + 20 * EPS)
        )


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("cls", (*NETS, ConvCNN))
def test_all_forms_agree(cls: type, padding: str, tmp_path: Path) -> None:
    net = randomise(cls((2, 9, 8), SPEC, (6,), 3, padding=padding, dtype=torch.float64), 0.5)
    x = images(2, (9, 8))
    live = net(x).detach()
    net(x).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in net.parameters())
    with torch.no_grad():
        forms = [net(x), net.explicit()(x), copy.deepcopy(net)(x), pickle.loads(pickle.dumps(net))(x)]  # type: ignore[operator]
        forms.append(net.freeze()(x))  # type: ignore[operator]
        ordinary = cls in (ConvAOL, ConvCNN) or (cls, padding) == (ConvCayley, "zeros")
        if ordinary:
            forms.append(net.to_cnn()(x))  # type: ignore[operator]
            pytest.importorskip("onnx")
            cnn_to_onnx(net, tmp_path / "net.onnx")  # type: ignore[arg-type]
        else:
            with pytest.raises(InvalidArgumentError, match="shortcut|explicit kernels"):
                net.to_cnn()  # type: ignore[operator]
    for form in forms:
        torch.testing.assert_close(form, live, rtol=1e-11, atol=1e-11)


def test_the_plain_network_is_torchs() -> None:
    net = ConvCNN((2, 8, 8), [(4, 3), ("max", 2)], (5,), 3)
    conv, linear, last = net.features[0], net.layers[0], net.layers[1]
    x = images(2, (8, 8)).float()
    h = torch.relu(nn.functional.conv2d(x, conv.weight, conv.bias, padding=1))  # type: ignore[arg-type]
    h = torch.relu(linear(nn.functional.max_pool2d(h, 2).flatten(1)))
    torch.testing.assert_close(net(x), last(h))
    assert net.lipschitz == math.inf == PlainConv2d(1, 1, 1).lipschitz
    bound = certify_cnn(net)
    assert image_lower_bound(copy.deepcopy(net).double(), x.double(), iterations=5).value <= bound.value


def test_bad_calls() -> None:
    with pytest.raises(InvalidArgumentError, match="padding"):
        AOLConv2d(1, 2, 3, padding="same")
    with pytest.raises(InvalidArgumentError, match="image_size"):
        OrthogonalConv2d(1, 2, 3).explicit()
    with pytest.raises(InvalidArgumentError, match="Others have none"):
        cnn_multipliers(ConvAOL((1, 6, 6), [(2, 3)], (), 2))


def test_a_frozen_spectrum_is_passed_over_at_another_size() -> None:
    layer = randomise(OrthogonalConv2d(2, 3, 3, image_size=(5, 6), dtype=torch.float64))
    x = images(2, (4, 7))
    expected = layer(x).detach()
    with torch.no_grad(), layer.frozen():  # type: ignore[operator]
        torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
