"""Copies of any gymnasium environment, each of whose episodes has its own seed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecCheckNan,
    VecEnv,
    VecEnvWrapper,
    VecMonitor,
    VecNormalize,
)

from robustnn.closedloop.perturb import Perturbation
from robustnn.envs.plant import Plant
from robustnn.errors import RobustNNError, invalid

__all__ = ["Copies", "Environment", "copies_of"]

Environment = str | Callable[[], gymnasium.Env[Any, Any]] | VectorEnv[Any, Any, Any] | VecEnv
"""What an environment may be given as: its id, a function that makes one, or copies of it."""

# Wrappers of SB3 that change neither the raw observation nor the raw reward, which are read from inside them.
_TRANSPARENT = (VecNormalize, VecMonitor, VecCheckNan)


class Copies(ABC):
    """Several copies of an environment, stepped together.

    A copy whose episode ended goes on with episodes that nobody looks at until the next `reset`, as
    every vector environment restarts ended episodes at some moment of its own choice.

    Attributes:
        count: Number of copies.
        observation_space: Space of one observation.
        action_space: Space of one action.
    """

    count: int
    observation_space: gymnasium.Space[Any]
    action_space: gymnasium.Space[Any]

    @abstractmethod
    def reset(self, seeds: Sequence[int]) -> Any:
        """Start one episode per copy with its seed and return the first observations."""

    @abstractmethod
    def step(self, actions: NDArray[Any]) -> tuple[Any, NDArray[Any], NDArray[np.bool_], NDArray[np.bool_]]:
        """Return observations, rewards, and which episodes have terminated and which were truncated.

        Where an episode has ended, the observation may be the first one of the next.
        """

    @abstractmethod
    def attribute(self, name: str) -> Any:
        """Return an attribute of the first copy, or None."""

    @abstractmethod
    def close(self) -> None:
        """Release what was made here; environments that were passed in stay open."""


class _Gymnasium(Copies):
    def __init__(self, envs: VectorEnv[Any, Any, Any], *, own: bool) -> None:
        self._envs, self._own = envs, own
        self.count = envs.num_envs
        self.observation_space, self.action_space = envs.single_observation_space, envs.single_action_space

    def reset(self, seeds: Sequence[int]) -> Any:
        observation, _ = self._envs.reset(seed=list(seeds))  # type: ignore[arg-type]
        return observation

    def step(self, actions: NDArray[Any]) -> tuple[Any, NDArray[Any], NDArray[np.bool_], NDArray[np.bool_]]:
        observation, reward, terminated, truncated, _ = self._envs.step(actions)
        return observation, np.array(reward), np.array(terminated), np.array(truncated)

    def attribute(self, name: str) -> Any:
        try:
            return self._envs.unwrapped.get_attr(name)[0]  # type: ignore[attr-defined]
        except AttributeError:
            return None

    def close(self) -> None:
        if self._own:
            self._envs.close()


class _StableBaselines(Copies):
    def __init__(self, envs: VecEnv) -> None:
        self._envs = envs
        self.count = envs.num_envs
        self.observation_space, self.action_space = envs.observation_space, envs.action_space

    def reset(self, seeds: Sequence[int]) -> Any:
        self._envs._seeds = list(seeds)  # `seed` could only give consecutive ones
        return self._envs.reset()

    def step(self, actions: NDArray[Any]) -> tuple[Any, NDArray[Any], NDArray[np.bool_], NDArray[np.bool_]]:
        observation, reward, done, infos = self._envs.step(actions)
        truncated = np.array([bool(info.get("TimeLimit.truncated", False)) for info in infos])
        return observation, np.array(reward), np.array(done) & ~truncated, np.array(done) & truncated

    def attribute(self, name: str) -> Any:
        try:
            return self._envs.get_attr(name, 0)[0]
        except AttributeError:
            return None

    def close(self) -> None:
        """Leave the environments of the caller open."""


def copies_of(env: Environment, count: int, perturbation: Perturbation, *, processes: bool = False) -> Copies:
    """Return copies of an environment.

    Args:
        env: An id, a function that makes an environment, gymnasium's `SyncVectorEnv` or `AsyncVectorEnv`, or SB3's
            `DummyVecEnv` or `SubprocVecEnv`. Of a `VecNormalize` around it, what is inside is stepped.
        count: Number of copies, where they are made here.
        perturbation: May change the parameters of a plant of `robustnn.envs`.
        processes: Whether every copy made here runs in a process of its own.

    Returns:
        The copies.

    Raises:
        InvalidArgumentError: If the environment is of another kind, or its parameters cannot be changed.
    """
    if isinstance(env, str) or (callable(env) and not isinstance(env, (VectorEnv, VecEnv, gymnasium.Env))):
        make = partial(_make, env, perturbation)
        kind = AsyncVectorEnv if processes else SyncVectorEnv
        return _Gymnasium(kind([make] * count), own=True)
    if changes_plant(perturbation):
        raise invalid(
            "env", "an id or a function that makes it, as parameters of its plant are to be changed",
            type(env).__name__, "Pass a function.",
        )  # fmt: skip
    if isinstance(env, VectorEnv):
        inside = env.unwrapped
        mode = getattr(env.metadata.get("autoreset_mode"), "name", "NEXT_STEP")
        if not isinstance(inside, (SyncVectorEnv, AsyncVectorEnv)) or mode == "DISABLED":
            got = f"{type(inside).__name__} with autoreset mode {mode}"
            fix = "Its copies need a seed each: pass the id or a function that makes one environment."
            raise invalid("env", "a SyncVectorEnv or AsyncVectorEnv that resets itself", got, fix)
        if env is not inside and not (type(env) is RecordEpisodeStatistics and env.env is inside):
            raise invalid(
                "env", "no vector wrapper, which may change observations and rewards", type(env).__name__,
                "Wrap every environment instead.",
            )  # fmt: skip
        return _Gymnasium(env, own=False)
    if isinstance(env, VecEnv):
        return _StableBaselines(_inside(env))
    fix = "Pass for example lambda: gymnasium.make('Hopper-v5')."
    raise invalid("env", "an id, a function that makes one, or copies of one", type(env).__name__, fix)


def changes_plant(perturbation: Perturbation) -> bool:
    """Whether a perturbation changes parameters of the plant."""
    return bool(getattr(perturbation, "parameters", None))


def _make(
    env: str | Callable[[], gymnasium.Env[Any, Any]], perturbation: Perturbation
) -> gymnasium.Env[Any, Any]:
    made = gymnasium.make(env) if isinstance(env, str) else env()
    if not isinstance(made, gymnasium.Env):
        got = f"a function that returns {type(made).__name__}"
        raise invalid("env", "a function that returns a gymnasium.Env", got, "Call gymnasium.make in it.")
    if changes_plant(perturbation):
        plant = getattr(made.unwrapped, "plant", None)
        if not isinstance(plant, Plant):
            raise invalid(
                "perturbation", "no other parameters for an environment without a plant", perturbation.describe(),
                "Change the parameters where the environment is made.",
            )  # fmt: skip
        made.unwrapped.plant = perturbation.plant(plant)  # type: ignore[attr-defined]
    return made


def _inside(env: VecEnv) -> VecEnv:
    """The bare copies inside wrappers that leave raw observations and rewards alone."""
    while isinstance(env, VecEnvWrapper):
        if not isinstance(env, _TRANSPARENT):
            raise invalid(
                "env", "no vector wrapper but VecNormalize, VecMonitor and VecCheckNan", type(env).__name__,
                "Put what it does into each environment, for example gymnasium's FrameStackObservation.",
            )  # fmt: skip
        env = env.venv
    if not isinstance(env, (DummyVecEnv, SubprocVecEnv)):
        fix = "Its copies share one seed: for a plant use evaluate(policy, plant)."
        raise invalid("env", "a DummyVecEnv or SubprocVecEnv", type(env).__name__, fix)
    if not hasattr(env, "_seeds"):
        raise RobustNNError(
            "env: expected seeds per copy in this version of Stable-Baselines3. Pass an id instead."
        )
    return env
