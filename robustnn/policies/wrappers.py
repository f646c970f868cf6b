"""What stands between an environment and a policy: the vector wrappers, their frames, and wrappers further inside."""

from __future__ import annotations

import math
from collections.abc import Iterator

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import FrameStackObservation, MaxAndSkipObservation, NormalizeObservation
from stable_baselines3.common.atari_wrappers import MaxAndSkipEnv
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecCheckNan,
    VecEnv,
    VecEnvWrapper,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecVideoRecorder,
)
from stable_baselines3.common.vec_env.stacked_observations import StackedObservations

from robustnn.errors import ShapeError, invalid
from robustnn.policies.observation import component_names, parts, size_of

__all__ = [
    "check_spaces",
    "drifts_inside",
    "environment_notes",
    "frames_of",
    "sensor_names",
    "stack_of",
    "wrappers_of",
]

# Wrappers that pass observations on unchanged, and those that are accounted for.
_KNOWN = {VecNormalize, VecMonitor, VecCheckNan, VecVideoRecorder, VecFrameStack}


def wrappers_of(vec_env: VecEnv | None) -> list[VecEnvWrapper]:
    """Return the wrappers of a vector environment, from the policy towards the plant.

    Args:
        vec_env: A vector environment or None.

    Returns:
        The wrappers; VecNormalize, VecFrameStack, and those that do not touch observations.

    Raises:
        InvalidArgumentError: If it is no vector environment, or there is a wrapper of another kind.
    """
    if vec_env is None:
        return []
    if not isinstance(vec_env, VecEnv):
        raise invalid("vec_env", "a VecEnv or None", type(vec_env).__name__, "Pass model.get_env().")
    found: list[VecEnvWrapper] = []
    while isinstance(vec_env, VecEnvWrapper):
        found.append(vec_env)
        vec_env = vec_env.venv
    # A raw observation is what a wrapper returns that only adds errors (`adds_errors` in its class).
    unknown = [
        type(w).__name__
        for w in found
        if type(w) not in _KNOWN and not getattr(type(w), "adds_errors", False)
    ]
    if unknown:
        raise invalid(
            "vec_env",
            "wrappers whose effect on observations is known (VecNormalize, VecMonitor, VecFrameStack, ...)",
            ", ".join(unknown),
            "Pass the VecNormalize over the bare environments and account for other wrappers yourself, or pass "
            "model.policy for the map from what predict receives.",
        )
    return found


def check_spaces(vec_env: VecEnv | None, space: spaces.Space) -> None:
    """Raise unless a vector environment returns observations of the shape that a policy has been made for.

    Raises:
        ShapeError: If it does not.
    """
    wrappers_of(vec_env)
    if vec_env is None:
        return
    got = vec_env.observation_space
    expected, found = ({key: size_of(part) for key, part in parts(s)} for s in (space, got))
    if expected != found:
        raise ShapeError(
            f"vec_env: expected observations of {_sizes(expected)}, got {_sizes(found)}. "
            "Pass the vector environment that the policy was trained with, and all wrappers outside it."
        )


def _sizes(sizes: dict[str, int]) -> str:
    return ", ".join(f"{size} components" + (f" in {key!r}" if key else "") for key, size in sizes.items())


def stack_of(vec_env: VecEnv | None) -> StackedObservations | None:
    """Return the frame stack among the wrappers, or None.

    Raises:
        InvalidArgumentError: If there is more than one, or a wrapper of unknown effect.
    """
    stacks = [w.stacked_obs for w in wrappers_of(vec_env) if isinstance(w, VecFrameStack)]
    if len(stacks) > 1:
        raise invalid("vec_env", "at most one VecFrameStack", f"{len(stacks)} nested", "Stack once.")
    return stacks[0] if stacks else None


def frames_of(vec_env: VecEnv | None) -> int:
    """Return how many frames an observation stacks: the number of a `VecFrameStack`, or one."""
    stack = stack_of(vec_env)
    return 1 if stack is None else int(stack.n_stack)


