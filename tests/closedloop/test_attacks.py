from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from robustnn.closedloop import (
    MaximalActionDifference,
    NoPerturbation,
    TrajectoryAttack,
    UniformBall,
    rollout,
    start_states,
)
from robustnn.closedloop.ball import Ball
from tests.closedloop.plants import K, LinearPlant, curved_policy, error_gradients, linear_policy

PLANT = LinearPlant()
SCALE = (0.5, 2.0, 1.0)
EPS64 = torch.finfo(torch.float64).eps
PRESETS = {
    "paper": TrajectoryAttack.paper,
    "strong": TrajectoryAttack.strong,
    "strongest": TrajectoryAttack.strongest,
}


def starts(count: int = 4, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return start_states(PLANT, range(count), dtype=dtype)


def run(attack, policy=curved_policy, count=4, plant=PLANT, dtype=torch.float64, **options):
    return rollout(plant, policy, starts(count, dtype), perturbation=attack, **options)


def dual(gradient: torch.Tensor, norm: str) -> torch.Tensor:
    return gradient.norm(dim=-1) if norm == "l2" else gradient.abs().sum(-1)


def length(trajectory, norm, scale):
    errors = (trajectory.perturbed - trajectory.observations) / torch.tensor(scale or (1.0, 1.0, 1.0))
    return errors.norm(dim=-1) if norm == "l2" else errors.abs().amax(-1)


@pytest.mark.parametrize("scale", [None, SCALE])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_mad_finds_the_optimum_of_a_linear_policy(norm, scale):
    attack = MaximalActionDifference(0.3, norm, scale, iterations=20, step_fraction=0.5)
    trajectory = run(attack, linear_policy, count=16)
    change = trajectory.actions - linear_policy(trajectory.observations)
    weighted = K[0] * torch.tensor(scale or (1.0, 1.0, 1.0), dtype=torch.float64)
    best = 0.3 * float(dual(weighted, norm))
    assert change.abs().max() <= best * (1 + 64 * EPS64)
    assert change.abs().min() >= best * (1 - 1e-6)


def test_mad_finds_the_largest_singular_value_of_two_actions():
    gain = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, -3.0]], dtype=torch.float64)

    class TwoActions(LinearPlant):
        n_u = 2

        def transition(self, state, action):
            return 0.9 * state + action

    attack = MaximalActionDifference(0.2, iterations=60, step_fraction=1.0)
    trajectory = run(attack, lambda y: y @ gain.T, plant=TwoActions())
    change = (trajectory.actions - trajectory.observations @ gain.T).norm(dim=-1)
    best = 0.2 * float(torch.linalg.matrix_norm(gain, 2))
    torch.testing.assert_close(change, torch.full_like(change, best), rtol=1e-6, atol=0)


def test_mad_matches_a_search_of_the_whole_ball_for_a_curved_policy():
    attack = MaximalActionDifference(0.4, iterations=40, restarts=4)
    trajectory = run(attack, count=3, steps=3)
    found = (trajectory.actions - curved_policy(trajectory.observations)).abs().squeeze(-1)
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(200_000, 1, 1, 3, dtype=torch.float64, generator=generator)
    grid = 0.4 * directions / directions.norm(dim=-1, keepdim=True)
    y = trajectory.observations
    searched = (curved_policy(y + grid) - curved_policy(y)).abs().amax(0).squeeze(-1)
    assert (found >= searched * (1 - 1e-6)).all()


@pytest.mark.parametrize("scale", [None, SCALE])
@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("preset", ["strong", "strongest"])
def test_trajectory_attack_reaches_the_closed_form_of_a_linear_loop(preset, norm, scale):
    eps = 0.2
    weighted = error_gradients(PLANT.horizon) * torch.tensor(scale or (1.0, 1.0, 1.0), dtype=torch.float64)
    nominal = run(None, linear_policy).returns
    worst = nominal - eps * dual(weighted, norm).sum()
    returns = run(PRESETS[preset](eps, norm, scale), linear_policy).returns
    damage, most = nominal - returns, nominal - worst
    assert (damage <= most * (1 + 1e-12)).all()
    share = 0.98 if preset == "strong" else 1 - 1e-4
    assert (damage >= share * most).all(), damage / most


