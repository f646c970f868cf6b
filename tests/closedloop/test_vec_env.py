from __future__ import annotations

import copy
import math
import pickle
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize

from robustnn.closedloop.vec_env import TorchVecEnv
from robustnn.envs import Pendulum, Plant, PlantEnv
from robustnn.errors import InvalidArgumentError, NonFiniteError, RobustNNError, ShapeError


@dataclass(frozen=True)
class Drift(Plant):
    """x+ = x + speed u, terminal beyond 2: episodes of different lengths."""

    n_x: ClassVar[int] = 1
    n_u: ClassVar[int] = 1
    n_y: ClassVar[int] = 1
    speed: float = 1.0
    dt: float = 1.0
    horizon: int = 4

    @property
    def observation_space(self) -> spaces.Box:
        return spaces.Box(-9.0, 9.0, (1,), np.float32)

    @property
    def action_space(self) -> spaces.Box:
        return spaces.Box(-1.0, 1.0, (1,), np.float32)

    def initial(self, uniform: Any) -> Any:
        return 0.5 * uniform

    def transition(self, state: Any, action: Any) -> Any:
        return state + self.speed * action

    def observation(self, state: Any) -> Any:
        return 1.0 * state

    def reward(self, state: Any, action: Any, next_state: Any) -> Any:
        return next_state[..., 0]

    def terminal(self, state: Any) -> Any:
        return state[..., 0] > 2.0


def random_actions(steps: int, copies: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1.1, 1.1, (steps, copies, 1)).astype(np.float32)


@pytest.mark.parametrize("plant", [Pendulum(horizon=30), Drift()], ids=["pendulum", "drift"])
def test_equals_dummy_vec_env_of_monitored_environments(plant: Plant) -> None:
    copies, steps = 5, 70
    reference = DummyVecEnv([lambda: Monitor(PlantEnv(plant))] * copies)
    env = TorchVecEnv(plant, copies, dtype=torch.float64)
    reference.seed(0)
    env.seed(0)
    reference.reset()

    def starts() -> list[np.ndarray]:
        return [np.array(state) for state in reference.get_attr("state")]

    env.set_options([{"state": state} for state in starts()])
    env.reset()
    ended = 0
    for actions in random_actions(steps, copies):
        theirs, ours = reference.step(actions), env.step(actions)
        np.testing.assert_array_equal(ours[2], theirs[2])
        np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-6, atol=1e-6)
        assert [array.dtype for array in ours[:3]] == [array.dtype for array in theirs[:3]]
        assert [array.shape for array in ours[:3]] == [array.shape for array in theirs[:3]]
        for index in range(copies):
            info, expected = ours[3][index], theirs[3][index]
            assert set(info) == set(expected)
            assert info["TimeLimit.truncated"] == expected["TimeLimit.truncated"]
            assert type(info["TimeLimit.truncated"]) is bool
            if not theirs[2][index]:
                np.testing.assert_allclose(ours[0][index], theirs[0][index], rtol=1e-6, atol=1e-6)
                continue
            ended += 1
            np.testing.assert_allclose(
                info["terminal_observation"], expected["terminal_observation"], atol=1e-6
            )
            assert info["episode"]["l"] == expected["episode"]["l"]
            assert info["episode"]["r"] == pytest.approx(expected["episode"]["r"], rel=1e-5, abs=1e-5)
            assert [type(info["episode"][key]) for key in "rlt"] == [float, int, float]
            # The two draw new starts from other generators: continue from the reference's.
            env.set_attr("state", starts()[index], indices=index)
    assert ended >= 2 * copies


def test_float64_states_follow_the_gymnasium_environment_exactly() -> None:
    plant = Pendulum()
    single, env = PlantEnv(plant), TorchVecEnv(plant, 3, dtype=torch.float64)
    single.reset(seed=1)
    env.set_options({"state": single.state})
    np.testing.assert_array_equal(env.reset()[0], single._observe(single.state))
    for actions in random_actions(100, 1):
        single.step(actions[0])
        env.step(np.repeat(actions, 3, axis=0))
        np.testing.assert_allclose(env.state.numpy(), np.tile(single.state, (3, 1)), rtol=1e-11, atol=1e-11)


def test_terminated_and_truncated_are_told_apart() -> None:
    env = TorchVecEnv(Drift(), 3)
    env.set_options([{"state": [1.5]}, {"state": [0.0]}, {"state": [-1.5]}])
    env.reset()
    up = np.ones((3, 1), np.float32)
    observations, _, dones, infos = env.step(up)
    assert dones.tolist() == [True, False, False]
    assert infos[0]["TimeLimit.truncated"] is False and infos[0]["terminal_observation"] == [2.5]
    assert 0.0 <= observations[0, 0] < 0.5  # the first observation of the new episode
    env.set_attr("state", [-9.0], indices=0)
    for _ in range(2):
        _, _, dones, infos = env.step(up)
    assert dones.tolist() == [False, True, False] and infos[1]["TimeLimit.truncated"] is False
    _, _, dones, infos = env.step(up)
    assert dones.tolist() == [False, False, True]  # state 2.5 at the horizon: terminated, not truncated
    assert infos[2]["TimeLimit.truncated"] is False
    _, _, dones, infos = env.step(up)
    assert dones.tolist() == [True, True, False]
    assert [info["TimeLimit.truncated"] for info in infos] == [True, False, False]
    assert infos[0]["episode"]["l"] == 4


