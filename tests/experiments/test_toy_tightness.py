"""The toy experiment end to end, at its smallest size."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments import toy_tightness
from experiments.toy import document
from experiments.toy.config import INITS, LAYERS, LONG, PUBLISHED_DATA, SMOKE, SPREAD, Config, Model
from experiments.toy.exact import linear_pieces
from experiments.toy.report import REFERENCE_MSE, REFERENCE_TIGHTNESS, Results
from experiments.toy.train import (
    build,
    gradient_factor,
    layer_by_layer,
    learning_rate,
    target,
    train_and_measure,
    training_inputs,
)
from robustnn import LBDN, MLP, ExplicitMLP, InvalidArgumentError, ShapeError
from robustnn.nn import SLLNet
from robustnn.report import block_is_current
from robustnn.runs import RunFolder
from tests.networks import exported, inputs, random_lbdn, randomised

EPS = torch.finfo(torch.float64).eps
RUNS = {
    "toy_tightness": Config(),
    "toy_tightness_long": LONG,
    "toy_tightness_spread": SPREAD,
    "toy_tightness_published_data": PUBLISHED_DATA,
}


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    toy_tightness.main(["--smoke", "--root", str(root), "--workers", "1"])
    return root / "toy_smoke"


def test_the_tables_can_be_rebuilt_from_the_run_folder(smoke: Path) -> None:
    tables = (smoke / "tables.md").read_text(encoding="utf-8")
    (smoke / "tables.md").unlink()
    toy_tightness.main(["--report", str(smoke)])
    assert (smoke / "tables.md").read_text(encoding="utf-8") == tables
    assert (smoke / "figures" / "fits.png").stat().st_size > 10_000


def check_bounds(results: Results) -> None:
    """Search <= constant <= LipSDP bound <= bound of the network, for every network of a run."""
    for model in results.config.models:
        gain, constant = results.tightness(model, "gain"), results.tightness(model)
        assert constant.shape == (len(results.config.seeds),)
        assert (gain > 0.0).all() and (gain <= constant * (1 + 1e-12)).all() and (constant <= 100.0).all()
        if model.layer != "sll":
            bound = results.tightness(model, "lipsdp")
            assert (constant <= bound).all() and (bound <= 100.0 * (1 + 1e-9)).all()


def test_no_network_exceeds_its_bound(smoke: Path) -> None:
    results = Results(RunFolder.open(smoke))
    assert len(results.config.models) == 7
    check_bounds(results)
    assert (results.tightness(Model("sandwich", 10.0), "gain") > 1.0).all()


@pytest.mark.parametrize("name", RUNS)
def test_the_committed_runs(name: str) -> None:
    """They are of the present configuration and of committed code, name no machine, and keep every bound."""
    run = RunFolder.open(toy_tightness.RESULTS / name)
    results = Results(run)
    assert results.config == RUNS[name]
    check_bounds(results)
    text = (run.path / "environment.json").read_text(encoding="utf-8")
    assert all(start["git"]["dirty"] is False for start in json.loads(text)["starts"])
    assert not re.search(r'"/|\\\\|/(?:home|root|tmp|work)/', text)


@pytest.mark.parametrize("name", document.NAMES)
def test_the_document_has_the_numbers_of_the_committed_runs(name: str) -> None:
    assert block_is_current(toy_tightness.DOCUMENT, name, document.blocks(toy_tightness.RESULTS)[name])


def test_the_document_has_every_block_once() -> None:
    text = toy_tightness.DOCUMENT.read_text(encoding="utf-8")
    assert sorted(re.findall(r"<!-- (\w+):begin -->", text)) == sorted(document.NAMES)


def points_of(kinks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Ends of all pieces; the rays are cut off at length three."""
    return torch.cat((kinks[:1] - 3.0, kinks)), torch.cat((kinks, kinks[-1:] + 3.0))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["mlp", "lbdn", "sll"])
def test_between_two_kinks_a_network_is_affine(kind: str, seed: int) -> None:
    """Function values at four points of every piece, and the derivative in the middle."""
    if kind == "mlp":
        net = exported(randomised(MLP(1, (20, 20, 20), 1, dtype=torch.float64), 0.4, seed))
    elif kind == "lbdn":
        net = exported(random_lbdn((1, (20, 20, 20), 1), seed=seed, dtype=torch.float64))
    else:
        net = exported(randomised(SLLNet(1, (12, 12), 1, dtype=torch.float64), 0.4, seed))
    pieces = linear_pieces(net)
    left, right = points_of(pieces.kinks)
    assert len(pieces.slopes) == len(left) > 10
    size = float(max(left.abs().max(), right.abs().max()))
    scale = float(net(torch.tensor([[-size], [0.0], [size]], dtype=torch.float64)).abs().max()) + size
    for share in (0.0, 0.21, 0.77, 1.0):
        x = left + share * (right - left)
        difference = (net(x.unsqueeze(-1)) - net(left.unsqueeze(-1))).squeeze(-1)
        assert (difference - pieces.slopes * (x - left)).abs().max() <= 1e4 * EPS * scale
    middles = (0.5 * (left + right)).unsqueeze(-1)
    derivative = torch.func.vmap(torch.func.jacrev(net))(middles)[:, 0, 0]
    wide = right - left > 1e-9 * size
    assert torch.allclose(derivative[wide], pieces.slopes[wide], rtol=1e-9, atol=1e-12)


