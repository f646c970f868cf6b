"""The contract of a plant: dynamics, observation and reward as pure functions of arrays."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import fields
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from gymnasium import spaces

__all__ = ["Array", "DrawablePlant", "Plant", "check_parameters", "runge_kutta"]

Array = Any
"""A numpy array or a torch tensor; the functions of a plant return the kind they are given."""


class Plant(ABC):
    r"""Discrete-time plant with a reward, written once for numpy and torch.

    .. math:: x_{t+1} = f(x_t, u_t), \quad y_t = h(x_t), \quad r_t = r(x_t, u_t, x_{t+1})

    A plant is a frozen dataclass of physical parameters. Its methods are pure: they hold no state, draw no
    random numbers and never write to their arguments, so that the same formulas serve a `gymnasium.Env`
    (numpy, one copy), a vectorised environment (torch, thousands of copies on a device) and the
    differentiable closed loop of gradient attacks. Leading axes `...` are batch axes. Other parameters make
    another plant: `dataclasses.replace(plant, mass=1.2)`.

    Attributes:
        n_x: Number of states.
        n_u: Number of actions.
        n_y: Number of observations.
        dt: Sampling time in s.
        horizon: Steps per episode; the episode is truncated after so many.
    """

    n_x: ClassVar[int]
    n_u: ClassVar[int]
    n_y: ClassVar[int]
    dt: float
    horizon: int

    @property
    @abstractmethod
    def observation_space(self) -> spaces.Box:
        """Box of observations (n_y,), float32; a new object at every access, as spaces hold a generator."""

    @property
    @abstractmethod
    def action_space(self) -> spaces.Box:
        """Box of actions (n_u,), float32; a new object at every access, as spaces hold a generator."""

    @abstractmethod
    def initial(self, uniform: Array) -> Array:
        """Map uniform samples to start states.

        The caller draws the samples, so that one seed gives one start on numpy, on torch and on any device.

        Args:
            uniform: Samples of U[0, 1), shape (..., n_x).

        Returns:
            Start states, shape (..., n_x).
        """

    @abstractmethod
    def transition(self, state: Array, action: Array) -> Array:
        """Return the state one sampling time later.

        Args:
            state: Shape (..., n_x).
            action: Shape (..., n_u); values outside the action space saturate, as actuators do.

        Returns:
            The next state, shape (..., n_x).
        """

    @abstractmethod
    def observation(self, state: Array) -> Array:
        """Return what the sensors show.

        Args:
            state: Shape (..., n_x).

        Returns:
            Observations, shape (..., n_y).
        """

    @abstractmethod
    def reward(self, state: Array, action: Array, next_state: Array) -> Array:
        """Return the reward of one transition.

        Args:
            state: State before the step, shape (..., n_x).
            action: Action of the step, shape (..., n_u).
            next_state: State after the step, shape (..., n_x).

        Returns:
            Rewards, shape (...).
        """

    @abstractmethod
    def terminal(self, state: Array) -> Array:
        """Tell which states end an episode before its horizon.

        Args:
            state: Shape (..., n_x).

        Returns:
            Booleans, shape (...).
        """


def check_parameters(plant: Any, positive: tuple[str, ...], infinite: tuple[str, ...] = ()) -> None:
    """Raise unless all parameters of a plant are finite numbers >= 0, and some of them > 0.

    Args:
        plant: A frozen dataclass of numbers.
        positive: Names of the parameters that must not be zero; `horizon` must be a whole number as well.
        infinite: Names of the parameters that may be infinite.

    Raises:
        ValueError: If a parameter is not acceptable.
    """
    for field in fields(plant):
        value = getattr(plant, field.name)
        needed = field.name in positive
        finite = math.isfinite(value) or (field.name in infinite and value > 0)
        if not finite or value < 0 or (needed and value == 0):
            kind = "> 0" if needed else ">= 0"
            limit = "a number" if field.name in infinite else "a finite number"
            raise ValueError(f"{field.name}: expected {limit} {kind}, got {value}. Correct it.")
        if field.name in ("horizon", "masses") and value != int(value):
            raise ValueError(f"{field.name}: expected a whole number, got {value}. Round it.")


def runge_kutta(derivative: Callable[[Array], Array], state: Array, dt: float) -> Array:
    """Advance dx/dt = f(x) by one classical Runge-Kutta step of fourth order.

    Args:
        derivative: f, maps states (..., n_x) to their rates of change per second.
        state: Shape (..., n_x).
        dt: Length of the step, s.

    Returns:
        The state after the step, shape (..., n_x).
    """
    k1 = derivative(state)
    k2 = derivative(state + 0.5 * dt * k1)
    k3 = derivative(state + 0.5 * dt * k2)
    k4 = derivative(state + dt * k3)
    return state + (dt / 6.0) * (k1 + 2.0 * (k2 + k3) + k4)


@runtime_checkable
class DrawablePlant(Protocol):
    """A plant that can be drawn; environments of other plants have no render modes."""

    def render_image(self, state: np.ndarray, action: np.ndarray | None, size: int = 400) -> np.ndarray:
        """Draw one state.

        Args:
            state: One state, shape (n_x,).
            action: The last action, shape (n_u,), or None after a reset.
            size: Height and width of the image in pixels.

        Returns:
            RGB image of shape (size, size, 3), uint8.
        """
