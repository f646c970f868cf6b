"""Small plants whose worst cases are known in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from robustnn.envs.plant import Plant

A = torch.tensor([[1.0, 0.1], [0.3, 0.95]], dtype=torch.float64)
B = torch.tensor([[0.02], [0.2]], dtype=torch.float64)
C = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, -1.0]], dtype=torch.float64)
K = torch.tensor([[-2.0, -1.0, 0.3]], dtype=torch.float64)
W = torch.tensor([1.0, -0.5], dtype=torch.float64)


@dataclass(frozen=True)
class LinearPlant(Plant):
    """x+ = A x + B u, y = C x, and a reward -w'x+ that is linear, so that returns are linear in errors of y.

    The episode ends when the first state exceeds `limit`.
    """

    limit: float = float("inf")
    dt: float = 1.0
    horizon: int = 12
    n_x: ClassVar[int] = 2
    n_u: ClassVar[int] = 1
    n_y: ClassVar[int] = 3

    @property
    def observation_space(self) -> spaces.Box:
        return spaces.Box(-np.inf, np.inf, (3,), np.float32)

    @property
    def action_space(self) -> spaces.Box:
        return spaces.Box(-1.0, 1.0, (1,), np.float32)

    def initial(self, uniform: Tensor) -> Tensor:
        return 2.0 * uniform - 1.0

    def transition(self, state: Tensor, action: Tensor) -> Tensor:
        return state @ A.T.to(state) + action @ B.T.to(state)

    def observation(self, state: Tensor) -> Tensor:
        return state @ C.T.to(state)

    def reward(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        return -(next_state @ W.to(state))

    def terminal(self, state: Tensor) -> Tensor:
        return state[..., 0] > self.limit


def linear_policy(observation: Tensor) -> Tensor:
    """u = K y."""
    return observation @ K.T.to(observation)


def curved_policy(observation: Tensor) -> Tensor:
    """A saturating policy."""
    return torch.tanh(3.0 * (observation @ K.T.to(observation)))


def error_gradients(steps: int, final_only: bool = False) -> Tensor:
    """Derivatives of the return (or last reward) with respect to the errors, (steps, n_y), by the adjoint."""
    closed = A + B @ K @ C
    costate = torch.zeros(2, dtype=torch.float64)
    gradients = []
    for step in reversed(range(steps)):
        costate = closed.T @ costate
        if step == steps - 1 or not final_only:
            costate = costate - W
        gradients.append((B @ K).T @ costate)
    return torch.stack(gradients[::-1])
