"""A fitted dynamics model in the place of a plant: trained on, evaluated and attacked through."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from robustnn.dynamics.base import StateSpaceModel
from robustnn.dynamics.channels import Channels
from robustnn.dynamics.state_space import ExplicitStateSpace
from robustnn.errors import ShapeError, invalid
from robustnn.params.explicit import ExplicitMLP

if TYPE_CHECKING:
    from robustnn.envs.plant import Plant

__all__ = ["LearnedPlant", "ObservedTask"]

Array = Any
_TASK_METHODS = ("initial", "reward", "terminal")
_TASK_VALUES = ("observation_space", "action_space", "dt", "horizon")


@dataclass(frozen=True, eq=False)
class ObservedTask:
    r"""What is known of a plant beside its dynamics, as functions of observations: start, reward and end.

    .. math:: r = r(h^{-1}(y), u, h^{-1}(y_+))

    Args:
        plant: Its `transition` is never called.
        invert: $h^{-1}$, maps observations (..., n_y) to states (..., n_x) of the plant with the same reward, in its
            units. It has to accept all observations that a model may give, and to be differentiable for attacks.

    Example:
        >>> from robustnn.envs import Pendulum
        >>> def angle_and_speed(y):
        ...     return torch.stack((torch.atan2(y[..., 1], y[..., 0]), y[..., 2]), dim=-1)
        >>> task = ObservedTask(Pendulum(), angle_and_speed)
        >>> task.initial(torch.full((3,), 0.5))
        tensor([1., 0., 0.])
    """

    plant: Plant
    invert: Callable[[Array], Array]

    @property
    def observation_space(self) -> spaces.Box:
        """Box of observations (n_y,)."""
        return self.plant.observation_space

    @property
    def action_space(self) -> spaces.Box:
        """Box of actions (n_u,)."""
        return self.plant.action_space

    @property
    def dt(self) -> float:
        """Sampling time, s."""
        return self.plant.dt

    @property
    def horizon(self) -> int:
        """Steps per episode."""
        return self.plant.horizon

    def initial(self, uniform: Array) -> Array:
        """Map samples of U[0, 1), shape (..., n_y), to first observations (..., n_y).

        Raises:
            ShapeError: If the plant has more states than observations, which leaves too few samples.
        """
        if uniform.shape[-1] < self.plant.n_x:
            raise ShapeError(
                f"uniform: expected at least {self.plant.n_x} samples, one per state of the plant, got "
                f"{uniform.shape[-1]}. Give the task an `initial` of its own."
            )
        return self.plant.observation(self.plant.initial(uniform[..., : self.plant.n_x]))

    def reward(self, observation: Array, action: Array, following: Array) -> Array:
        """Return the plant's reward of one transition between observations (..., n_y), shape (...)."""
        return self.plant.reward(self.invert(observation), action, self.invert(following))

    def terminal(self, observation: Array) -> Array:
        """Tell which observations (..., n_y) end an episode, shape (...), bool."""
        return self.plant.terminal(self.invert(observation))


