"""Certified changes of continuous actions: they hold for every algorithm, and are attained where they must be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor

from robustnn.certify import PolicyCertificate, action_change, certify_policy, tolerance_radius
from robustnn.certify.attack import predict_flat
from robustnn.policies import policy_bound
from tests.certify.models import FOUR, model_of, states
from tests.policies.toy import toy_vec_env

UNEQUAL = (0.1, 0.5, 0.05, 0.5)
SYMMETRIC = spaces.Box(-2.0, 2.0, (2,))
ASYMMETRIC = spaces.Box(np.float32([-0.5, 2.0]), np.float32([3.0, 2.5]))
WIDE = spaces.Box(-1e3, 1e3, (2,))

CASES: dict[str, tuple[str, spaces.Box, dict[str, Any]]] = {
    "PPO": ("PPO", SYMMETRIC, {}),
    "PPO, wide": ("PPO", WIDE, {}),
    "PPO, squashed": ("PPO", ASYMMETRIC, {"use_sde": True, "policy_kwargs": {"squash_output": True}}),
    "A2C, scaled": (
        "A2C",
        ASYMMETRIC,
        {"policy_kwargs": {"action_scale": (2.0, 0.3), "observation_scale": (0.5, 1.0, 2.0, 1.0)}},
    ),
    "SAC": ("SAC", ASYMMETRIC, {}),
    "SAC, gSDE": ("SAC", SYMMETRIC, {"use_sde": True}),
    "TD3": ("TD3", ASYMMETRIC, {}),
    "DDPG": ("DDPG", SYMMETRIC, {}),
    "TQC": ("TQC", ASYMMETRIC, {}),
    "SB3's own": ("TD3", SYMMETRIC, {"bounded": False}),
}


def worst_points(
    certificate: PolicyCertificate, points: Tensor, eps: Tensor | float, component: int | None
) -> Tensor:
    """Projected gradient ascent on the change of a component of the action, or of its norm, to either side."""
    policy_map = certificate.path.action_map
    scale = torch.tensor(certificate.scale)
    with torch.no_grad():
        nominal = policy_map(points)
    best, largest = points, torch.zeros(len(points), dtype=torch.float64)
    for sign in (1.0, -1.0):
        z = 0.01 * states(len(points), points.shape[-1], seed=7)
        for step in range(9):
            z = z.detach().requires_grad_()
            change = policy_map(points + z * eps * scale) - nominal
            goal = change.norm(dim=-1) if component is None else sign * change[:, component]
            (gradient,) = torch.autograd.grad(goal.sum(), z)
            better = goal.detach() > largest
            best = torch.where(better.unsqueeze(-1), (points + z * eps * scale).detach(), best)
            largest = torch.where(better, goal.detach(), largest)
            if certificate.norm == "linf":
                z = (z.detach() + (2.0 if step == 0 else 0.5) * gradient.sign()).clamp(-1.0, 1.0)
            else:
                z = z.detach() + (2.0 if step == 0 else 0.5) * gradient / gradient.norm(dim=-1, keepdim=True)
                z = z * z.norm(dim=-1, keepdim=True).reciprocal().clamp_max(1.0)
    return best


def predicted(model: Any, certificate: PolicyCertificate, points: Tensor) -> Tensor:
    return torch.as_tensor(predict_flat(model, certificate, points)).double().reshape(len(points), -1)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("name", CASES)
def test_no_attack_moves_the_action_further(name: str, norm: str) -> None:
    algorithm, actions, settings = CASES[name]
    model = model_of(algorithm, actions, **settings)
    certificate = certify_policy(model, norm=norm, scale=UNEQUAL)
    points = states(300)
    before = predicted(model, certificate, points)
    for eps, local in ((0.0, False), (0.02, False), (0.5, False), (0.3, True)):
        change = action_change(certificate, points, eps, local=local)
        assert bool((change.l2 <= change.component.norm(dim=-1) * (1 + 1e-9)).all())
        for component in (0, 1, None):
            after = predicted(model, certificate, worst_points(certificate, points, eps, component))
            moved = after - before
            assert bool((moved.abs() <= change.component).all())
            assert bool((moved.norm(dim=-1) <= change.l2).all())
            assert bool(((change.low <= after) & (after <= change.high)).all())


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("name", ["PPO", "SAC"])
def test_attained_by_a_linear_network(name: str, norm: str) -> None:
    algorithm, actions, settings = CASES[name]
    model = model_of(algorithm, actions, policy_kwargs={"net_arch": []}, steps=80)
    certificate = certify_policy(model, norm=norm, scale=UNEQUAL)
    points = states(100)
    before = predicted(model, certificate, points)
    for eps in (0.5, 5.0):
        change = action_change(certificate, points, eps)
        for component in (0, 1):
            after = predicted(model, certificate, worst_points(certificate, points, eps, component))
            moved, bound = (after - before)[:, component].abs(), change.component[:, component]
            slack = 2.0 * allowance(certificate, points, eps)[component]
            assert bool((moved >= bound * (1 - 1e-3) - slack).all()) and float(bound.max()) > 100.0 * slack


def allowance(certificate: PolicyCertificate, points: Tensor, eps: float) -> Tensor:
    """What rounding is allowed to add to a change of the action of magnitude about one."""
    path = certificate.path
    largest = path.output_error(points)[1].amax(0) + path.output_growth(eps * certificate.unit)[1]
    return 2.0 * path.half_range() * largest + 64.0 * path.eps


def test_limits_and_saturation_help() -> None:
    for algorithm, actions in (("PPO", ASYMMETRIC), ("SAC", SYMMETRIC)):
        model = model_of(algorithm, actions, steps=100)
        certificate = certify_policy(model)
        points = 2.0 * states(500)
        change = action_change(certificate, points, 0.2)
        plain = certificate.path.half_range() * certificate.change.pairs.diagonal() * 0.2
        assert bool((change.component <= plain + allowance(certificate, points, 0.2)).all())
        assert float((change.component / plain).mean()) < 0.97
        assert bool((change.low >= torch.as_tensor(actions.low) - 1e-5).all())
        assert bool((change.high <= torch.as_tensor(actions.high) + 1e-5).all())
        span = torch.as_tensor(actions.high - actions.low).double()
        assert bool((action_change(certificate, points, 1e6).component <= span * (1 + 1e-5)).all())


def test_never_above_the_declared_bound() -> None:
    model = model_of("PPO", WIDE, policy_kwargs={"action_scale": (2.0, 0.3)})
    bound = policy_bound(model)
    points = states(50)
    for method in ("declared", "auto"):
        certificate = certify_policy(model, method=method)
        change, slack = action_change(certificate, points, 0.1), allowance(certificate, points, 0.1)
        assert bool((change.l2 <= 0.1 * bound.plain + slack.norm()).all())
        assert bool((change.component[:, 1] <= 0.1 * bound.component_gain[1].max() + slack[1]).all())


def test_the_local_bound_is_smaller() -> None:
    certificate = certify_policy(model_of("TD3", SYMMETRIC), norm="linf")
    points = states(200)
    plain, local = (action_change(certificate, points, 0.02, local=local) for local in (False, True))
    assert bool((local.component <= plain.component).all())
    assert float((local.l2 / plain.l2).mean()) < 0.7


@pytest.mark.parametrize("tolerance", [0.05, (0.05, 0.2)])
@pytest.mark.parametrize("name", ["PPO", "SAC"])
def test_tolerance_radius_is_the_inverse_of_action_change(name: str, tolerance: Any) -> None:
    algorithm, actions, settings = CASES[name]
    model = model_of(algorithm, actions, **settings)
    certificate = certify_policy(model, scale=UNEQUAL)
    points = states(60)
    radius = tolerance_radius(certificate, points, tolerance)
    local = tolerance_radius(certificate, points, tolerance, local=True)
    assert bool((local >= radius).all()) and float((local / radius).clamp_max(10).mean()) > 1.2
    for k in range(0, 60, 10):
        if not np.isfinite(float(radius[k])):
            continue
        for factor, holds in ((1.0, True), (1.001, False)):
            change = action_change(certificate, points[k], float(radius[k]) * factor)
            good = (
                change.l2 <= tolerance
                if isinstance(tolerance, float)
                else change.component <= torch.tensor(tolerance)
            )
            assert bool(good.all()) == holds
    before = predicted(model, certificate, points)
    eps = local.clamp_max(1e3).unsqueeze(-1)
    moved = predicted(model, certificate, worst_points(certificate, points, eps, None)) - before
    if isinstance(tolerance, float):
        assert bool((moved.norm(dim=-1) <= tolerance).all())
    else:
        assert bool((moved.abs() <= torch.tensor(tolerance)).all())


def test_tolerance_radius_at_its_ends() -> None:
    model = model_of("SAC", SYMMETRIC)
    certificate = certify_policy(model)
    points = states(5)
    assert bool(tolerance_radius(certificate, points, 6.0).isinf().all())  # the whole range
    assert not bool(tolerance_radius(certificate, points, 1e-9).any())  # less than rounding
    assert tolerance_radius(certificate, points[0], 0.1).shape == ()
    assert tolerance_radius(certificate, points[:0], 0.1, local=True).shape == (0,)
    assert action_change(certificate, points[:0], 0.1, local=True).component.shape == (0, 2)
    assert action_change(certificate, points[0].numpy(), 0.1).component.shape == (2,)


def test_raw_units_behind_vec_normalize() -> None:
    env = VecNormalize(toy_vec_env(FOUR, SYMMETRIC, 1), clip_obs=3.0)
    env.obs_rms.mean, env.obs_rms.var = np.array([3.0, -1.0, 100.0, 0.0]), np.array([4.0, 0.01, 900.0, 1e-6])
    env.training = False
    model = model_of("PPO", SYMMETRIC, env=env)
    scale = (1.0, 0.1, 20.0, 1e-3)
    certificate = certify_policy(model, env, norm="linf", scale=scale)
    points = torch.as_tensor(env.obs_rms.mean) + states(300) * torch.as_tensor(env.obs_rms.var).sqrt()
    change = action_change(certificate, points, 0.1, local=True)
    before = model.predict(env.normalize_obs(points.numpy()), deterministic=True)[0]
    worst = worst_points(certificate, points, 0.1, None)
    after = model.predict(env.normalize_obs(worst.numpy()), deterministic=True)[0]
    moved = torch.as_tensor(after - before).double()
    assert bool((moved.norm(dim=-1) <= change.l2).all())
    assert float((moved.norm(dim=-1) / change.l2).max()) > 0.5
