from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from robustnn.closedloop import (
    EvaluationResult,
    GaussianNoise,
    MaximalActionDifference,
    TrajectoryAttack,
    UniformBall,
    evaluate,
    rollout,
    start_states,
)
from robustnn.errors import CheckpointError, InvalidArgumentError, NonFiniteError, ShapeError
from robustnn.params.explicit import ExplicitMLP
from robustnn.policies.action_map import ActionMap
from tests.closedloop.plants import LinearPlant, curved_policy, linear_policy

PLANT = LinearPlant()
DOUBLE = torch.float64
ATTACK = TrajectoryAttack(0.2, horizon=6, replan=4, iterations=3, restarts=2, refine=2)


def test_returns_are_those_of_the_rollouts():
    seeds = (11, 3, 8)
    result = evaluate(curved_policy, PLANT, UniformBall(0.2), seeds=seeds, dtype=DOUBLE)
    start = start_states(PLANT, seeds, dtype=DOUBLE)
    expected = rollout(PLANT, curved_policy, start, perturbation=UniformBall(0.2), seeds=seeds)
    np.testing.assert_array_equal(result.returns, expected.returns.numpy())
    assert result.seeds.tolist() == list(seeds) and result.lengths.tolist() == [12] * 3


def test_start_states_come_from_the_documented_generator():
    uniform = np.random.default_rng([5, 0]).random(2)
    np.testing.assert_array_equal(start_states(PLANT, (9, 5), dtype=DOUBLE)[1].numpy(), 2 * uniform - 1)


@pytest.mark.parametrize("perturbation", [None, GaussianNoise(0.1), MaximalActionDifference(0.1), ATTACK])
def test_results_do_not_depend_on_the_batch(perturbation):
    whole = evaluate(curved_policy, PLANT, perturbation, episodes=7, dtype=DOUBLE)
    parts = evaluate(curved_policy, PLANT, perturbation, episodes=7, dtype=DOUBLE, batch=3)
    np.testing.assert_allclose(whole.returns, parts.returns, rtol=1e-10)
    assert whole.returns.shape == (7,) and len(whole.convergence) == len(parts.convergence)
    for one, other in zip(whole.convergence, parts.convergence, strict=True):
        np.testing.assert_allclose(one.values, other.values, rtol=1e-10)


def test_a_stack_is_evaluated_on_paired_starts():
    gains = torch.tensor([1.0, 0.5, 1.0], dtype=DOUBLE)[:, None, None]
    result = evaluate(lambda y: curved_policy(gains * y), PLANT, ATTACK, episodes=5, policies=3, dtype=DOUBLE)
    single = evaluate(curved_policy, PLANT, ATTACK, episodes=5, dtype=DOUBLE)
    assert result.returns.shape == (3, 5) and result.mean.shape == (3,)
    np.testing.assert_array_equal(result.returns[0], result.returns[2])
    np.testing.assert_allclose(result.returns[0], single.returns, rtol=1e-12)
    assert (result.returns[0] != result.returns[1]).all()


def test_modules_decide_dtype_and_may_be_overridden():
    module = torch.nn.Linear(3, 1).double()
    assert np.isfinite(evaluate(module, PLANT, episodes=3).returns).all()
    with pytest.raises(RuntimeError):
        evaluate(module, PLANT, episodes=3, dtype=torch.float32)


def test_explicit_weights_decide_dtype_and_stacking():
    generator = torch.Generator().manual_seed(0)
    networks = [
        ExplicitMLP((torch.randn(1, 3, dtype=DOUBLE, generator=generator),), (None,), "identity")
        for _ in range(3)
    ]
    stacked = evaluate(ActionMap.stack([ActionMap(n) for n in networks]), PLANT, ATTACK, episodes=4)
    assert stacked.returns.shape == (3, 4)
    for network, returns in zip(networks, stacked.returns, strict=True):
        alone = evaluate(network, PLANT, ATTACK, episodes=4)
        np.testing.assert_allclose(returns, alone.returns, rtol=1e-9)


@pytest.mark.parametrize("policies", [None, 1, 2])
def test_csv_round_trip_is_exact(tmp_path, policies):
    plant = LinearPlant(limit=0.4)
    result = evaluate(linear_policy, plant, ATTACK, episodes=9, policies=policies, dtype=DOUBLE)
    path = tmp_path / "returns.csv"
    path.write_text("old")
    result.to_csv(path)
    again = EvaluationResult.from_csv(path)
    assert again.returns.tobytes() == result.returns.tobytes() and again.returns.shape == result.returns.shape
    assert again.lengths.tolist() == result.lengths.tolist() and again.seeds.tolist() == result.seeds.tolist()
    assert again.perturbation == result.perturbation == json.loads(json.dumps(ATTACK.describe()))
    assert again.to_rows() == result.to_rows()
    assert [p.name for p in tmp_path.iterdir()] == ["returns.csv"]
    assert len(set(result.lengths.ravel().tolist())) > 1


def test_described_perturbations_can_be_rebuilt():
    for perturbation in (ATTACK, UniformBall(0.1, "linf", (1, 2, 3)), MaximalActionDifference(0.3)):
        description = json.loads(json.dumps(perturbation.describe()))
        assert description.pop("name") == perturbation.name
        assert type(perturbation)(**description) == perturbation


def test_broken_tables_are_refused(tmp_path):
    path = tmp_path / "returns.csv"
    evaluate(linear_policy, PLANT, episodes=3, policies=2).to_csv(path)
    whole = path.read_text()
    broken = [
        "",
        "a,b\n1,2\n",
        whole.rsplit("\n", 2)[0],
        whole.replace("none", "no\u00e9ne", 1),
        whole[: len(whole) - 5],
        whole.replace(",12,", ",many,", 1),
    ]
    for text in broken:
        path.write_text(text)
        with pytest.raises(CheckpointError, match="^path"):
            EvaluationResult.from_csv(path)
    with pytest.raises(CheckpointError, match="^path"):
        EvaluationResult.from_csv(tmp_path / "missing.csv")


BAD_CALLS = [
    ({"episodes": 0}, InvalidArgumentError, "episodes"),
    ({"episodes": 2.5}, InvalidArgumentError, "episodes"),
    ({"episodes": 2, "seeds": (1, 2)}, InvalidArgumentError, "episodes"),
    ({"seeds": ()}, InvalidArgumentError, "seeds"),
    ({"seeds": 3}, InvalidArgumentError, "seeds"),
    ({"seeds": (1, -1)}, InvalidArgumentError, "seeds"),
    ({"seeds": (1, 1)}, InvalidArgumentError, "seeds"),
    ({"seeds": (0.5,)}, InvalidArgumentError, "seeds"),
    ({"policies": 0}, InvalidArgumentError, "policies"),
    ({"batch": 0}, InvalidArgumentError, "batch"),
    ({"steps": -1}, InvalidArgumentError, "steps"),
    ({"dtype": torch.int64}, InvalidArgumentError, "dtype"),
    ({"perturbation": "noise"}, InvalidArgumentError, "perturbation"),
    ({"plant": None}, InvalidArgumentError, "plant"),
    ({"policy": lambda y: y}, ShapeError, "policy"),
    ({"policy": lambda y: y[..., :1] / 0.0}, NonFiniteError, "policy"),
]


@pytest.mark.parametrize(("change", "error", "name"), BAD_CALLS)
def test_bad_calls_name_the_argument(change, error, name):
    arguments = {"policy": linear_policy, "plant": PLANT, **change}
    with pytest.raises(error, match=f"^{name}"):
        evaluate(**arguments)
