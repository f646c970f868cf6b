"""The tasks: Pong as the literature plays it, and a small one that needs nothing."""

from __future__ import annotations

import importlib
from typing import Any

import gymnasium
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecTransposeImage

from experiments.atari_pong_study.config import DOT, Config
from robustnn.envs import DotImageEnv
from robustnn.errors import RobustNNError

_HORIZON = 12


def require_atari() -> None:
    """Register the games of ale-py with gymnasium.

    Raises:
        RobustNNError: If ale-py or opencv is not installed.
    """
    try:
        package: Any = importlib.import_module("ale_py")
        importlib.import_module("cv2")
    except ImportError as error:
        raise RobustNNError(
            f"Atari: expected ale-py and opencv to be installed, got: {error}. Run: pip install 'robustnn[atari]'; "
            "--small and --smoke need neither."
        ) from error
    gymnasium.register_envs(package)


def make_env(config: Config, n_envs: int, seed: int) -> VecEnv:
    """Return environments whose observations are stacked uint8 frames with their channels first.

    Pong has SB3's `AtariWrapper` inside: 84 x 84 grey levels, every fourth frame, rewards by their sign.

    Args:
        config: Settings.
        n_envs: Number of environments.
        seed: Seed of the first one.

    Returns:
        The environments.

    Raises:
        RobustNNError: If the task needs a package that is missing.
    """
    if config.env_id == DOT:
        env = make_vec_env(lambda: DotImageEnv(horizon=_HORIZON), n_envs, seed=seed)
    else:
        require_atari()
        from stable_baselines3.common.atari_wrappers import AtariWrapper

        # The wrapper skips frames itself.
        env = make_vec_env(
            config.env_id, n_envs, seed=seed, env_kwargs={"frameskip": 1}, wrapper_class=AtariWrapper
        )
    return VecTransposeImage(VecFrameStack(env, config.frames))
