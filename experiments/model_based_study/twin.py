"""The model without a bound whose state is the observation: the twin of a `LipschitzNARX` of the newest sample."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from robustnn.dynamics import Channels, Dataset, LinearStateSpace, LipschitzNARX, UnconstrainedStateSpace
from robustnn.dynamics.random_start import random_mlp_

Array = NDArray[np.float64]
# A bound that binds nowhere, for the least-squares start that twins share.
_LOOSE = 1e3


class ObservationTwin(UnconstrainedStateSpace):
    r"""$y_{t+1} = A y_t + B u_t + f(y_t, u_t)$ in scaled units, with an ordinary network f.

    Args:
        channels: Scaling, sampling time and names.
        hidden: Hidden widths of f.
    """

    def __init__(self, channels: Channels, hidden: tuple[int, ...]) -> None:
        super().__init__(channels, channels.n_y, hidden)
        # The output is the state: nothing there is trained.
        del self.c, self.constant
        self.register_buffer("c", torch.eye(self.n_y, dtype=torch.float64), persistent=False)
        self.register_buffer("constant", torch.zeros(self.n_y, dtype=torch.float64), persistent=False)

    def linear_start(self, data: Dataset) -> LinearStateSpace:
        """Identify the linear model of the next observation by least squares."""
        return LipschitzNARX(self.channels, 1, 1, self.hidden, lipschitz=_LOOSE).linear_start(data)

    def start_(self, linear: LinearStateSpace | None, data: Dataset, seed: int = 0) -> None:
        """Set the parameters so that the model starts near a linear one; arguments as for any model."""
        linear = self.linear_start(data) if linear is None else linear
        a, b = linear.a, linear.b * self.channels.scaling.u_scale
        y = [self.channels.scaled_y(one.y) for one in data]
        u = [self.channels.scaled_u(one.u) for one in data]
        rest = [after[1:] - after[:-1] @ a.T - acting[:-1] @ b.T for after, acting in zip(y, u, strict=True)]
        with torch.no_grad():
            self.a.copy_(torch.from_numpy(a))
            self.b.copy_(torch.from_numpy(b))
        random_mlp_(self.network, np.concatenate(rest).mean(0), np.random.default_rng(seed))

    def initial_states(self, u: ArrayLike, y: ArrayLike) -> Array:
        """Return the first observations of B windows (B, n, n_y), scaled: they are the states."""
        del u
        return self.channels.scaled_y(y)[:, 0]
