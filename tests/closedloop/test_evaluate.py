from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from robustnn.closedloop import (
    Delay,
    EvaluationResult,
    GaussianNoise,
    MaximalActionDifference,
    TrajectoryAttack,
    UniformBall,
    evaluate,
    rollout,
    start_states,
)
from robustnn.closedloop.faults import (
    ColouredNoise,
    Drift,
    Dropout,
    FaultSet,
    Gain,
    Jitter,
    Stuck,
    WhiteNoise,
)
from robustnn.closedloop.padded import padded
from robustnn.envs import Pendulum, PlanarQuadrotor
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
    np.testing.assert_array_equal(result.returns, sum(expected.rewards.numpy()))  # from the first to the last
    np.testing.assert_allclose(result.returns, expected.returns.numpy(), rtol=64 * np.finfo(float).eps)
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


def layers(widths: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> ActionMap:
    generator = torch.Generator().manual_seed(seed)
    weights = tuple(
        1.5 * torch.randn(n_out, n_in, dtype=dtype, generator=generator) / n_in**0.5
        for n_in, n_out in zip(widths, widths[1:], strict=False)
    )
    biases = tuple(torch.randn(n, dtype=dtype, generator=generator) for n in widths[1:])
    ones = torch.ones(widths[-1], dtype=dtype)
    return ActionMap(ExplicitMLP(weights, biases, "tanh"), low=-ones, high=ones)


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


FAULTS_OF_ALL_KINDS = FaultSet(
    observation=[WhiteNoise(0.05), Jitter(2), Dropout(0.1), Drift(0.001, kind="walk"), Gain(0.9, 1.1)],
    action=[ColouredNoise(0.1, 4.0), Stuck(0.01)],
)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("perturbation", [Delay(2), FAULTS_OF_ALL_KINDS])
@pytest.mark.parametrize("plant", [Pendulum(), PlanarQuadrotor()], ids=["pendulum", "quadrotor"])
def test_one_seed_is_one_trajectory_to_the_last_bit(one_thread, plant, perturbation, dtype):
    """Unlike the product of a network with a batch of one: that differs in the last bit from one of 64."""
    policy = layers((plant.n_y, 21, 33, plant.n_u), dtype)
    whole = evaluate(policy, plant, perturbation, episodes=64, steps=30)
    for batch in (1, 7, 33):
        seeds = (63, 5, 0, 17, 32, 31, 8, 1)
        parts = evaluate(policy, plant, perturbation, seeds=seeds, steps=30, batch=batch)
        assert parts.returns.tobytes() == whole.returns[list(seeds)].tobytes()
    stacked = evaluate(ActionMap.stack([policy] * 3), plant, perturbation, episodes=5, steps=30)
    np.testing.assert_array_equal(stacked.returns[0], stacked.returns[2])


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize(
    "widths", [(3, 8, 1), (3, 32, 32, 1), (17, 64, 64, 6), (11, 100, 3), (105, 256, 256, 8)]
)
def test_networks_on_whole_blocks_do_not_see_the_other_rows(one_thread, widths, dtype):
    policy = layers(widths, dtype)
    rows = torch.randn(200, widths[0], dtype=dtype, generator=torch.Generator().manual_seed(1))
    whole = padded(policy)(rows)
    for batch in (1, 2, 3, 5, 7, 31, 32, 33, 64, 100):
        parts = torch.cat([padded(policy)(part) for part in rows.split(batch)])
        assert torch.equal(parts, whole)
    torch.testing.assert_close(whole, policy(rows), rtol=0, atol=256 * torch.finfo(dtype).eps)


def test_padding_keeps_shapes_and_gradients_and_leaves_other_callables_alone():
    policy = layers((3, 8, 2), DOUBLE)
    for shape in ((5, 3), (2, 5, 3), (32, 3), (1, 3)):
        x = torch.randn(*shape, dtype=DOUBLE, requires_grad=True)
        (gradient,) = torch.autograd.grad(padded(policy)(x).square().sum(), x)
        y = x.detach().requires_grad_()
        (expected,) = torch.autograd.grad(policy(y).square().sum(), y)
        torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-14)
    for shape in ((5, 2), (5, 4), (5, 16)):
        with pytest.raises(ShapeError, match="^observation"):
            padded(policy)(torch.zeros(*shape, dtype=DOUBLE))
    assert padded(linear_policy) is linear_policy
    module = torch.nn.Linear(3, 1)
    assert padded(module) is module and padded(module.eval()) is not module


def test_terminations_are_told_from_the_end_of_time():
    plant = LinearPlant(limit=0.4)
    result = evaluate(linear_policy, plant, episodes=20, dtype=DOUBLE)
    run = rollout(plant, linear_policy, start_states(plant, range(20), dtype=DOUBLE))
    assert result.terminated.tolist() == (run.states[-1, :, 0] > 0.4).tolist()
    assert 0 < result.terminated.sum() < 20 and (result.terminated >= (result.lengths < 12)).all()
