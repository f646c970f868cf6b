"""The same results on a GPU as on the CPU; run by benchmarks/gpu.sh where there is one."""

from __future__ import annotations

import pytest
import torch

from robustnn import LBDN
from robustnn.closedloop import TrajectoryAttack, evaluate
from robustnn.envs import Pendulum
from robustnn.policies import ActionMap
from tests.networks import inputs, random_lbdn

pytestmark = pytest.mark.gpu


def test_forward_backward_and_frozen_weights_agree_with_the_cpu() -> None:
    net = random_lbdn((3, (32, 32), 2), lipschitz=5.0, activation="tanh", dtype=torch.float64)
    x = inputs(3)
    y = net(x)
    y.sum().backward()
    gradients = [p.grad.clone() for p in net.parameters()]
    moved = LBDN(3, (32, 32), 2, lipschitz=5.0, activation="tanh", dtype=torch.float64).to("cuda")
    moved.load_state_dict(net.state_dict())
    y_gpu = moved(x.to("cuda"))
    y_gpu.sum().backward()
    torch.testing.assert_close(y_gpu.cpu(), y, rtol=1e-12, atol=1e-12)
    for p, g in zip(moved.parameters(), gradients, strict=True):
        torch.testing.assert_close(p.grad.cpu(), g, rtol=1e-10, atol=1e-10)
    with torch.no_grad(), moved.frozen():
        torch.testing.assert_close(moved(x.to("cuda")).cpu(), y.detach(), rtol=1e-12, atol=1e-12)


def test_an_attacked_evaluation_agrees_with_the_cpu() -> None:
    net = random_lbdn((3, (8,), 1), size=0.5, lipschitz=5.0, activation="tanh", dtype=torch.float64)
    with torch.no_grad():
        limit = torch.ones(1, dtype=torch.float64)
        policy = ActionMap(net.explicit(), None, -limit, limit)
    attack = TrajectoryAttack(0.1, iterations=5, horizon=10)
    results = [
        evaluate(
            policy.to(device), Pendulum(), attack, episodes=8, steps=20, dtype=torch.float64, device=device
        )
        for device in ("cpu", "cuda")
    ]
    torch.testing.assert_close(*(torch.from_numpy(r.returns) for r in results), rtol=1e-6, atol=1e-6)