@pytest.mark.parametrize("method", ["adam", "steepest"])
def test_final_objective_reaches_the_closed_form(method):
    eps = 0.2
    attack = TrajectoryAttack(eps, method=method, objective="final", iterations=100, keep_best=False)
    nominal, attacked = run(None, linear_policy), run(attack, linear_policy)
    most = eps * dual(error_gradients(PLANT.horizon, final_only=True), "l2").sum()
    damage = nominal.rewards[-1] - attacked.rewards[-1]
    assert (damage <= most * (1 + 1e-12)).all() and (damage >= 0.98 * most).all()


ATTACKS = [
    MaximalActionDifference(0.15),
    TrajectoryAttack.paper(0.15),
    TrajectoryAttack.strong(0.15),
    TrajectoryAttack.strongest(0.15),
    TrajectoryAttack(0.15, horizon=5, replan=2, restarts=3, iterations=4, refine=2),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [None, SCALE])
@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: a.name)
def test_perturbations_stay_in_the_ball(attack, norm, scale, dtype):
    attack = replace(attack, norm=norm, scale=scale)
    trajectory = run(attack, count=3, dtype=dtype)
    added = (
        trajectory.observations.abs().amax() + 0.15
    )  # the errors are known up to the rounding of y + delta
    rounding = 8 * torch.finfo(dtype).eps * float(added) / min(scale or (1.0,))
    assert length(trajectory, norm, scale).max() <= 0.15 + rounding
    if attack == TrajectoryAttack.paper(0.15, "l2", scale):
        assert length(trajectory, norm, scale).min() >= 0.15 - rounding  # exactly eps, as published


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_ball_never_exceeds_its_radius_and_survives_zero(norm):
    generator = torch.Generator().manual_seed(1)
    for dtype in (torch.float32, torch.float64):
        size = 10.0 ** torch.linspace(-12, 12, 2000, dtype=dtype)[:, None]
        z = size * torch.randn(2000, 5, dtype=dtype, generator=generator)
        ball = Ball(0.3, norm)
        limit = 0.3 * (1 + 4 * torch.finfo(dtype).eps)
        assert ball.length(ball.project(z)).max() <= limit
        assert ball.length(ball.to_surface(z)).max() <= limit
        inside = ball.length(z).squeeze(-1) <= 0.3
        assert torch.equal(ball.project(z)[inside], z[inside])
        zero = torch.zeros(2, 5, dtype=dtype, requires_grad=True)
        for mapped in (ball.project(zero), ball.to_surface(zero), ball.steepest(zero)):
            assert (mapped == 0.0).all()
        (gradient,) = torch.autograd.grad(ball.to_surface(zero).sum(), zero)
        assert gradient.isfinite().all()
        tiny = torch.full((1, 5), 1e-30, dtype=dtype)
        torch.testing.assert_close(ball.length(ball.steepest(tiny)), torch.ones(1, 1, dtype=dtype))


@pytest.mark.parametrize("attack", ATTACKS[1:], ids=lambda a: f"{a.iterations}-{a.restarts}")
def test_saturated_policies_give_no_gradient_and_no_nan(attack):
    def saturated(y):
        return (1e3 * (3.0 + y[..., :1])).clamp(-1.0, 1.0)

    assert run(attack, saturated).returns.isfinite().all()
    assert run(MaximalActionDifference(0.1), saturated).returns.isfinite().all()
    assert run(attack, lambda y: torch.ones_like(y[..., :1])).returns.isfinite().all()


def test_attacks_do_per_episode_at_least_as_much_damage_as_noise_and_nothing():
    nominal = run(None, count=32).returns
    noise = run(UniformBall(0.15), count=32).returns
    for attack in (*ATTACKS[2:], TrajectoryAttack(0.15, horizon=1, iterations=1)):
        returns = run(attack, count=32).returns
        assert (returns <= nominal + 1e-12).all()
        assert (returns <= noise + 1e-12).all()
    assert run(ATTACKS[0], count=32).returns.mean() < noise.mean()


def test_keeping_the_best_is_never_weaker_than_doing_nothing():
    def deceptive(y):
        return torch.sin(40.0 * y[..., :1]) + 0.1 * y[..., 1:2]

    nominal = run(None, deceptive, count=64).returns
    for attack in (
        TrajectoryAttack(1e-3, horizon=2, iterations=1, lr=10.0),
        TrajectoryAttack(0.5, horizon=3, iterations=1, method="steepest", step_fraction=5.0),
    ):
        assert (run(attack, deceptive, count=64).returns <= nominal).all()


def test_a_larger_ball_does_more_damage():
    means = [
        float(run(TrajectoryAttack.strongest(eps), count=16).returns.mean()) for eps in (0, 0.1, 0.2, 0.4)
    ]
    assert means == sorted(means, reverse=True) and len(set(means)) == 4
    assert means[0] == float(run(NoPerturbation(), count=16).returns.mean())


