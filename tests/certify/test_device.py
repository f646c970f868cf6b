"""The same certificates on a GPU as on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gymnasium import spaces

from robustnn.certify import (
    action_change,
    attack_decision,
    certified_radius,
    certify_policy,
    distribution_change,
)
from tests.certify.models import FOUR, model_of, states
from tests.policies.toy import algorithm_of, toy_vec_env


def on_gpu(name: str, actions: spaces.Space) -> tuple[Any, Any]:
    """A model and its copy on the GPU."""
    model = model_of(name, actions)
    algorithm, policy = algorithm_of(name)
    moved = algorithm(policy, toy_vec_env(FOUR, actions, 1), policy_kwargs=model.policy_kwargs, device="cuda")
    moved.policy.load_state_dict(model.policy.state_dict())
    return model, moved


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:You are trying to run PPO on the GPU")
def test_certificates_agree_with_the_cpu() -> None:
    x = states(200)
    for norm in ("l2", "linf"):
        model, moved = on_gpu("PPO", spaces.Discrete(3))
        certificates = [certify_policy(m, norm=norm) for m in (model, moved)]
        radii = [certified_radius(c, x, local=True) for c in certificates]
        assert radii[1].is_cuda
        torch.testing.assert_close(radii[1].cpu(), radii[0], rtol=1e-3, atol=1e-6)
        assert not bool(attack_decision(moved, certificates[1], x, radii[1]).changed.any())
        kl = [distribution_change(c, x, 0.1, local=True).kl.cpu() for c in certificates]
        torch.testing.assert_close(kl[1], kl[0], rtol=1e-3, atol=1e-9)
        model, moved = on_gpu("TD3", spaces.Box(-1.0, 1.0, (2,)))
        changes = [action_change(certify_policy(m, norm=norm), x, 0.1, local=True) for m in (model, moved)]
        torch.testing.assert_close(changes[1].l2.cpu(), changes[0].l2, rtol=1e-3, atol=1e-6)


def test_certificates_take_observations_of_any_kind() -> None:
    certificate = certify_policy(model_of("DQN", spaces.Discrete(2)))
    x = states(3)
    expected = certified_radius(certificate, x)
    for given in (x.numpy(), x.tolist(), x.requires_grad_()):
        torch.testing.assert_close(certified_radius(certificate, given), expected, rtol=1e-12, atol=0)
    single = certified_radius(certificate, x.float())
    torch.testing.assert_close(single, expected, rtol=1e-4, atol=1e-6)
    assert not single.requires_grad
