"""Controllers with memory in the closed loop of static policies: the controller becomes a part of the plant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from array_api_compat import array_namespace
from gymnasium import spaces
from torch import Tensor

from robustnn.errors import invalid

if TYPE_CHECKING:
    from robustnn.envs.plant import Plant

__all__ = ["ControlledPlant", "DynamicController", "SwitchedController", "wire"]

Array = Any


class DynamicController(Protocol):
    """A controller with a state, started at zero."""

    @property
    def n_xi(self) -> int:
        """Number of states of the controller."""

    def step(self, xi: Array, observation: Array) -> tuple[Array, Array]:
        """Return the action (..., n_u) and the next state (..., n_xi) from state and observation (..., n_y)."""


def wire(observation: Tensor) -> Tensor:
    """Return the observation: the policy of a `ControlledPlant`, whose controller sits behind the sensors.

    Args:
        observation: Shape (..., n_y), perturbed or not.

    Returns:
        The same.
    """
    return observation


@dataclass(frozen=True, eq=False)
class ControlledPlant:
    r"""A plant with a controller that has a memory, under the contract of `robustnn.envs.plant.Plant`.

    A policy maps one observation to one action. Here the state is $(x, \xi)$, the observation that of the plant, and
    the "action" what the controller sees; the policy is `wire`, which hands the perturbed observation on:

    .. math:: x_{t+1} = f(x_t, u_t), \quad (u_t, \xi_{t+1}) = k(\xi_t, \tilde y_t), \quad \tilde y_t = h(x_t) + \delta_t

    Every perturbation of the observation therefore meets the controller as it meets a policy: same start states per
    seed, same ball, same random draws, and gradients of attacks run through plant and controller alike. The state of
    the controller is a part of the program, not of the sensors, and is not perturbed. `trajectory.actions` holds what
    the controller saw; `action` gives what the plant received. Not meant for faults of the actuator, which would meet
    the wire, nor for `MaximalActionDifference`, which looks at one step of the policy.

    Args:
        plant: The plant.
        controller: The controller, such as a `LinearController`.

    Example:
        >>> from robustnn.closedloop import evaluate
        >>> from robustnn.closedloop.hinf import hinf_controller
        >>> from robustnn.closedloop.problem import control_problem
        >>> from robustnn.envs import Pendulum
        >>> plant = Pendulum(max_start_angle=0.1, max_start_speed=0.1)
        >>> design = hinf_controller(control_problem(plant, [0.0, 0.0], [0.0]))
        >>> bool(evaluate(wire, ControlledPlant(plant, design.controller), episodes=4).mean > -1.0)
        True
    """

    plant: Plant
    controller: DynamicController

    def __post_init__(self) -> None:
        """Check the controller."""
        if not callable(getattr(self.controller, "step", None)) or not hasattr(self.controller, "n_xi"):
            got = type(self.controller).__name__
            fix = "Pass a LinearController, or anything with n_xi and step."
            raise invalid("controller", "a controller with a state", got, fix)

    @property
    def n_x(self) -> int:
        """Number of states of plant and controller."""
        return self.plant.n_x + self.controller.n_xi

    @property
    def n_u(self) -> int:
        """Size of what the controller sees."""
        return self.plant.n_y

    @property
    def n_y(self) -> int:
        """Number of observations of the plant."""
        return self.plant.n_y

    @property
    def dt(self) -> float:
        """Sampling time, s."""
        return self.plant.dt

    @property
    def horizon(self) -> int:
        """Steps per episode."""
        return self.plant.horizon

    @property
    def observation_space(self) -> spaces.Box:
        """Box of the plant's observations, float32."""
        return self.plant.observation_space

    @property
    def action_space(self) -> spaces.Box:
        """Box of what the controller can see, float32: errors may leave the observation space."""
        return spaces.Box(-np.inf, np.inf, shape=(self.n_u,), dtype=np.float32)

    def initial(self, uniform: Array) -> Array:
        """Map samples of U[0, 1), shape (..., n_x), to the plant's start states with the controller at zero."""
        xp = array_namespace(uniform)
        n = self.plant.n_x
        return xp.concat((self.plant.initial(uniform[..., :n]), xp.zeros_like(uniform[..., n:])), axis=-1)

    def action(self, state: Array, seen: Array) -> Array:
        """Return what the plant receives (..., n_u of the plant) in a state (..., n_x) for what is seen (..., n_y)."""
        return self.controller.step(state[..., self.plant.n_x :], seen)[0]

    def transition(self, state: Array, action: Array) -> Array:
        """Advance plant and controller by one step; `action` is what the controller sees, shape (..., n_y)."""
        xp = array_namespace(state)
        n = self.plant.n_x
        used, xi = self.controller.step(state[..., n:], action)
        return xp.concat((self.plant.transition(state[..., :n], used), xi), axis=-1)

    def observation(self, state: Array) -> Array:
        """Return the plant's observations, shape (..., n_y)."""
        return self.plant.observation(state[..., : self.plant.n_x])

    def reward(self, state: Array, action: Array, next_state: Array) -> Array:
        """Return the plant's reward for what it received, shape (...)."""
        n = self.plant.n_x
        return self.plant.reward(state[..., :n], self.action(state, action), next_state[..., :n])

    def terminal(self, state: Array) -> Array:
        """Return the plant's verdict on states (..., n_x), shape (...)."""
        return self.plant.terminal(state[..., : self.plant.n_x])


@dataclass(frozen=True, eq=False)
class SwitchedController:
    """One controller near the goal and a static law elsewhere, where the first is held at zero.

    Args:
        near: Controller near the goal.
        far: Maps observations (..., n_y) to actions (..., n_u), such as an energy swing-up.
        inside: Maps observations (..., n_y) to booleans (...): where `near` acts. It sees what the sensors show, error
            included.
    """

    near: DynamicController
    far: Callable[[Array], Array]
    inside: Callable[[Array], Array]

    @property
    def n_xi(self) -> int:
        """Number of states of `near`."""
        return self.near.n_xi

    def step(self, xi: Array, observation: Array) -> tuple[Array, Array]:
        """Return the action and the next state; see `DynamicController`."""
        xp = array_namespace(observation)
        close = self.inside(observation)[..., None]
        action, after = self.near.step(xi, observation)
        return xp.where(close, action, self.far(observation)), xp.where(close, after, xp.zeros_like(after))
