"""Norms of convolutions against dense matrices, and the proof of a network's bound from its weights."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from robustnn.bounds import (
    certify_cnn,
    circular_singular_values,
    cnn_bound,
    cnn_multipliers,
    convolution_norm,
    image_lower_bound,
    supremum_of_norm,
)
from robustnn.bounds.conv import norm_from_below, norm_without_sampling
from robustnn.errors import InvalidArgumentError, NonFiniteError, ShapeError
from robustnn.nn import ConvLBDN, SandwichConv2d
from robustnn.params.conv_explicit import ActivationStage, ConvStage, ExplicitCNN, ResidualStage
from robustnn.params.conv_grid import circular_pad, reach, to_coarse_kernel
from robustnn.params.conv_kernel import contraction_kernel
from tests.conv_cases import (
    DTYPES,
    IMAGES,
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
    shipped,
)

EPS = torch.finfo(torch.float64).eps


def stage(kernel: torch.Tensor, stride: tuple[int, int], circular: bool) -> ConvStage:
    """A convolution of a kernel as the layers have it."""
    pads = [tuple(n * s for n in reach(k // s)) for k, s in zip(kernel.shape[2:], stride, strict=True)]
    return ConvStage(kernel, None, stride, pads[0], pads[1], circular)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "taps, stride", [((3, 3), (1, 1)), ((2, 5), (1, 1)), ((4, 4), (2, 2)), ((3, 2), (3, 1))]
)
def test_singular_values_of_a_periodic_convolution(taps: tuple[int, int], stride: tuple[int, int]) -> None:
    kernel = images(2, taps, n=3)
    for size in ((6, 6), (6, 8), (12, 4)):
        matrix = jacobian(stage(kernel, stride, True), images(2, size, n=1))
        dense = torch.linalg.svdvals(matrix)
        found = circular_singular_values(kernel, size, stride).flatten().sort(descending=True).values
        torch.testing.assert_close(found[: len(dense)], dense[: len(found)], rtol=1e-11, atol=1e-11)
        bound = convolution_norm(kernel, stride=stride, circular=True, image_size=size)
        assert float(dense[0]) <= bound <= float(dense[0]) * (1 + 1e-11)


@pytest.mark.parametrize(
    "taps, stride", [((3, 3), (1, 1)), ((2, 5), (1, 1)), ((4, 4), (2, 2)), ((1, 1), (1, 1))]
)
def test_supremum_bounds_every_size_and_both_paddings(taps: tuple[int, int], stride: tuple[int, int]) -> None:
    for seed in range(3):
        kernel = images(2, taps, n=3, seed=seed)
        bound = supremum_of_norm(kernel, stride)
        largest = 0.0
        for size in ((6, 6), (8, 10), (24, 24)):
            largest = max(largest, float(circular_singular_values(kernel, size, stride).max()))
            if size[0] < 24:
                for circular in (True, False):
                    assert norm(jacobian(stage(kernel, stride, circular), images(2, size, n=1))) <= bound
        coarse = to_coarse_kernel(kernel, stride)
        assert norm_from_below(coarse) <= bound <= norm_without_sampling(coarse)
        fine = float(circular_singular_values(kernel, (240, 240), stride).max())
        assert max(largest, fine) <= bound <= 1.06 * fine


def test_supremum_between_the_points_of_a_grid() -> None:
    """A kernel whose gain peaks where the sampled frequencies do not lie."""
    omega = 2.0 * math.pi * 10.5 / 64
    taps = torch.arange(5.0, dtype=torch.float64)
    kernel = torch.stack((torch.cos(omega * taps), torch.sin(omega * taps)))[:, None, None, :]
    sampled, fine = (float(circular_singular_values(kernel, (1, 64 * n)).max()) for n in (1, 40))
    assert sampled < (1 - 1e-4) * fine
    assert fine <= supremum_of_norm(kernel) <= 1.06 * fine


def test_supremum_of_an_orthogonal_kernel_is_sharp() -> None:
    layer = randomise(SandwichConv2d(3, 4, (3, 4), dtype=torch.float64))
    with torch.no_grad():
        kernel = contraction_kernel(layer.direct(), layer.taps)  # type: ignore[attr-defined]
    values = circular_singular_values(kernel, (7, 5))
    assert values.min() >= 1 - 200 * EPS and values.max() <= 1 + 200 * EPS
    assert abs(supremum_of_norm(kernel) - 1.0) < 1e-9
    x = images(7, (6, 7), n=1)
    assert norm(jacobian(stage(kernel, (1, 1), False), x)) <= 1 + 200 * EPS


def test_circular_padding_by_any_number_of_pixels() -> None:
    x = images(1, (3, 4))
    expected = x.repeat(1, 1, 7, 7)[:, :, 3 * 3 - 7 : 3 * 4 + 2, 4 * 3 - 1 : 4 * 4 + 9]
    assert torch.equal(circular_pad(x, (7, 2), (1, 9)), expected)
    assert torch.equal(circular_pad(x, (1, 2), (3, 0)), functional.pad(x, (3, 0, 1, 2), mode="circular"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_layers_are_certified_from_their_weights(kind: Kind, stride: int, dtype: torch.dtype) -> None:
    for image in IMAGES:
        for size in SIZES:
            layer = SandwichConv2d(2, 3, 3, stride, **settings(kind), dtype=dtype)
            bound = certify_cnn(randomise(layer, size), image).value  # type: ignore[arg-type]
            assert norm(jacobian(shipped(layer, image), images(2, image, n=1))) <= bound <= 1.0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_certificate_of_an_isometric_layer_is_sharp(kind: Kind, dtype: torch.dtype) -> None:
    layer = SandwichConv2d(2, 2, 3, **settings(kind), dtype=dtype)
    isometric(layer, math.pi / 4)
    # The margin for rounding, and nothing else.
    assert 1.0 - given_away(layer) <= certify_cnn(layer, (6, 7)).value <= 1.0
    layer.activation = "sigmoid"
    assert certify_cnn(layer, (6, 7)).value <= 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_weight_is_noticed(kind: Kind) -> None:
    net = randomise(ConvLBDN((1, 6, 6), [(3, 3)], (), 2, lipschitz=2.0, **settings(kind)))
    with torch.no_grad():
        network = net.explicit()  # type: ignore[operator]
    own = cnn_bound(network, cnn_multipliers(net)).value  # type: ignore[arg-type]
    first = network.stages[0]
    name = "weight" if kind[0] == "kernel" else "inner"
    worse = replace(first, **{name: 1.01 * getattr(first, name)})
    changed = replace(network, stages=(worse, *network.stages[1:]))
    assert cnn_bound(changed, cnn_multipliers(net)).value > own * (1 + 1e-4)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_without_multipliers_the_bound_holds_and_is_looser(kind: Kind) -> None:
    net = randomise(
        ConvLBDN((1, 6, 7), [(3, 3, 2), (3, 2)], (4,), 2, lipschitz=2.0, **settings(kind)),
        0.5,
    )
    with torch.no_grad():
        network = net.explicit()  # type: ignore[operator]
    loose = cnn_bound(network).value
    tight = certify_cnn(net).value  # type: ignore[arg-type]
    found = image_lower_bound(network.to(dtype=torch.float64), images(1, (6, 7)), iterations=20).value
    assert found <= tight <= loose
    if kind[0] == "kernel" and kind[2] == "kernel":
        assert tight < loose
    if kind[1] == "zeros":
        assert cnn_bound(network, image_size=(6, 7)).value == pytest.approx(loose)


def test_parts_multiply_to_the_bound() -> None:
    net = ConvLBDN((1, 8, 8), [(2, 3), ("average", 2), (3, 2), ("max", 2)], (4,), 2, lipschitz=5.0)
    bound = certify_cnn(net)
    assert [name for name, _ in bound.parts] == [
        "sandwich layer", "average pool", "sandwich layer", "max pool", "dense part",
    ]  # fmt: skip
    assert float(bound) == pytest.approx(math.prod(value for _, value in bound.parts))
    assert bound.parts[0][1] == pytest.approx(math.sqrt(5.0), rel=1e-4)


def test_bad_calls() -> None:
    net = ConvLBDN((1, 6, 6), [(3, 3)], (4,), 2)
    with torch.no_grad():
        network = net.explicit()
    own = cnn_multipliers(net)
    for multipliers, words in (
        (own[:1], "none left"),
        ((*own, own[0]), "too many"),
        ((own[1], own[0]), r"\(3,\)"),
        ((-own[0], own[1]), "positive"),
    ):
        with pytest.raises(InvalidArgumentError, match=words):
            cnn_bound(network, multipliers)
    with pytest.raises(InvalidArgumentError, match="net"):
        certify_cnn(torch.nn.Conv2d(1, 1, 1))  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="kernel"):
        supremum_of_norm(torch.zeros(3, 3))
    with pytest.raises(NonFiniteError, match="kernel"):
        supremum_of_norm(torch.full((1, 1, 2, 2), math.nan))
    with pytest.raises(InvalidArgumentError, match="stride"):
        circular_singular_values(torch.zeros(1, 1, 2, 2), (5, 4), 2)
    with pytest.raises(ShapeError, match="starts"):
        image_lower_bound(network, torch.zeros(3, 36, dtype=torch.float64))
    assert isinstance(network, ExplicitCNN)


def test_windows_that_are_not_those_of_the_layers() -> None:
    """By value a network may have any padding: the proof does not assume ours."""
    kernel = images(2, (3, 3), n=2)
    x = images(2, (5, 6), n=1)
    for rows, columns in (((0, 0), (0, 0)), ((5, 1), (2, 2)), ((0, 2), (1, 1))):
        first = ConvStage(kernel, None, (1, 1), rows, columns, False)
        second = ConvStage(images(2, (2, 2), n=2), None, (1, 1), (2, 1), (0, 3), False)
        network = ExplicitCNN((first, ActivationStage("relu"), second), 2)
        for multipliers in (None, (torch.tensor([0.3, 2.0], dtype=torch.float64),)):
            assert norm(jacobian(network, x)) <= cnn_bound(network, multipliers, (5, 6)).value
    repeated = ConvStage(kernel, None, (1, 1), (3, 3), (1, 1), True)
    with pytest.raises(InvalidArgumentError, match="pixels come twice"):
        cnn_bound(ExplicitCNN((repeated,), 2), image_size=(5, 6))


def test_a_residual_block_is_bounded_by_one_only_if_its_halves_belong_together() -> None:
    kernel = torch.zeros(1, 1, 1, 3, dtype=torch.float64)
    kernel[..., 0] = 1.0
    inner = ConvStage(kernel, torch.full((1,), 50.0, dtype=torch.float64), (1, 1), (0, 0), (1, 1), True)
    for shift, largest in ((1, 1.0), (0, 3.0)):
        outer = ConvStage(-2.0 * kernel.flip(-1), None, (1, 1), (0, 0), (shift, 2 - shift), True)
        network = ExplicitCNN((ResidualStage(inner, "relu", outer),), 1)
        found = norm(jacobian(network, images(1, (1, 6), n=1)))
        assert found == pytest.approx(largest)
        assert found <= cnn_bound(network, image_size=(1, 6)).value <= largest * (1 + 1e-9)
