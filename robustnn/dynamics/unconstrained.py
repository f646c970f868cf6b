"""The twin of the Lipschitz-bounded model, without any bound."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustnn.dynamics.base import StateSpaceModel
from robustnn.dynamics.channels import Channels
from robustnn.dynamics.data import Dataset
from robustnn.dynamics.normal_form import STABLE_RATE, NormalForm
from robustnn.dynamics.random_start import random_mlp_
from robustnn.errors import check_positive_int
from robustnn.nn.lbdn import check_widths
from robustnn.nn.mlp import MLP
from robustnn.params.explicit import ExplicitMLP

__all__ = ["UnconstrainedStateSpace"]


class UnconstrainedStateSpace(StateSpaceModel):
    r"""A state-space model with a free linear part and ordinary networks: what a bound is compared with.

    $$x_{t+1} = A x_t + B u_t + W_L \sigma(\dots \sigma(W_0 (x_t, u_t) + b_0) \dots) + b_L$$

    It starts as the bounded model does and has its number of nonlinear units, but no constant is guaranteed: a
    simulation may diverge.

    Args:
        data: Training data, whose scaling, sampling time and names the model keeps; or `Channels`.
        n_x: Number of states.
        hidden: Widths of the hidden layers of the state map.
        activation: Name or torch.nn class.
        feedthrough: Whether inputs act on outputs at once.
        output_hidden: Hidden widths of a nonlinear part of the output, an ordinary network; None for none.
        output_lipschitz: Has no effect; it lets the settings of the bounded model make its twin.

    Raises:
        InvalidArgumentError: If an argument is out of its range.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> data = Dataset.from_arrays(rng.normal(size=100), rng.normal(size=100), 0.1)
        >>> UnconstrainedStateSpace(data, 2, (8,)).lipschitz_x
        inf
    """

    lipschitz_x = float("inf")
    lipschitz_u = float("inf")

    def __init__(
        self,
        data: Dataset | Channels,
        n_x: int,
        hidden: Sequence[int] = (16,),
        *,
        activation: str | type[nn.Module] = "tanh",
        feedthrough: bool = False,
        output_hidden: Sequence[int] | None = None,
        output_lipschitz: float = 1.0,
    ) -> None:
        super().__init__(
            data, n_x, feedthrough=feedthrough, output_hidden=output_hidden, output_lipschitz=output_lipschitz,
            activation=activation,
        )  # fmt: skip
        self.hidden = check_widths("hidden", hidden)
        check_positive_int("len(hidden)", len(self.hidden))
        self.a = nn.Parameter(torch.zeros(n_x, n_x, dtype=torch.float64))
        self.b = nn.Parameter(torch.zeros(n_x, self.n_u, dtype=torch.float64))
        self.network = MLP(n_x + self.n_u, self.hidden, n_x, activation=self.activation, dtype=torch.float64)

    def settings(self) -> dict[str, Any]:
        """Return the arguments of the constructor but the data, as JSON values."""
        return {**super().settings(), "hidden": list(self.hidden)}

    def state_map(self) -> tuple[Tensor, Tensor, ExplicitMLP | None]:
        """Return A, B and f of F(x, u) = A x + B u + f(x, u), in scaled units."""
        return self.a, self.b, self.network.explicit()

    def _fresh_output_network(self) -> MLP | None:
        if self.output_hidden is None:
            return None
        network = MLP(
            self.n_x + self.n_u, self.output_hidden, self.n_y, activation=self.activation, dtype=torch.float64
        )
        with torch.no_grad():
            for parameter in network.layers[-1].parameters():
                parameter.zero_()
        return network

    def _start_rate(self) -> float:
        return STABLE_RATE

    def _start_state_map(self, form: NormalForm, rng: np.random.Generator) -> None:
        with torch.no_grad():
            self.a.copy_(torch.from_numpy(form.a))
            self.b.copy_(torch.from_numpy(form.b))
        random_mlp_(self.network, form.state_constant, rng)
