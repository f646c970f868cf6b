"""Upper bounds: valid for every slope pattern, exact where the constant is known, and in the right order."""

from __future__ import annotations

import itertools
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from torch import Tensor, nn

from robustnn import LBDN, MLP, ExplicitMLP
from robustnn.bounds import as_network, eclipse, eclipse_fast, gap_report, lipsdp, lower_bound, product_bound
from robustnn.errors import InvalidArgumentError, NonFiniteError, ShapeError
from robustnn.params import ACTIVATIONS
from tests.networks import ACTIVATION_NAMES, SHAPES, exported, inputs, random_lbdn, randomised

EPS = torch.finfo(torch.float64).eps
METHODS = {
    "eclipse_fast": eclipse_fast,
    "eclipse": partial(eclipse, iterations=20),
    "lipsdp": partial(lipsdp, iterations=40),
}


def random_network(shape: tuple, activation: str = "relu", seed: int = 0) -> ExplicitMLP:
    return exported(randomised(MLP(*shape, activation=activation, dtype=torch.float64), 1.0, seed))


def largest_over_patterns(network: ExplicitMLP) -> float:
    """Largest norm of W_L D ... D W_0 over all diagonals of extreme slopes: no method may go below it."""
    entry = ACTIVATIONS[network.activation]
    weights = [w.numpy() for w in network.weights]
    widths = [len(w) for w in weights[:-1]]
    best = 0.0
    for pattern in itertools.product((entry.slope_min, entry.slope_max), repeat=sum(widths)):
        product, start = weights[0], 0
        for width, weight in zip(widths, weights[1:], strict=True):
            product = weight @ (np.array(pattern[start : start + width])[:, None] * product)
            start += width
        best = max(best, float(np.linalg.norm(product, 2)))
    return best


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("activation", ACTIVATION_NAMES)
@pytest.mark.parametrize("shape", [(1, (1,), 1), (3, (5,), 2), (2, (3, 4), 2), (2, (3, 2, 3), 1)])
def test_no_slope_pattern_exceeds_the_bound(shape: tuple, activation: str, method: str) -> None:
    network = random_network(shape, activation, 3)
    assert METHODS[method](network).value >= largest_over_patterns(network)


@pytest.mark.parametrize("activation", ACTIVATION_NAMES)
@pytest.mark.parametrize("shape", SHAPES)
def test_order_of_the_methods(shape: tuple, activation: str) -> None:
    network = random_network(shape, activation)
    lower = lower_bound(network, inputs(shape[0]), iterations=10).value
    product, fast, tight = (
        product_bound(network),
        eclipse_fast(network).value,
        lipsdp(network, iterations=20).value,
    )
    assert lower <= tight * (1 + EPS)
    assert tight <= fast * (1 + 1e-9)
    assert fast <= product * (1 + 1e-9)
    assert eclipse(network, iterations=10).value <= product * (1 + 1e-9)


@pytest.mark.parametrize("n_hidden", [0, 1, 3])
def test_linear_networks_are_exact(n_hidden: int) -> None:
    network = random_network((4, (6,) * n_hidden, 3), "identity")
    matrix = torch.linalg.multi_dot(network.weights[::-1]) if n_hidden else network.weights[0]
    expected = float(np.linalg.norm(matrix.numpy(), 2))
    for method in METHODS.values():
        value = method(network).value
        assert expected * (1 - 1e-14) <= value <= expected * (1 + 1e-10)


@pytest.mark.parametrize(("activation", "slope"), [("relu", 1.0), ("sigmoid", 0.25), ("leaky_relu", 1.0)])
def test_one_path_is_exact(activation: str, slope: float) -> None:
    """With one neuron per layer every method must give the product of the numbers."""
    network = ExplicitMLP(
        tuple(torch.full((1, 1), value, dtype=torch.float64) for value in (-2.0, 3.0, 0.5)),
        (None,) * 3,
        activation,
    )
    expected = 3.0 * slope**2
    for method in (*METHODS.values(), product_bound):
        assert math.isclose(float(method(network)), expected, rel_tol=1e-9)