def test_the_steepest_piece_attains_the_constant() -> None:
    net = exported(random_lbdn((1, (20, 20), 1), lipschitz=3.0, seed=4))
    pieces = linear_pieces(net)
    left, right = (torch.tensor([end], dtype=torch.float64) for end in pieces.steepest())
    gain = float((net(right) - net(left)).abs() / (right - left).abs())
    assert gain == pytest.approx(pieces.constant, rel=1e-9) and 0.0 < pieces.constant <= 3.0
    grid = torch.linspace(-5.0, 5.0, 20_001, dtype=torch.float64).unsqueeze(-1)
    assert float((net(grid).diff(dim=0) / grid.diff(dim=0)).abs().max()) <= pieces.constant * (1 + 1e-9)


def test_known_functions() -> None:
    one, eye = torch.ones(1, 1), torch.eye(2)
    fold = ExplicitMLP((torch.tensor([[1.0], [-1.0]]), torch.tensor([[2.0, 3.0]])), (None, None), "relu")
    assert linear_pieces(fold).kinks.tolist() == [0.0] and linear_pieces(fold).slopes.tolist() == [-3.0, 2.0]
    assert linear_pieces(ExplicitMLP((-4 * one,), (one[0],), "relu")).slopes.tolist() == [-4.0]
    dead = ExplicitMLP((torch.zeros(2, 1), eye, torch.ones(1, 2)), (-torch.ones(2), None, None), "relu")
    assert linear_pieces(dead).constant == 0.0
    far = ExplicitMLP((1e-6 * one, one), (-one[0], None), "relu")  # flat up to a million
    assert linear_pieces(far).kinks.tolist() == pytest.approx([1e6]) and linear_pieces(far).constant > 0.9e-6
    assert linear_pieces(fold).steepest() == (-1.0, 0.0)


def test_other_functions_are_refused() -> None:
    with pytest.raises(ShapeError, match="one input"):
        linear_pieces(exported(MLP(2, (3,), 1)))
    with pytest.raises(InvalidArgumentError, match="relu"):
        linear_pieces(exported(MLP(1, (3,), 1, activation="tanh")))


def test_layer_by_layer_is_the_same_function_with_the_same_gradients() -> None:
    torch.manual_seed(0)
    net = build(SMOKE, Model("sandwich", 10.0)).double()
    assert isinstance(net, LBDN)
    x = inputs(1, n=9)
    outputs, gradients = [], []
    for function in (net, layer_by_layer(net)):
        net.zero_grad()
        y = function(x)
        y.square().sum().backward()
        outputs.append(y.detach())
        gradients.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    assert torch.allclose(*outputs, rtol=0.0, atol=100 * EPS)
    assert torch.allclose(*gradients, rtol=0.0, atol=1e4 * EPS)


def test_training_lowers_the_error_below_that_of_a_constant() -> None:
    cell = train_and_measure(replace(SMOKE, epochs=100), Model("sandwich", 10.0), seed=0)
    assert cell["train_mse"] < 0.1  # the variance of the target is 0.25
    assert len(cell["prediction"]) == SMOKE.n_test


def test_a_gradient_factor_is_the_mean_ratio_of_successive_layers() -> None:
    deep, deeper = (gradient_factor(replace(SMOKE, init_depth=n), "balanced", 0)["factor"] for n in (3, 12))
    assert (
        0.3 < deep < 1.0 and 0.3 < deeper < 1.0
    )  # no layer amplifies; a per-layer figure, whatever the depth


def test_a_finished_run_is_not_repeated(smoke: Path) -> None:
    cells = {path: path.stat().st_mtime_ns for path in (smoke / "cells").iterdir()}
    toy_tightness.main(["--smoke", "--root", str(smoke.parent), "--workers", "1"])
    assert {path: path.stat().st_mtime_ns for path in (smoke / "cells").iterdir()} == cells


def test_the_grid_of_models() -> None:
    config = Config()
    assert config.layers == LAYERS and config.inits == tuple(INITS)
    assert len(config.models) == len(set(config.models)) == len(LAYERS) * len(config.gammas) + len(INITS) - 1
    for reference in (REFERENCE_TIGHTNESS, REFERENCE_MSE):
        assert set(reference) == set(LAYERS)
        assert all(set(columns) == set(config.gammas) for columns in reference.values())


def test_the_target_jumps_where_it_should() -> None:
    x = torch.tensor([-2.0, -1.0, -0.999, 0.0, 0.001, 1.0, 1.001, 2.0])
    assert target(x).tolist() == [1, 1, 0, 0, 1, 1, 0, 0]


def test_the_learning_rate_rises_falls_and_vanishes() -> None:
    rates = [learning_rate(Config(), p) for p in (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0)]
    assert np.allclose(rates, [0.0, 0.005, 0.01, 0.00525, 0.0005, 0.00025, 0.0])


def test_the_published_samples_are_the_same_for_every_seed() -> None:
    x = training_inputs(PUBLISHED_DATA, 0)
    torch.manual_seed(123)
    assert torch.equal(x, 2 * (2 * torch.rand(300, 1) - 1))
    assert torch.equal(x, training_inputs(PUBLISHED_DATA, 1))
    assert not torch.equal(training_inputs(Config(), 0), training_inputs(Config(), 1))