@dataclass(frozen=True, eq=False)
class LearnedPlant:
    r"""A one-step model of the observations, under the contract of `robustnn.envs.plant.Plant`.

    .. math:: y_{t+1} = \Pi(F(y_t, \mathrm{sat}(u_t)))

    The state is the observation, so every observation of the true plant starts a prediction: SB3 trains on it through
    `TorchVecEnv`, `evaluate` runs it, and `TrajectoryAttack(model=...)` plans with it. Make one with `of`. It is a
    value: training the model further does not change it.

    Args:
        explicit: F in the units of the data, with x = y.
        task: Start, reward and end of episodes as functions of observations, spaces, dt and horizon: an
            `ObservedTask`; a plant whose observation is its state; or your own object with `initial`, `reward` and
            `terminal` of a plant and `observation_space`, `action_space`, `dt`, `horizon`.
        low: Lowest actions, shape (n_u,); those below saturate.
        high: Highest actions, shape (n_u,).
        project: $\Pi$, what is known of observations, such as cos^2 + sin^2 <= 1; None for nothing. In a norm in which
            it is a projection on a convex set, which moves no two points apart, the constants of F are those of the
            learned plant.

    Raises:
        InvalidArgumentError: If the task lacks a part, or the model is no one-step model of its observations.

    Example:
        >>> from robustnn.dynamics import Dataset, LipschitzNARX
        >>> from robustnn.envs import VanDerPol
        >>> rng = np.random.default_rng(0)
        >>> data = Dataset.from_arrays(rng.normal(size=100), rng.normal(size=(100, 2)), VanDerPol().dt)
        >>> learned = LearnedPlant.of(LipschitzNARX(data, 1, 1, lipschitz=1.5), VanDerPol())
        >>> learned.n_x, learned.transition(torch.zeros(4, 2), torch.zeros(4, 1)).shape
        (2, torch.Size([4, 2]))
    """

    explicit: ExplicitStateSpace
    task: Any
    low: Tensor
    high: Tensor
    project: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        """Check that model and task fit each other."""
        _check_task(self.task)
        model = self.explicit
        n = model.n_x
        zeros = (model.d, model.constant)
        reads = model.n_y == n and bool((model.c == torch.eye(n).to(model.c)).all())
        if not reads or model.h is not None or any(one is not None and bool(one.any()) for one in zeros):
            raise invalid(
                "model", "one whose state is its output, y = x", f"{n} states, {model.n_y} outputs, or another map",
                "Fit LipschitzNARX(data, 1, 1, ...), which predicts the next observation from the present one.",
            )  # fmt: skip
        sizes = tuple(int(np.prod(s.shape)) for s in (self.task.observation_space, self.task.action_space))
        if sizes != (n, model.n_u):
            raise invalid(
                "model", f"{sizes[0]} outputs and {sizes[1]} inputs, as the task has", f"{n} and {model.n_u}",
                "Record all observations and actions of the task.",
            )  # fmt: skip

    @classmethod
    def of(
        cls, model: StateSpaceModel, task: Any, project: Callable[[Tensor], Tensor] | None = None
    ) -> LearnedPlant:
        """Make a plant of a fitted model whose outputs are the observations and whose inputs are the actions.

        Args:
            model: A one-step model, such as `LipschitzNARX(data, 1, 1, ...)`.
            task: See the class.
            project: See the class.

        Returns:
            The plant, in float64 on the CPU; see `to`.

        Raises:
            InvalidArgumentError: As for the class, or if the sampling times differ.
        """
        if not isinstance(model, StateSpaceModel):
            fix = "Pass a fitted model of robustnn.dynamics."
            raise invalid("model", "a StateSpaceModel", type(model).__name__, fix)
        with torch.no_grad():
            explicit = model.explicit().detach().to("cpu", torch.float64).map(torch.clone)
        _check_task(task)
        if not np.isclose(model.dt, task.dt, rtol=1e-9, atol=0.0):
            fix = "Sample the data as the task is."
            raise invalid("model", f"the sampling time of the task, {task.dt:g} s", f"{model.dt:g} s", fix)
        if explicit.n_x == explicit.n_y:  # otherwise the constructor says what is wrong
            explicit = _in_data_units(explicit, model.channels)
        space = task.action_space
        low, high = (torch.from_numpy(np.array(limit, dtype=np.float64)) for limit in (space.low, space.high))
        return cls(explicit, task, low, high, project)

    @property
    def n_x(self) -> int:
        """Number of states: that of observations."""
        return self.explicit.n_x

    @property
    def n_u(self) -> int:
        """Number of actions."""
        return self.explicit.n_u

    @property
    def n_y(self) -> int:
        """Number of observations."""
        return self.explicit.n_y

    @property
    def dt(self) -> float:
        """Sampling time, s."""
        return float(self.task.dt)

    @property
    def horizon(self) -> int:
        """Steps per episode."""
        return int(self.task.horizon)

    @property
    def observation_space(self) -> spaces.Box:
        """Box of observations (n_y,); a new object at every access."""
        return copy.deepcopy(self.task.observation_space)

    @property
    def action_space(self) -> spaces.Box:
        """Box of actions (n_u,); a new object at every access."""
        return copy.deepcopy(self.task.action_space)

    @property
    def networks(self) -> tuple[ExplicitMLP, ...]:
        """The linear part and the network of F, by which attacks describe their model."""
        linear = ExplicitMLP((torch.cat((self.explicit.a, self.explicit.b), dim=-1),), (None,), "identity")
        return (linear,) if self.explicit.f is None else (linear, self.explicit.f)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> LearnedPlant:
        """Return a copy on another device or in another dtype; states of another one are served too, slower."""
        low, high = (limit.to(device=device, dtype=dtype) for limit in (self.low, self.high))
        return replace(self, explicit=self.explicit.to(device, dtype), low=low, high=high)

    def initial(self, uniform: Array) -> Array:
        """Map samples of U[0, 1), shape (..., n_y), to first observations, shape (..., n_y)."""
        return self.task.initial(uniform)

    def transition(self, state: Array, action: Array) -> Array:
        """Predict the next observation (..., n_y) under actions (..., n_u), saturated at the action space."""
        if isinstance(state, np.ndarray):
            return self.transition(torch.from_numpy(state), torch.from_numpy(np.asarray(action))).numpy()
        if (self.low.dtype, self.low.device) != (state.dtype, state.device):
            return self.to(state.device, state.dtype).transition(state, action)
        following = self.explicit.step(state, torch.clamp(action.to(state.dtype), self.low, self.high))
        return following if self.project is None else self.project(following)

    def observation(self, state: Array) -> Array:
        """Return the state: it is the observation."""
        return state

    def state_of(self, observation: Array) -> Array:
        """Return the state that belongs to an observation of the true plant: the same."""
        return observation

    def reward(self, state: Array, action: Array, next_state: Array) -> Array:
        """Return the reward of the task, shape (...)."""
        return self.task.reward(state, action, next_state)

    def terminal(self, state: Array) -> Array:
        """Tell which observations end an episode, shape (...), bool."""
        return self.task.terminal(state)