def test_opposite_paths_do_not_add_up() -> None:
    """The sum relu(x) + relu(-x) = |x| has constant 1; the product of the norms is 2."""
    one = torch.ones(1, 1, dtype=torch.float64)
    absolute = ExplicitMLP((torch.cat((one, -one)), torch.cat((one, one), 1)), (None, None), "relu")
    assert product_bound(absolute) == pytest.approx(2.0)
    assert 1.0 <= lipsdp(absolute).value <= 1.0 + 1e-3


def test_published_network(golden: Path) -> None:
    """LipSDP's 2-10-30-20-2 example: 36.482 by the published solver, a witness of 36.478 from below."""
    cells = scipy.io.loadmat(golden / "lipsdp_random_weights.mat")["weights"].ravel()
    weights = tuple(torch.as_tensor(cell, dtype=torch.float64) for cell in cells)
    network = ExplicitMLP(weights, (None,) * len(weights), "relu")
    assert lipsdp(network).value == pytest.approx(36.482, abs=5e-4)
    assert 36.482 < eclipse(network).value < 36.55
    assert 36.55 < eclipse_fast(network).value < product_bound(network)


@pytest.mark.parametrize("name", [*METHODS, "product"])
@pytest.mark.parametrize("matrices", [False, True])
def test_weighted_norms_are_folded_weights(name: str, matrices: bool) -> None:
    method = METHODS.get(name, product_bound)
    network = random_network((3, (6, 5), 2), "tanh")
    d_x, d_y = torch.tensor([0.01, 1.0, 30.0]).double(), torch.tensor([5.0, 0.2]).double()
    x, y = torch.diag(d_x), torch.diag(d_y)
    if matrices:
        x, y = x + 0.3 * inputs(3, n=3), y + 0.3 * inputs(2, n=2)
        d_x, d_y = x, y
    first, *middle, last = network.weights
    folded = ExplicitMLP((first @ x, *middle, y.inverse() @ last), network.biases, "tanh")
    weighted = float(method(network, input_scale=d_x, output_scale=d_y))
    assert math.isclose(weighted, float(method(folded)), rel_tol=1e-4)


def test_result_does_not_depend_on_the_size_of_the_weights() -> None:
    network = random_network((3, (6, 5), 2))
    for factor in (1e-20, 1e-3, 1e20):
        scaled = ExplicitMLP(tuple(factor * w for w in network.weights), network.biases, "relu")
        assert math.isclose(
            lipsdp(scaled, iterations=60).value / factor**3,
            lipsdp(network, iterations=60).value,
            rel_tol=1e-4,
        )


def test_a_zero_weight_gives_zero() -> None:
    network = random_network((3, (6, 5), 2))
    for k in range(3):
        weights = tuple(torch.zeros_like(w) if j == k else w for j, w in enumerate(network.weights))
        for method in (*METHODS.values(), product_bound):
            assert float(method(ExplicitMLP(weights, network.biases, "relu"))) == 0.0


def test_dead_neurons_do_not_matter() -> None:
    network = random_network((3, (6, 5), 2))
    first, second, last = (w.clone() for w in network.weights)
    second[:, 2] = 0.0
    last[:, 4] = 0.0
    kept = ExplicitMLP(
        (first[[0, 1, 3, 4, 5]], second[:4][:, [0, 1, 3, 4, 5]], last[:, :4]), (None,) * 3, "relu"
    )
    padded = ExplicitMLP((first, second, last), (None,) * 3, "relu")
    assert math.isclose(lipsdp(padded).value, lipsdp(kept).value, rel_tol=2e-3)


def test_every_kind_of_network_is_accepted() -> None:
    torch.manual_seed(0)
    mlp = MLP(3, (8, 8), 2, activation="tanh")
    sequential = mlp.to_mlp()
    values = [lipsdp(net, iterations=10).value for net in (mlp, sequential, mlp.explicit(), mlp.double())]
    assert np.allclose(values, values[0], rtol=1e-9, atol=0)
    assert as_network(sequential).weights[0].dtype == torch.float32
    net = LBDN(3, (8, 8), 2, lipschitz=4.0)
    assert lipsdp(net).value <= 4.0 * (1 + 1e-6)


