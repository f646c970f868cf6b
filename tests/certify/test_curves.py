"""Curves over the size of the error: certificate above attack, for live policies."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecNormalize

from robustnn import LBDN
from robustnn.certify import (
    action_change_curve,
    certify_policy,
    decision_curve,
    gain_curve,
    visited_observations,
)
from robustnn.closedloop import control_problem
from robustnn.envs import SpringChain
from robustnn.errors import CertificateError, InvalidArgumentError
from robustnn.policies import action_map
from tests.certify.models import FOUR, model_of, states
from tests.policies.toy import toy_vec_env

EPS = (0.0, 0.02, 0.1, 0.5)
BOX = spaces.Box(-1.0, 1.0, (2,))


@pytest.mark.parametrize(("algorithm", "norm"), [("TD3", "l2"), ("PPO", "linf")])
def test_action_changes_never_cross_and_come_close(algorithm: str, norm: str) -> None:
    model = model_of(algorithm, BOX)
    certificate = certify_policy(model, norm=norm, scale=(0.1, 1.0, 0.5, 1.0))
    observations = states(60)
    curve = action_change_curve(model, certificate, observations, EPS, local=True, iterations=10, restarts=2)
    assert curve.certified.shape == curve.found.shape == (4, 60)
    assert (curve.found <= curve.certified).all()
    assert (np.diff(curve.found, axis=0) >= 0.0).all() and (np.diff(curve.certified, axis=0) >= 0.0).all()
    assert curve.found[0].max() == 0.0 and curve.found[-1].max() > 0.3
    assert curve.found[1].max() > 0.3 * curve.certified[1].max()
    # Random errors of the same size do less.
    z = torch.randn(60, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    z = z / (z.norm(dim=-1, keepdim=True) if norm == "l2" else z.abs().amax(-1, keepdim=True))
    policy = action_map(model)
    moved = policy(observations + 0.1 * z * torch.tensor(certificate.scale)) - policy(observations)
    assert (curve.found[2] >= moved.norm(dim=-1).numpy() * (1 - 1e-5)).mean() > 0.98


def test_a_wrong_certificate_is_an_error() -> None:
    model = model_of("TD3", BOX)
    certificate = certify_policy(model)
    half = replace(certificate.change, pairs=0.05 * certificate.change.pairs)
    small = replace(certificate, change=half)
    with pytest.raises(CertificateError, match="attack achieved"):
        action_change_curve(model, small, states(30), [0.1], iterations=5)
    discrete = model_of("DQN", spaces.Discrete(2))
    wrong = certify_policy(discrete)
    wrong = replace(wrong, change=replace(wrong.change, pairs=0.02 * wrong.change.pairs))
    with pytest.raises(CertificateError, match="the attack changed"):
        decision_curve(discrete, wrong, states(200), [0.3], iterations=5)


@pytest.mark.parametrize("actions", [spaces.Discrete(3), BOX])
def test_certified_states_are_never_changed(actions: spaces.Space) -> None:
    box = isinstance(actions, spaces.Box)
    model = model_of("TD3" if box else "DQN", actions)
    certificate = certify_policy(model)
    options: dict[str, Any] = {"tolerance": 0.05} if box else {}
    curve = decision_curve(model, certificate, states(150), EPS, local=True, iterations=5, **options)
    assert curve.certified[0] > 0.99 and curve.unchanged[0] == 1.0
    assert (curve.certified <= curve.unchanged).all()
    assert (np.diff(curve.certified) <= 0).all() and (np.diff(curve.unchanged) <= 0).all()
    assert curve.unchanged[-1] < 0.5 and ((curve.certified > 0.0) & (curve.certified < 1.0)).any()
    np.testing.assert_allclose(curve.certified, [(curve.radius >= e).mean() for e in EPS])


def test_visited_observations_are_raw() -> None:
    env: Any = VecNormalize(toy_vec_env(FOUR, spaces.Discrete(2), 2))
    env.reset()
    for _ in range(50):
        env.step(np.zeros(2, dtype=np.int64))
    env.training = False
    model = model_of("PPO", spaces.Discrete(2), env=env)
    observations = visited_observations(model, env, 10)
    assert observations.shape == (20, 4)
    env.seed(0)
    env.reset()
    np.testing.assert_allclose(observations[:2], env.get_original_obs(), rtol=1e-5, atol=1e-6)
    curve = decision_curve(model, certify_policy(model, env), observations, [0.0, 0.05], iterations=3)
    assert (curve.certified <= curve.unchanged).all()


def test_gains_of_several_policies() -> None:
    torch.manual_seed(0)
    problem = control_problem(SpringChain(masses=1, damping=1.0, max_force=1.0), [0.0, 0.0], [0.0])
    nets = [LBDN(2, [8], 1, lipschitz=g) for g in (0.1, 0.4, 50.0)]
    curve = gain_curve(problem, nets, limits=(-1.0, 1.0), steps=60, iterations=10, attack_iterations=4)
    assert np.isfinite(curve.certified[:2]).all() and (curve.found[:2] <= curve.certified[:2]).all()
    assert np.isnan(curve.certified[2]) and curve.found[2] > curve.found[0] > 0.0


def test_bad_calls() -> None:
    model = model_of("TD3", BOX)
    certificate = certify_policy(model)
    with pytest.raises(InvalidArgumentError, match="eps: expected at least one number, ascending"):
        action_change_curve(model, certificate, states(3), [0.2, 0.1])
    with pytest.raises(InvalidArgumentError, match="tolerance: expected"):
        decision_curve(model, certificate, states(3), [0.1])
    with pytest.raises(InvalidArgumentError, match="expected Box"):
        discrete = model_of("DQN", spaces.Discrete(2))
        action_change_curve(discrete, certify_policy(discrete), states(3), [0.1])
