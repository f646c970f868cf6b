"""Local bounds: never below what gradient ascent finds in the ball, never above the global bound."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from robustnn import MLP, ExplicitMLP
from robustnn.bounds import lipsdp, local_bound
from robustnn.bounds.local import _slope_interval
from robustnn.errors import InvalidArgumentError, NonFiniteError, ShapeError
from robustnn.params import ACTIVATIONS
from tests.networks import ACTIVATION_NAMES, exported, inputs, randomised


def network_of(activation: str, shape: tuple = (3, (8, 8), 2), seed: int = 0) -> ExplicitMLP:
    network = exported(randomised(MLP(*shape, activation=activation, dtype=torch.float64), 1.0, seed))
    return network.map(lambda t: t / t.shape[-1] ** 0.5)


def project(step: Tensor, radius: float, norm: str) -> Tensor:
    if norm == "linf":
        return step.clamp(-radius, radius)
    return step * (radius / step.norm(dim=-1, keepdim=True)).clamp_max(1.0)


def largest_gain(
    network: ExplicitMLP, center: Tensor, radius: float, norm: str, iterations: int = 10
) -> float:
    """Largest norm of the Jacobian that projected gradient ascent finds in the ball, and over pairs in it."""
    generator = torch.Generator().manual_seed(2)
    noise = torch.randn(40, center.shape[-1], dtype=torch.float64, generator=generator)
    step = project(radius * noise, radius, norm)
    best = 0.0
    jacobian = torch.func.vmap(torch.func.jacrev(network))
    for _ in range(iterations):
        step = step.detach().requires_grad_()
        gain = torch.linalg.matrix_norm(jacobian(center + step), ord=2)
        best = max(best, float(gain.detach().max()))
        if not gain.requires_grad:
            break
        (gradient,) = torch.autograd.grad(gain.sum(), step, allow_unused=True)
        uphill = noise if gradient is None or not bool(gradient.any()) else gradient
        noise = noise.roll(1, 0)
        length = uphill.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        step = project(step.detach() + 0.1 * radius * uphill / length, radius, norm)
    pairs = center + step.detach()
    gains = (network(pairs[:, None]) - network(pairs[None])).norm(dim=-1) / (
        pairs[:, None] - pairs[None]
    ).norm(dim=-1)
    return max(best, float(gains.nan_to_num(0.0).max()))


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("activation", ACTIVATION_NAMES)
def test_between_gradient_ascent_and_the_global_bound(activation: str, norm: str) -> None:
    network = network_of(activation)
    centers = inputs(3, n=2)
    anywhere = lipsdp(network).value
    previous = torch.zeros(2, dtype=torch.float64)
    for radius in (1e-2, 0.5, 5.0):
        bounds = local_bound(network, centers, radius, norm=norm, iterations=10)
        assert bounds.shape == (2,) and bool((bounds <= anywhere).all())
        for center, bound in zip(centers, bounds, strict=True):
            assert largest_gain(network, center, radius, norm) <= float(bound) * (1 + 1e-12)
        assert bool((bounds >= previous * (1 - 0.05)).all())  # larger balls, larger bounds, up to the search
        previous = bounds


@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_exact_inside_a_linear_region(activation: str) -> None:
    network = network_of(activation)
    center = inputs(3, n=1)[0]
    expected = float(torch.linalg.matrix_norm(torch.func.jacrev(network)(center), ord=2))
    bound = float(local_bound(network, center, 1e-6))
    assert expected * (1 - 1e-12) <= bound <= expected * (1 + 1e-6)
    assert bound < 0.9 * lipsdp(network).value


@pytest.mark.parametrize("activation", ["tanh", "softplus", "elu", "sigmoid"])
def test_shrinks_to_the_norm_of_the_jacobian(activation: str) -> None:
    network = network_of(activation)
    center = inputs(3, n=1)[0]
    expected = float(torch.linalg.matrix_norm(torch.func.jacrev(network)(center), ord=2))
    excess = [float(local_bound(network, center, r, iterations=5)) / expected - 1 for r in (1e-2, 1e-4, 1e-6)]
    assert -1e-12 < excess[2] < 1e-4 and excess[2] < excess[1] < excess[0]


def test_a_scalar_network_by_brute_force() -> None:
    """With one input the constant over an interval is its steepest slope on a fine grid."""
    network = network_of("relu", (1, (6,), 1), seed=3)
    for center in (-1.0, 0.0, 0.7):
        for radius in (0.05, 0.5):
            grid = torch.linspace(center - radius, center + radius, 20_001, dtype=torch.float64).unsqueeze(-1)
            steepest = float((network(grid).diff(dim=0) / grid.diff(dim=0)).abs().max())
            bound = float(local_bound(network, torch.tensor([center]), radius))
            assert steepest <= bound * (1 + 1e-9)
            assert bound <= lipsdp(network).value


def test_batches_and_single_centres_agree() -> None:
    network = network_of("tanh")
    centers = inputs(3, n=4).reshape(2, 2, 3)
    together = local_bound(network, centers, 0.2, iterations=30)
    assert together.shape == (2, 2)
    for i in range(2):
        for j in range(2):
            alone = local_bound(network, centers[i, j], 0.2, iterations=30)
            assert alone.shape == () and math.isclose(float(alone), float(together[i, j]), rel_tol=1e-2)
    assert local_bound(network, centers[:0, 0], 0.2).shape == (0,)
    known = lipsdp(network, iterations=30)
    quick = local_bound(network, centers, 0.2, multipliers=known.multipliers, iterations=30)
    assert bool((quick <= known.value).all()) and torch.allclose(quick, together, rtol=1e-2)


@pytest.mark.parametrize("matrices", [False, True])
def test_scaled_norms_are_those_of_the_folded_network(matrices: bool) -> None:
    network = network_of("tanh")
    d_x, d_y = torch.tensor([0.1, 1.0, 4.0]).double(), torch.tensor([2.0, 0.5]).double()
    x, y = torch.diag(d_x), torch.diag(d_y)
    if matrices:
        x, y = x + 0.05, y + 0.1
        d_x, d_y = x, y
    first, *middle, last = network.weights
    biases = (*network.biases[:-1], None)
    folded = ExplicitMLP((first @ x, *middle, y.inverse() @ last), biases, "tanh")
    center = inputs(3, n=1)[0]
    for norm in ("l2", "linf"):
        bound = float(
            local_bound(network, x @ center, 0.3, norm=norm, input_scale=d_x, output_scale=d_y, iterations=30)
        )
        expected = float(local_bound(folded, center, 0.3, norm=norm, iterations=30))
        assert math.isclose(bound, expected, rel_tol=1e-2)


@pytest.mark.parametrize("activation", [name for name in ACTIVATION_NAMES if name != "identity"])
def test_slope_intervals_by_difference_quotients(activation: str) -> None:
    entry = ACTIVATIONS[activation]
    ends = torch.tensor([-30.0, -3.0, -0.5, 0.0, 0.2, 1.0, 4.0, 12.0], dtype=torch.float64)
    for low in ends:
        for high in ends[ends > low]:
            points = torch.linspace(float(low), float(high), 401, dtype=torch.float64)
            quotients = entry.function(points).diff() / points.diff()
            alpha, beta = _slope_interval(activation, low, high)
            assert (
                alpha <= quotients.min() * (1 + 1e-9) + 1e-12 and quotients.max() <= beta * (1 + 1e-9) + 1e-12
            )
            assert entry.slope_min <= alpha <= beta <= entry.slope_max
            # Not wider than need be: the slopes at the ends (or at the peak) are attained.
            assert beta - quotients.max() < 0.05 * entry.slope_max
            assert low == 0 or quotients.min() - alpha < 0.05 * entry.slope_max


def test_bad_arguments() -> None:
    network, center = network_of("relu"), inputs(3, n=1)[0]
    with pytest.raises(ShapeError, match="center"):
        local_bound(network, center[:2], 0.1)
    with pytest.raises(InvalidArgumentError, match="center"):
        local_bound(network, [0.0, 0.0, 0.0], 0.1)  # type: ignore[arg-type]
    with pytest.raises(NonFiniteError, match="center"):
        local_bound(network, center * math.nan, 0.1)
    with pytest.raises(InvalidArgumentError, match="radius"):
        local_bound(network, center, -0.1)
    with pytest.raises(InvalidArgumentError, match="norm"):
        local_bound(network, center, 0.1, norm="l1")
    with pytest.raises(InvalidArgumentError, match="iterations"):
        local_bound(network, center, 0.1, iterations=-1)