def test_episode_return_is_the_sum_of_rewards() -> None:
    env = TorchVecEnv(Pendulum(horizon=20), 4)
    env.seed(0)
    env.reset()
    for _ in range(2):
        total = np.zeros(4)
        for actions in random_actions(20, 4):
            _, rewards, dones, infos = env.step(actions)
            total += rewards
        assert dones.all()
        np.testing.assert_allclose([info["episode"]["r"] for info in infos], total, atol=1e-6)
        assert all(info["episode"]["l"] == 20 for info in infos)


def run(env: TorchVecEnv, steps: int) -> np.ndarray:
    first = env.reset()
    return np.stack([first] + [env.step(actions)[0] for actions in random_actions(steps, env.num_envs)])


def test_seeds_reproduce_starts_also_after_automatic_resets() -> None:
    env, other = TorchVecEnv(Pendulum(horizon=5), 4), TorchVecEnv(Pendulum(horizon=5), 4)
    assert env.seed(7) == [7, 8, 9, 10]
    other.seed(7)
    first = run(env, 12)
    np.testing.assert_array_equal(first, run(other, 12))
    assert not np.array_equal(first, run(env, 12))  # a seed serves one reset
    env.seed(7)
    np.testing.assert_array_equal(first, run(env, 12))
    env.seed(8)
    assert not np.array_equal(first[0], env.reset())
    assert len(np.unique(first[0], axis=0)) == 4
    unseeded = TorchVecEnv(Pendulum(), 4), TorchVecEnv(Pendulum(), 4)
    assert not np.array_equal(unseeded[0].reset(), unseeded[1].reset())


