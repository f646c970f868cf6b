"""Contract of the convolutional sandwich layers: the bound in pairs, all forms alike, and use by value."""

from __future__ import annotations

import copy
import io
import math
import pickle

import pytest
import torch
from torch import nn

from robustnn.errors import InvalidArgumentError, NonFiniteError, ShapeError
from robustnn.nn import SandwichConv1d, SandwichConv2d
from robustnn.params import ACTIVATIONS
from robustnn.params.conv_spectral import half_spectrum
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


def make(
    kind: Kind, n_in: int = 2, n_out: int = 3, k: object = 3, stride: object = 1, **kwargs: object
) -> SandwichConv2d:
    kwargs = {"dtype": torch.float64, **kwargs}
    layer = SandwichConv2d(n_in, n_out, k, stride, **settings(kind), **kwargs)  # type: ignore[arg-type]
    return randomise(layer)  # type: ignore[return-value]


# The bound ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_jacobian_of_the_shipped_weights(kind: Kind, k: int, stride: int, dtype: torch.dtype) -> None:
    for image in IMAGES:
        for size in SIZES:
            layer = randomise(make(kind, k=k, stride=stride, dtype=dtype), size, seed=k)
            for activation in ("identity", "relu") if size == 1.0 else ("identity",):
                layer.activation = activation
                found = norm(jacobian(shipped(layer, image), images(2, image, n=1)))  # type: ignore[arg-type]
                assert found <= 1.0 + 4 * EPS


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_activation(kind: Kind, activation: str) -> None:
    layer = make(kind, n_in=3, n_out=2, activation=activation)
    with torch.no_grad():
        layer.psi.copy_(torch.tensor([5.0, -5.0]))
    for seed in range(3):
        assert norm(jacobian(shipped(layer, (5, 8)), 3 * images(3, (5, 8), n=1, seed=seed))) <= 1.0 + 4 * EPS


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("k", [1, 3, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_the_bound_is_attained(kind: Kind, k: int, stride: int, dtype: torch.dtype) -> None:
    layer = SandwichConv2d(2, 2 * stride**2, k, stride, **settings(kind), dtype=dtype)
    isometric(layer, math.pi / 4)
    with torch.no_grad():
        layer.bias.fill_(50.0)  # type: ignore[union-attr]
    for image in ((6, 8), (7, 9)) if stride == 1 else ((6, 8), (10, 12)):
        found = norm(jacobian(shipped(layer, image), images(2, image, n=1)))
        assert 1.0 - given_away(layer) <= found <= 1.0 + 4 * EPS


def test_a_single_channel_has_room_for_filters() -> None:
    """Shifts of one channel are delays; the layer draws its filters from a larger orthogonal kernel."""
    layer = make(KINDS[3], n_in=1, n_out=4, activation="identity")
    kernel = layer.explicit().weights[0]
    assert kernel.shape == (4, 1, 3, 3)
    assert int((kernel.abs() > 1e-4).sum()) == 36  # no tap is idle
    assert norm(jacobian(shipped(layer, (7, 7)), images(1, (7, 7), n=1))) <= 1.0


def test_another_angle_has_another_gain() -> None:
    """The layer is no projection onto isometries: its gain is what A and B make it."""
    for angle in (0.1, 0.6, 1.4):
        layer = isometric(
            SandwichConv2d(2, 2, 3, padding="circular", activation="identity", dtype=torch.float64), angle
        )
        values = torch.linalg.svdvals(jacobian(shipped(layer, (6, 5)), images(2, (6, 5), n=1)))
        assert values.tolist() == pytest.approx([math.sin(2 * angle)] * len(values), abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_bound_after_training(kind: Kind) -> None:
    layer = SandwichConv2d(2, 3, 3, 2, **settings(kind))
    x = images(2, (7, 7), n=8).float()
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    for _ in range(30):
        optimizer.zero_grad()
        (-(layer(x) - layer(-x)).square().sum()).backward()
        optimizer.step()
    found = norm(jacobian(shipped(layer, (7, 7)), x[:1].double()))
    assert 0.5 < found <= 1.0 + 4 * EPS


# All forms are one function -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stride", [1, 2, (2, 1), 3])
@pytest.mark.parametrize("k", [1, 2, 3, (2, 5)])
@pytest.mark.parametrize("kind", KINDS)
def test_all_forms_agree(kind: Kind, k: object, stride: object, dtype: torch.dtype) -> None:
    layer = make(kind, k=k, stride=stride, dtype=dtype)
    for image in IMAGES:
        x = images(2, image).to(dtype)
        live = layer(x).detach()
        rows, columns = layer.stride
        assert live.shape == (4, 3, -(-image[0] // rows), -(-image[1] // columns))
        with torch.no_grad():
            plain = layer(x)
            forms = [layer.explicit(image)(x), copy.deepcopy(layer)(x), pickle.loads(pickle.dumps(layer))(x)]
            if kind[0] == "kernel" or layer.taps == (1, 1):
                forms.append(layer.to_cnn(image)(x))
            one_by_one = torch.stack([layer(image_) for image_ in x])
        tolerance = 200 * torch.finfo(dtype).eps
        torch.testing.assert_close(live, plain, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(one_by_one, plain, rtol=tolerance, atol=tolerance)
        for form in forms:
            torch.testing.assert_close(form, plain, rtol=tolerance, atol=tolerance)


def test_leading_axes() -> None:
    layer = make(KINDS[0])
    x = images(2, (5, 6), n=12)
    y = layer(x)
    torch.testing.assert_close(layer(x.reshape(3, 4, 2, 5, 6)), y.reshape(3, 4, 3, 5, 6))
    assert layer(x[:0]).shape == (0, 3, 5, 6)


@pytest.mark.parametrize("kind", KINDS)
def test_kernels_larger_than_the_image(kind: Kind) -> None:
    layer = make(kind, k=(9, 8))
    x = images(2, (3, 4), n=1)
    assert norm(jacobian(shipped(layer, (3, 4)), x)) <= 1.0 + 4 * EPS
    if kind[:2] == ("kernel", "circular"):
        with pytest.raises(InvalidArgumentError, match="no further than the image"):
            layer.to_cnn((3, 4))


def test_periodic_layers_commute_with_shifts() -> None:
    x = images(2, (5, 8))
    for kind in (kind for kind in KINDS if kind[1] == "circular"):
        layer = make(kind, k=(2, 3))
        shifted = layer(x.roll((2, 3), (-2, -1)))
        torch.testing.assert_close(shifted, layer(x).roll((2, 3), (-2, -1)), rtol=1e-12, atol=1e-12)


def test_the_symbol_does_not_depend_on_the_size_of_the_image() -> None:
    """At twice the size every other frequency has the same matrix; alpha means the same at every size."""
    weight = images(3, (3, 3), n=2)
    small, large = (
        torch.complex(*half_spectrum(weight, (n, n))).reshape(n, n // 2 + 1, 2, 3) for n in (6, 12)
    )
    torch.testing.assert_close(small, large[::2, ::2], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("size", [(6, 6), (5, 8), (7, 7), (2, 3)])
def test_half_spectrum_is_that_of_the_circular_convolution(size: tuple[int, int]) -> None:
    weight, x = images(3, (3, 4), n=2), images(3, size, n=1)
    symbol = torch.complex(*half_spectrum(weight, size))
    spectrum = torch.fft.rfft2(x)[0].flatten(1).mT.unsqueeze(-1)
    y = torch.fft.irfft2((symbol @ spectrum).squeeze(-1).mT.reshape(2, size[0], -1), s=size)
    expected = torch.zeros_like(y)
    for i in range(3):
        for j in range(4):
            expected += torch.einsum("oi,ihw->ohw", weight[:, :, i, j], x[0].roll((1 - i, 1 - j), (-2, -1)))
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_one_dimensional_layers(kind: Kind) -> None:
    layer = SandwichConv1d(2, 3, 4, 2, **settings(kind), length=9, dtype=torch.float64)
    randomise(layer)
    x = images(2, (1, 9)).squeeze(-2)
    y = layer(x)
    assert y.shape == (4, 3, 5)
    with torch.no_grad():
        torch.testing.assert_close(layer.freeze()(x), y.detach(), rtol=1e-13, atol=1e-13)
        assert layer(x[:, :, :7]).shape == (4, 3, 4)
        if kind[0] == "kernel":
            plain = layer.to_cnn()
            assert not [m for m in plain if isinstance(m, nn.Conv2d)]
            torch.testing.assert_close(plain(x), y.detach(), rtol=1e-13, atol=1e-13)
    matrix = torch.func.jacrev(lambda z: layer(z).flatten())(x[0]).detach()
    assert norm(matrix.reshape(len(matrix), -1)) <= 1.0 + 4 * EPS
    with pytest.raises(ShapeError, match="Channels come before time"):
        layer(x.mT)


# Gradients ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_gradients(kind: Kind) -> None:
    layer = make(kind, n_in=1, n_out=2, k=(2, 3), stride=(2, 1), activation="tanh")
    x = images(1, (4, 3), n=2).requires_grad_()
    names = [name for name, _ in layer.named_parameters()]

    def function(x: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(function, (x, *layer.parameters()), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_is_trained(kind: Kind) -> None:
    layer = SandwichConv2d(2, 3, 3, **settings(kind), activation="tanh")
    layer(images(2, (5, 6)).float()).square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all())
        assert float(parameter.grad.abs().max()) > 1e-6, name


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_finite_where_parameters_vanish(kind: Kind) -> None:
    layer = make(kind)
    for parameter in layer.parameters():
        parameter.data.zero_()
    layer(images(2, (5, 6))).sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in layer.parameters())  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", KINDS)
def test_transforms(kind: Kind) -> None:
    layer = make(kind)
    x = images(2, (5, 6), n=3)
    whole = layer(x)
    torch.testing.assert_close(torch.func.vmap(layer)(x), whole, rtol=1e-12, atol=1e-12)
    stacked = {name: torch.stack((p, 2 * p)) for name, p in layer.named_parameters()}
    both = torch.func.vmap(lambda values: torch.func.functional_call(layer, values, (x,)))(stacked)
    torch.testing.assert_close(both[0], whole, rtol=1e-12, atol=1e-12)
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(layer(leaf).square().sum(), leaf)
    slope = torch.func.grad(lambda z: layer(z).square().sum())
    torch.testing.assert_close(slope(x), expected, rtol=1e-12, atol=1e-12)
    each = torch.func.vmap(slope)(x)
    torch.testing.assert_close(each, expected, rtol=1e-12, atol=1e-12)


# Freezing and moving --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_freezing_is_visible(kind: Kind) -> None:
    layer = make(kind, image_size=(5, 6))
    x, other = images(2, (5, 6)), images(2, (4, 9))
    with torch.no_grad(), layer.frozen():
        before, other_before = layer(x), layer(other)
        assert layer.is_frozen
        layer.psi.add_(0.3)
        layer.bias.add_(0.7)  # type: ignore[union-attr]
        assert torch.equal(layer(x), before)
        # The spectrum belongs to one size; at another the present parameters are used.
        assert torch.equal(layer(other), other_before) == (kind[0] == "kernel")
    assert not layer.is_frozen and not torch.equal(layer(x), before)
    for change in (layer.train, lambda: layer.load_state_dict(layer.state_dict()), layer.double):
        layer.freeze()
        change()
        assert not layer.is_frozen


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_pass_over_frozen_weights(kind: Kind) -> None:
    layer = make(kind, image_size=(5, 6)).freeze()
    layer(images(2, (5, 6))).sum().backward()
    assert layer.psi.grad is not None


@pytest.mark.parametrize("move", ["state_dict", "torch_save", "float32", "half"])
@pytest.mark.parametrize("kind", KINDS)
def test_bound_holds_after_a_move(kind: Kind, move: str) -> None:
    layer = make(kind, dtype=torch.float32)
    if move == "state_dict":
        moved = make(kind, dtype=torch.float32)
        randomise(moved, 2.0, seed=9)
        moved.load_state_dict(layer.state_dict())
    elif move == "torch_save":
        buffer = io.BytesIO()
        torch.save(layer, buffer)
        buffer.seek(0)
        moved = torch.load(buffer, weights_only=False)
    else:
        moved = copy.deepcopy(layer).to(torch.float16 if move == "half" else torch.float32)
    x = images(2, (5, 6), n=1)
    assert norm(jacobian(shipped(moved, (5, 6)), x)) <= 1.0 + 4 * EPS
    if move != "half":
        assert torch.equal(shipped(moved, (5, 6))(x), shipped(layer, (5, 6))(x))


def test_explicit_weights_share_no_memory_and_carry_the_graph() -> None:
    layer = make(KINDS[0])
    network = layer.explicit()
    assert network.weights[0].requires_grad
    with torch.no_grad():
        before = layer.explicit()
        layer.weight.add_(1.0)
        assert not before.weights[0].requires_grad and not torch.equal(
            before.weights[0], layer.explicit().weights[0]
        )


def test_autocast_does_not_touch_the_conversion() -> None:
    layer = make(KINDS[0], dtype=torch.float32)
    x = images(2, (5, 6)).float()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        inside = layer.explicit()
        assert layer(x).dtype == torch.bfloat16
    with torch.no_grad():
        outside = layer.explicit()
    assert all(torch.equal(a, b) for a, b in zip(inside.weights, outside.weights, strict=True))


# Bad calls ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, keywords, words",
    [
        ((0, 3, 3), {}, "in_channels"),
        ((2, 3.5, 3), {}, "out_channels"),
        ((2, 3, 0), {}, "kernel_size"),
        ((2, 3, (3, 3, 3)), {}, "kernel_size"),
        ((2, 3, 3, 0), {}, "stride"),
        ((2, 3, 3), {"parametrization": "dct"}, "parametrization"),
        ((2, 3, 3), {"padding": "reflect"}, "padding"),
        ((2, 3, 3), {"parametrization": "fft", "padding": "zeros"}, "padding"),
        ((2, 3, 3), {"outer": "dense"}, "outer"),
        ((2, 3, 3), {"parametrization": "fft", "outer": "pointwise"}, "outer"),
        ((2, 3, 3), {"activation": "gelu"}, "activation"),
        ((2, 3, 3), {"dtype": torch.int64}, "dtype"),
        ((2, 3, 3), {"image_size": (0, 4)}, "image_size"),
    ],
)
def test_bad_arguments(arguments: tuple, keywords: dict, words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        SandwichConv2d(*arguments, **keywords)


def test_bad_inputs() -> None:
    layer = make(KINDS[2])
    with pytest.raises(ShapeError, match=r"\(\.\.\., 2, height, width\)"):
        layer(torch.zeros(1, 3, 5, 5, dtype=torch.float64))
    with pytest.raises(ShapeError):
        layer(torch.zeros(2, 5, dtype=torch.float64))
    with pytest.raises(InvalidArgumentError, match="dtype"):
        layer(torch.zeros(1, 2, 5, 5))
    with pytest.raises(InvalidArgumentError, match=r"torch\.Tensor"):
        layer([1.0])
    with pytest.raises(InvalidArgumentError, match="image_size"):
        layer.explicit()
    with pytest.raises(InvalidArgumentError, match="explicit kernels"):
        layer.to_cnn((5, 5))
    with pytest.raises(InvalidArgumentError, match="image_size"):
        make(KINDS[0]).to_cnn()
    with pytest.raises(ShapeError, match="explicit"):
        layer.explicit((5, 5))(torch.zeros(1, 2, 6, 5, dtype=torch.float64))
    with torch.no_grad():
        layer.psi[0] = math.nan
        with pytest.raises(NonFiniteError, match="psi"):
            layer(torch.zeros(1, 2, 5, 5, dtype=torch.float64))
