"""Faults in front of any gymnasium environment."""

from __future__ import annotations

import dataclasses
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from robustnn.closedloop.faults.channel import Channel, FaultProcess
from robustnn.closedloop.faults.fault_set import FaultSet, start_faults
from robustnn.envs.plant import Plant
from robustnn.errors import UnsupportedSpaceError, check_positive_int, invalid

__all__ = ["FaultyEnv"]

Array = NDArray[Any]


class FaultyEnv(gymnasium.Wrapper[Array, Array, Array, Array]):
    """An environment whose observations and actions pass through faults.

    Each episode draws anew: episode k after a reset with a seed has the random numbers of (seed, k), so that a seed
    gives one sequence of faults whatever the environment does with its own. Parameters of the plant can be changed for
    environments of `robustnn.envs`.

    Args:
        env: Environment with Box observations and, if there are faults of actions, Box actions.
        faults: The faults.
        seed: Seed of the faults until a reset brings another one.

    Raises:
        UnsupportedSpaceError: If a space is no Box.
        InvalidArgumentError: If parameters are to be changed that the environment does not have.

    Example:
        >>> from robustnn.closedloop.faults import FaultSet, WhiteNoise
        >>> env = FaultyEnv(gymnasium.make("Pendulum-v1"), FaultSet(observation=[WhiteNoise(0.1)]))
        >>> observation, info = env.reset(seed=0)
    """

    def __init__(self, env: gymnasium.Env[Array, Array], faults: FaultSet, *, seed: int = 0) -> None:
        super().__init__(env)
        for role, space in (("observation", env.observation_space), ("action", env.action_space)):
            if getattr(faults, role) and not isinstance(space, spaces.Box):
                raise UnsupportedSpaceError(
                    f"{role}_space: expected a Box for faults of the {role}, got {space}. Leave these faults out."
                )
        if faults.parameters:
            plant = getattr(env.unwrapped, "plant", None)
            if not isinstance(plant, Plant):
                raise invalid(
                    "faults.parameters", "none for an environment without a plant", dict(faults.parameters),
                    "Change the parameters where the environment is made.",
                )  # fmt: skip
            env.unwrapped.plant = faults.plant(plant)  # type: ignore[attr-defined]
        self.faults = faults
        self._seed = check_positive_int("seed", seed, minimum=0)
        self._episode = -1
        self._on_observation: tuple[FaultProcess, ...] = ()
        self._on_action: tuple[FaultProcess, ...] = ()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Start an episode and its faults."""
        observation, info = self.env.reset(seed=seed, options=options)
        if seed is not None:
            self._seed, self._episode = int(seed), -1
        self._episode += 1
        episode = int(np.random.SeedSequence([self._seed, self._episode]).generate_state(1, np.uint64)[0])
        channel = Channel(_size(self.observation_space), (1,), (episode,))
        self._on_observation = start_faults(self.faults.observation, channel)
        channel = dataclasses.replace(
            channel, width=_size(self.action_space), index=len(self.faults.observation)
        )
        self._on_action = start_faults(self.faults.action, channel)
        return self._through(self._on_observation, observation), info

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Apply an action through its faults and return what the sensors show."""
        received = self._through(self._on_action, action)
        if self._on_action and isinstance(self.action_space, spaces.Box):
            received = np.clip(received, self.action_space.low, self.action_space.high)
        observation, reward, terminated, truncated, info = self.env.step(received)
        return self._through(self._on_observation, observation), float(reward), terminated, truncated, info

    @staticmethod
    def _through(processes: tuple[FaultProcess, ...], signal: Array) -> Array:
        if not processes:
            return signal
        values = torch.as_tensor(np.asarray(signal, dtype=np.float64).reshape(1, -1))
        for process in processes:
            values = process(values)
        result: Array = values.numpy().reshape(np.shape(signal)).astype(np.asarray(signal).dtype)
        return result


def _size(space: gymnasium.Space[Any]) -> int:
    return int(np.prod(space.shape or (1,)))
