from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from robustnn.closedloop import (
    Delay,
    GaussianNoise,
    MaximalActionDifference,
    NoPerturbation,
    TrajectoryAttack,
    UniformBall,
    rollout,
    start_states,
)
from robustnn.errors import InvalidArgumentError, NonFiniteError, ShapeError
from tests.closedloop.plants import LinearPlant, curved_policy, linear_policy

PLANT = LinearPlant()
EPS64 = torch.finfo(torch.float64).eps


def starts(count: int = 4, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return start_states(PLANT, range(count), dtype=dtype)


def errors_of(perturbation, count=4, **options):
    trajectory = rollout(PLANT, curved_policy, starts(count), perturbation=perturbation, **options)
    return trajectory.perturbed - trajectory.observations


def test_rollout_follows_the_plant_step_by_step():
    trajectory = rollout(PLANT, linear_policy, starts(3), steps=7)
    state = starts(3)
    total = torch.zeros(3, dtype=torch.float64)
    for step in range(7):
        action = linear_policy(PLANT.observation(state))
        following = PLANT.transition(state, action)
        assert torch.equal(trajectory.states[step], state)
        assert torch.equal(trajectory.actions[step], action)
        total = total + PLANT.reward(state, action, following)
        state = following
    assert torch.equal(trajectory.states[-1], state)
    torch.testing.assert_close(trajectory.returns, total, rtol=16 * EPS64, atol=16 * EPS64)
    assert trajectory.lengths.tolist() == [7, 7, 7]


def test_rewards_stop_after_termination_and_the_state_stays():
    plant = LinearPlant(limit=1.3)
    state0 = torch.tensor([[1.2, 5.0], [-1.0, 0.0], [2.0, 0.0]], dtype=torch.float64)
    free = rollout(LinearPlant(), linear_policy, state0)
    trajectory = rollout(plant, linear_policy, state0)
    for episode in range(3):
        beyond = (free.states[:, episode, 0] > plant.limit).nonzero()
        end = int(beyond[0]) if len(beyond) else plant.horizon
        assert trajectory.lengths[episode] == end
        assert torch.equal(trajectory.rewards[:end, episode], free.rewards[:end, episode])
        assert (trajectory.rewards[end:, episode] == 0.0).all()
        assert (trajectory.states[end:, episode] == trajectory.states[end, episode]).all()
    assert trajectory.lengths[0] == 1 and trajectory.lengths[2] == 0


def test_rollout_is_differentiable_only_on_request():
    state0 = starts().requires_grad_()
    assert not rollout(PLANT, curved_policy, state0).returns.requires_grad
    returns = rollout(PLANT, curved_policy, state0, differentiable=True).returns
    (gradient,) = torch.autograd.grad(returns.sum(), state0)
    step = 1e-6
    for axis in range(2):
        shift = step * torch.eye(2, dtype=torch.float64)[axis]
        above = rollout(PLANT, curved_policy, starts() + shift).returns
        below = rollout(PLANT, curved_policy, starts() - shift).returns
        torch.testing.assert_close(gradient[:, axis], (above - below) / (2 * step), rtol=1e-7, atol=1e-8)


def test_delay_repeats_the_first_observation_until_its_buffer_is_full():
    for delay in (0, 1, 3, 50):
        trajectory = rollout(PLANT, linear_policy, starts(), perturbation=Delay(delay))
        for step in range(PLANT.horizon):
            assert torch.equal(trajectory.perturbed[step], trajectory.observations[max(step - delay, 0)])


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_uniform_ball_is_uniform(norm):
    scale = (0.5, 2.0, 1.0)
    errors = errors_of(UniformBall(0.3, norm, scale), count=400, steps=100)
    unit = (errors / torch.tensor(scale) / 0.3).reshape(-1, 3)
    n = len(unit)
    length = unit.norm(dim=-1) if norm == "l2" else unit.abs().amax(-1)
    assert length.max() <= 1 + 1e-12
    volume = (length**3).sort().values.numpy()  # uniform on [0, 1] for a uniform draw from a ball
    assert np.abs(volume - np.arange(1, n + 1) / n).max() < 1.95 / math.sqrt(n)  # Kolmogorov-Smirnov, 0.1 %
    assert (unit.mean(0).abs() < 4 / math.sqrt(n)).all()
    variance = 1 / 5 if norm == "l2" else 1 / 3
    covariance = unit.T @ unit / n
    torch.testing.assert_close(covariance, variance * torch.eye(3, dtype=unit.dtype), atol=0.01, rtol=0)
    series = unit.reshape(100, 400, 3)
    assert (series[1:] * series[:-1]).mean().abs() < 4 * variance / math.sqrt(n)  # white in time


def test_gaussian_noise_is_white_and_scaled():
    errors = errors_of(GaussianNoise(0.2, scale=(1.0, 2.0, 0.5)), count=400, steps=100).reshape(-1, 3)
    expected = torch.diag(torch.tensor([0.2, 0.4, 0.1], dtype=torch.float64) ** 2)
    torch.testing.assert_close(errors.T @ errors / len(errors), expected, rtol=0.03, atol=1e-3)


RANDOM = [
    GaussianNoise(0.1),
    UniformBall(0.1),
    UniformBall(0.1, "linf"),
    MaximalActionDifference(0.1, iterations=2, restarts=2),
    TrajectoryAttack(0.1, horizon=5, replan=3, iterations=2, restarts=2),
]


@pytest.mark.parametrize("perturbation", RANDOM, ids=lambda p: p.name)
def test_draws_depend_on_the_seed_of_the_episode_only(perturbation):
    everything = errors_of(perturbation, seeds=(7, 3, 5, 4))
    assert torch.equal(everything, errors_of(perturbation, seeds=(7, 3, 5, 4)))
    alone = rollout(PLANT, curved_policy, starts()[2:3], perturbation=perturbation, seeds=(5,))
    torch.testing.assert_close(everything[:, 2:3], alone.perturbed - alone.observations, rtol=0, atol=1e-12)
    assert not torch.allclose(everything[:, 2], errors_of(perturbation, seeds=(7, 3, 6, 4))[:, 2], atol=1e-6)
    assert not torch.allclose(everything[:, 0], everything[:, 1], atol=1e-6)


@pytest.mark.parametrize("perturbation", RANDOM[:3], ids=lambda p: p.name)
def test_shorter_episodes_see_the_first_draws_of_longer_ones(perturbation):
    longer, shorter = errors_of(perturbation, steps=9), errors_of(perturbation, steps=4)
    torch.testing.assert_close(longer[:4], shorter, rtol=0, atol=1e-14)


@pytest.mark.parametrize("perturbation", RANDOM, ids=lambda p: p.name)
def test_a_stack_of_policies_sees_paired_draws(perturbation):
    gains = torch.tensor([1.0, 1.0, 0.2], dtype=torch.float64)[:, None, None]
    stacked = rollout(
        PLANT, lambda y: curved_policy(gains * y), starts().expand(3, 4, 2), perturbation=perturbation
    )
    single = rollout(PLANT, curved_policy, starts(), perturbation=perturbation)
    torch.testing.assert_close(stacked.perturbed[:, 0], single.perturbed, rtol=0, atol=1e-12)
    assert torch.equal(stacked.perturbed[:, 0], stacked.perturbed[:, 1])
    assert stacked.returns.shape == (3, 4)


BAD_VALUES = [
    (lambda: GaussianNoise(-0.1), "std"),
    (lambda: GaussianNoise(float("nan")), "std"),
    (lambda: UniformBall(-0.1), "eps"),
    (lambda: UniformBall(float("inf")), "eps"),
    (lambda: UniformBall(0.1, "l1"), "norm"),
    (lambda: UniformBall(0.1, scale=(1.0, 0.0, 1.0)), "scale"),
    (lambda: Delay(-1), "steps"),
    (lambda: Delay(1.5), "steps"),
    (lambda: MaximalActionDifference(-1.0), "eps"),
    (lambda: MaximalActionDifference(0.1, iterations=0), "iterations"),
    (lambda: MaximalActionDifference(0.1, step_fraction=0.0), "step_fraction"),
    (lambda: MaximalActionDifference(0.1, restarts=0), "restarts"),
    (lambda: TrajectoryAttack(-0.1), "eps"),
    (lambda: TrajectoryAttack.strong(0.1, "l3"), "norm"),
    (lambda: TrajectoryAttack(0.1, iterations=0), "iterations"),
    (lambda: TrajectoryAttack(0.1, horizon=0), "horizon"),
    (lambda: TrajectoryAttack(0.1, horizon=5, replan=6), "replan"),
    (lambda: TrajectoryAttack(0.1, lr=-1.0), "lr"),
    (lambda: TrajectoryAttack(0.1, objective="mean"), "objective"),
    (lambda: TrajectoryAttack(0.1, method="sgd"), "method"),
    (lambda: TrajectoryAttack(0.1, keep_best=False, refine=3), "refine"),
]


@pytest.mark.parametrize(("make", "name"), BAD_VALUES)
def test_bad_parameters_name_the_argument(make, name):
    with pytest.raises(InvalidArgumentError, match=f"^{name}"):
        make()


def nan_policy(observation: torch.Tensor) -> torch.Tensor:
    return observation[..., :1] * float("nan")


BAD_CALLS = [
    (lambda: rollout(object(), linear_policy, starts()), InvalidArgumentError, "plant"),
    (lambda: rollout(LinearPlant, linear_policy, starts()), InvalidArgumentError, "plant"),
    (lambda: rollout(PLANT, "policy", starts()), InvalidArgumentError, "policy"),
    (lambda: rollout(PLANT, lambda y: y, starts()), ShapeError, "policy"),
    (lambda: rollout(PLANT, lambda y: y[..., 0], starts()), ShapeError, "policy"),
    (lambda: rollout(PLANT, lambda y: 1.0, starts()), InvalidArgumentError, "policy"),
    (lambda: rollout(PLANT, nan_policy, starts()), NonFiniteError, "policy"),
    (lambda: rollout(PLANT, linear_policy, torch.zeros(4, 3)), ShapeError, "state0"),
    (lambda: rollout(PLANT, linear_policy, torch.zeros(2)), ShapeError, "state0"),
    (lambda: rollout(PLANT, linear_policy, torch.zeros(4, 2).long()), InvalidArgumentError, "state0"),
    (lambda: rollout(PLANT, linear_policy, starts() / 0.0), NonFiniteError, "state0"),
    (lambda: rollout(PLANT, linear_policy, starts(), steps=0), InvalidArgumentError, "steps"),
    (lambda: rollout(PLANT, linear_policy, starts(), seeds=(1,)), InvalidArgumentError, "seeds"),
    (
        lambda: errors_of(UniformBall(0.1), seeds=(-1, 0, 1, 2)),
        InvalidArgumentError,
        "seeds",
    ),
    (lambda: errors_of(Delay), InvalidArgumentError, "perturbation"),
    (lambda: errors_of(UniformBall(0.1, scale=(1.0, 2.0))), ShapeError, "scale"),
    (lambda: errors_of(MaximalActionDifference(0.1, scale=(1.0,))), ShapeError, "scale"),
    (lambda: errors_of(TrajectoryAttack(0.1, scale=(1.0,))), ShapeError, "scale"),
]


@pytest.mark.parametrize(("call", "error", "name"), BAD_CALLS)
def test_bad_calls_name_the_argument(call, error, name):
    with pytest.raises(error, match=f"^{name}"):
        call()


def test_an_unstable_loop_is_told_with_its_step():
    with pytest.raises(NonFiniteError, match="at step"):
        rollout(PLANT, lambda y: 1e30 * y[..., :1], torch.ones(2, 2), steps=12)


def test_no_perturbation_shows_the_truth():
    assert (errors_of(NoPerturbation()) == 0.0).all() and (errors_of(None) == 0.0).all()
