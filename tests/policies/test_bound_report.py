"""What a bound says of errors of the sensors, how it prints, and how it is stored."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.vec_env import (
    VecFrameStack,
    VecNormalize,
)

from robustnn.errors import (
    CertificateError,
    CheckpointError,
    InvalidArgumentError,
    ShapeError,
    UnsupportedSpaceError,
)
from robustnn.policies import (
    Bound,
    LBDNActorCriticPolicy,
    LBDNSACPolicy,
    Stage,
    action_map,
    policy_bound,
)
from tests.policies.chains import (
    ACTIONS,
    DICT,
    EPS64,
    VECTOR,
    Chain,
    bounded,
    feed_env,
    normalised,
    random_chain,
    wrappers,
)
from tests.policies.steep import centre, steep
from tests.policies.toy import randomise

# What errors of sensors do -----------------------------------------------------------------------------------------


def test_component_gain_and_budgets_are_what_the_action_does() -> None:
    """A steep network moves its action by exactly the tolerance for an error of exactly the budget."""
    env = normalised(std=[0.01, 3.0, 0.5])
    model = bounded(env, observation_scale=(1.0, 0.2, 7.0), action_scale=(0.5, 0.1), net_arch=[])
    bound = policy_bound(model, env)
    gain = 4.0 * np.outer([0.5, 0.1], 1.0 / np.array([0.01, 0.6, 3.5]))
    np.testing.assert_allclose(bound.component_gain, gain, rtol=1e-6)
    path = action_map(model, env)
    for tolerance in (0.2, np.array([0.3, 0.04])):
        allowed = np.broadcast_to(tolerance, 2)
        budgets = bound.error_budget(tolerance)
        assert list(budgets) == ["o[0]", "o[1]", "o[2]"]
        for j, budget in enumerate(budgets.values()):
            worst = 0.0
            for i in range(2):
                chain = Chain(model, env)
                direction = np.eye(3)[j]
                steep(chain, direction, i)
                path = action_map(model, env)
                x = torch.as_tensor(centre(chain))
                jacobian = torch.autograd.functional.jacobian(path, x).numpy()
                change = np.abs(jacobian[:, j]) * budget
                assert (change <= allowed * (1 + 64 * EPS64)).all()
                worst = max(worst, float((change / allowed).max()))
            assert worst >= 0.999
    together = bound.error_budget(0.2, together=True)
    np.testing.assert_allclose(
        list(together.values()), np.array(list(bound.error_budget(0.2).values())) / 3**0.5
    )
    assert bound.action_change(np.array(list(together.values()))) <= 0.2 / 0.5 * (1 + 64 * EPS64)


def test_budgets_with_frames_and_discrete_parts() -> None:
    stacked = VecFrameStack(normalised(std=[0.1, 1.0, 2.0]), 4)
    bound = policy_bound(bounded(stacked), stacked)
    assert bound.sensors == ("o[0]", "o[1]", "o[2]") and len(bound.names) == 12
    np.testing.assert_allclose(
        list(bound.error_budget(1.0).values()), np.array([0.1, 1.0, 2.0]) / 4.0 / 2.0, rtol=1e-9
    )
    mixed = feed_env(DICT, ACTIONS, 1)
    bound = policy_bound(bounded(mixed), mixed)
    assert bound.sensors == ("angle[0]", "angle[1]", "angle[2]", "speed[0]", "speed[1]")
    assert list(bound.error_budget(1.0)) == list(bound.sensors)
    assert bound.component_gain.shape == (2, 8)


def test_a_bound_without_effect_leaves_any_error() -> None:
    bound = Bound(0.0, (1.0, 2.0), (1.0,))
    assert bound.error_budget(0.1) == {"o[0]": np.inf, "o[1]": np.inf} and bound.plain == 0.0
    assert Bound.from_dict(bound.to_dict()) == bound


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda b: b.error_budget([1.0, 1.0, 1.0]), ShapeError, ("tolerance", "(2,)", "(3,)")),
        (lambda b: b.error_budget(0.0), InvalidArgumentError, ("tolerance", "> 0")),
        (lambda b: b.action_change(1.0), ShapeError, ("observation_change", "(..., 3)", "()")),
    ],
)
def test_bad_questions(call: Callable[[Bound], Any], error: type[Exception], words: tuple[str, ...]) -> None:
    with pytest.raises(error) as caught:
        call(Bound(1.0, (1.0, 1.0, 1.0), (1.0, 1.0)))
    assert all(word in str(caught.value) for word in words)


def test_per_frame_holds_for_errors_that_stay_and_for_errors_that_differ() -> None:
    bound = Bound(2.0, (1.0, 0.5, 0.25, 4.0), (3.0,), frames=2, names=("a", "b", "a", "b"))
    assert bound.per_frame == pytest.approx(6.0 * np.hypot(1 / 0.5, 1 / 0.25), rel=1e-15)
    assert bound.plain == 24.0
    equal = Bound(2.0, (1.0, 0.5) * 3, (3.0,), frames=3, names=("a", "b") * 3)
    assert equal.per_frame == pytest.approx(3**0.5 * equal.plain, rel=1e-15)
    assert dataclasses.replace(equal, names=()).per_frame == equal.per_frame


# What is printed ---------------------------------------------------------------------------------------------------


def test_a_nearly_constant_feature_is_pointed_out_and_repaired() -> None:
    std = np.full(27, 1.5)
    std[17] = 1.0 / 6120.0
    env = normalised(spaces.Box(-np.inf, np.inf, (27,), np.float64), std)
    bound = policy_bound(bounded(env, 2.0), env)
    assert bound.plain == pytest.approx(2.0 * 6120.0, rel=1e-9) and bound.plain == bound.product
    lines = str(bound).splitlines()
    assert lines[0].split() == "VecNormalize x 6120 largest for o[17], of std 0.0001634".split()
    assert lines[1].split() == "network x 2 by construction".split()
    assert lines[-2] == (
        "o[17] dominates: an error of 0.0001634 in o[17] counts as much as one of 1.5 in a typical sensor."
    )
    assert lines[-1] == (
        "With observation_scale 9180 times as large for o[17], a policy of the same gamma has the bound 1.333."
    )
    scale = np.ones(27)
    scale[17] = 9180.0
    repaired = policy_bound(bounded(env, 2.0, observation_scale=tuple(scale)), env)
    assert repaired.plain == pytest.approx(2.0 / 1.5, rel=1e-6) and repaired.product > 1e4
    assert "dominates" not in str(repaired) and "observation scale  x 1 " in str(repaired)


def test_the_table_of_a_chain_with_all_stages() -> None:
    env = VecFrameStack(normalised(VECTOR, [1.0, 0.5, 2.0]), 2)
    model = SAC(
        LBDNSACPolicy, env, use_sde=True, device="cpu", buffer_size=8,
        policy_kwargs={"lipschitz": 3.0, "net_arch": [4], "observation_scale": (0.5,) * 6},
    )  # fmt: skip
    assert str(policy_bound(model, env)).splitlines() == [
        "2 stacked frames   x 1          1.414 for an error in every frame",
        "VecNormalize       x 2          largest for o[1], of std 0.5",
        "observation scale  x 2          largest for o[0], of scale 0.5",
        "network            x 6          by construction",
        "clipped mean       x 1          to +-2",
        "tanh, rescaled     x 2          half the action range",
        "product            = 48         of the largest factors of all stages",
        "bound              = 12         action per unit of raw observation, l2",
        "                   = 19.44      per unit of the largest component of an error, l_inf",
        "                   = 16.97      per unit of an error in each of the 2 frames, l2",
        "                   = 3          in the norms weighted by observation_scale and action_scale",
    ]


def test_several_dominant_sensors() -> None:
    bound = Bound(1.0, (1e-3, 2e-3, 3e-3, 4e-3, *(1.0,) * 7), (1.0,))
    advice = str(bound).splitlines()[-2:]
    assert advice[0].startswith("o[0], o[1], o[2] and 1 more dominate: an error of 0.001 in o[0] counts")
    assert advice[1] == (
        "With observation_scale 1000 times as large for o[0], and so on, a policy of the same gamma has the bound 1."
    )


def test_discrete_observations_only() -> None:
    env = feed_env(spaces.MultiDiscrete([2, 3]), ACTIONS, 1)
    bound = policy_bound(bounded(env), env)
    assert "discrete observations only" in str(bound)
    for ask in (lambda: bound.plain, lambda: bound.plain_linf, lambda: bound.per_frame):
        with pytest.raises(UnsupportedSpaceError, match="continuous component"):
            ask()
    assert bound.error_budget(1.0) == {} and bound.sensors == ()


# What is stored ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["PPO", "SAC, gSDE", "DQN"])
def test_a_bound_survives_json(name: str) -> None:
    for seed in range(6):
        chain = random_chain(name, seed)
        bound = policy_bound(chain.model, chain.env)
        again = Bound.from_dict(json.loads(json.dumps(bound.to_dict(), allow_nan=False)))
        assert again == bound and again.stages == bound.stages and str(again) == str(bound)
        assert len(bound.network_sha256) == 64
        normalises = any(isinstance(w, VecNormalize) for w in wrappers(chain.env))
        assert len(bound.statistics_sha256) == (64 if normalises else 0)
        again.check(policy_bound(chain.model, chain.env))


def broken(**changes: Any) -> dict[str, Any]:
    return {**Bound(1.0, (1.0, 2.0), (1.0,), stages=(Stage("network", 1.0),)).to_dict(), **changes}


@pytest.mark.parametrize(
    "content",
    [
        None, [], {}, broken(format="other"), broken(version=2), broken(more=1), broken(lipschitz=-1.0),
        broken(lipschitz=float("nan")), broken(observation_scale=[]), broken(observation_scale=[1.0, 0.0]),
        broken(observation_scale=3), broken(action_scale=[]), broken(action_scale=["x"]), broken(frames=0),
        broken(one_hot=[True]), broken(names=["a"]), broken(stages=[{"name": "network"}]),
        broken(lipschitz=float("inf")), {k: v for k, v in broken().items() if k != "lipschitz"},
    ],
)  # fmt: skip
def test_what_is_no_bound_is_refused(content: Any) -> None:
    with pytest.raises(CheckpointError, match="bound: expected"):
        Bound.from_dict(content)


def test_a_stored_bound_is_about_one_policy_and_one_normalisation() -> None:
    env = normalised(std=[1.0, 2.0, 3.0])
    model = bounded(env)
    bound = policy_bound(model, env)
    bound.check(policy_bound(model, env))
    env.obs_rms.mean[0] += 1e-9
    with pytest.raises(CertificateError, match="normalisation statistics"):
        bound.check(policy_bound(model, env))
    env.obs_rms.mean[0] = 0.0
    for change in (lambda: setattr(env, "clip_obs", 5.0), lambda: setattr(env, "epsilon", 1e-3)):
        before = env.clip_obs, env.epsilon
        change()
        with pytest.raises(CertificateError, match="normalisation statistics"):
            bound.check(policy_bound(model, env))
        env.clip_obs, env.epsilon = before
    bound.check(policy_bound(model, env))
    with pytest.raises(CertificateError, match="normalisation statistics.*got"):
        bound.check(policy_bound(model.policy))
    with torch.no_grad():
        model.policy.lbdn.layers[-1].bias.add_(1e-6)
    with pytest.raises(CertificateError, match="weights"):
        bound.check(policy_bound(model, env))
    with pytest.raises(CertificateError, match="weights.*none"):
        dataclasses.replace(bound, network_sha256="").check(bound)
    with pytest.raises(CertificateError, match="expected gains of at least"):
        dataclasses.replace(bound, lipschitz=0.99 * bound.lipschitz).check(bound)
    dataclasses.replace(bound, lipschitz=1.01 * bound.lipschitz).check(bound)


def test_digests_cover_what_follows_the_network() -> None:
    def digest(low: float, squash: bool) -> str:
        space = spaces.Box(low, 1.0, (2,), np.float32)
        kwargs = {"lipschitz": 2.0, "net_arch": [4], "squash_output": squash}
        model = PPO(
            LBDNActorCriticPolicy,
            feed_env(VECTOR, space, 1),
            use_sde=True,
            policy_kwargs=kwargs,
            device="cpu",
            seed=0,
        )
        randomise(model.policy, 0.5)
        return policy_bound(model).network_sha256

    assert digest(-1.0, False) == digest(-1.0, False)
    assert len({digest(-1.0, False), digest(-2.0, False), digest(-1.0, True)}) == 3
