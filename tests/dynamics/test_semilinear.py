"""The bounded map with linear units: its parts, its bound, its start, and the way back to its parameters."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from robustnn.bounds import lower_bound
from robustnn.dynamics.semilinear import SemilinearMap
from robustnn.errors import InvalidArgumentError
from robustnn.params.activations import ACTIVATIONS

EPS = np.finfo(np.float64).eps


def evaluate(model: SemilinearMap, xi: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        gain, network = model.parts()
    return network(xi) if gain is None else network(xi) + xi @ gain.mT


def moved(n_in: int, n_out: int, hidden: tuple[int, ...], activation: str, size: float) -> SemilinearMap:
    torch.manual_seed(3)
    model = SemilinearMap(n_in, n_out, hidden, activation)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(size * torch.randn_like(parameter))
    return model


def inputs(count: int, n_in: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, n_in, generator=generator, dtype=torch.float64)


def test_the_first_units_are_linear_and_the_others_are_not() -> None:
    model = moved(4, 3, (5,), "tanh", 0.5)
    assert model.n_linear == 3
    network, xi = model.network.explicit().detach(), inputs(7, 4)
    v = xi @ network.weights[0].mT + network.biases[0]
    z = torch.cat((v[:, :3], torch.tanh(v[:, 3:])), dim=1)
    expected = z @ network.weights[1].mT + network.biases[1]
    torch.testing.assert_close(evaluate(model, xi), expected, atol=1e2 * EPS, rtol=1e2 * EPS)
    assert moved(4, 3, (5, 5), "tanh", 0.5).n_linear == 0


@pytest.mark.parametrize("size", [0.0, 1.0, 10.0])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_bound_is_one_for_any_parameters(activation: str, size: float) -> None:
    model = moved(4, 3, (5,), activation, size)
    found = lower_bound(lambda xi: evaluate_graph(model, xi), inputs(16, 4), iterations=60, lr=0.1).value
    assert 0.0 < found <= 1.0 + 1e2 * EPS


def evaluate_graph(model: SemilinearMap, xi: torch.Tensor) -> torch.Tensor:
    gain, network = (part if part is None else part.detach() for part in model.parts())
    return network(xi) if gain is None else network(xi) + xi @ gain.mT


@pytest.mark.parametrize("hidden", [(6,), (6, 4)])
def test_it_starts_at_the_linear_map(hidden: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    gain = rng.normal(size=(3, 4))
    gain *= 0.9 / np.linalg.norm(gain, 2)
    offset = rng.normal(size=3)
    model = SemilinearMap(4, 3, hidden, "tanh")
    model.start_(gain, offset, rng, effect=1e-4)
    xi = inputs(200, 4)
    error = evaluate(model, xi) - (xi @ torch.from_numpy(gain).mT + torch.from_numpy(offset))
    assert float(error.std()) < (1e-4 if len(hidden) == 1 else 0.05)
    found = lower_bound(lambda v: evaluate_graph(model, v), xi[:8], iterations=60, lr=0.1).value
    assert 0.85 < found <= 1.0 + 1e2 * EPS


def test_the_size_of_the_random_units_is_the_one_asked_for() -> None:
    gain, offset = 0.3 * np.eye(3, 4), np.zeros(3)
    for effect in (0.01, 0.1):
        stds = []
        for seed in range(10):
            model = SemilinearMap(4, 3, (30,), "tanh")
            model.start_(gain, offset, np.random.default_rng(seed), effect=effect)
            xi = inputs(300, 4)
            stds.append(float((evaluate(model, xi) - xi @ torch.from_numpy(gain).mT).square().mean().sqrt()))
        assert 0.3 * effect < np.mean(stds) < 1.5 * effect


def test_a_gain_beyond_the_bound_is_cut() -> None:
    model = SemilinearMap(3, 3, (4,), "tanh")
    model.start_(np.diag([5.0, 0.5, 0.0]), np.zeros(3), np.random.default_rng(0))
    gain, _ = model.parts()
    assert gain is not None
    expected = torch.diag(torch.tensor([0.99, 0.5, 0.0], dtype=torch.float64))
    torch.testing.assert_close(gain.detach(), expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("hidden", [(5,), (5, 4), (4, 4, 4)])
@pytest.mark.parametrize("size", [0.0, 1.0, 10.0])
@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "relu"])
def test_scaled_inputs_keep_the_function(hidden: tuple[int, ...], size: float, activation: str) -> None:
    model = moved(4, 3, hidden, activation, size)
    xi, factors = inputs(50, 4), np.array([0.5, 1.0, 0.999, 1e-3])
    scaled = xi * torch.from_numpy(factors)
    expected = evaluate(model, scaled)
    model.rescale_inputs_(factors)
    torch.testing.assert_close(evaluate(model, xi), expected, atol=1e-9, rtol=1e-9)
    found = lower_bound(lambda v: evaluate_graph(model, v), xi[:8], iterations=40, lr=0.1).value
    assert found <= 1.0 + 1e2 * EPS


def test_a_saturated_map_is_scaled_too() -> None:
    model = SemilinearMap(3, 3, (4,), "tanh")
    model.start_(np.eye(3), np.zeros(3), np.random.default_rng(0), effect=1e-6)
    xi = inputs(20, 3)
    expected = evaluate(model, 0.7 * xi)
    model.rescale_inputs_(np.full(3, 0.7))
    torch.testing.assert_close(evaluate(model, xi), expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("factors", [[1.0, 1.1, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0], [1.0, np.nan, 1.0]])
def test_factors_that_would_break_the_bound_are_refused(factors: list[float]) -> None:
    with pytest.raises(InvalidArgumentError, match="factors"):
        SemilinearMap(3, 2, (4,), "tanh").rescale_inputs_(np.array(factors))


def test_bad_calls() -> None:
    with pytest.raises(InvalidArgumentError, match="hidden"):
        SemilinearMap(3, 2, (), "tanh")
    with pytest.raises(InvalidArgumentError, match="activation"):
        SemilinearMap(3, 2, (4,), "gelu")
