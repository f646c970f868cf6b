"""Faults of sensors and actuators in front of any vectorised environment, for training."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

from robustnn.closedloop.faults import Channel, FaultSet
from robustnn.closedloop.faults.channel import FaultProcess
from robustnn.closedloop.faults.fault_set import start_faults
from robustnn.closedloop.vec_env import TorchVecEnv
from robustnn.errors import UnsupportedSpaceError, check_positive_int, invalid

__all__ = ["FaultyVecEnv"]

Array = NDArray[Any]


class _Group:
    """Copies that started an episode together, and their faults; those whose episode has ended are dead weight."""

    def __init__(self, copies: NDArray[np.int64], faults: FaultSet, channel: Channel, n_actions: int) -> None:
        self.copies = copies
        self.alive = np.ones(len(copies), dtype=bool)
        self.on_observation = start_faults(faults.observation, channel)
        channel = dataclasses.replace(channel, width=n_actions, index=len(faults.observation))
        self.on_action = start_faults(faults.action, channel)


class FaultyVecEnv(VecEnvWrapper):
    """A vectorised environment whose observations and actions pass through faults, anew in every episode.

    The counterpart of `robustnn.closedloop.faults.FaultyEnv` for environments that are stepped together, such as
    `TorchVecEnv`: copies that start together are processed together. A `terminal_observation` passes through the
    faults of the episode that it ends, because its value stands for what the agent would go on from; the true one is
    `infos[i]["true_terminal_observation"]`. Observations are raw: put `VecNormalize` outside.

    Args:
        venv: Vector environment with vectors of floating-point numbers as observations and, for faults of actions, Box
            actions.
        faults: The faults. Factors of the plant's parameters need a `TorchVecEnv`, whose plant is replaced.
        seed: Seed of the faults until `seed()` brings another one.

    Raises:
        UnsupportedSpaceError: If a space is not supported.
        InvalidArgumentError: If parameters are to be changed that the environment does not have.

    Example:
        >>> from stable_baselines3.common.env_util import make_vec_env
        >>> from robustnn.closedloop.faults import WhiteNoise
        >>> env = FaultyVecEnv(make_vec_env("Pendulum-v1", 4), FaultSet(observation=[WhiteNoise(0.1)]))
        >>> env.reset().shape
        (4, 3)
    """

    # The bound of a policy speaks of the observations that it returns.
    adds_errors: ClassVar[bool] = True

    def __init__(self, venv: VecEnv, faults: FaultSet, *, seed: int = 0) -> None:
        """Check the spaces; faults start with the first reset."""
        super().__init__(venv)
        for role, space in (("observation", venv.observation_space), ("action", venv.action_space)):
            vector = isinstance(space, spaces.Box) and len(space.shape) == 1
            if getattr(faults, role) and not (vector and np.issubdtype(space.dtype, np.floating)):
                raise UnsupportedSpaceError(
                    f"{role}_space: expected a Box of floating-point vectors for faults of the {role}, got {space}. "
                    "Leave these faults out."
                )
        if faults.parameters:
            inside: VecEnv = venv
            while isinstance(inside, VecEnvWrapper):
                inside = inside.venv
            if not isinstance(inside, TorchVecEnv):
                raise invalid(
                    "faults.parameters", "none for an environment that is no TorchVecEnv", dict(faults.parameters),
                    "Change the parameters where the environment is made.",
                )  # fmt: skip
            inside.plant = faults.plant(inside.plant)
        self.faults = faults
        self._seed = check_positive_int("seed", seed, minimum=0)
        self._episodes = np.zeros(self.num_envs, dtype=np.int64)
        self._groups: list[_Group] = []

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seed the faults, and the environments; the faults of the next reset are the first of the seed."""
        self._seed = int(np.random.default_rng().integers(2**31)) if seed is None else int(seed)
        self._episodes[:] = 0
        return self.venv.seed(seed)

    def reset(self) -> Any:
        """Start new episodes and their faults."""
        observation = np.asarray(self.venv.reset())
        self._groups = []
        return self._start(observation, np.arange(self.num_envs))

    def step_async(self, actions: Array) -> None:
        """Pass the actions on, through their faults and into the limits of the action space."""
        if self.faults.action:
            received = np.array(actions)
            for group in self._groups:
                alive = group.copies[group.alive]
                received[alive] = _through(group.on_action, received[group.copies])[group.alive]
            space: Any = self.action_space
            actions = np.clip(received, space.low, space.high)
        self.venv.step_async(actions)

    def step_wait(self) -> Any:
        """Return what the sensors show, and rewards, ends and infos of the environments."""
        observation, rewards, dones, infos = self.venv.step_wait()
        observation, dones = np.array(observation), np.asarray(dones, dtype=bool)
        infos = list(infos)  # SubprocVecEnv has a tuple
        if not self.faults.observation and not self.faults.action:
            return observation, rewards, dones, infos
        ended = np.flatnonzero(dones)
        signal = observation.copy()
        for k in ended:
            signal[k] = infos[k].get("terminal_observation", signal[k])
        shown = signal.copy()
        for group in self._groups:
            alive = group.copies[group.alive]
            shown[alive] = _through(group.on_observation, signal[group.copies])[group.alive]
            group.alive &= ~dones[group.copies]
        self._groups = [group for group in self._groups if group.alive.any()]
        for k in ended:
            if "terminal_observation" in infos[k]:
                infos[k] = {
                    **infos[k],
                    "terminal_observation": shown[k].copy(),
                    "true_terminal_observation": signal[k].copy(),
                }
        if ended.size:
            shown[ended] = self._start(observation[ended], ended)
        return shown, rewards, dones, infos

    def _start(self, observation: Array, copies: NDArray[np.int64]) -> Array:
        """Start the faults of new episodes and return their first observations."""
        seeds = tuple(
            int(
                np.random.SeedSequence([self._seed, int(k), int(self._episodes[k])]).generate_state(
                    1, np.uint64
                )[0]
            )
            for k in copies
        )
        self._episodes[copies] += 1
        channel = Channel(_size(self.observation_space), (len(copies),), seeds)
        group = _Group(copies, self.faults, channel, _size(self.action_space))
        self._groups.append(group)
        return _through(group.on_observation, observation)


def _through(processes: tuple[FaultProcess, ...], signal: Array) -> Array:
    if not processes:
        return signal
    values = torch.as_tensor(signal, dtype=torch.float64)
    for process in processes:
        values = process(values)
    result: Array = values.numpy().astype(signal.dtype)
    return result


def _size(space: spaces.Space[Any]) -> int:
    return int(np.prod(space.shape or (1,)))
