"""Environments and trained models from ids and files."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import gymnasium
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.utils import check_for_correct_spaces
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from robustnn.cli.names import algorithm_class
from robustnn.closedloop import TorchVecEnv
from robustnn.envs import PlantEnv
from robustnn.envs.plant import Plant
from robustnn.errors import CheckpointError, check_positive_int, invalid

__all__ = ["check_env", "load_model", "load_statistics", "make_env", "plant_of", "statistics_file"]

# Entries of a model's file that tell its algorithm; the first that fits.
_MARKS = (
    ({"cg_max_steps"}, "trpo"),
    ({"clip_range"}, "ppo"),
    ({"n_quantiles"}, "qrdqn"),
    ({"exploration_fraction"}, "dqn"),
    ({"top_quantiles_to_drop_per_net"}, "tqc"),
    ({"target_policy_noise"}, "td3"),
    ({"target_entropy", "policy_delay"}, "crossq"),
    ({"target_entropy"}, "sac"),
    ({"ent_coef", "gae_lambda"}, "a2c"),
)
# Modules of policies of MaskablePPO, which has the entries of PPO.
_MASKABLE = ("sb3_contrib.common.maskable", "robustnn.policies.contrib")


def plant_of(env_id: str, env_kwargs: dict[str, Any] | None = None) -> Plant | None:
    """Return the plant of an environment of this package, or None for any other environment."""
    env = _made(env_id, env_kwargs or {})
    base = env.unwrapped
    env.close()
    return base.plant if isinstance(base, PlantEnv) else None


def make_env(
    env_id: str,
    n_envs: int = 1,
    *,
    seed: int = 0,
    device: str = "cpu",
    env_kwargs: dict[str, Any] | None = None,
) -> VecEnv:
    """Return copies of an environment; those of a plant are simulated together, on the device."""
    plant = plant_of(env_id, env_kwargs)
    n_envs = check_positive_int("n_envs", n_envs)
    if plant is None:
        return make_vec_env(env_id, n_envs, seed=seed, env_kwargs=env_kwargs)
    copies = TorchVecEnv(plant, n_envs, device=device)
    copies.seed(seed)
    return copies


def _made(env_id: str, env_kwargs: dict[str, Any]) -> gymnasium.Env[Any, Any]:
    try:
        return gymnasium.make(env_id, **env_kwargs)
    except (gymnasium.error.Error, ImportError, TypeError, ValueError) as error:
        raise invalid(
            "env", "an environment that gymnasium can make", repr(env_id), f"It says: {error}"
        ) from error


def load_model(path: Path, algo: str | None = None, device: str = "cpu") -> BaseAlgorithm:
    """Load a model that Stable-Baselines3 saved.

    Args:
        path: The zip file.
        algo: Its algorithm; None to tell it from the entries of the file.
        device: Where it goes.

    Raises:
        CheckpointError: If there is no such file, or it is not one of Stable-Baselines3.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            data = json.loads(archive.read("data"))
            names = set(archive.namelist())
        if not isinstance(data, dict) or "policy_class" not in data or "policy.pth" not in names:
            raise ValueError("it has no policy")
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"MODEL: expected a zip file of Stable-Baselines3, got {path} ({error}). Check the path."
        ) from error
    chosen = algorithm_class(algo if algo is not None else _algorithm_of(data, path))
    try:
        return chosen.load(path, device=device)
    except Exception as error:  # whatever unpickling and rebuilding may raise
        raise CheckpointError(
            f"MODEL: expected a model of {chosen.__name__}, got {path} ({type(error).__name__}: {error}). "
            "Name its algorithm with --algo, and install what it was made with."
        ) from error


def _algorithm_of(data: dict[str, Any], path: Path) -> str:
    for entries, algo in _MARKS:
        if entries <= set(data):
            policy = data["policy_class"]
            module = str(policy.get("__module__")) if isinstance(policy, dict) else ""
            return "maskableppo" if algo == "ppo" and module.startswith(_MASKABLE) else algo
    raise CheckpointError(
        f"MODEL: expected the entries of a known algorithm, got others in {path}. Give --algo."
    )


def statistics_file(model: Path, given: Path | None) -> Path | None:
    """Return the saved VecNormalize of a model: the one given, or the one beside it if there is one."""
    beside = model.with_name("vecnormalize.pkl")
    return given if given is not None or not beside.exists() else beside


def load_statistics(file: Path | None, vec_env: VecEnv) -> VecEnv:
    """Return the environment behind the saved VecNormalize, with its statistics frozen; as it is without a file."""
    if file is None:
        return vec_env
    try:
        wrapped = VecNormalize.load(str(file), vec_env)
    except Exception as error:  # whatever unpickling may raise
        raise CheckpointError(
            f"--vecnormalize: expected a saved VecNormalize for this environment, got {file} "
            f"({type(error).__name__}: {error}). Check the path."
        ) from error
    if not isinstance(wrapped, VecNormalize):
        raise CheckpointError(f"--vecnormalize: expected a saved VecNormalize, got another object in {file}.")
    wrapped.training = False
    return wrapped


def check_env(model: BaseAlgorithm, vec_env: VecEnv, env_id: str) -> None:
    """Raise unless an environment has the spaces that a model was made for."""
    try:
        check_for_correct_spaces(vec_env, model.observation_space, model.action_space)
    except ValueError as error:
        raise invalid("--env", "the spaces that the model was made for", repr(env_id), f"{error}.") from error
