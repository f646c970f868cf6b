"""Wrappers between the environment and the policy: what is accounted for, noted and refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecCheckNan,
    VecEnv,
    VecEnvWrapper,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
)

from robustnn.certify import certify_policy, tolerance_radius
from robustnn.errors import (
    InvalidArgumentError,
    ShapeError,
)
from robustnn.policies import (
    action_map,
    policy_bound,
)
from tests.policies.chains import (
    ACTIONS,
    DICT,
    VECTOR,
    FeedEnv,
    bounded,
    feed_env,
    normalised,
)


def test_drifting_statistics() -> None:
    env = normalised(std=[1.0, 2.0, 3.0])
    model = bounded(env)
    env.training = True
    with pytest.raises(InvalidArgumentError, match="frozen statistics.*vec_env.training = False"):
        policy_bound(model, env)
    moment = policy_bound(model, env, require_frozen=False)
    assert moment.network_sha256 == moment.statistics_sha256 == ""
    assert "still change" in str(moment)
    env.norm_obs = False  # rewards may be normalised as they like
    assert policy_bound(model, env).plain == 4.0


def test_the_chain_of_a_model_is_its_own_unless_another_is_given() -> None:
    env = normalised(std=[1.0, 2.0, 0.01])
    model = bounded(env)
    raw, given = policy_bound(model), policy_bound(model, env)
    assert raw == given and raw.plain == pytest.approx(400.0, rel=1e-6) and raw.statistics_sha256
    assert policy_bound(model.policy).plain == 4.0  # per unit of what predict receives
    x = torch.tensor([[0.3, -2.0, 0.004]], dtype=torch.float64)
    assert torch.equal(action_map(model)(x), action_map(model, env)(x))
    radii = [tolerance_radius(certify_policy(model, e), x, 0.1) for e in (None, env)]
    assert torch.equal(*radii) and float(radii[0]) < 2e-3


def test_an_environment_without_the_normalisation_of_the_model_is_refused() -> None:
    """Its bound would be 4 per raw unit, where the action moves by 400."""
    env = normalised(std=[1.0, 2.0, 0.01])
    model = bounded(env)
    for ask in (policy_bound, action_map, certify_policy):
        with pytest.raises(InvalidArgumentError, match="VecNormalize of the model.*model.policy"):
            ask(model, env.venv)
    assert policy_bound(model.policy, env.venv).plain == 4.0
    env.training = True
    with pytest.raises(InvalidArgumentError, match="frozen statistics"):
        policy_bound(model)


def test_wrappers_of_unknown_effect_in_the_chain_of_a_model_are_refused() -> None:
    model = bounded(Tenfold(feed_env(VECTOR, ACTIONS, 1)))
    with pytest.raises(InvalidArgumentError, match="Tenfold.*model.policy"):
        policy_bound(model)
    assert policy_bound(model.policy).plain == 4.0


class Tenfold(VecEnvWrapper):
    """A wrapper of a user, whose gain nobody knows."""

    def reset(self) -> Any:
        return 10.0 * self.venv.reset()

    def step_wait(self) -> Any:
        observation, *rest = self.venv.step_wait()
        return 10.0 * observation, *rest


class Shifted(gymnasium.ObservationWrapper):  # type: ignore[type-arg]
    """Some wrapper of a user."""

    def observation(self, observation: Any) -> Any:
        return observation + 1.0


def inside(vector: type[Any], *wraps: Callable[[Any], Any]) -> Any:
    """A vector environment whose environments have wrappers of their own."""

    def make() -> Any:
        env: Any = FeedEnv(VECTOR, ACTIONS)
        for wrap in wraps:
            env = wrap(env)
        return Monitor(env)

    return vector([make])


def test_gymnasium_normalisation_inside_the_environments() -> None:
    env = inside(DummyVecEnv, gymnasium.wrappers.NormalizeObservation)
    model = bounded(feed_env(VECTOR, ACTIONS, 1))
    with pytest.raises(InvalidArgumentError, match="NormalizeObservation.*VecNormalize"):
        policy_bound(model, VecCheckNan(env))
    assert "still change" in str(policy_bound(model, env, require_frozen=False))
    env.set_attr("update_running_mean", False)  # reaches the Monitor outside only
    with pytest.raises(InvalidArgumentError, match="NormalizeObservation"):
        policy_bound(model, env)
    env.envs[0].env.update_running_mean = False
    notes = policy_bound(model, env).notes
    assert notes == ("A raw observation is one behind NormalizeObservation in the environments.",)


def test_other_observation_wrappers_are_named() -> None:
    env = inside(DummyVecEnv, Shifted)
    (note,) = policy_bound(bounded(env), env).notes
    assert note == "A raw observation is one behind Shifted in the environments."
    stacked = inside(DummyVecEnv, lambda e: gymnasium.wrappers.FrameStackObservation(e, 4))
    notes = policy_bound(bounded(stacked), stacked).notes
    assert "FrameStackObservation" in notes[0] and "4 frames" in notes[1] and "2 times" in notes[1]
    assert policy_bound(bounded(env).policy).notes == ()


@pytest.mark.parametrize("vector", [DummyVecEnv, SubprocVecEnv])
def test_wrappers_of_actions_are_named(vector: Any) -> None:
    """Behind a RescaleAction the plant receives more, or less, than the bound speaks of."""
    env = inside(vector, lambda e: gymnasium.wrappers.RescaleAction(e, np.float32(-0.1), np.float32(0.1)))
    assert policy_bound(bounded(env), env).notes == (
        "An action is one in front of an ActionWrapper in the environments.",
    )
    env.close()


def test_wrappers_in_other_processes_are_seen_too() -> None:
    def frozen(env: Any) -> Any:
        env = gymnasium.wrappers.NormalizeObservation(env)
        env.update_running_mean = False
        return env

    model = bounded(feed_env(VECTOR, ACTIONS, 1))
    for wrap, drifts in ((frozen, False), (gymnasium.wrappers.NormalizeObservation, True)):
        env = inside(SubprocVecEnv, Shifted, wrap)
        try:
            if drifts:
                env.set_attr("update_running_mean", False)
                with pytest.raises(InvalidArgumentError, match="NormalizeObservation.*VecNormalize"):
                    policy_bound(model, env)
            else:
                (note,) = policy_bound(model, env).notes
                assert "NormalizeObservation" in note
        finally:
            env.close()
    assert policy_bound(model, env).notes == ()  # nobody is there to be asked


def test_the_wrappers_must_be_those_of_the_policy() -> None:
    model = bounded(VecFrameStack(feed_env(VECTOR, ACTIONS, 1), 3))
    with pytest.raises(ShapeError, match="9 components, got 3 components"):
        policy_bound(model, feed_env(VECTOR, ACTIONS, 1))
    mixed = bounded(feed_env(DICT, ACTIONS, 1))
    with pytest.raises(ShapeError, match="'angle'.*got 3 components"):
        policy_bound(mixed, feed_env(VECTOR, ACTIONS, 1))
    assert policy_bound(model, VecMonitor(VecCheckNan(model.get_env()))).frames == 3


def _off(env: VecNormalize) -> VecNormalize:
    env.norm_obs = True
    return env


def _statistics(**values: Any) -> VecNormalize:
    env = normalised()
    for name, value in values.items():
        setattr(env.obs_rms if name in ("mean", "var") else env, name, value)
    return env


REFUSED: dict[str, tuple[Callable[[], VecEnv], str]] = {
    "normalised twice": (lambda: normalised_twice(), "at most one VecNormalize.*2 nested"),
    "stacked twice": (
        lambda: VecFrameStack(VecFrameStack(feed_env(VECTOR, ACTIONS, 1), 2), 2), "at most one VecFrameStack",
    ),
    "integers cut off": (
        lambda: VecFrameStack(_frozen(spaces.Box(-9, 9, (3,), np.int32)), 2), "round.*int32.*outside",
    ),
    "half precision": (
        lambda: VecFrameStack(_frozen(spaces.Box(-9, 9, (3,), np.float16)), 2), "round.*float16.*outside",
    ),
    "no statistics": (
        lambda: _off(VecNormalize(feed_env(VECTOR, ACTIONS, 1), norm_obs=False, training=False)),
        "made with norm_obs=True",
    ),
    "variance of another shape": (lambda: _statistics(var=np.ones(2)), r"shape \(3,\).*\(2,\)"),
    "negative variance": (lambda: _statistics(var=np.array([1.0, -1.0, 1.0])), "finite statistics"),
    "no deviation": (lambda: _statistics(var=np.zeros(3), epsilon=0.0), "standard deviations > 0"),
    "infinite variance": (lambda: _statistics(var=np.full(3, np.inf)), "finite statistics"),
    "mean of NaN": (lambda: _statistics(mean=np.full(3, np.nan)), "finite statistics"),
    "negative clip": (lambda: _statistics(clip_obs=-1.0), "clip_obs.*>= 0"),
    "clip of NaN": (lambda: _statistics(clip_obs=float("nan")), "clip_obs"),
    "clip per component": (lambda: _statistics(clip_obs=np.ones(3)), "clip_obs.*a number"),
}  # fmt: skip


def _frozen(space: spaces.Space) -> VecNormalize:
    return VecNormalize(feed_env(space, ACTIONS, 1), training=False)


def normalised_twice() -> VecEnv:
    return VecNormalize(normalised(), training=False)


@pytest.mark.parametrize("name", REFUSED)
def test_refused_wrappers(name: str) -> None:
    make, words = REFUSED[name]
    env = make()
    size = int(np.prod(env.observation_space.shape))
    model = bounded(feed_env(spaces.Box(-9, 9, (size,), np.float32), ACTIONS, 1))
    with pytest.raises(InvalidArgumentError, match=words):
        policy_bound(model, env)
    with pytest.raises(InvalidArgumentError, match=words):
        action_map(model, env)


def test_a_second_normalisation_of_rewards_only_does_not_matter() -> None:
    env = VecNormalize(normalised(std=[1.0, 0.5, 2.0]), norm_obs=False)
    assert policy_bound(bounded(env), env).plain == pytest.approx(8.0, rel=1e-9)


def test_scalar_statistics_and_unscaled_clip_are_taken_as_numpy_does() -> None:
    env = _statistics(var=np.float64(4.0), clip_obs=np.inf, epsilon=0.0)
    assert policy_bound(bounded(env), env).observation_scale == (2.0, 2.0, 2.0)


def test_keys_may_come_in_another_order_behind_a_wrapper() -> None:
    """VecFrameStack sorts the keys of a Dict, VecNormalize does not."""
    entries = {"z": spaces.Box(-9, 9, (2,), np.float32), "a": spaces.Box(-9, 9, (2,), np.float32)}
    env = VecNormalize(feed_env(spaces.Dict(entries, sort_keys=False), ACTIONS, 1), training=False)
    env.obs_rms["z"].var, env.obs_rms["a"].var = np.array([1.0, 4.0]), np.array([9.0, 16.0])
    env.epsilon = 0.0
    stacked = VecFrameStack(env, 2)
    assert list(stacked.observation_space.spaces) == ["a", "z"] and list(env.observation_space.spaces) == [
        "z",
        "a",
    ]
    bound = policy_bound(bounded(stacked), stacked)
    assert bound.names[:5] == ("a[0]", "a[1]", "a[0]", "a[1]", "z[0]")
    assert bound.observation_scale == (3.0, 4.0, 3.0, 4.0, 1.0, 2.0, 1.0, 2.0)
