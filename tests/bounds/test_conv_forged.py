"""What a proof must notice: networks by value that are not those of the layers, and weights that were changed."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from robustnn.bounds import certify_cnn, cnn_bound, cnn_multipliers
from robustnn.bounds.conv_network import cnn_references
from robustnn.errors import InvalidArgumentError
from robustnn.nn import FIRConv1d, LipKernelConv2d, OrthogonalConv2d, SandwichConv2d
from robustnn.nn.conv import ConvModule
from robustnn.params.conv_explicit import (
    ActivationStage,
    ConvStage,
    ExplicitCNN,
    LinearStage,
    PoolStage,
    ResidualStage,
)
from robustnn.params.conv_spectral import spectral_factors
from tests.conv_cases import images, jacobian, norm, randomise

EPS = torch.finfo(torch.float64).eps
F64 = torch.float64


def row(*taps: float) -> torch.Tensor:
    return torch.tensor(taps, dtype=F64).reshape(1, 1, 1, -1)


def stage(kernel: torch.Tensor, columns: tuple[int, int] = (0, 0), circular: bool = False) -> ConvStage:
    return ConvStage(kernel, None, (1, 1), (0, 0), columns, circular)


@pytest.mark.parametrize(
    "kind, size, stride, gain", [("max", 2, 1, 2.0), ("average", 2, 2, 0.5), ("average", 3, 1, 1.0)]
)
def test_a_pool_counts_with_its_constant(kind: str, size: int, stride: int, gain: float) -> None:
    network = ExplicitCNN((stage(row(1.0)), PoolStage(kind, (size, size), (stride, stride))), 1)
    assert cnn_bound(network).value == pytest.approx(gain, rel=1e3 * EPS)


@pytest.mark.parametrize("make", [
    lambda: SandwichConv2d(2, 3, 3, outer="pointwise", activation="identity", dtype=F64),
    lambda: LipKernelConv2d(2, 3, 3, activation="identity", dtype=F64),
    lambda: FIRConv1d(2, 3, 3, activation="identity", dtype=F64),
])  # fmt: skip
def test_one_changed_tap_is_noticed(make: object, monkeypatch: pytest.MonkeyPatch) -> None:
    layer: ConvModule = randomise(make())  # type: ignore[operator, assignment]
    with torch.no_grad():
        network = layer.explicit()
        inner = network.stages[0]
        weight = inner.weight.clone()  # type: ignore[attr-defined]
        weight[0, 0, 0, 0] += 5.0
        changed = replace(network, stages=(replace(inner, weight=weight), *network.stages[1:]))
    found = norm(jacobian(changed, images(2, (1, 9) if isinstance(layer, FIRConv1d) else (5, 6), n=1)))
    if isinstance(layer, FIRConv1d):
        monkeypatch.setattr(layer, "explicit", lambda: changed)
        bound = certify_cnn(layer).value
    else:
        bound = cnn_bound(changed, cnn_multipliers(layer), None, cnn_references(layer)).value
    assert 1.01 < found <= bound


@pytest.mark.parametrize("v, u, gain", [(row(1.0, 0.0), row(-2.0, -1.0), 2.0), (row(2.0), row(-4.0), 7.0)])
def test_a_residual_block_with_another_outer_kernel(v: torch.Tensor, u: torch.Tensor, gain: float) -> None:
    reach = v.shape[-1] - 1
    block = ResidualStage(stage(v, (0, reach), True), "identity", stage(u.flip(-1), (reach, 0), True))
    network = ExplicitCNN((block,), 1)
    assert norm(jacobian(network, images(1, (1, 8), n=1))) == pytest.approx(gain, rel=1e3 * EPS)
    assert gain <= cnn_bound(network, image_size=(1, 8)).value


def test_what_the_proofs_do_not_cover_is_refused() -> None:
    root, one = math.sqrt(2.0), (torch.ones(1, dtype=F64),)
    act = ActivationStage("identity")
    shrunk = ExplicitCNN(
        (stage(root * row(0.5, -0.5), (0, 0), True), act, stage(root * row(0.5, 0.5), (0, 1), True)), 1
    )
    with pytest.raises(InvalidArgumentError, match="smaller image"):
        cnn_bound(shrunk, one, (1, 5))
    square = LinearStage(torch.eye(5, dtype=F64), None)
    with pytest.raises(InvalidArgumentError, match="in turns"):
        cnn_bound(ExplicitCNN((square, square, stage(row(100.0))), 1), None, (5, 5))
    kernel = torch.zeros(1, 1, 3, 3, dtype=F64)
    kernel[..., 0, 0] = 1.0
    with pytest.raises(InvalidArgumentError, match="keeps the image"):
        cnn_bound(ExplicitCNN((ResidualStage(stage(kernel), "identity", stage(row(1.0))),), 1), None, (3, 3))
    taps = row(*[1.0] * 40, -39.0)
    whole = ExplicitCNN((stage(taps, (20, 20)), act, stage(taps.flip(-1), (20, 20))), 1)
    with pytest.raises(InvalidArgumentError, match="references"):
        cnn_bound(whole, one, None, [torch.ones(1, 2, 1, 1, dtype=F64)])


def test_a_bound_holds_while_gradients_are_on() -> None:
    torch.manual_seed(8)
    weight = torch.randn(5, 3)
    weight[3:] *= 10 ** (-3 * torch.rand(()))
    layer = OrthogonalConv2d(5, 3, 1, padding="zeros", activation="identity", bias=False)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.alpha.fill_(1e3)
    live = layer(torch.eye(5).reshape(5, 5, 1, 1)).reshape(5, 3).detach()
    assert norm(live.double()) <= 1.0 + 4 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("alpha", [3.0, 8.0, 15.9])
def test_fourier_layers_keep_their_bound_while_gradients_are_on(alpha: float) -> None:
    """Kernels whose energy meets in one frequency, where the square of the norm is many times that of the radius."""
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        weight = torch.zeros(12, 32, 5, 5)
        column, row = (torch.randn(size, generator=generator) for size in ((12, 1, 1, 1), (1, 20, 1, 1)))
        weight[:, 12:] = column * row
        factors = spectral_factors(weight.requires_grad_(), torch.tensor(alpha), (8, 8))
        norms = torch.linalg.matrix_norm(torch.cat(factors, 1).detach().to(torch.complex128), ord=2)
        assert float(norms.max()) <= 1.0 + 64 * torch.finfo(torch.float32).eps
