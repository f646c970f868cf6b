"""What all nonlinear state-space models share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from robustnn.dynamics.channels import Channels
from robustnn.dynamics.data import Dataset
from robustnn.dynamics.initial_state import fit_initial_states
from robustnn.dynamics.linear import LinearStateSpace, subspace
from robustnn.dynamics.normal_form import NormalForm, normal_form
from robustnn.dynamics.simulate import simulate
from robustnn.dynamics.state_space import ExplicitStateSpace
from robustnn.errors import (
    CheckpointError,
    InvalidArgumentError,
    ShapeError,
    check_finite,
    check_positive,
    check_positive_int,
    invalid,
)
from robustnn.nn.lbdn import LBDN, check_widths
from robustnn.nn.module import ExplicitModule
from robustnn.params.activations import resolve_activation
from robustnn.params.explicit import ExplicitMLP

__all__ = ["StateSpaceModel", "stored_bound"]

Array = NDArray[np.float64]
Self = TypeVar("Self", bound="StateSpaceModel")
_LINEAR_SAMPLES = 20_000


class StateSpaceModel(nn.Module):
    r"""A state-space model $x_{t+1} = F(x_t, u_t)$, $y_t = C x_t + D u_t + c + h(x_t, u_t)$ in float64.

    Inside, inputs and outputs are scaled as `channels` says; arguments and results of public methods have the units of
    the data. The states are the model's own, without units. Sub-classes say what F is.

    Args:
        data: Training data, whose scaling, sampling time and names the model keeps; or `Channels`.
        n_x: Number of states.
        feedthrough: Whether D is trained; otherwise it is zero.
        output_hidden: Hidden widths of h; None for a linear output.
        output_lipschitz: Bound of h in scaled units.
        activation: Of h.
    """

    def __init__(
        self,
        data: Dataset | Channels,
        n_x: int,
        *,
        feedthrough: bool,
        output_hidden: Sequence[int] | None,
        output_lipschitz: float,
        activation: str | type[nn.Module],
    ) -> None:
        super().__init__()
        self.channels = Channels.of(data)
        self.n_x = check_positive_int("n_x", n_x)
        self.feedthrough = feedthrough
        self.activation = resolve_activation(activation).name
        self.output_hidden = None if output_hidden is None else check_widths("output_hidden", output_hidden)
        self._output_lipschitz = check_positive("output_lipschitz", output_lipschitz)
        n_u, n_y = self.channels.n_u, self.channels.n_y
        self.c = nn.Parameter(torch.zeros(n_y, n_x, dtype=torch.float64))
        zeros = torch.zeros(n_y, n_u, dtype=torch.float64)
        self.d: Tensor
        if feedthrough:
            self.d = nn.Parameter(zeros)
        else:
            self.register_buffer("d", zeros, persistent=False)
        self.constant = nn.Parameter(torch.zeros(n_y, dtype=torch.float64))
        self.output_network = self._fresh_output_network()

    @property
    def n_u(self) -> int:
        """Number of inputs."""
        return self.channels.n_u

    @property
    def n_y(self) -> int:
        """Number of outputs."""
        return self.channels.n_y

    @property
    def output_lipschitz(self) -> float:
        """Bound of h, in scaled outputs per state or scaled input."""
        # The network's own one, which a state dict may bring along.
        return (
            self.output_network.lipschitz if isinstance(self.output_network, LBDN) else self._output_lipschitz
        )

    @property
    def dt(self) -> float:
        """Sampling time in s."""
        return self.channels.dt

    def settings(self) -> dict[str, Any]:
        """Return the arguments of the constructor but the data, as JSON values."""
        return {
            "n_x": self.n_x,
            "feedthrough": self.feedthrough,
            "output_hidden": None if self.output_hidden is None else list(self.output_hidden),
            "output_lipschitz": self.output_lipschitz,
            "activation": self.activation,
        }

    def state_map(self) -> tuple[Tensor, Tensor, ExplicitMLP | None]:
        """Return A, B and f of F(x, u) = A x + B u + f(x, u), in scaled units."""
        raise TypeError(f"{type(self).__name__} must define state_map()")

    def explicit(self) -> ExplicitStateSpace:
        """Return the model by value, in scaled units; with gradients enabled it carries the graph to the parameters."""
        a, b, f = self.state_map()
        h = None if self.output_network is None else self.output_network.explicit()
        return ExplicitStateSpace(a, b, self.c, self.d, f, h, self.constant)

    def linear_start(self, data: Dataset) -> LinearStateSpace:
        """Identify the linear model from which a fit starts, by `subspace`.

        Args:
            data: Training data; of long records the first 20,000 samples serve.

        Returns:
            The model, in the units of the data.
        """
        return subspace(data.window(0, _LINEAR_SAMPLES), self.n_x, feedthrough=self.feedthrough)

    def start_(self, linear: LinearStateSpace | None, data: Dataset, seed: int = 0) -> None:
        """Set the parameters so that the model starts near a linear one.

        Args:
            linear: With as many states, in the units of the data; None for the one of `linear_start`.
            data: Training data.
            seed: Of what a linear model leaves open.

        Raises:
            InvalidArgumentError: If the number of states or channels is another one.
        """
        linear = self.linear_start(data) if linear is None else linear
        sizes = (linear.n_x, linear.b.shape[1], len(linear.c))
        if sizes != (self.n_x, self.n_u, self.n_y):
            raise InvalidArgumentError(
                f"linear: expected n_x, n_u, n_y = {(self.n_x, self.n_u, self.n_y)}, got {sizes}. Identify one of the "
                "model's order."
            )
        form = normal_form(linear, self.channels, data, self._start_rate())
        with torch.no_grad():
            self.c.copy_(torch.from_numpy(form.c))
            if self.feedthrough:
                self.d.copy_(torch.from_numpy(form.d))
            self.constant.copy_(torch.from_numpy(form.output_constant))
        rng = np.random.default_rng(seed)
        if self.output_network is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int(rng.integers(2**31)))
                fresh = self._fresh_output_network()
            assert fresh is not None
            self.output_network.load_state_dict(fresh.state_dict())
        self._start_state_map(form, rng)

    def _fresh_output_network(self) -> ExplicitModule | None:
        """Network h as it is before training: zero everywhere."""
        if self.output_hidden is None:
            return None
        return LBDN(
            self.n_x + self.n_u, self.output_hidden, self.n_y, lipschitz=self._output_lipschitz,
            activation=self.activation, init="zero_output", dtype=torch.float64,
        )  # fmt: skip

    def _start_rate(self) -> float:
        """Bound of the norm of A at the start."""
        return 1.0

    def _start_state_map(self, form: NormalForm, rng: np.random.Generator) -> None:
        raise TypeError(f"{type(self).__name__} must define _start_state_map()")

    def simulate(self, u: ArrayLike, x0: ArrayLike | None = None) -> Array:
        """Return the outputs to an input, without looking at measured outputs.

        Args:
            u: Shape (T, n_u), in the units of the data.
            x0: State at the first sample, shape (n_x,); None for zero.

        Returns:
            Shape (T, n_y); NaN or infinite where the simulation diverges.

        Raises:
            ShapeError: If a shape is another one.
            NonFiniteError: If an input or x0 is not finite.
        """
        return self._simulate(self._inputs(u), self._state(x0))

    def states(self, u: ArrayLike, x0: ArrayLike | None = None) -> Array:
        """Return the states to an input, shape (T + 1, n_x): the first is x0. Arguments as in `simulate`."""
        inputs, state = self._inputs(u), self._state(x0)
        with torch.no_grad():
            return simulate(self.explicit(), state[None], inputs[None]).x[0].numpy()

    def initial_state(self, u: ArrayLike, y: ArrayLike) -> Array:
        """Return the state at the first sample that fits measured outputs best, in the least-squares sense.

        Args:
            u: Inputs of the window, shape (n, n_u).
            y: Outputs of the window, shape (n, n_y).

        Returns:
            Shape (n_x,).
        """
        if np.ndim(u) != 2 or np.ndim(y) != 2:
            raise ShapeError(
                f"u, y: expected shapes (n, {self.n_u}) and (n, {self.n_y}), got {np.shape(u)} and {np.shape(y)}. "
                "Time is the first axis."
            )
        return self.initial_states(np.asarray(u)[None], np.asarray(y)[None])[0]

    def initial_states(self, u: ArrayLike, y: ArrayLike) -> Array:
        """Return the states at the first samples of B windows, as `initial_state` does for one.

        Args:
            u: Shape (B, n, n_u).
            y: Shape (B, n, n_y).

        Returns:
            Shape (B, n_x).
        """
        inputs, measured = self.channels.scaled_u(u), self.channels.scaled_y(y)
        if inputs.ndim != 3 or inputs.shape[:-1] != measured.shape[:-1] or not inputs.shape[1]:
            raise ShapeError(
                f"u, y: expected shapes (B, n, {self.n_u}) and (B, n, {self.n_y}), got {inputs.shape} and "
                f"{measured.shape}. Cut both alike."
            )
        with torch.no_grad():
            found = fit_initial_states(self.explicit(), torch.from_numpy(inputs), torch.from_numpy(measured))
        return found.numpy()

    def simulate_batch(self, u: ArrayLike, x0: ArrayLike) -> Array:
        """Simulate B inputs at once.

        Args:
            u: Shape (B, T, n_u), in the units of the data.
            x0: States at the first samples, shape (B, n_x).

        Returns:
            Shape (B, T, n_y).
        """
        inputs, states = self.channels.scaled_u(u), np.array(x0, dtype=np.float64)
        if inputs.ndim != 3 or states.shape != (len(inputs), self.n_x):
            raise ShapeError(
                f"u, x0: expected shapes (B, T, {self.n_u}) and (B, {self.n_x}), got {inputs.shape} and "
                f"{states.shape}. The batch is the first axis."
            )
        with torch.no_grad():
            scaled = simulate(self.explicit(), torch.from_numpy(states), torch.from_numpy(inputs)).y.numpy()
        return self.channels.physical_y(scaled)

    def _apply(self: Self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Refuse other dtypes than float64: the constants would hold up to the rounding of those only."""
        dtype = fn(torch.zeros(1, dtype=torch.float64)).dtype
        if dtype != torch.float64:
            raise invalid(
                "model",
                "dtype float64",
                dtype,
                "Convert it by value instead: model.explicit().to(dtype=...).",
            )
        super()._apply(fn, recurse)
        return self

    def _simulate(self, inputs: Tensor, state: Tensor) -> Array:
        with torch.no_grad():
            scaled = simulate(self.explicit(), state[None], inputs[None]).y[0].numpy()
        return self.channels.physical_y(scaled)

    def _inputs(self, u: ArrayLike) -> Tensor:
        inputs = self.channels.scaled_u(u)
        if inputs.ndim != 2:
            raise ShapeError(
                f"u: expected shape (T, {self.n_u}), got {inputs.shape}. Time is the first axis."
            )
        return torch.from_numpy(inputs)

    def _state(self, x0: ArrayLike | None) -> Tensor:
        state = np.zeros(self.n_x) if x0 is None else np.array(x0, dtype=np.float64)
        if state.shape != (self.n_x,):
            raise ShapeError(
                f"x0: expected shape ({self.n_x},), got {state.shape}. Give the state at the first sample."
            )
        check_finite("x0", state)
        return torch.from_numpy(state)


def stored_bound(state: Any, name: str) -> float:
    """Return a bound from the extra state of a model.

    Raises:
        CheckpointError: If it has none.
    """
    try:
        return check_positive(name, dict(state)[name])
    except (TypeError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"state dict: expected an extra state with {name} > 0, got {state!r}. It is damaged or was written by a "
            "model of another class."
        ) from error
