"""Norms weighted by a matrix: the bound in an ellipsoidal norm, and a margin for rounding that keeps it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from robustnn import LBDN
from robustnn.errors import CheckpointError, InvalidArgumentError, NonFiniteError, ShapeError
from robustnn.linalg import spectral_norm
from tests.networks import exported, inputs, random_lbdn, tight_lbdn

EPS = torch.finfo(torch.float64).eps
GAMMA = 3.0


def well_conditioned(n: int, condition: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    u, _, v = torch.linalg.svd(torch.randn(n, n, generator=generator, dtype=torch.float64))
    return (u * torch.logspace(0, torch.tensor(condition).log10().item(), n, dtype=torch.float64)) @ v


def test_matrix_scales_are_folded_into_the_first_and_last_weight() -> None:
    s_x, s_y = well_conditioned(3, 10.0), well_conditioned(2, 5.0, seed=1)
    plain = random_lbdn((3, (8,), 2), lipschitz=GAMMA, dtype=torch.float64, bias=False)
    net = LBDN(
        3, (8,), 2, lipschitz=GAMMA, dtype=torch.float64, bias=False, input_scale=s_x, output_scale=s_y
    )
    net.load_state_dict(plain.state_dict(), strict=False)
    x = inputs(3)
    expected = plain(x @ torch.linalg.inv(s_x).mT) @ s_y.mT
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(net(x), expected, rtol=0, atol=1e-12)


def test_diagonal_matrix_is_the_vector() -> None:
    d = torch.tensor([0.1, 2.0, 7.0]).double()
    nets = [random_lbdn((3, (8,), 2), dtype=torch.float64, input_scale=s) for s in (d, torch.diag(d))]
    torch.testing.assert_close(nets[0](inputs(3)), nets[1](inputs(3)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("condition", [1.0, 30.0, 1000.0])
def test_bound_holds_in_the_ellipsoidal_norm_and_is_attained(condition: float, dtype: torch.dtype) -> None:
    """An affine map at the bound: the shipped weights stay below it, by the margin for rounding and no more."""
    n = 4
    s_x, s_y = well_conditioned(n, condition), well_conditioned(n, condition, seed=1)
    for seed in range(10):
        torch.manual_seed(seed)
        source = tight_lbdn(n, 0, "relu", lipschitz=GAMMA)
        net = LBDN(n, (), n, lipschitz=GAMMA, input_scale=s_x, output_scale=s_y, dtype=dtype)
        net.load_state_dict(source.state_dict(), strict=False)
        s_x_held, s_y_held = net.input_scale.double(), net.output_scale.double()
        weighted = torch.linalg.solve(s_y_held, exported(net).weights[0] @ s_x_held)
        norm = float(spectral_norm(weighted)) / GAMMA
        eps = torch.finfo(dtype).eps
        assert 1 - 4 * eps * (condition + 2) <= norm <= 1 + 50 * condition * EPS


def test_quadratic_form_as_in_the_docstring() -> None:
    """The norm sqrt(x^T Q x) is the scale Q^(-1/2): one step along an eigenvector of Q."""
    root = well_conditioned(3, 10.0)
    q = root.mT @ root
    scale = torch.linalg.inv(torch.linalg.cholesky(q).mT)
    x = inputs(3)
    by_scale = torch.linalg.solve(scale, x.mT).norm(dim=0)
    torch.testing.assert_close(by_scale, (x @ q * x).sum(-1).sqrt(), rtol=1e-12, atol=0)
    net = random_lbdn(
        (3, (16, 16), 2), lipschitz=GAMMA, activation="tanh", input_scale=scale, dtype=torch.float64
    )
    y = net(x).detach()
    gains = torch.cdist(y, y) / torch.cdist(x @ root.mT, x @ root.mT).clamp_min(1e-12)
    assert float(gains.max()) <= GAMMA


def test_vmap_state_dict_and_casts() -> None:
    scale = well_conditioned(3, 10.0)
    nets = [random_lbdn((3, (6,), 2), seed=s, input_scale=scale, dtype=torch.float64) for s in range(3)]
    parameters, buffers = torch.func.stack_module_state(nets)
    x = inputs(3)
    expected = torch.stack([net(x) for net in nets])
    call = lambda p, b: torch.func.functional_call(nets[0], (p, b), x)  # noqa: E731
    torch.testing.assert_close(torch.func.vmap(call)(parameters, buffers), expected, rtol=0, atol=1e-12)
    shared = torch.func.vmap(lambda p: torch.func.functional_call(nets[0], p, x))(parameters)
    torch.testing.assert_close(shared, expected, rtol=0, atol=1e-12)
    other = LBDN(3, (6,), 2, input_scale=torch.eye(3), dtype=torch.float64)
    other.load_state_dict(nets[0].state_dict())
    assert torch.equal(other(x), nets[0](x))
    bad = nets[0].state_dict()
    bad["input_scale"] = torch.ones(3, 3, dtype=torch.float64)
    with pytest.raises(CheckpointError, match="input_scale"):
        other.load_state_dict(bad)
    single = nets[0].float()
    assert single.input_scale.dtype == torch.float32
    torch.testing.assert_close(single(x.float()).double(), expected[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "scale, error",
    [
        (torch.ones(3, 3), InvalidArgumentError),
        (torch.zeros(3, 3), InvalidArgumentError),
        (torch.diag(torch.tensor([1e-7, 1.0, 1.0])), InvalidArgumentError),
        (torch.eye(3) * float("nan"), NonFiniteError),
        (torch.eye(2), ShapeError),
        (torch.ones(3, 2), ShapeError),
        (torch.ones(1, 3, 3), ShapeError),
        ([[1.0, 0.0], [0.0]], InvalidArgumentError),
    ],
)
def test_wrong_matrices(scale: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="input_scale"):
        LBDN(3, (4,), 2, input_scale=scale)  # type: ignore[arg-type]