def test_starts_do_not_depend_on_the_dtype() -> None:
    double, single = TorchVecEnv(Pendulum(), 4, dtype=torch.float64), TorchVecEnv(Pendulum(), 4)
    for env in (double, single):
        env.seed(3)
        env.reset()
    assert single.state.dtype == torch.float32
    np.testing.assert_allclose(single.state.numpy(), double.state.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
def test_device_gives_the_same_trajectories() -> None:
    cpu, gpu = (TorchVecEnv(Pendulum(), 8, device=device, dtype=torch.float64) for device in ("cpu", "cuda"))
    cpu.seed(0)
    gpu.seed(0)
    np.testing.assert_allclose(run(cpu, 50), run(gpu, 50), rtol=1e-6, atol=1e-6)


def test_returned_arrays_and_infos_belong_to_the_caller() -> None:
    env, twin = TorchVecEnv(Drift(), 2), TorchVecEnv(Drift(), 2)
    for one in (env, twin):
        one.seed(0)
        one.reset()
    for actions in random_actions(12, 2):
        ours, theirs = env.step(actions), twin.step(actions)
        for mine, other in zip(ours[:3], theirs[:3], strict=True):
            np.testing.assert_array_equal(mine, other)
        assert [set(info) for info in ours[3]] == [set(info) for info in theirs[3]]
        assert ours[0].flags.c_contiguous
        actions[:] = 99.0
        for array in ours[:3]:
            array[:] = 1
        for info in ours[3]:
            info.clear()
            info["mine"] = True
    kept = env.step(np.zeros((2, 1)))[0]
    value = kept.copy()
    env.step(np.ones((2, 1)))
    np.testing.assert_array_equal(kept, value)
    env.state[:] = 1e6
    assert env.state.max() < 1e6


def test_options_hold_for_one_reset() -> None:
    env = TorchVecEnv(Pendulum(), 2)
    env.set_options({"state": [0.0, 0.0]})
    np.testing.assert_array_equal(env.reset(), [[1.0, 0.0, 0.0]] * 2)
    assert not np.array_equal(env.reset(), [[1.0, 0.0, 0.0]] * 2)
    assert env.reset_infos == [{}, {}]


def test_attributes() -> None:
    env = TorchVecEnv(Pendulum(), 3)
    env.reset()
    assert env.get_attr("max_torque") == [2.0] * 3
    assert env.get_attr("render_mode", indices=[0, 2]) == [None] * 2
    assert env.has_attr("inertia") and not env.has_attr("nonsense")
    np.testing.assert_array_equal(np.stack(env.get_attr("state")), env.state.numpy())
    env.set_attr("state", [1.0, 2.0], indices=[1])
    np.testing.assert_array_equal(env.state[1].numpy(), [1.0, 2.0])
    env.set_attr("max_torque", 3.0)
    assert env.get_attr("plant") == [Pendulum(max_torque=3.0)] * 3
    env.set_attr("state", [0.0, 0.0])
    env.step(np.ones((3, 1)))
    assert env.state[0, 1].item() == pytest.approx(0.05 * 3.0 / Pendulum().inertia, rel=1e-6)
    env.set_attr("plant", Pendulum())
    assert env.get_attr("max_torque", indices=1) == [2.0]
    hanging = np.array([math.pi, 0.0])
    np.testing.assert_allclose(env.env_method("observation", hanging, indices=[0])[0], [-1, 0, 0], atol=1e-15)
    with pytest.raises(AttributeError, match="max_torque"):
        env.set_attr("colour", "red")
    with pytest.raises(InvalidArgumentError, match="^indices: .*'max_torque'"):
        env.set_attr("max_torque", 1.0, indices=[0])
    with pytest.raises(AttributeError, match="nonsense"):
        env.env_method("nonsense")


def test_says_it_is_monitored_and_nothing_else() -> None:
    env = TorchVecEnv(Pendulum(), 2)
    assert env.env_is_wrapped(Monitor) == [True, True]
    assert env.env_is_wrapped(TimeLimit, indices=0) == [False]


def test_pictures() -> None:
    plant = Pendulum()
    env = TorchVecEnv(plant, 3, render_mode="rgb_array")
    env.seed(0)
    env.reset()
    images = env.get_images()
    np.testing.assert_array_equal(images[1], plant.render_image(env.state[1].double().numpy(), None))
    env.step(np.full((3, 1), 0.8))
    assert env.render().shape == (800, 800, 3)
    assert not np.array_equal(env.get_images()[1], images[1])
    assert TorchVecEnv(plant, 2).get_images() == [None, None]


@pytest.mark.parametrize(
    ("actions", "error", "message"),
    [
        (np.full((3, 1), np.nan), NonFiniteError, "^actions: .*3 of 3 NaN"),
        (np.zeros(3), ShapeError, r"^actions: expected shape \(3, 1\), got \(3,\)"),
        (np.zeros((2, 1)), ShapeError, r"^actions: expected shape \(3, 1\), got \(2, 1\)"),
    ],
)
def test_bad_actions_are_named(actions: np.ndarray, error: type[Exception], message: str) -> None:
    env = TorchVecEnv(Pendulum(), 3)
    env.reset()
    with pytest.raises(error, match=message):
        env.step(actions)


def test_other_bad_calls() -> None:
    with pytest.raises(InvalidArgumentError, match="^num_envs"):
        TorchVecEnv(Pendulum(), 0)
    with pytest.raises(InvalidArgumentError, match="^dtype: .*int64"):
        TorchVecEnv(Pendulum(), 1, dtype=torch.int64)
    with pytest.raises(InvalidArgumentError, match="^render_mode: .*'human'"):
        TorchVecEnv(Pendulum(), 1, render_mode="human")
    with pytest.raises(InvalidArgumentError, match="^render_mode: .*Drift has no render_image"):
        TorchVecEnv(Drift(), 1, render_mode="rgb_array")
    env = TorchVecEnv(Pendulum(), 2)
    with pytest.raises(RobustNNError, match="reset"):
        env.step(np.zeros((2, 1)))
    env.reset()
    with pytest.raises(RobustNNError, match="step_async"):
        env.step_wait()
    env.set_options({"state": [0.0]})
    with pytest.raises(ShapeError, match=r"^state: expected shape \(2,\)"):
        env.reset()
    env.set_options({"speed": 0.0})
    with pytest.raises(InvalidArgumentError, match="^options: .*'speed'"):
        env.reset()


def test_wrappers_of_sb3_work() -> None:
    env = VecNormalize(VecFrameStack(TorchVecEnv(Pendulum(horizon=6), 4), 2), norm_reward=False)
    env.seed(0)
    assert env.reset().shape == (4, 6)
    for actions in random_actions(6, 4):
        observations, _, dones, infos = env.step(actions)
    assert dones.all() and infos[0]["terminal_observation"].shape == (6,)
    assert np.abs(observations).max() <= 10.0


def test_copies_continue_alike() -> None:
    env = TorchVecEnv(Pendulum(), 2)
    env.seed(0)
    env.reset()
    twins = [copy.deepcopy(env), pickle.loads(pickle.dumps(env))]
    expected = env.step(np.ones((2, 1)))
    for twin in twins:
        np.testing.assert_array_equal(twin.step(np.ones((2, 1)))[0], expected[0])


def test_ppo_trains_logs_and_is_evaluated_without_warnings() -> None:
    env = TorchVecEnv(Pendulum(horizon=16), 16)
    model = PPO("MlpPolicy", env, n_steps=32, batch_size=256, n_epochs=1, seed=0, device="cpu")
    model.learn(1024)
    assert len(model.ep_info_buffer) == 64
    assert {info["l"] for info in model.ep_info_buffer} == {16}
    mean, _ = evaluate_policy(model, env, n_eval_episodes=16)
    assert -16 * 45.0 < mean < 0.0


def test_no_graph_is_recorded() -> None:
    env = TorchVecEnv(Pendulum(), 2)
    env.reset()
    with torch.enable_grad():
        env.step(np.ones((2, 1)))
    assert not env.state.requires_grad
