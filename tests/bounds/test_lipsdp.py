"""The LipSDP recursion, its gradient, its optimiser and the proof, each against an independent computation."""

from __future__ import annotations

import importlib
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from robustnn import LBDN, MLP, ExplicitMLP
from robustnn.bounds import eclipse, eclipse_fast, lipsdp, product_bound
from robustnn.bounds.lbfgs import minimize
from robustnn.bounds.lmi import certified_bound, satisfies_lmi
from robustnn.bounds.network import Chain, make_chain
from robustnn.bounds.recursion import dual, gain_squared, greedy, improve, product_rule, value_and_gradient
from robustnn.errors import RobustNNError
from tests.networks import ACTIVATION_NAMES, exported, inputs, randomised

NONLINEAR = [name for name in ACTIVATION_NAMES if name != "identity"]


def random_network(shape: tuple, activation: str = "relu", seed: int = 0) -> ExplicitMLP:
    """Weights of size 1/sqrt(n), as of an initialised network."""
    network = exported(randomised(MLP(*shape, activation=activation, dtype=torch.float64), 1.0, seed))
    return network.map(lambda t: t / t.shape[-1] ** 0.5)


def dense_lmi(chain: Chain, theta: tuple[Tensor, ...], gamma: float) -> np.ndarray:
    """gamma^2 |dx|^2 - |dy|^2 - 2 sum T (dz - a dv)(b dv - dz) as a matrix in dx, dz_1, ..., dz_L, by numpy."""
    weights = [w.numpy() for w in chain.weights]
    sizes = [weights[0].shape[1], *(len(w) for w in weights[:-1])]
    ends = np.cumsum([0, *sizes])
    pick = [np.eye(ends[-1])[start:end] for start, end in zip(ends, ends[1:], strict=False)]
    matrix = gamma**2 * pick[0].T @ pick[0] - (weights[-1] @ pick[-1]).T @ (weights[-1] @ pick[-1])
    for k, t in enumerate(theta):
        a, b = chain.alpha[k].numpy()[:, None], chain.beta[k].numpy()[:, None]
        v, z = weights[k] @ pick[k], pick[k + 1]
        term = (z - a * v).T @ np.diag(t.numpy() / (b - a)[:, 0]) @ (b * v - z)
        matrix -= term + term.T
    return matrix


def least_eigenvalue(matrix: np.ndarray) -> float:
    scale = 1 / np.sqrt(np.diag(matrix))
    return float(np.linalg.eigvalsh(scale[:, None] * matrix * scale)[0])


@pytest.mark.parametrize("activation", NONLINEAR)
@pytest.mark.parametrize("shape", [(3, (5,), 2), (2, (6, 4), 3), (3, (4, 5, 3), 1)])
def test_the_recursion_solves_the_matrix_inequality(shape: tuple, activation: str) -> None:
    """The matrix, assembled densely, is singular at the recursion's value and indefinite below it."""
    chain = make_chain(random_network(shape, activation))
    theta = tuple(1.7 * t for t in product_rule(chain))
    gamma = float(gain_squared(chain, theta).sqrt())
    assert abs(least_eigenvalue(dense_lmi(chain, theta, gamma))) < 1e-12
    assert least_eigenvalue(dense_lmi(chain, theta, 1.01 * gamma)) > 1e-5
    assert least_eigenvalue(dense_lmi(chain, theta, 0.99 * gamma)) < -1e-5


@pytest.mark.parametrize("activation", NONLINEAR)
def test_the_proof_agrees_with_the_matrix_inequality(activation: str) -> None:
    chain = make_chain(random_network((3, (6, 5), 2), activation))
    theta = greedy(chain)
    gamma = gain_squared(chain, theta).sqrt()
    for excess, expected in ((-1e-3, False), (-1e-9, False), (1e-9, True), (1e-3, True)):
        proved, shift = satisfies_lmi(chain, theta, gamma * (1 + excess))
        assert bool(proved) is expected
        assert 0 < float(shift) < 1e-11
    bound, used, _ = certified_bound(chain, theta)
    assert gamma < bound < gamma * (1 + 1e-9)
    assert least_eigenvalue(dense_lmi(chain, used, float(bound))) > 0


