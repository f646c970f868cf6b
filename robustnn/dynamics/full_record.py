"""Simulation error of whole records as a function of one vector: for quasi-Newton methods."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustnn.bounds.lbfgs import LBFGS
from robustnn.dynamics.data import Dataset
from robustnn.dynamics.models import StateSpaceModel
from robustnn.dynamics.simulate import simulate

__all__ = ["FullRecord"]

Arrays = dict[str, NDArray[np.float64]]

_MEMORY = 30


class FullRecord:
    r"""L-BFGS on the mean squared simulation error of all samples of all records.

    Variables are the parameters of the model and the initial state of every record.

    $$J(\theta, x_0) = \frac{1}{N n_y} \sum_t \|\hat y_t(\theta, x_0) - y_t\|_2^2 + \rho \|\theta\|_2^2$$

    in scaled outputs. Records of different lengths are simulated together, the short ones padded.

    Args:
        model: Is changed in place; start it first.
        train: Training data.
        ridge: rho >= 0.
    """

    def __init__(self, model: StateSpaceModel, train: Dataset, ridge: float) -> None:
        self._model = model
        self._ridge = ridge
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._u, self._y, self._weight = _padded(model, train)
        n, n_x = len(train), model.n_x
        x0 = np.zeros((n, n_x))
        if train.n_init > 0:
            for k, one in enumerate(train):
                x0[k] = model.initial_state(one.u[: train.n_init], one.y[: train.n_init])
        start = torch.cat(
            [*(p.detach().reshape(-1) for p in self._parameters), torch.from_numpy(x0).reshape(-1)]
        )
        self._x0_shape = (n, n_x)
        self.evaluations = 0
        self._solver = LBFGS(self._objective, start, memory=_MEMORY)

    @property
    def loss(self) -> float:
        """Mean squared error, with the penalty."""
        return float(self._solver.value)

    def advance(self, iterations: int) -> bool:
        """Do so many iterations; return whether the last one decreased the error. The model gets the result."""
        moved = True
        for _ in range(iterations):
            moved = self._solver.step()
            if not moved:
                break
        self._write(self._solver.x)
        return moved

    def state(self) -> Arrays:
        """Return all that further iterations depend on."""
        arrays = {name: tensor.numpy() for name, tensor in self._solver.state().items()}
        return {**arrays, "evaluations": np.array(float(self.evaluations))}

    def load(self, state: Mapping[str, NDArray[np.float64]]) -> None:
        """Continue from a state."""
        tensors = {name: torch.from_numpy(np.array(array)) for name, array in state.items()}
        self.evaluations = int(tensors.pop("evaluations"))
        self._solver = LBFGS.resume(self._objective, tensors, memory=_MEMORY)
        self._write(self._solver.x)

    def _objective(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        self.evaluations += 1
        self._write(vector)
        x0 = vector[-self._x0_shape[0] * self._x0_shape[1] :].reshape(self._x0_shape).clone().requires_grad_()
        with torch.enable_grad():
            simulated = simulate(self._model.explicit(), x0, self._u).y
            loss = ((simulated - self._y).square() * self._weight).sum()
            if self._ridge:
                loss = loss + self._ridge * sum(p.square().sum() for p in self._parameters)
            gradients = torch.autograd.grad(loss, [*self._parameters, x0], allow_unused=True)
        pieces = [
            torch.zeros_like(p) if g is None else g
            for p, g in zip([*self._parameters, x0], gradients, strict=True)
        ]
        return loss.detach(), torch.cat([piece.reshape(-1) for piece in pieces])

    def _write(self, vector: Tensor) -> None:
        position = 0
        with torch.no_grad():
            for parameter in self._parameters:
                parameter.copy_(vector[position : position + parameter.numel()].view_as(parameter))
                position += parameter.numel()


def _padded(model: StateSpaceModel, data: Dataset) -> tuple[Tensor, Tensor, Tensor]:
    """Scaled inputs (B, T, n_u), outputs (B, T, n_y), and weights (B, T, 1) that sum to 1 / n_y."""
    channels, steps = model.channels, max(len(one) for one in data)
    u = np.zeros((len(data), steps, data.n_u))
    y = np.zeros((len(data), steps, data.n_y))
    weight = np.zeros((len(data), steps, 1))
    for k, one in enumerate(data):
        u[k, : len(one)], y[k, : len(one)] = channels.scaled_u(one.u), channels.scaled_y(one.y)
        weight[k, : len(one)] = 1.0 / (data.n_samples * data.n_y)
    return torch.from_numpy(u), torch.from_numpy(y), torch.from_numpy(weight)
