"""Simulation error of windows, with initial states from an encoder: for long records and for Adam."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from robustnn.dynamics.data import Dataset
from robustnn.dynamics.models import StateSpaceModel
from robustnn.dynamics.simulate import simulate
from robustnn.errors import ShapeError
from robustnn.nn.mlp import MLP

__all__ = ["Windows"]

Arrays = dict[str, NDArray[np.float64]]

_LENGTH, _BATCH, _PAST, _WIDTH = 128, 64, 20, 32
_RATE = 3e-3


class Windows:
    """Adam on the mean squared simulation error of random windows.

    The state before a window comes from an encoder: a network of the inputs and outputs of the samples before it, which
    is trained along and belongs to the fit, not to the model. Iteration k draws its windows from (seed, k) alone.

    Args:
        model: Is changed in place; start it first.
        train: Training data.
        ridge: Weight of the mean squared parameters.
        seed: Of the windows and the encoder.

    Raises:
        ShapeError: If no record is longer than the past that the encoder sees and a few samples.
    """

    def __init__(self, model: StateSpaceModel, train: Dataset, ridge: float, seed: int) -> None:
        self._model, self._ridge, self._seed = model, ridge, seed
        channels = model.channels
        self._records = [
            torch.from_numpy(np.concatenate((channels.scaled_u(one.u), channels.scaled_y(one.y)), axis=1))
            for one in train
        ]
        longest = max(len(one) for one in self._records)
        self._past = min(_PAST, longest // 4)
        self._length = min(_LENGTH, longest - self._past)
        self._starts = np.array([max(0, len(one) - self._past - self._length + 1) for one in self._records])
        if self._past < 1 or not self._starts.any():
            raise ShapeError(
                f"train: expected a record of some 10 samples at least, got {longest}. Use method='full'."
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._encoder: nn.Module = MLP(
                self._past * (model.n_u + model.n_y),
                (_WIDTH,),
                model.n_x,
                activation="tanh",
                dtype=torch.float64,
            )
        self._parameters = [p for p in (*model.parameters(), *self._encoder.parameters()) if p.requires_grad]
        self._adam = torch.optim.Adam(self._parameters, lr=_RATE)
        self.evaluations = 0
        self._loss = float("nan")

    @property
    def loss(self) -> float:
        """Running mean of the squared error of windows."""
        return self._loss

    def advance(self, iterations: int) -> bool:
        """Do so many steps of Adam."""
        for _ in range(iterations):
            self._adam.zero_grad(set_to_none=True)
            with torch.enable_grad():
                loss = self._error()
                if self._ridge:
                    loss = loss + self._ridge * sum(p.square().sum() for p in self._model.parameters())
                loss.backward()
            nn.utils.clip_grad_norm_(self._parameters, 1.0)
            self._adam.step()
            self.evaluations += 1
            value = float(loss.detach())
            self._loss = value if self._loss != self._loss else 0.98 * self._loss + 0.02 * value
        return bool(np.isfinite(self._loss))

    def state(self) -> Arrays:
        """Return all that further iterations depend on."""
        arrays = {"evaluations": np.array(float(self.evaluations)), "loss": np.array(self._loss)}
        for k, parameter in enumerate(self._parameters):
            arrays[f"parameter_{k}"] = parameter.detach().numpy().copy()
            for name, value in self._adam.state[parameter].items():
                arrays[f"{name}_{k}"] = value.numpy().copy()
        return arrays

    def load(self, state: Mapping[str, NDArray[np.float64]]) -> None:
        """Continue from a state."""
        self.evaluations, self._loss = int(state["evaluations"]), float(state["loss"])
        with torch.no_grad():
            for k, parameter in enumerate(self._parameters):
                parameter.copy_(torch.from_numpy(state[f"parameter_{k}"]))
                if f"step_{k}" in state:
                    self._adam.state[parameter] = {
                        name: torch.from_numpy(np.array(state[f"{name}_{k}"])).clone()
                        for name in ("step", "exp_avg", "exp_avg_sq")
                    }

    def _error(self) -> Tensor:
        rng = np.random.default_rng((self._seed, self.evaluations))
        which = rng.choice(len(self._records), size=_BATCH, p=self._starts / self._starts.sum())
        first = (rng.random(_BATCH) * self._starts[which]).astype(int)
        span = self._past + self._length
        batch = torch.stack([self._records[k][i : i + span] for k, i in zip(which, first, strict=True)])
        x0 = self._encoder(batch[:, : self._past].flatten(1))
        u, y = batch[:, self._past :].split((self._model.n_u, self._model.n_y), dim=2)
        return (simulate(self._model.explicit(), x0, u.contiguous()).y - y).square().mean()