@pytest.mark.parametrize("size", [1, 7, 40])
def test_a_single_matrix_is_proved_just_above_its_norm(size: int) -> None:
    chain = make_chain(ExplicitMLP((inputs(size, n=size),), (None,), "relu"))
    norm = torch.linalg.matrix_norm(chain.weights[0], ord=2)
    assert not bool(satisfies_lmi(chain, (), norm * (1 - 1e-14))[0])
    assert not bool(satisfies_lmi(chain, (), norm)[0])  # no room for rounding
    assert bool(satisfies_lmi(chain, (), norm * (1 + 1e-10))[0])
    assert norm <= certified_bound(chain, ())[0] <= norm * (1 + 1e-10)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0, 0.0, 1e-300, 1e300])
def test_nothing_is_proved_from_nonsense(bad: float) -> None:
    chain = make_chain(random_network((3, (4,), 2)))
    good = product_rule(chain)
    gamma = gain_squared(chain, good).sqrt() * 1.01
    assert bool(satisfies_lmi(chain, good, gamma)[0])
    spoiled = (torch.cat((torch.tensor([bad]).double(), good[0][1:])),)
    assert not bool(satisfies_lmi(chain, spoiled, gamma)[0])
    if not bad > 1e100:
        assert not bool(satisfies_lmi(chain, good, gamma * bad)[0])


@pytest.mark.parametrize("activation", NONLINEAR)
@pytest.mark.parametrize("order", [16.0, 256.0])
def test_gradient_by_finite_differences(activation: str, order: float) -> None:
    chain = make_chain(random_network((3, (4, 5), 2), activation))
    theta = tuple(t * torch.linspace(1.2, 2.0, len(t), dtype=t.dtype) for t in product_rule(chain))
    _, gradients = value_and_gradient(chain, theta, order, 0.1)
    for k, gradient in enumerate(gradients):
        for i in range(len(gradient)):
            values = []
            for sign in (1.0, -1.0):
                moved = [t.clone() for t in theta]
                moved[k][i] *= math.exp(sign * 1e-6)
                values.append(float(value_and_gradient(chain, moved, order, 0.1)[0]))
            assert math.isclose(
                (values[0] - values[1]) / 2e-6, float(gradient[i]), rel_tol=1e-5, abs_tol=1e-8
            )


def test_inadmissible_multipliers_are_infinite() -> None:
    chain = make_chain(random_network((3, (4, 5), 2)))
    theta = tuple(0.01 * t for t in product_rule(chain))
    assert float(gain_squared(chain, theta)) == math.inf
    assert float(value_and_gradient(chain, theta, 16.0, 0.1)[0]) == math.inf
    assert float(certified_bound(chain, theta)[0]) == math.inf


@pytest.mark.parametrize("activation", NONLINEAR)
def test_multipliers_of_a_wide_interval_serve_for_a_narrow_one(activation: str) -> None:
    """In the form T (b - a) a multiplier keeps its proof when slopes are excluded, and the bound does not grow."""
    network = random_network((3, (6, 5), 2), activation)
    wide, narrow = make_chain(network, slopes=(0.0, 1.0)), make_chain(network)
    for theta in (product_rule(wide), greedy(wide), improve(wide, greedy(wide), 30)):
        assert gain_squared(narrow, theta) <= gain_squared(wide, theta) * (1 + 1e-12)


@pytest.mark.parametrize("activation", NONLINEAR)
def test_dual_multipliers(activation: str) -> None:
    chain = make_chain(random_network((3, (6, 5), 2), activation))
    theta = improve(chain, greedy(chain), 30)
    gain = gain_squared(chain, theta)
    assert float(gain_squared(chain.transposed(), dual(theta, gain * (1 + 1e-6)))) <= float(gain) * (1 + 1e-5)


def test_product_rule_is_the_product_of_the_norms() -> None:
    for activation in NONLINEAR:
        network = random_network((3, (6, 5, 4), 2), activation)
        value = float(gain_squared(make_chain(network), product_rule(make_chain(network))).sqrt())
        assert value <= product_bound(network) * (1 + 1e-12)


def test_closed_form_by_its_publication() -> None:
    """ECLipsE-Fast in the symbols of the paper: X_i = l_i I - m^2 l_i^2 W_i X_{i-1}^{-1} W_i^T, m = 1/2."""
    network = random_network((3, (6, 5, 4), 2))
    *hidden, last = [w.numpy() for w in network.weights]
    x = np.eye(3)
    for w in hidden:
        q = w @ np.linalg.inv(x) @ w.T
        size = 1 / (2 * 0.25 * np.linalg.eigvalsh(q)[-1])
        x = size * np.eye(len(w)) - 0.25 * size**2 * q
    expected = math.sqrt(np.linalg.eigvalsh(last @ np.linalg.inv(x) @ last.T)[-1])
    assert math.isclose(eclipse_fast(network).value, expected, rel_tol=1e-9)