@pytest.mark.parametrize("activation", ACTIVATION_NAMES)
def test_an_lbdn_never_exceeds_its_bound(activation: str) -> None:
    net = random_lbdn((3, (8, 8), 2), 3.0, activation=activation, lipschitz=2.0)
    for iterations in (0, 20):
        assert lipsdp(net, iterations=iterations).value <= 2.0 * (1 + 1e-6)


def test_wider_slopes() -> None:
    network = random_network((3, (8, 6), 2), "leaky_relu")
    own, wider = lipsdp(network), lipsdp(network, slopes=(0.0, 1.0))
    relu = lipsdp(ExplicitMLP(network.weights, network.biases, "relu"))
    assert math.isclose(wider.value, relu.value, rel_tol=1e-9)
    assert own.value < wider.value
    for slopes in ((0.02, 1.0), (0.0, 0.9), (-0.1, 1.0), (0.0, math.inf), (0.0,)):
        with pytest.raises(InvalidArgumentError, match="slopes"):
            lipsdp(network, slopes=slopes)  # type: ignore[arg-type]


def test_gap_report() -> None:
    net = random_lbdn(
        (3, (8, 8), 2), 1.0, lipschitz=3.0, input_scale=[1.0, 0.1, 5.0], output_scale=[2.0, 0.5]
    )
    report = gap_report(net, iterations=60, lower_iterations=50)
    assert 0 < report.lower <= report.lipsdp <= report.lipschitz == 3.0
    assert report.lipsdp <= report.eclipse_fast * (1 + 1e-9) and report.eclipse_fast <= report.product * (
        1 + 1e-9
    )
    assert report.gap == pytest.approx(report.lipsdp / report.lower - 1)
    lines = report.table().splitlines()
    assert len(lines) == 6 and lines[3].split()[:2] == ["gamma", "3"]
    assert (
        gap_report(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)), iterations=5).lipschitz is None
    )


def test_gap_report_in_matrix_norms() -> None:
    x, y = torch.eye(3) + 0.2 * inputs(3, n=3).float(), torch.eye(2) + 0.2 * inputs(2, n=2).float()
    net = random_lbdn((3, (8,), 2), 1.0, lipschitz=3.0, input_scale=x, output_scale=y)
    report = gap_report(net, starts=inputs(3), iterations=60, lower_iterations=50)
    assert 0 < report.lower <= report.lipsdp <= 3.0


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(nn.Linear(2, 3), nn.GELU(), nn.Linear(3, 1)),
        nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1)),
        nn.Sequential(nn.Linear(2, 3), nn.LeakyReLU(0.2), nn.Linear(3, 1)),
        nn.Sequential(nn.Linear(2, 3), nn.Dropout(), nn.Linear(3, 1)),
        nn.Conv2d(1, 1, 1),
        "network",
    ],
)
def test_other_networks_are_refused(network: object) -> None:
    for method in (*METHODS.values(), product_bound):
        with pytest.raises(InvalidArgumentError):
            method(network)  # type: ignore[operator]


def test_bad_arguments() -> None:
    network = random_network((2, (3,), 1))
    with pytest.raises(InvalidArgumentError, match="stack"):
        lipsdp(ExplicitMLP.stack([network, network]))
    with pytest.raises(NonFiniteError):
        lipsdp(network.map(lambda t: t * math.nan))
    with pytest.raises(InvalidArgumentError, match="iterations"):
        lipsdp(network, iterations=-1)
    with pytest.raises(ShapeError, match="multipliers"):
        lipsdp(network, multipliers=[torch.ones(2)])
    with pytest.raises(InvalidArgumentError, match="multipliers"):
        lipsdp(network, multipliers=[-torch.ones(3)])
    with pytest.raises(InvalidArgumentError, match="input_scale"):
        lipsdp(network, input_scale=[1.0, -1.0])
    with pytest.raises(ShapeError, match="output_scale"):
        lipsdp(network, output_scale=[1.0, 1.0])
    with pytest.raises(InvalidArgumentError, match="solver"):
        lipsdp(network, solver="mosek")


def overflow() -> Tensor:
    return torch.full((2, 2), 1e200, dtype=torch.float64)


def test_a_bound_beyond_the_numbers_is_an_error() -> None:
    network = ExplicitMLP((overflow(), overflow()), (None, None), "relu")
    with pytest.raises(NonFiniteError, match="overflows"):
        lipsdp(network)
