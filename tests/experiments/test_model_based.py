"""The experiment on model-based training end to end, at its smallest size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments import model_based
from experiments.command import RESULTS
from experiments.model_based_study import document, models
from experiments.model_based_study.config import SMOKE, Config, Source
from experiments.model_based_study.models import into_disc, load_model, model_path
from experiments.model_based_study.results import Results
from experiments.model_based_study.train import policy_path
from experiments.model_based_study.tube import drift
from experiments.policy_files import load_policy
from robustnn.closedloop import evaluate
from robustnn.envs import Pendulum
from robustnn.report import block_is_current
from robustnn.runs import RunFolder

EPS = float(np.finfo(np.float64).eps)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    model_based.main(["--smoke", "--root", str(root), "--workers", "0"])
    return root / "model_based_smoke"


def test_tables_can_be_rebuilt_from_the_run_folder(smoke: Path) -> None:
    tables = (smoke / "tables.md").read_text(encoding="utf-8")
    (smoke / "tables.md").unlink()
    model_based.main(["--report", str(smoke)])
    assert (smoke / "tables.md").read_text(encoding="utf-8") == tables
    assert (smoke / "figures" / "model_based.png").stat().st_size > 10_000


def test_found_distances_are_below_the_proved_ones(smoke: Path) -> None:
    results = Results(RunFolder.open(smoke))
    assert results.contradictions() == 0
    for source in SMOKE.models:
        proved, found = results.tube(source, "tube"), results.tube(source, "found")
        assert proved.shape == found.shape == (2, SMOKE.sensitivity_steps + 1)
        assert (proved[:, 0] == 0.0).all() and (found[:, 1:] > 0.0).all()
        for cell in results.models(source):
            assert cell["found"] <= cell["constants"]["x"] * (1.0 + 1e3 * EPS)
            if source.bound is not None:
                assert cell["constants"]["joint"] <= source.bound * (1.0 + 1e-6)


def test_stored_models_and_policies_return_what_the_cells_say(smoke: Path) -> None:
    results = Results(RunFolder.open(smoke))
    for source in SMOKE.sources:
        policy = load_policy(policy_path(smoke, source, 1)).to(dtype=torch.float64)
        again = evaluate(policy, Pendulum(), episodes=SMOKE.episodes, dtype=torch.float64).returns
        np.testing.assert_allclose(again, results.returns(source, "plant")[1], atol=0.011)
        if source.kind != "plant":
            learned = load_model(model_path(smoke, source, 1))
            own = evaluate(policy, learned, episodes=SMOKE.episodes, dtype=torch.float64).returns
            np.testing.assert_allclose(own, results.returns(source, "model")[1], atol=0.011)


def test_a_drift_is_attained_by_a_linear_loop() -> None:
    """x+ = 1.2 x + 0.1 u with u = 3 (x + error) reaches the additive bound exactly; saturation limits it."""
    constants, eps, x = {"x": 1.2, "u": 0.1, "joint": 1e9}, 0.05, 0.0
    bound = drift(constants, 10, input_scale=1.0, policy=3.0, eps=eps)
    for k in range(10):
        x = 1.2 * x + 0.1 * 3.0 * (x + eps)
        assert x <= bound[k + 1] <= x * (1.0 + 500 * EPS)
    limited = drift(constants, 10, input_scale=1.0, policy=3.0, eps=eps, width=0.2)
    assert (limited <= bound).all() and limited[-1] < bound[-1]
    joint = drift({"x": 1e9, "u": 1e9, "joint": 1.5}, 1, input_scale=2.0, policy=3.0, eps=eps)
    assert joint[1] == pytest.approx(1.5 * 3.0 * eps / 2.0, rel=100 * EPS)
    errors = drift(constants, 2, input_scale=1.0, model_error=0.1)
    assert errors[2] == pytest.approx(0.1 * (1.0 + 1.2), rel=100 * EPS)


def test_the_projection_moves_no_two_observations_apart() -> None:
    y = 2.0 * torch.randn(2000, 3, dtype=torch.float64)
    a, b = into_disc(y[:1000]), into_disc(y[1000:])
    before, after = (y[:1000] - y[1000:]).norm(dim=-1), (a - b).norm(dim=-1)
    assert bool((after <= before * (1.0 + 20 * EPS)).all())
    assert float(a[:, :2].norm(dim=-1).max()) <= 1.0 + 4 * EPS
    inside = y[(y[:, :2].norm(dim=-1) < 1.0)]
    assert torch.equal(into_disc(inside), inside)
    zero = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    assert bool(torch.autograd.grad(into_disc(zero).sum(), zero)[0].isfinite().all())


def test_data_are_those_of_the_plant() -> None:
    data = models.record_data(SMOKE, 0, 0)
    one, plant = data.experiments[0], Pendulum()
    state = models.angle_and_speed(one.y)
    expected = plant.observation(plant.transition(state[:-1], one.u[:-1]))
    np.testing.assert_allclose(one.y[1:], expected, rtol=0.0, atol=100 * EPS * np.abs(one.y).max())
    cut = models.pieces(data, 5)
    assert len(cut) == len(data) * (SMOKE.record_steps // 5)
    assert np.array_equal(cut.experiments[1].y, one.y[5:11])
    assert not np.array_equal(one.y, models.record_data(SMOKE, 1, 0).experiments[0].y)
    assert not np.array_equal(one.y, models.record_data(SMOKE, 0, 1).experiments[0].y)


@pytest.mark.parametrize("config", [Config(), SMOKE], ids=["full", "smoke"])
def test_the_configuration_survives_the_run_folder(config: Config, tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "run", config, seeds=config.training_seeds)
    assert Config.of(run.config) == config
    assert len({source.key for source in config.sources}) == len({s.label for s in config.sources})
    assert max(config.horizons) <= config.sensitivity_steps


def test_constants_do_not_depend_on_the_units_of_the_bound() -> None:
    """Of a linear map they are the norms of its weighted matrices."""
    data = models.record_data(SMOKE, 0, 0)
    learned = models._fresh(SMOKE, Source("twin"), data)
    learned.start_(None, data)
    with torch.no_grad():
        learned.network.layers[-1].weight.zero_()
    explicit = models.LearnedPlant.of(learned, models.task()).explicit
    found = models.constants(replace(SMOKE, input_scale=0.5), explicit)
    scale = torch.tensor(SMOKE.observation_scale, dtype=torch.float64)
    a, b = explicit.a * scale / scale[:, None], explicit.b / scale[:, None]
    both = torch.cat((a, 0.5 * b), dim=1)
    for name, matrix in (("x", a), ("u", b), ("joint", both)):
        expected = float(torch.linalg.matrix_norm(matrix, 2))
        assert expected <= found[name] * (1.0 + 10 * EPS)
        assert found[name] <= expected * (1.0 + 1e-6)


def test_the_page_is_up_to_date() -> None:
    for name, content in document.blocks(RESULTS).items():
        assert block_is_current(document.DOCUMENT, name, content), name
