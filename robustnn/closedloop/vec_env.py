"""Thousands of copies of a plant as one Stable-Baselines3 vectorised environment."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
import torch
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from robustnn.errors import (
    InvalidArgumentError,
    RobustNNError,
    check_finite,
    check_positive_int,
    check_shape,
)

if TYPE_CHECKING:
    from robustnn.envs.plant import Plant

__all__ = ["TorchVecEnv"]

Indices = int | Iterable[int] | None


class TorchVecEnv(VecEnv):
    """Copies of one plant, stepped together as torch tensors on a device.

    It behaves as SB3's `DummyVecEnv` of monitored environments: a copy whose episode ends is reset at once,
    the observation returned is the first of the new episode, and the copy's info holds
    `terminal_observation`, `TimeLimit.truncated` and the statistics `episode = {"r", "l", "t"}` (return,
    steps, seconds since construction) that SB3 logs as `rollout/ep_rew_mean`. Arrays and dictionaries are new
    at every step, so callers may keep or change them. All start states come from one generator on the CPU,
    so a seed gives the same starts on every device. The tensors are small: on a busy CPU,
    `torch.set_num_threads(1)` is many times faster than letting threads wait for each other.

    Args:
        plant: The plant; its `transition`, `observation`, `reward` and `terminal` are called on all copies.
        num_envs: Number of copies.
        device: Where the states live.
        dtype: Floating-point type of the states; observations and rewards leave as float32 arrays.
        render_mode: None or "rgb_array" (the plant then needs a `render_image` method).

    Raises:
        InvalidArgumentError: If `num_envs`, `dtype` or `render_mode` cannot be used.

    Example:
        >>> from robustnn.envs import Pendulum
        >>> env = TorchVecEnv(Pendulum(), num_envs=512)
        >>> _ = env.seed(0)
        >>> env.reset().shape
        (512, 3)
    """

    def __init__(
        self,
        plant: Plant,
        num_envs: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        render_mode: str | None = None,
    ) -> None:
        """Keep the plant; the states are drawn by `reset`."""
        num_envs = check_positive_int("num_envs", num_envs)
        if not dtype.is_floating_point:
            raise InvalidArgumentError(f"dtype: expected a floating type, got {dtype}. Use torch.float32.")
        if render_mode not in (None, "rgb_array"):
            raise InvalidArgumentError(
                f"render_mode: expected None or 'rgb_array', got {render_mode!r}. Use 'rgb_array'; "
                "render('human') then shows the images."
            )
        if render_mode is not None and not hasattr(plant, "render_image"):
            raise InvalidArgumentError(
                f"render_mode: expected None, got {render_mode!r}, because {type(plant).__name__} has no "
                "render_image method. Leave render_mode out or write that method."
            )
        self.plant = plant
        self.device = torch.device(device)
        self.dtype = dtype
        self.render_mode = render_mode
        super().__init__(num_envs, plant.observation_space, plant.action_space)
        self.metadata: dict[str, Any] = {**self.metadata, "render_fps": round(1.0 / plant.dt)}
        self._rng = np.random.default_rng()
        self._state: Tensor | None = None
        self._actions: np.ndarray | None = None
        self._returns = np.zeros(num_envs)
        self._steps = np.zeros(num_envs, dtype=np.int64)
        self._start_time = time.perf_counter()

    @property
    def state(self) -> Tensor:
        """Copy of the states, shape (num_envs, n_x), on the device.

        Raises:
            RobustNNError: Before the first reset.
        """
        return self._current_state().clone()

    @torch.no_grad()
    def reset(self) -> np.ndarray:
        """Start a new episode in every copy.

        A seed given to `seed` since the last reset restarts the generator. `set_options({"state": x})`, or a
        list with one such dictionary per copy, sets start states (n_x,) for this reset only.

        Returns:
            Observations, shape (num_envs, n_y), float32.
        """
        if self._seeds[0] is not None:
            self._rng = np.random.default_rng(self._seeds[0])
        state = self._draw_states(self.num_envs)
        for index, options in enumerate(self._options):
            if options:
                state[index] = self._chosen_state(options)
        self._state = state
        self._actions = None
        self._returns[:] = 0.0
        self._steps[:] = 0
        self._reset_seeds()
        self._reset_options()
        self.reset_infos = [{} for _ in range(self.num_envs)]
        return self._to_numpy(self.plant.observation(state))

    def step_async(self, actions: np.ndarray) -> None:
        """Take the actions of the next step.

        Args:
            actions: Shape (num_envs, n_u); values outside the action space saturate in the plant.

        Raises:
            ShapeError: If the shape is wrong.
            NonFiniteError: If an action is NaN or infinite.
        """
        actions = np.asarray(actions)
        shape = (self.num_envs, self.plant.n_u)
        check_shape("actions", actions, str(shape), actions.shape == shape)
        check_finite("actions", actions, "Look for a diverged policy or an unnormalised observation.")
        self._actions = actions

    @torch.no_grad()
    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Advance every copy by one sampling time, and start a new episode where one ended.

        Returns:
            Observations (num_envs, n_y) float32, rewards (num_envs,) float32, dones (num_envs,) bool, and
            one dictionary per copy.

        Raises:
            RobustNNError: Before the first reset, or without actions.
        """
        state = self._current_state()
        if self._actions is None:
            raise RobustNNError("actions: none are waiting. Call step_async(actions) before step_wait().")
        plant = self.plant
        action = torch.as_tensor(self._actions, dtype=self.dtype, device=self.device)
        self._state = plant.transition(state, action)
        columns = (
            plant.observation(self._state),
            plant.reward(state, action, self._state)[:, None],
            plant.terminal(self._state)[:, None].to(self.dtype),
        )
        packed = self._to_numpy(torch.cat(columns, dim=1))  # one transfer from the device
        observations = packed[:, : plant.n_y].copy()
        rewards = packed[:, plant.n_y].copy()
        terminated = packed[:, plant.n_y + 1] > 0.0
        self._returns += rewards
        self._steps += 1
        truncated = self._steps >= plant.horizon
        dones = terminated | truncated
        infos: list[dict[str, Any]] = [{"TimeLimit.truncated": False} for _ in range(self.num_envs)]
        ended = np.flatnonzero(dones)
        if ended.size:
            self._describe_ended(ended, observations, truncated & ~terminated, infos)
            observations[ended] = self._restart(ended)
        return observations, rewards, dones, infos

    def close(self) -> None:
        """Release nothing: the copies are tensors."""

    def get_images(self) -> Sequence[np.ndarray | None]:
        """Return one RGB image (height, width, 3), uint8, per copy; None without a render mode."""
        if self.render_mode is None:
            return [None] * self.num_envs
        state = self._current_state().double().cpu().numpy()
        actions = [None] * self.num_envs if self._actions is None else list(self._actions)
        draw = self.plant.render_image  # type: ignore[attr-defined]
        return [draw(one, action) for one, action in zip(state, actions, strict=True)]

    def get_attr(self, attr_name: str, indices: Indices = None) -> list[Any]:
        """Return an attribute per copy: "state" (n_x,), "plant", "render_mode", or one of the plant's.

        Args:
            attr_name: Name of the attribute.
            indices: Which copies; None for all.

        Returns:
            One value per copy asked for.

        Raises:
            AttributeError: If there is no such attribute.
        """
        chosen = list(self._get_indices(indices))
        if attr_name == "state":
            return list(self.state[chosen].cpu().numpy())
        owner: Any = self if attr_name in ("plant", "render_mode") else self.plant
        return [getattr(owner, attr_name)] * len(chosen)

    def set_attr(self, attr_name: str, value: Any, indices: Indices = None) -> None:
        """Set "state" of some copies, or "plant" or one of the plant's parameters for all of them.

        Args:
            attr_name: Name of the attribute.
            value: A state (n_x,) given to every copy named, a plant, or the value of a parameter.
            indices: Which copies; None for all.

        Raises:
            AttributeError: If the attribute cannot be set.
            InvalidArgumentError: If a parameter shared by all copies is set for some of them only.
        """
        chosen = list(self._get_indices(indices))
        if attr_name == "state":
            state = self.state
            state[chosen] = self._chosen_state({"state": value})
            self._state = state
            return
        parameters = [field.name for field in dataclasses.fields(self.plant)]  # type: ignore[arg-type]
        if attr_name != "plant" and attr_name not in parameters:
            raise AttributeError(
                f"attr_name: expected 'state', 'plant' or a parameter of {type(self.plant).__name__} "
                f"({', '.join(parameters)}), got {attr_name!r}. Set one of these."
            )
        if len(set(chosen)) != self.num_envs:
            raise InvalidArgumentError(
                f"indices: expected None, got {len(chosen)} of {self.num_envs} copies, but all copies share "
                f"{attr_name!r}. Build one TorchVecEnv per plant instead."
            )
        if attr_name == "plant":
            self.plant = value
        else:
            self.plant = dataclasses.replace(self.plant, **{attr_name: value})  # type: ignore[type-var]

    def env_method(
        self, method_name: str, *method_args: Any, indices: Indices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of the plant once per copy.

        Args:
            method_name: Name of the method, for example "observation".
            *method_args: Its arguments.
            indices: Which copies; None for all.
            **method_kwargs: Its keyword arguments.

        Returns:
            One result per copy asked for.

        Raises:
            AttributeError: If the plant has no such method.
        """
        method = getattr(self.plant, method_name)
        return [method(*method_args, **method_kwargs) for _ in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[gymnasium.Wrapper], indices: Indices = None) -> list[bool]:
        """Answer True for SB3's `Monitor` only, whose episode statistics the copies report themselves."""
        return [wrapper_class is Monitor for _ in self._get_indices(indices)]

    def _current_state(self) -> Tensor:
        """States without copy."""
        if self._state is None:
            raise RobustNNError("state: there is none yet. Call reset() first.")
        return self._state

    def _draw_states(self, count: int) -> Tensor:
        """Random start states (count, n_x)."""
        uniform = torch.from_numpy(self._rng.random((count, self.plant.n_x)))
        return self.plant.initial(uniform.to(device=self.device, dtype=self.dtype))

    def _chosen_state(self, options: dict[str, Any]) -> Tensor:
        """Start state (n_x,) named in the options of a reset."""
        if set(options) != {"state"}:
            raise InvalidArgumentError(
                f"options: expected 'state' only, got {sorted(options)}. Remove others."
            )
        state = torch.as_tensor(options["state"], dtype=self.dtype, device=self.device)
        check_shape("state", state, f"({self.plant.n_x},)", state.shape == (self.plant.n_x,))
        check_finite("state", state)
        return state

    def _describe_ended(
        self, ended: np.ndarray, observations: np.ndarray, timed_out: np.ndarray, infos: list[dict[str, Any]]
    ) -> None:
        """Write the last observation and the statistics of ended episodes into their infos."""
        elapsed = round(time.perf_counter() - self._start_time, 6)
        for index, last in zip(ended.tolist(), observations[ended], strict=True):
            infos[index] = {
                "TimeLimit.truncated": bool(timed_out[index]),
                "terminal_observation": last,
                "episode": {
                    "r": round(float(self._returns[index]), 6),
                    "l": int(self._steps[index]),
                    "t": elapsed,
                },
            }

    def _restart(self, ended: np.ndarray) -> np.ndarray:
        """Start new episodes in the ended copies and return their first observations."""
        state = self._draw_states(ended.size)
        indices = torch.from_numpy(ended).to(self.device)
        self._state = self._current_state().index_copy(0, indices, state)
        self._returns[ended] = 0.0
        self._steps[ended] = 0
        for index in ended.tolist():
            self.reset_infos[index] = {}
        return self._to_numpy(self.plant.observation(state))

    @staticmethod
    def _to_numpy(tensor: Tensor) -> np.ndarray:
        """Float32 array on the CPU."""
        return tensor.to(device="cpu", dtype=torch.float32).numpy()
