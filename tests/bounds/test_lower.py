"""The search for a lower bound: exact where the constant is known, and never a false witness."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from robustnn import MLP
from robustnn.bounds import lower_bound
from robustnn.params import ACTIVATIONS
from tests.networks import SHAPES, exported, inputs, random_lbdn, randomised

EPS = torch.finfo(torch.float64).eps


@pytest.mark.parametrize("n_in, n_out", [(1, 1), (5, 2), (2, 6), (20, 20)])
def test_linear_maps_are_exact(n_in: int, n_out: int) -> None:
    a = inputs(n_in, n=n_out, seed=4)
    expected = np.linalg.norm(a.numpy(), 2)
    found = lower_bound(lambda x: x @ a.mT + 7.0, inputs(n_in), iterations=5)
    assert math.isclose(found.value, expected, rel_tol=100 * EPS)


def test_weighted_norms_of_a_linear_map() -> None:
    a = inputs(3, n=2, seed=4)
    d_x, d_y = torch.tensor([1e-3, 1.0, 50.0]).double(), torch.tensor([0.1, 8.0]).double()
    expected = np.linalg.norm((a / d_y[:, None] * d_x).numpy(), 2)
    found = lower_bound(lambda x: x @ a.mT, inputs(3), input_scale=d_x, output_scale=d_y, iterations=5)
    assert math.isclose(found.value, expected, rel_tol=100 * EPS)
    gain = float((((found.x - found.x_prime) @ a.mT) / d_y).norm() / ((found.x - found.x_prime) / d_x).norm())
    assert math.isclose(gain, found.value, rel_tol=1e-6)


@pytest.mark.parametrize(
    "function, expected, start",
    [
        (lambda x: torch.sin(3 * x), 3.0, 0.5),
        (lambda x: torch.tanh(2 * x), 2.0, 0.8),
        (lambda x: 1 / (1 + x.square()), 3 * math.sqrt(3) / 8, 0.1),
        (lambda x: torch.exp(-x.square()), math.sqrt(2 / math.e), 2.0),
    ],
)
def test_known_nonlinear_constants(function: object, expected: float, start: float) -> None:
    found = lower_bound(function, torch.full((3, 1), start, dtype=torch.float64), iterations=300)
    assert expected * (1 - 1e-3) <= found.value <= expected * (1 + 4 * EPS)


def test_two_dimensional_constant() -> None:
    """f = (sin x, sin y) rotated and stretched has the constant of its stretch."""
    stretch = torch.tensor([[2.0, 0.0], [0.0, 0.5]], dtype=torch.float64)
    found = lower_bound(lambda x: torch.sin(x) @ stretch, inputs(2, n=16), iterations=200)
    assert 2 * (1 - 1e-4) <= found.value <= 2 * (1 + 4 * EPS)


@pytest.mark.parametrize("seed", range(3))
def test_relu_network_against_all_cells_of_a_grid(seed: int) -> None:
    """In one dimension the constant of a ReLU network is its steepest segment, found by brute force."""
    network = exported(randomised(MLP(1, (12, 6), 1), 1.0, seed))
    grid = torch.linspace(-5, 5, 200_001, dtype=torch.float64).unsqueeze(-1)
    slopes = network(grid).diff(dim=0).abs() / (grid[1, 0] - grid[0, 0])
    found = lower_bound(network, grid[:: len(grid) // 40], iterations=150)
    assert found.value >= float(slopes.max()) * (1 - 1e-6)
    jacobians = [float(torch.func.jacrev(network)(x).abs()) for x in (found.x, found.x_prime)]
    assert found.value <= max(jacobians) * (1 + 1e-9)


@pytest.mark.parametrize("activation", ["relu", "tanh", "softplus"])
@pytest.mark.parametrize("shape", SHAPES)
def test_never_above_the_product_bound(shape: tuple, activation: str) -> None:
    network = exported(randomised(MLP(*shape, activation=activation), 1.0))
    product = math.prod(np.linalg.norm(w.numpy(), 2) for w in network.weights)
    product *= ACTIVATIONS[activation].slope_max ** (len(network.weights) - 1)
    value = lower_bound(network, inputs(shape[0]), iterations=20).value
    assert value <= product * (1 + 20 * EPS)
    assert value > 0 or (activation == "relu" and 1 in shape[1]), "one dead neuron in the narrow layer"


def test_more_iterations_climb() -> None:
    net = exported(random_lbdn((3, (16, 16), 2), 0.5, lipschitz=3.0, activation="tanh"))
    few, many = (lower_bound(net, inputs(3), iterations=k, lr=0.05) for k in (1, 100))
    assert many.value > few.value * 1.05


def test_history_is_monotone_and_complete() -> None:
    net = exported(random_lbdn((3, (16,), 2), activation="tanh"))
    found = lower_bound(net, inputs(3), iterations=30)
    assert len(found.history) == 31
    assert all(a <= b for a, b in zip(found.history, found.history[1:], strict=False))
    assert found.value >= found.history[-1] * (1 - 1e-10)


def test_one_seed_one_answer() -> None:
    net = exported(random_lbdn((3, (16,), 2), activation="tanh"))
    torch.manual_seed(1)
    first = lower_bound(net, inputs(3), iterations=10)
    torch.manual_seed(2)
    second = lower_bound(net, inputs(3), iterations=10)
    assert first.value == second.value and torch.equal(first.x, second.x) and first.history == second.history
    other = lower_bound(net, inputs(3), iterations=10, generator=torch.Generator().manual_seed(5))
    assert other.history != first.history


def test_the_witness_can_be_checked() -> None:
    for activation in ("tanh", "relu"):
        net = exported(random_lbdn((3, (8,), 2), activation=activation))
        found = lower_bound(net, inputs(3), iterations=50)
        gain = float((net(found.x) - net(found.x_prime)).norm() / (found.x - found.x_prime).norm())
        assert math.isclose(gain, found.value, rel_tol=1e-5)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: 0.0 * x,
        lambda x: torch.relu(x - 100.0),
        lambda x: torch.relu(x - 100.0).norm(dim=-1, keepdim=True),  # a gradient of 0/0 by the textbook
        lambda x: torch.relu(-(x**2) - 1.0) + 1e6,
        lambda x: torch.tanh(1e3 * (x - 100.0)) * 1e6,
    ],
)
def test_a_dead_function_has_gain_zero(function: object) -> None:
    found = lower_bound(function, inputs(2), iterations=20)
    assert found.value == 0.0 and all(v == 0.0 for v in found.history)
    assert bool(found.x.isfinite().all() and found.x_prime.isfinite().all())


def test_a_kink_is_no_witness() -> None:
    """At zero torch reports the slope 3 for this way of writing f(x) = x, whose constant is one."""

    def function(x: Tensor) -> Tensor:
        return 3 * x - 2 * torch.relu(x) + 2 * torch.relu(-x)

    assert float(torch.func.jacrev(function)(torch.zeros(1))) == 3.0
    found = lower_bound(function, torch.zeros(4, 1, dtype=torch.float64), iterations=5)
    assert math.isclose(found.value, 1.0, rel_tol=1e-9)


def test_rounding_of_a_large_offset_is_no_witness() -> None:
    """Differences of numbers near 1e12 are multiples of 1e-4, far above the gain over short pairs."""
    found = lower_bound(lambda x: x + 1e12, inputs(2), iterations=30, radius=1e-3)
    assert math.isclose(found.value, 1.0, rel_tol=100 * EPS)


def test_parameters_collect_no_gradient_and_starts_stay() -> None:
    net = random_lbdn((3, (8,), 2), dtype=torch.float64)
    starts = inputs(3).requires_grad_()
    before = starts.detach().clone()
    with torch.no_grad():
        found = lower_bound(net, starts, iterations=3)
    assert all(p.grad is None for p in net.parameters()) and starts.grad is None
    assert torch.equal(starts, before) and not found.x.requires_grad and not found.x_prime.requires_grad


def test_more_starts_than_are_polished() -> None:
    found = lower_bound(lambda x: torch.sin(x), inputs(1, n=500), iterations=20)
    assert math.isclose(found.value, 1.0, rel_tol=1e-6)