def sensor_names(vec_env: VecEnv | None, space: spaces.Space) -> tuple[str, ...]:
    """Return for every component of the flat observation the sensor that it comes from.

    Args:
        vec_env: The vector environment.
        space: Observation space of the policy.

    Returns:
        Names `key[i]` or `o[i]` of the components of a single frame; each occurs once per frame.
    """
    stack = stack_of(vec_env)
    if stack is None:
        return component_names(space)
    names: list[str] = []
    for key, _ in parts(space):
        one = stack.sub_stacked_observations[key] if key else stack
        part = one.observation_space
        frame = np.array(component_names(part), dtype=object).reshape(part.shape)
        stacked = np.concatenate([frame] * stack.n_stack, axis=one.repeat_axis)
        names += [f"{key}{name[1:]}" if key else name for name in stacked.reshape(-1)]
    return tuple(names)


def environment_notes(vec_env: VecEnv | None) -> tuple[str, ...]:
    """Return in words what gymnasium wrappers do inside the environments, as far as can be seen.

    Environments of SB3's `DummyVecEnv` and `SubprocVecEnv` are asked; those of other classes are not.

    Args:
        vec_env: The vector environment.

    Returns:
        Sentences for the user; empty if there is nothing to be said.
    """
    base = _base(vec_env)
    if base is None:
        return ()
    names = _names_inside(base)
    notes = [f"A raw observation is one behind {', '.join(names)} in the environments."] if names else []
    if any(base.env_is_wrapped(gymnasium.ActionWrapper)):
        notes.append("An action is one in front of an ActionWrapper in the environments.")
    if all(base.env_is_wrapped(FrameStackObservation)):
        k = max(base.get_attr("stack_size"))
        notes.append(f"It stacks {k} frames: an error in every one counts up to {math.sqrt(k):.4g} times.")
    return tuple(notes)


def drifts_inside(vec_env: VecEnv | None) -> bool:
    """Whether a gymnasium wrapper inside an environment normalises observations by statistics that still change."""
    base = _base(vec_env)
    if isinstance(base, DummyVecEnv):
        return any(
            isinstance(layer, NormalizeObservation) and layer.update_running_mean
            for env in base.envs
            for layer in _layers(env)
        )
    if base is None or not any(base.env_is_wrapped(NormalizeObservation)):
        return False
    # An attribute of this name that was set on a wrapper outside it does not reach it; the private one is its own.
    return any(base.get_attr("_update_running_mean"))


def _base(vec_env: VecEnv | None) -> DummyVecEnv | SubprocVecEnv | None:
    """The innermost vector environment, if it can be asked about its environments."""
    while isinstance(vec_env, VecEnvWrapper):
        vec_env = vec_env.venv
    if isinstance(vec_env, DummyVecEnv):
        return vec_env
    return vec_env if isinstance(vec_env, SubprocVecEnv) and not vec_env.closed else None


def _layers(env: gymnasium.Env) -> Iterator[gymnasium.Env]:
    while isinstance(env, gymnasium.Wrapper):
        yield env
        env = env.env


def _names_inside(base: DummyVecEnv | SubprocVecEnv) -> list[str]:
    if isinstance(base, DummyVecEnv):
        kinds = (gymnasium.ObservationWrapper, FrameStackObservation, MaxAndSkipObservation, MaxAndSkipEnv)
        return list(
            dict.fromkeys(
                type(layer).__name__
                for env in base.envs
                for layer in _layers(env)
                if isinstance(layer, kinds)
            )
        )
    named = (NormalizeObservation, FrameStackObservation, MaxAndSkipObservation, MaxAndSkipEnv)
    found = [kind.__name__ for kind in named if any(base.env_is_wrapped(kind))]
    if any(base.env_is_wrapped(gymnasium.ObservationWrapper)) and found != [NormalizeObservation.__name__]:
        found.append("an ObservationWrapper")
    return found
