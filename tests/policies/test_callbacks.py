"""`LogLipschitz` and `ScheduleLipschitz`: what the training log says, and how the bound moves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize

from robustnn.errors import InvalidArgumentError, UnsupportedSpaceError
from robustnn.policies import FreezeWeights, LogLipschitz, flatten_observation
from robustnn.policies.empirical import empirical_lipschitz, recent_observations
from tests.policies.toy import (
    ACTION_KINDS,
    ALGORITHMS,
    OBSERVATION_KINDS,
    algorithm_of,
    any_model,
    is_off_policy,
    make_steep,
    toy_model,
    toy_vec_env,
)

GAMMA, RAW, EMPIRICAL = "lipschitz/gamma", "lipschitz/raw_observation", "lipschitz/empirical"


class Records(KVWriter):
    """Keeps what is written to a log."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def write(self, key_values: dict[str, Any], key_excluded: Any, step: int = 0) -> None:
        self.rows.append(dict(key_values))

    def close(self) -> None:
        pass

    def of(self, key: str) -> list[float]:
        return [row[key] for row in self.rows if key in row]


class Dump(BaseCallback):
    """Writes the log at the end of every rollout, whatever the algorithm."""

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.logger.dump(self.num_timesteps)


def logged(model: BaseAlgorithm, steps: int, *callbacks: BaseCallback) -> Records:
    """What is in the log after every rollout."""
    records = Records()
    model.set_logger(Logger(None, [records]))
    model.learn(steps, callback=[*callbacks, Dump()], log_interval=10**9)
    return records


def model_on(name: str, env: Any, **policy_kwargs: Any) -> Any:
    """A model of an algorithm on an environment."""
    algorithm, policy = algorithm_of(name)
    case = ALGORITHMS[name]
    kwargs = {"lipschitz": case.lipschitz, "net_arch": [8, 8], **policy_kwargs}
    return algorithm(policy, env, policy_kwargs=kwargs, device="cpu", seed=0, **case.settings)


# LogLipschitz ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALGORITHMS)
def test_values_of_every_algorithm(name: str) -> None:
    model = any_model(name)
    steps = 96
    records = logged(model, steps, LogLipschitz(every=8 if is_off_policy(name) else None, empirical_every=33))
    expected = steps // 8 if is_off_policy(name) else steps // 32
    gamma, raw, empirical = (records.of(key) for key in (GAMMA, RAW, EMPIRICAL))
    assert len(gamma) == len(raw) == expected and len(empirical) == (3 if is_off_policy(name) else 2)
    assert gamma == [ALGORITHMS[name].lipschitz] * expected
    assert raw[-1] == model.policy.bound(require_frozen=False).plain
    assert all(0.0 < value <= raw[0] for value in empirical)


@pytest.mark.parametrize("name", ["PPO", "SAC", "DQN"])
def test_the_training_is_the_same_with_and_without(name: str) -> None:
    models = [
        any_model(name).learn(96, callback=callback)
        for callback in (None, [LogLipschitz(1, empirical_every=40), FreezeWeights()])
    ]
    for a, b in zip(*(model.policy.parameters() for model in models), strict=True):
        assert np.array_equal(a.detach().numpy(), b.detach().numpy())


@pytest.mark.parametrize("every", [None, 1, 100])
@pytest.mark.parametrize("name", ["A2C", "TD3"])
def test_how_often(name: str, every: int | None) -> None:
    records = logged(any_model(name), 320, LogLipschitz(every, empirical_every=None))
    rollouts = 320 // (2 if is_off_policy(name) else 32)
    assert len(records.rows) == rollouts and not records.of(EMPIRICAL)
    # At the end of the first rollout, and of those in which another 100 (or 1,000) steps are complete.
    other = {100: {"A2C": 3, "TD3": 4}[name], 1: rollouts, None: 1 if is_off_policy(name) else rollouts}
    assert len(records.of(GAMMA)) == other[every]