def _check_task(task: Any) -> None:
    missing = [name for name in _TASK_METHODS if not callable(getattr(task, name, None))]
    missing += [name for name in _TASK_VALUES if not hasattr(task, name)]
    if missing or isinstance(task, type):
        got = f"the class {task!r}" if isinstance(task, type) else f"no {', '.join(missing)} in {task!r}"
        raise invalid("task", "start, reward and end of episodes", got, "Pass an ObservedTask.")


def _in_data_units(model: ExplicitStateSpace, channels: Channels) -> ExplicitStateSpace:
    """A model whose states are its scaled outputs, without the scaling: states, inputs and outputs as in the data."""
    scaling = channels.scaling
    offset, unit, u_offset, u_unit = (
        torch.from_numpy(np.array(part, dtype=np.float64))
        for part in (scaling.y_offset, scaling.y_scale, scaling.u_offset, scaling.u_scale)
    )
    centre, size = torch.cat((offset, u_offset)), torch.cat((unit, u_unit))
    linear = unit[:, None] * torch.cat((model.a, model.b), dim=1) / size
    moved = -linear @ centre + (offset if model.step_size is None else 0.0)
    if model.f is None:
        f = ExplicitMLP((torch.zeros_like(linear),), (moved,), "identity")
    else:
        weights, biases = list(model.f.weights), list(model.f.biases)
        first = weights[0] / size
        bias = -first @ centre
        biases[0] = bias if biases[0] is None else biases[0] + bias
        weights[0] = first
        weights[-1] = unit[:, None] * weights[-1]
        last = biases[-1]
        biases[-1] = moved if last is None else moved + unit * last
        f = ExplicitMLP(tuple(weights), tuple(biases), model.f.activation)
    a, b = linear.split((model.n_x, model.n_u), dim=1)
    return replace(model, a=a, b=b, f=f)
