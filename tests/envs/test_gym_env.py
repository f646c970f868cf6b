from __future__ import annotations

import importlib.util
import math
import sys
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.error import DependencyNotInstalled
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv

import robustnn.envs
from robustnn.envs import Pendulum, PendulumSwingUpEnv, Plant, PlantEnv
from robustnn.envs.rendering import Canvas

ENV_ID = "robustnn/PendulumSwingUp-v0"
QUALIFIED_ID = f"robustnn.envs:{ENV_ID}"


class Integrator(Plant):
    """x+ = x + u, terminal beyond 2, no drawing."""

    n_x = n_u = n_y = 1
    dt = 1.0
    horizon = 3

    @property
    def observation_space(self) -> spaces.Box:
        return spaces.Box(-5.0, 5.0, (1,), np.float32)

    @property
    def action_space(self) -> spaces.Box:
        return spaces.Box(-1.0, 1.0, (1,), np.float32)

    def initial(self, uniform: Any) -> Any:
        return 0.0 * uniform

    def transition(self, state: Any, action: Any) -> Any:
        return state + action

    def observation(self, state: Any) -> Any:
        return state

    def reward(self, state: Any, action: Any, next_state: Any) -> Any:
        return -(next_state[..., 0] ** 2)

    def terminal(self, state: Any) -> Any:
        return state[..., 0] > 2.0


@pytest.mark.parametrize("direct", [True, False])
def test_checkers_of_both_libraries_are_silent(direct: bool) -> None:
    env: gymnasium.Env
    if direct:
        env = PlantEnv(Pendulum(), render_mode="rgb_array")
        env.spec = gymnasium.spec(ENV_ID)
    else:
        env = gymnasium.make(QUALIFIED_ID, render_mode="rgb_array").unwrapped
    no_pygame = importlib.util.find_spec("pygame") is None
    gymnasium_check_env(env, skip_render_check=no_pygame)
    sb3_check_env(env)


def test_register_twice_and_every_way_to_the_id() -> None:
    before = gymnasium.registry[ENV_ID]
    robustnn.envs.register()
    assert gymnasium.registry[ENV_ID] is before
    assert isinstance(gymnasium.make(ENV_ID).unwrapped, PendulumSwingUpEnv)
    heavy = gymnasium.make(QUALIFIED_ID, plant=Pendulum(mass=2.0)).unwrapped
    assert isinstance(heavy, PlantEnv) and heavy.plant == Pendulum(mass=2.0)
    spec = gymnasium.spec(ENV_ID)
    assert gymnasium.envs.registration.EnvSpec.from_json(spec.to_json()) == spec


def test_step_is_the_plant_in_float64() -> None:
    plant = Pendulum()
    env = PlantEnv(plant)
    observation, info = env.reset(seed=3)
    state, actions = env.state, np.random.default_rng(0).uniform(-1.2, 1.2, (60, 1)).astype(np.float32)
    assert info == {} and observation.dtype == np.float32
    for action in actions:
        nxt = plant.transition(state, action.astype(np.float64))
        observation, reward, terminated, truncated, info = env.step(action)
        np.testing.assert_array_equal(env.state, nxt)
        expected = np.array([math.cos(nxt[0]), math.sin(nxt[0]), nxt[1]])
        np.testing.assert_allclose(observation, expected, rtol=2e-7)
        assert isinstance(reward, float) and reward == float(plant.reward(state, action.astype(float), nxt))
        assert (terminated, truncated, info) == (False, False, {})
        state = nxt
    env.state[0] = 99.0
    np.testing.assert_array_equal(env.state, state)


def test_seeds_reproduce_and_differ() -> None:
    env, other = PlantEnv(Pendulum()), gymnasium.make(QUALIFIED_ID)
    first = [env.reset(seed=5)[0], env.reset()[0]]
    again = [other.reset(seed=5)[0], other.reset()[0]]
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first[0], first[1])
    assert not np.array_equal(env.reset(seed=6)[0], first[0])
    start = Pendulum().initial(np.random.default_rng(5).random(2))
    env.reset(seed=5)
    np.testing.assert_array_equal(env.state, start)


@pytest.mark.parametrize("made", [True, False])
def test_truncated_once_at_the_horizon(made: bool) -> None:
    plant = Pendulum(horizon=7)
    env: gymnasium.Env = gymnasium.make(QUALIFIED_ID, plant=plant) if made else PlantEnv(plant)
    for _ in range(2):
        env.reset(seed=0)
        flags = [env.step(np.zeros(1, np.float32))[2:4] for _ in range(7)]
        assert flags == [(False, False)] * 6 + [(False, True)]


def test_default_horizon_through_make() -> None:
    env = gymnasium.make(QUALIFIED_ID)
    env.reset(seed=0)
    flags = [env.step(np.zeros(1, np.float32))[3] for _ in range(200)]
    assert flags.index(True) == 199


def test_terminal_states_end_the_episode() -> None:
    env = PlantEnv(Integrator())
    env.reset(options={"state": [0.5]})
    assert env.step(np.ones(1))[2:4] == (False, False)
    assert env.step(np.ones(1))[2:4] == (True, False)


