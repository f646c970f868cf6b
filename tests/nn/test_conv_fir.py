"""The FIR layer by the controllability Gramian: a proved bound, causality, and filters beyond orthogonal ones."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import nn

from robustnn.bounds import certify_cnn, circular_singular_values
from robustnn.errors import InvalidArgumentError, ShapeError
from robustnn.nn import FIRConv1d
from robustnn.params.conv_gramian import fir_kernel, storage_root
from tests.conv_cases import DTYPES, images, norm, randomise

EPS = torch.finfo(torch.float64).eps
CASES = ((2, 3, 1), (2, 3, 4), (3, 2, 7), (1, 1, 25))
SIZES = (1e-6, 0.3, 1.0, 30.0, 1e6)


def sequences(channels: int, length: int, n: int = 4) -> torch.Tensor:
    return images(channels, (1, length), n).squeeze(-2)


def jacobian(layer: FIRConv1d, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        network = layer.explicit().to(dtype=torch.float64)
    found = torch.func.jacrev(lambda z: network(z.unsqueeze(-2)).flatten())(x)
    return found.reshape(len(found), -1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("padding", ["zeros", "circular"])
@pytest.mark.parametrize("case", CASES)
def test_bound_is_proved_and_holds(case: tuple[int, int, int], padding: str, dtype: torch.dtype) -> None:
    for size in SIZES:
        layer = randomise(FIRConv1d(*case, padding=padding, dtype=dtype), size)
        bound = certify_cnn(layer).value  # type: ignore[arg-type]
        # The proof has a rounding of its own, which in float64 is all there is.
        assert bound <= 1.0 + (0.0 if dtype == torch.float32 else 1e4 * EPS)
        for activation in ("identity", "relu"):
            layer.activation = activation
            assert norm(jacobian(layer, sequences(case[0], 9, 1))) <= min(bound, 1.0) + 4 * EPS  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", DTYPES)
def test_bound_is_attained(dtype: torch.dtype) -> None:
    """With H = 0 the filter is a delay of l - 1 samples, and with 2 A^T B orthogonal the layer an isometry."""
    layer = FIRConv1d(2, 2, 4, padding="circular", activation="identity", dtype=dtype)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        # X = 0, Y = t [1 0 0 0]: A = cos I and V = -sin [I 0 0 0], the oldest sample.
        layer.weight[2:4].copy_(math.tan(math.pi / 8) * torch.eye(2))
        layer.alpha.fill_(math.sqrt(2) * math.tan(math.pi / 8))
    values = torch.linalg.svdvals(jacobian(layer, sequences(2, 9, 1)))
    # F differs from the projection onto the oldest sample by epsilon.
    oldest = storage_root(torch.zeros(6, 6, dtype=torch.float64), 2, 4)[0, :2]
    assert 1.0 - 1e-5 < float(oldest.norm()) <= 1.0
    assert values.max() <= 1.0 and values.min() >= 1.0 - 1e-5 - 50 * torch.finfo(dtype).eps


@pytest.mark.parametrize("case", CASES[1:])
def test_factor_of_the_storage(case: tuple[int, int, int]) -> None:
    """F is that of the bounded real lemma: built anew from the shift matrices and the sum of the Gramian."""
    n_in, _, taps = case
    h = randomise(FIRConv1d(*case, dtype=torch.float64), 0.2).storage.detach()  # type: ignore[union-attr, operator]
    states = (taps - 1) * n_in
    shift = torch.zeros(states, states, dtype=torch.float64)
    shift[:-n_in, n_in:] = torch.eye(states - n_in)
    enter = torch.zeros(states, n_in, dtype=torch.float64)
    enter[-n_in:] = torch.eye(n_in)
    identity = torch.eye(states, dtype=torch.float64)
    r = h.mT @ h @ torch.linalg.inv(identity + h.mT @ h / 100.0) + 1e-6 * identity
    gramian = sum(
        torch.linalg.matrix_power(shift, j) @ (r + enter @ enter.mT) @ torch.linalg.matrix_power(shift, j).mT
        for j in range(taps - 1)
    )
    p = torch.linalg.inv(gramian)
    whole = torch.cat((shift, enter), dim=1)
    f = torch.block_diag(p, torch.eye(n_in, dtype=torch.float64)) - whole.mT @ p @ whole
    root = storage_root(h, n_in, taps)
    torch.testing.assert_close(root.mT @ root, f, rtol=1e-9, atol=1e-10)
    assert torch.linalg.eigvalsh(f).min() > 0


@pytest.mark.parametrize("n_in", [2, 12])
def test_taps_of_equal_size_are_reached_at_any_width(n_in: int) -> None:
    """The blocks of F along its diagonal add up to the unit matrix; R as here makes them equal."""
    taps = 4
    r = torch.tensor([taps / ((j + 1) * (j + 2)) for j in range(taps - 1)], dtype=torch.float64) - 1e-6
    h = torch.diag((r / (1.0 - r / 100.0)).sqrt().repeat_interleave(n_in))
    energies = storage_root(h, n_in, taps).square().sum(0).unflatten(0, (taps, n_in)).sum(1)
    torch.testing.assert_close(energies, torch.full_like(energies, n_in / taps), rtol=1e-5, atol=0.0)


def test_filters_that_are_no_part_of_an_orthogonal_one() -> None:
    """The singular values of [A B] vary over frequency, which those of an orthogonal kernel do not."""
    layer = randomise(FIRConv1d(2, 3, 5, dtype=torch.float64), 0.5)
    with torch.no_grad():
        values = circular_singular_values(fir_kernel(layer.direct(), 2, 5), (1, 64))  # type: ignore[operator]
    assert values.max() <= 1.0 + 10 * EPS and float(values[:, -1].max() - values[:, -1].min()) > 1e-3


def test_causal() -> None:
    layer = randomise(FIRConv1d(2, 3, 4, dtype=torch.float64))
    x = sequences(2, 10)
    changed = x.clone()
    changed[..., 6:] += 1.0
    y, z = layer(x), layer(changed)
    assert torch.equal(y[..., :6], z[..., :6]) and not torch.equal(y[..., 6], z[..., 6])
    # Four samples back and no further.
    changed = x.clone()
    changed[..., 2] += 1.0
    z = layer(changed)
    assert torch.equal(y[..., 6:], z[..., 6:]) and not torch.equal(y[..., 5], z[..., 5])


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_forms_agree(dtype: torch.dtype) -> None:
    layer = randomise(FIRConv1d(2, 3, 4, length=9, activation="tanh", dtype=dtype), 0.7)
    x = sequences(2, 9).to(dtype)
    live = layer(x)
    live.square().sum().backward()
    assert all(p.grad is not None and float(p.grad.abs().max()) > 0 for p in layer.parameters())
    with torch.no_grad():
        forms = [layer(x), copy.deepcopy(layer)(x), pickle.loads(pickle.dumps(layer))(x), layer.to_cnn()(x)]  # type: ignore[operator]
        forms.append(layer.freeze()(x))  # type: ignore[operator]
    tolerance = 500 * torch.finfo(dtype).eps
    for form in forms:
        torch.testing.assert_close(form, live.detach(), rtol=tolerance, atol=tolerance)
    assert {type(m) for m in layer.to_cnn()} <= {nn.Conv1d, nn.ZeroPad1d, nn.Tanh}  # type: ignore[operator]


def test_gradients() -> None:
    layer = randomise(FIRConv1d(1, 2, 3, activation="tanh", dtype=torch.float64))
    names = [name for name, _ in layer.named_parameters()]
    x = sequences(1, 4, 2).requires_grad_()

    def function(x: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(function, (x, *layer.parameters()), atol=1e-6)


def test_bad_calls() -> None:
    for arguments, settings in (((0, 1, 2), {}), ((1, 1, 0), {}), ((1, 1, 2), {"padding": "same"})):
        with pytest.raises(InvalidArgumentError):
            FIRConv1d(*arguments, **settings)
    with pytest.raises(ShapeError, match="Channels come before time"):
        FIRConv1d(2, 3, 4)(torch.zeros(5, 9, 2))