@pytest.mark.parametrize("stack", [None, 3])
def test_convergence_is_reported_and_monotone_with_keep_best(stack):
    shape = (6, 2) if stack is None else (stack, 6, 2)
    attack = TrajectoryAttack(
        0.2, horizon=5, replan=4, iterations=9, warm_iterations=4, restarts=2, refine=7, method="steepest"
    )
    trajectory = rollout(PLANT, curved_policy, starts(6).expand(shape), perturbation=attack)
    windows, episode = trajectory.convergence
    tail = () if stack is None else (stack,)
    assert windows.values.shape == (3, 10, *tail) and windows.counts.tolist() == [9, 4, 4]
    assert episode.values.shape == (1, 8, *tail) and episode.counts.tolist() == [7]
    for convergence in (windows, episode):
        assert (np.diff(convergence.values, axis=1) <= 0.0).all()
        assert (convergence.values[:, -1] < convergence.values[:, 0]).all()
        assert convergence.mean().shape == convergence.values.shape[1:]
    assert (windows.values[1:, 4:] == windows.values[1:, 4:5]).all()
    np.testing.assert_allclose(episode.values[0, -1], trajectory.returns.mean(-1).numpy(), rtol=1e-13)


def test_convergence_of_mad_is_its_action_change():
    trajectory = run(MaximalActionDifference(0.2, iterations=6))
    (convergence,) = trajectory.convergence
    assert convergence.values.shape == (PLANT.horizon, 7)
    assert (np.diff(convergence.values, axis=1) >= 0.0).all()
    change = (trajectory.actions - curved_policy(trajectory.observations)).square().sum(-1).mean(-1)
    np.testing.assert_allclose(convergence.values[:, -1], change.numpy(), rtol=1e-12)


def test_predicted_window_returns_come_true():
    trajectory = run(TrajectoryAttack(0.2, horizon=4, iterations=5, keep_best=False))
    (windows,) = trajectory.convergence
    realised = trajectory.rewards.reshape(3, 4, -1).sum(1).mean(-1)
    np.testing.assert_allclose(windows.values[:, -1], realised.numpy(), rtol=1e-12)


def test_more_restarts_and_iterations_help():
    weak = run(TrajectoryAttack(0.3, horizon=12, iterations=2), count=32).returns
    restarted = run(TrajectoryAttack(0.3, horizon=12, iterations=2, restarts=8), count=32).returns
    longer = run(TrajectoryAttack(0.3, horizon=12, iterations=40), count=32).returns
    assert restarted.mean() < weak.mean() and longer.mean() < weak.mean()


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: a.name)
def test_parameters_are_left_alone_and_no_grad_outside_does_not_matter(attack):
    net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).double()
    before = [p.detach().clone() for p in net.parameters()]
    outside = run(attack, net)
    with torch.no_grad():
        inside = run(attack, net)
    assert torch.equal(outside.perturbed, inside.perturbed)
    assert not outside.perturbed.requires_grad
    assert all(p.grad is None for p in net.parameters())
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))
    returns = rollout(PLANT, net, starts(), perturbation=attack, differentiable=True).returns
    returns.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_attack_on_a_terminating_plant_ends_episodes_and_stays_finite():
    plant = LinearPlant(limit=0.5)
    attacked = run(TrajectoryAttack.strongest(0.3), count=32, plant=plant)
    nominal = run(None, count=32, plant=plant)
    assert attacked.returns.isfinite().all()
    assert (attacked.returns <= nominal.returns + 1e-12).all()
    assert (attacked.rewards[~attacked.alive] == 0.0).all()


def test_presets_are_the_published_settings():
    paper, strong = TrajectoryAttack.paper(0.1), TrajectoryAttack.strong(0.1)
    assert (paper.horizon, paper.iterations, paper.lr, paper.objective) == (50, 20, 8e-3, "final")
    assert (strong.horizon, strong.iterations, strong.lr, strong.objective) == (50, 60, 2e-2, "sum")
    assert (paper.keep_best, strong.keep_best, paper.method, strong.method) == (False, True, "adam", "adam")
    assert (paper.replan, strong.replan) == (None, 25)
    assert all(a.restarts == 1 and a.refine == 0 for a in (paper, strong))
    assert math.isclose(paper.describe()["eps"], 0.1) and paper.describe()["name"] == "trajectory"