def test_start_at_a_chosen_state() -> None:
    env = PlantEnv(Pendulum())
    observation, _ = env.reset(seed=0, options={"state": [math.pi / 2, 0.5]})
    np.testing.assert_allclose(observation, [0.0, 1.0, 0.5], atol=1e-7)
    env.reset()
    assert env.state[0] != math.pi / 2


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (np.array([np.nan]), "^action: expected finite"),
        (np.array([np.inf]), "^action: expected finite"),
        (np.zeros(2), r"^action: expected shape \(1,\), got \(2,\)"),
        (np.zeros((1, 1)), r"^action: expected shape \(1,\), got \(1, 1\)"),
        (np.array(0.5), r"^action: expected shape \(1,\), got \(\)"),
    ],
)
def test_bad_actions_are_named(action: Any, message: str) -> None:
    env = PlantEnv(Pendulum())
    env.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        env.step(action)


def test_other_bad_calls() -> None:
    env = PlantEnv(Pendulum())
    with pytest.raises(RuntimeError, match="reset"):
        env.step(np.zeros(1))
    with pytest.raises(ValueError, match="^options: .*'speed'"):
        env.reset(options={"speed": 1.0})
    with pytest.raises(ValueError, match=r"^options\['state'\]: expected shape \(2,\)"):
        env.reset(options={"state": [1.0]})
    with pytest.raises(ValueError, match="^render_mode: .*'ansi'"):
        PlantEnv(Pendulum(), render_mode="ansi")
    with pytest.raises(ValueError, match="^render_mode: .*Integrator has no render_image"):
        PlantEnv(Integrator(), render_mode="rgb_array")


def test_large_actions_saturate() -> None:
    env, limit = PlantEnv(Pendulum()), PlantEnv(Pendulum())
    env.reset(seed=0)
    limit.reset(seed=0)
    ours, theirs = env.step(np.array([50.0])), limit.step(np.array([1.0]))
    np.testing.assert_array_equal(ours[0], theirs[0])
    assert ours[1] == theirs[1]


def red_pixels(image: np.ndarray) -> np.ndarray:
    """Rows and columns of the rod's colour, shape (n, 2)."""
    channels = image.astype(int)
    return np.argwhere(channels[..., 0] - channels[..., 2] > 100)


@pytest.mark.parametrize("theta", [0.0, 0.7, math.pi / 2, 2.5, math.pi, -1.1, 7.0])
def test_picture_shows_the_rod_where_it_is(theta: float) -> None:
    env = PlantEnv(Pendulum(), render_mode="rgb_array")
    env.reset(options={"state": [theta, 0.0]})
    image = env.render()
    assert image is not None and image.dtype == np.uint8 and image.shape == (400, 400, 3)
    rows, columns = red_pixels(image).mean(axis=0)
    metre = 400 / 2.5
    # The middle of the rod, half a metre from the pivot; counter-clockwise from the top of the picture.
    assert (columns - 199.5) / metre == pytest.approx(-0.5 * math.sin(theta), abs=0.02)
    assert (199.5 - rows) / metre == pytest.approx(0.5 * math.cos(theta), abs=0.02)


def test_picture_changes_with_state_and_torque() -> None:
    plant = Pendulum()
    state = np.array([2.0, 0.0])
    still, left, right = (plant.render_image(state, np.array([a])) for a in (0.0, 1.0, -1.0))
    np.testing.assert_array_equal(still, plant.render_image(state, None))
    assert not np.array_equal(still, plant.render_image(np.array([2.1, 0.0]), None))
    # Positive torque: the arrow turns counter-clockwise from the top, hence through the left half.
    for image, sign in ((left, -1.0), (right, 1.0)):
        blue = np.argwhere(image[..., 2].astype(int) - image[..., 0] > 80)
        assert sign * (blue[:, 1].mean() - 199.5) > 10.0
    assert plant.render_image(state, None, size=64).shape == (64, 64, 3)


def test_canvas_disc_has_the_right_area_and_clips_at_the_edge() -> None:
    canvas = Canvas(200, half_width=1.0)
    canvas.disc((0.0, 0.0), diameter=1.0, color=(0, 0, 0))
    dark = (255.0 - canvas.image()[..., 0].astype(float)).sum() / 255.0
    assert dark == pytest.approx(math.pi * 50.0**2, rel=2e-3)
    outside = Canvas(50, half_width=1.0)
    outside.line((5.0, 5.0), (6.0, 6.0), width=0.1, color=(0, 0, 0))
    assert (outside.image() == 255).all()


def test_human_mode_without_pygame_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pygame", None)
    env = PlantEnv(Pendulum(), render_mode="human")
    with pytest.raises(DependencyNotInstalled, match="pip install pygame"):
        env.reset(seed=0)
    env.close()


def test_human_mode_opens_and_closes_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pygame")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    env = PlantEnv(Pendulum(), render_mode="human")
    env.reset(seed=0)
    env.step(np.zeros(1))
    assert env.render() is None
    env.close()
    env.close()


def test_workers_under_spawn_find_the_id() -> None:
    env = make_vec_env(
        QUALIFIED_ID, n_envs=1, seed=1, vec_env_cls=SubprocVecEnv, vec_env_kwargs={"start_method": "spawn"}
    )
    try:
        first = env.reset()
        observation, rewards, dones, infos = env.step(np.zeros((1, 1), np.float32))
    finally:
        env.close()
    local = PlantEnv(Pendulum())
    np.testing.assert_array_equal(first[0], local.reset(seed=1)[0])
    assert observation.shape == (1, 3) and rewards.shape == (1,) and not dones.any() and len(infos) == 1