def test_more_steps_do_not_hurt_and_starts_are_used() -> None:
    network = random_network((4, (10, 10), 3))
    values = [lipsdp(network, iterations=n).value for n in (0, 10, 50, 200)]
    assert values[-1] == min(values) and values[-1] < 0.99 * values[0] == 0.99 * max(values)
    warm = lipsdp(network, multipliers=lipsdp(network).multipliers, iterations=0)
    assert warm.value <= lipsdp(network).value * (1 + 1e-9)
    assert len(lipsdp(network, iterations=50).history) <= 50
    assert all(torch.isfinite(t).all() and (t > 0).all() for t in warm.multipliers)


@pytest.mark.parametrize(
    ("shape", "activation"),
    [
        ((4, (12, 12), 3), "relu"),
        ((2, (10, 8, 6), 5), "tanh"),
        ((3, (20,), 3), "leaky_relu"),
        ((5, (9, 9), 1), "sigmoid"),
    ],
)
def test_against_an_interior_point_solver(shape: tuple, activation: str) -> None:
    pytest.importorskip("cvxpy")
    pytest.importorskip("clarabel")
    network = random_network(shape, activation, 5)
    ours, solver = lipsdp(network), lipsdp(network, solver="clarabel")
    assert solver.value * (1 - 1e-4) <= ours.value <= solver.value * (1 + 5e-4)
    assert ours.value <= eclipse(network, iterations=20).value * (1 + 1e-9)


def test_a_missing_solver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "clarabel", None)
    with pytest.raises(ImportError):
        importlib.import_module("clarabel")
    with pytest.raises(RobustNNError, match=r"robustnn\[certify\]"):
        lipsdp(random_network((2, (3,), 1)), solver="clarabel")


def test_lbfgs_solves_a_batch_with_infinite_values() -> None:
    """Rosenbrock's valley with different scales, cut off by a wall of infinity close to the minimum (1, 1)."""
    scale = torch.tensor([1.0, 10.0, 100.0]).double()

    def objective(x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = x[..., 0], x[..., 1]
        value = (1 - a).square() + scale * (b - a.square()).square()
        gradient = torch.stack(
            (-2 * (1 - a) - 4 * scale * a * (b - a.square()), 2 * scale * (b - a.square())), -1
        )
        outside = (a > 1.05) | (b > 1.1)
        return torch.where(outside, math.inf, value), torch.where(outside.unsqueeze(-1), math.nan, gradient)

    history: list[float] = []
    start = torch.tensor([[-1.2, 1.0]] * 3).double()
    x = minimize(objective, start, 200, tolerance=1e-15, history=history)
    assert torch.allclose(x, torch.ones_like(x), atol=1e-6)
    assert history == sorted(history, reverse=True)
    assert torch.equal(minimize(objective, start, 0), start)


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "leaky_relu"])
def test_multipliers_turn_a_network_into_an_lbdn_of_that_bound(activation: str) -> None:
    network = random_network((3, (16, 16), 2), activation)
    bound = lipsdp(network, slopes=(0.0, 1.0))
    net = LBDN.from_mlp(network, bound.value, multipliers=bound.multipliers)
    x = inputs(3, n=20)
    with torch.no_grad():
        assert torch.allclose(net(x), network(x), rtol=0, atol=1e-9)
    assert net.lipschitz == bound.value
    assert math.isclose(lipsdp(net).value, lipsdp(network).value, rel_tol=1e-4)


def test_committed_figures_meet_the_targets() -> None:
    """Within 0.5 % of the solver on ten networks, never below a lower bound, 10 x 256 in under a minute."""
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "lipsdp.json"
    figures = json.loads(path.read_text(encoding="utf-8"))
    assert len(figures["networks"]) == 10
    for row in figures["networks"]:
        assert -1e-4 < row["excess"] < 5e-3
        assert row["lower"] <= min(row["lipsdp"], row["clarabel"])
        assert row["lipsdp"] <= row["eclipse_fast"] <= row["product"]
    large = figures["large"]
    assert (large["depth"], large["width"]) == (10, 256) and large["seconds"] < 60
