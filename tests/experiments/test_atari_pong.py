"""The experiment on policies of images end to end, at its smallest size, and its parts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experiments import atari_pong
from experiments.atari_pong_study.config import SMALL, SMOKE, Config, Model
from experiments.atari_pong_study.measure import Visited, follow
from experiments.atari_pong_study.policies import decision_of, make_agent
from experiments.atari_pong_study.report import Results
from experiments.atari_pong_study.task import make_env
from robustnn.bounds import image_lower_bound
from robustnn.policies import policy_bound
from robustnn.runs import RunFolder

EPS64 = torch.finfo(torch.float64).eps
BOUNDED, PLAIN = Model(40.0), Model(None)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    atari_pong.main(["--smoke", "--root", str(root), "--workers", "0"])
    return root / "atari_pong_smoke"


def test_tables_can_be_rebuilt_from_the_run_folder(smoke: Path) -> None:
    tables = (smoke / "tables.md").read_text(encoding="utf-8")
    (smoke / "tables.md").unlink()
    atari_pong.main(["--report", str(smoke)])
    assert (smoke / "tables.md").read_text(encoding="utf-8") == tables
    assert (smoke / "figures" / "atari_pong.png").stat().st_size > 10_000


def test_certified_decisions_are_a_part_of_those_that_survive(smoke: Path) -> None:
    results = Results(RunFolder.open(smoke))
    assert [model.key for model in SMOKE.models] == ["CnnPolicy", "LBDN-40"]
    for model in SMOKE.models:
        certified, rate, unchanged = (
            results.values(model, name) for name in ("certified", "rate", "unchanged")
        )
        assert certified.shape == rate.shape == unchanged.shape == (2, len(SMOKE.eps))
        assert (certified <= unchanged).all()
        assert (np.diff(certified) <= 0.0).all() and (np.diff(unchanged) <= 0.0).all()
        for cell in results.cells(model):
            assert len(cell["returns"]) == SMOKE.episodes and cell["disagreements"] == 0
            assert len(cell["episode"]) == 12 and cell["observations"] == 12 * SMOKE.episodes
            if model.gamma is not None:
                assert cell["proved_bound"] <= cell["declared_bound"] == model.gamma
    # Some decision changes at the largest error, so the attack does something.
    assert min(results.values(model, "unchanged").min() for model in SMOKE.models) < 1.0


@pytest.mark.parametrize("model", [BOUNDED, PLAIN], ids=lambda model: model.key)
def test_the_decision_by_value_is_the_agents_and_its_bound_holds(model: Model) -> None:
    env = make_env(SMOKE, 2, 0)
    assert env.observation_space.shape == (2, 12, 12)
    agent = make_agent(SMOKE, model, env, 0).learn(256)
    if model.gamma is not None:
        with torch.no_grad():
            agent.policy.lbdn.layers[-1].alpha.fill_(3.0)  # its first outputs are small
    decision = decision_of(agent)
    images = np.random.default_rng(0).integers(0, 256, (30, 2, 12, 12)).astype(np.uint8)
    pixels = torch.from_numpy(images).double() / 255.0
    logits = decision(pixels)
    with torch.no_grad():
        expected = agent.policy.get_distribution(torch.from_numpy(images)).distribution.logits
    # SB3 normalises logits.
    differences = [(one[:, 0] - one[:, 1]).double() for one in (logits, expected)]
    within = 64 * torch.finfo(torch.float32).eps * float(logits.abs().max())
    torch.testing.assert_close(differences[0], differences[1], rtol=0.0, atol=within)
    found = image_lower_bound(decision, pixels, iterations=40, lr=0.02, radius=0.1)
    assert 0.02 * decision.bound < found.value <= decision.bound
    if model.gamma is None:
        return
    # The certified radius is the one that the policy states, by the proved bound in the place of gamma.
    labels = logits.argmax(dim=1)
    stated: Any = agent.policy.decision_radius(images)
    radii = 255.0 * decision.radii(pixels, labels).numpy() * decision.bound / model.gamma
    np.testing.assert_allclose(radii, stated, rtol=1e-9)
    bound = policy_bound(agent)
    assert bound.frames == 2 and bound.plain == model.gamma / 255.0


def test_episodes_are_followed_to_their_end_and_sampled_evenly() -> None:
    env = make_env(SMOKE, 3, 0)
    agent = make_agent(SMOKE, BOUNDED, env, 0)
    decision = decision_of(agent)
    runs = [follow(agent, env, decision, 10, 5) for _ in range(2)]
    assert np.array_equal(runs[0].radii, runs[1].radii) and torch.equal(runs[0].sample, runs[1].sample)
    assert runs[0].sample.shape == (10, 2, 12, 12) and runs[0].sample.dtype == torch.uint8
    assert len(runs[0].radii) == 36 and len(runs[0].episode) == 12
    counts = np.zeros(40)
    for seed in range(300):
        kept = Visited(10, seed)
        for k in range(40):
            kept.offer(np.full((1, 1, 1, 1), k, dtype=np.uint8))
        counts[kept.sample.flatten().numpy()] += 1
    assert (np.abs(counts - 75.0) < 5.0 * np.sqrt(75.0 * 0.75)).all()


def test_without_the_games_pong_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ale_py", None)
    with pytest.raises(SystemExit, match=r"pip install 'robustnn\[atari\]'"):
        atari_pong.main(["--root", str(tmp_path)])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("config", [Config(), SMALL, SMOKE], ids=["full", "small", "smoke"])
def test_the_configuration_survives_the_run_folder(config: Config, tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "run", config, seeds=config.training_seeds)
    assert Config.of(run.config) == config
