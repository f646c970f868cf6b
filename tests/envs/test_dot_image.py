"""The small task of images: its interface, its rewards, and the best return."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env

from robustnn.envs import DotImageEnv
from robustnn.envs.dot_image import dot_frame


@pytest.mark.parametrize("actions", [None, spaces.Box(-1.0, 1.0, (2,)), spaces.MultiBinary(2)])
def test_it_is_an_environment(actions: spaces.Space | None) -> None:
    check_env(DotImageEnv(actions), skip_render_check=True)
    env = DotImageEnv(actions)
    assert isinstance(env, gymnasium.Env)
    first = [env.reset(seed=4)[0] for _ in range(2)]
    assert np.array_equal(*first)


def test_pictures_show_the_column() -> None:
    for column in range(12):
        image = dot_frame(column)
        assert image.shape == (12, 12, 1) and image.dtype == np.uint8
        assert np.argwhere(image[..., 0]).tolist() == [[5, column], [6, column]] and image.max() == 255


@pytest.mark.parametrize("horizon", [1, 4, 12])
def test_the_best_return_is_that_of_going_to_the_middle(horizon: int) -> None:
    env = DotImageEnv(horizon=horizon)
    starts = set()
    for seed in range(40):
        image, _ = env.reset(seed=seed)
        start = column = int(image[5, :, 0].argmax())
        starts.add(start)
        total = 0.0
        for time in range(horizon):
            image, reward, terminated, truncated, _ = env.step(int(column < 6))
            column = int(image[5, :, 0].argmax())
            total += reward
            assert not terminated and truncated == (time == horizon - 1)
        steps = abs(start - 5.5) - 0.5
        # Having arrived the dot goes back and forth over the middle, which costs nothing.
        assert total == min(steps, horizon)
    assert starts == set(range(12))


def test_the_border_holds_the_dot() -> None:
    env = DotImageEnv(horizon=20)
    env.reset(seed=0)
    rewards = [env.step(0)[1] for _ in range(14)]
    assert rewards[-1] == 0.0 and env.step(1)[1] == 1.0
