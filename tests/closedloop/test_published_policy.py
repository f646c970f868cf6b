"""The pendulum policy published with arXiv 2405.11432 in our plant: nominal, delayed and attacked returns.

The reference figures are those of the golden README (8,192 random starts; tolerance 10 at 1,024) and, for the
attack, the mean over the ten published gamma = 4 policies: -652 at eps 0.15.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from robustnn.closedloop import Delay, TrajectoryAttack, evaluate
from robustnn.envs import Pendulum
from robustnn.params import ExplicitMLP, LBDNParams, lbdn_to_explicit, sandwich_from_jax
from robustnn.policies import ActionMap, Normalization

NAMES = ("XY", "a", "d", "b")


@pytest.fixture(scope="module")
def published(golden: Path) -> tuple[ActionMap, dict[str, torch.Tensor]]:
    """The deterministic action of the policy: normalise, LBDN, first logit, tanh."""
    with np.load(golden / "published_pendulum_lbdn_g4_s6.npz", allow_pickle=False) as file:
        data = {key: torch.as_tensor(file[key]).double() for key in file if file[key].dtype.kind == "f"}
    gamma = math.exp(float(data["ln_gamma"]))
    layers = tuple(
        sandwich_from_jax(*(data.get(f"layer{k}_{name}") for name in NAMES), lipschitz=gamma)
        for k in range(5)
    )
    both = lbdn_to_explicit(LBDNParams(layers, gamma), "tanh")
    bias = both.biases[-1]
    assert bias is not None
    mean = ExplicitMLP((*both.weights[:-1], both.weights[-1][:1]), (*both.biases[:-1], bias[:1]), "tanh")
    normalization = Normalization(data["obs_mean"], data["obs_std"], math.inf)
    one = torch.ones(1, dtype=torch.float64)
    return ActionMap(mean, normalization, -one, one, squash=True), data


def test_actions_match_the_probes(published: tuple[ActionMap, dict[str, torch.Tensor]]) -> None:
    policy, data = published
    torch.testing.assert_close(policy(data["probe_obs"]), data["probe_action"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("delay, expected", [(0, -155.7), (2, -167.3), (3, -218.6), (4, -604.4)])
def test_nominal_and_delayed_returns(
    published: tuple[ActionMap, dict[str, torch.Tensor]], delay: int, expected: float
) -> None:
    result = evaluate(published[0], Pendulum(), Delay(delay) if delay else None, episodes=1024)
    assert float(result.mean) == pytest.approx(expected, abs=10)


def test_the_strong_attack_does_at_least_the_damage_published_for_the_family(
    published: tuple[ActionMap, dict[str, torch.Tensor]],
) -> None:
    policy = published[0].to(dtype=torch.float32)
    attack = TrajectoryAttack.strong(0.15)
    assert float(evaluate(policy, Pendulum(), attack, episodes=256).mean) <= -652