def test_continued_training_is_recorded_from_its_first_rollout_on() -> None:
    model, callback = toy_model(), LogLipschitz(1000)
    records = logged(model, 96, callback)
    model.learn(96, callback=[callback, Dump()], reset_num_timesteps=False)
    model.learn(96, callback=[callback, Dump()])
    assert [GAMMA in row for row in records.rows].count(True) == 3


@pytest.mark.parametrize("name", ["PPO", "SAC"])
def test_event_file(name: str, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    model = any_model(name, tensorboard_log=str(tmp_path))
    model.learn(200, callback=[LogLipschitz(32, empirical_every=1), FreezeWeights()], tb_log_name="run")
    events = accumulator.EventAccumulator(str(tmp_path / "run_1")).Reload()
    for key in (GAMMA, RAW, EMPIRICAL):
        values = [event.value for event in events.Scalars(key)]
        assert len(values) >= 2 and all(0.0 < value <= 4.0 for value in values)
    assert events.Scalars(GAMMA)[-1].value == 4.0


def test_observations_without_a_continuous_part() -> None:
    model = any_model("PPO", "discrete")
    records = logged(model, 64, LogLipschitz())
    assert records.of(GAMMA) == [4.0, 4.0] and not records.of(RAW) and not records.of(EMPIRICAL)
    with pytest.raises(UnsupportedSpaceError, match="continuous"):
        empirical_lipschitz(model)


def test_wrong_settings() -> None:
    for settings in ({"every": 0}, {"empirical_every": 0}, {"starts": 0}, {"iterations": -1}):
        with pytest.raises(InvalidArgumentError, match=next(iter(settings))):
            LogLipschitz(**settings)
    with pytest.raises(InvalidArgumentError, match="LogLipschitz out"):
        toy_model(policy="MlpPolicy").learn(32, callback=LogLipschitz())
    model = any_model("PPO")
    with pytest.raises(InvalidArgumentError, match="empty buffer of PPO"):
        recent_observations(model, 4)
    with pytest.raises(InvalidArgumentError, match="empty buffer of SAC"):
        empirical_lipschitz(any_model("SAC"))


# The empirical bound ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["PPO", "DQN"])
@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
def test_the_empirical_bound_attains_the_bound_of_a_steep_affine_policy(
    name: str, normalised: bool, scaled: bool
) -> None:
    """Its gain is the bound in every direction of the scaled observation, so the least fine sensor decides."""
    env = toy_vec_env(action_space=ACTION_KINDS["discrete"])
    if normalised:
        env = VecNormalize(env, clip_obs=1e6)
    scale = (0.5, 2.0, 20.0) if scaled else None
    model = model_on(name, env, net_arch=[], observation_scale=scale)
    model.learn(64)
    make_steep(model.policy)
    bound = model.policy.bound(env, require_frozen=False)
    found = empirical_lipschitz(model, iterations=200)
    assert found <= bound.plain * (1 + 1e-9)
    assert found == pytest.approx(bound.plain, rel=1e-5)


@pytest.mark.parametrize("name", ["PPO", "TD3"])
def test_the_empirical_bound_sees_squashing_and_clipping(name: str) -> None:
    """Where the action is at its limit, the gain is none."""
    model = any_model(name, policy_kwargs={"net_arch": []})
    model.learn(64)
    make_steep(model.policy)
    free = empirical_lipschitz(model)
    model.policy.lbdn.layers[-1].bias.data.fill_(1e4)
    assert empirical_lipschitz(model) < 1e-6 * free


def test_discrete_parts_stay_as_they_were_seen() -> None:
    """A jump of a discrete part may be far steeper per unit of a code; it is not counted."""
    model = any_model("PPO", "dict", "discrete")
    model.learn(64)
    observations = flatten_observation(model.observation_space, OBSERVATION_KINDS["dict"].sample())
    with np.errstate(all="raise"):
        value = empirical_lipschitz(model, iterations=100)
    assert 0.0 < value <= model.policy.bound().plain
    # All that the network sees is the one-hot part, which changes in jumps only.
    first = model.policy.lbdn.layers[0]
    n_out, start = first.out_features, 3
    codes = [k for k in range(len(observations)) if k not in range(start)]
    order = [key for key, _ in OBSERVATION_KINDS["dict"].spaces.items()]
    assert set(order) == {"a", "b", "m", "z"}
    continuous = _columns(model.observation_space, "z")
    first.weight.data[[n_out + k for k in continuous]] = 0.0
    assert len(codes) + 3 == len(observations)
    assert empirical_lipschitz(model, iterations=100) < 1e-9


def _columns(space: spaces.Dict, wanted: str) -> list[int]:
    """Where an entry lies in the flat observation."""
    zero = {key: np.zeros(part.shape, part.dtype) for key, part in space.spaces.items()}
    one = {**zero, wanted: np.ones(space.spaces[wanted].shape, space.spaces[wanted].dtype)}
    return np.flatnonzero(flatten_observation(space, one) - flatten_observation(space, zero)).tolist()


class Seen(BaseCallback):
    """Keeps the raw observations that actions were computed from."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[np.ndarray] = []

    def _on_rollout_start(self) -> None:
        self._keep()

    def _on_step(self) -> bool:
        self.rows.append(self.latest)
        self._keep()
        return True

    def _keep(self) -> None:
        inner = self.model.get_vec_normalize_env()
        raw = self.locals.get("new_obs", self.model._last_obs) if inner is None else inner.get_original_obs()
        self.latest = flatten_observation(self.model.observation_space, raw)


@pytest.mark.parametrize("name", ["PPO", "DQN"])
@pytest.mark.parametrize("kind", OBSERVATION_KINDS)
def test_recent_observations_are_those_that_were_seen(name: str, kind: str) -> None:
    model, seen = any_model(name, kind, "discrete"), Seen()
    model.learn(32, callback=seen)
    expected = np.concatenate(seen.rows)
    for count in (5, 1000):
        rows = recent_observations(model, count)
        assert rows.shape == (min(count, 32), expected.shape[1])
        distance = np.abs(rows[:, None] - expected).max(-1).min(1)
        assert distance.max() <= 1e-6 * np.abs(expected).max()


@pytest.mark.parametrize("name", ["PPO", "SAC"])
def test_recent_observations_are_raw_behind_normalisation(name: str) -> None:
    env = VecNormalize(toy_vec_env(action_space=ACTION_KINDS["box"]))
    model, seen = model_on(name, env), Seen()
    model.learn(96)
    env.training = False  # the same statistics when they are stored and when they are taken back
    seen.rows.clear()
    model.learn(32, callback=seen, reset_num_timesteps=False)
    rows, expected = recent_observations(model, 16), np.concatenate(seen.rows)
    near = np.abs(rows[:, None] - expected).max(-1).min(1)
    assert np.abs(expected).max() > 1.5
    if name == "PPO":
        assert near.max() < 1e-5
    else:  # the last 256 transitions: also earlier ones
        assert (near < 1e-6).any() and rows.shape == (16, 3)


def test_recent_observations_of_a_full_replay_buffer_are_the_last_ones() -> None:
    model, seen = any_model("SAC", n_envs=1, buffer_size=50), Seen()
    model.learn(120, callback=seen)
    rows = recent_observations(model, 3)  # of the last 48
    last = np.concatenate(seen.rows)[-48:]
    assert np.abs(rows[:, None] - last).max(-1).min(1).max() < 1e-6


def test_behind_a_stack_of_frames() -> None:
    env = VecFrameStack(VecNormalize(toy_vec_env(), clip_obs=1e6), 2)
    model = model_on("PPO", env, net_arch=[4])
    records = logged(model, 64, LogLipschitz(empirical_every=1))
    assert recent_observations(model, 8).shape == (8, 6)
    for low, high in zip(records.of(EMPIRICAL), records.of(RAW), strict=True):
        assert 0.0 < low <= high
