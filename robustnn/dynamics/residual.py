r"""A free linear model with a Lipschitz-bounded correction.

$$x_{t+1} = A x_t + B u_t + g(x_t, u_t)$$
"""

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
from robustnn.dynamics.random_start import random_lbdn_
from robustnn.errors import check_positive_int
from robustnn.linalg import spectral_norm
from robustnn.nn.lbdn import LBDN, check_widths
from robustnn.params.explicit import ExplicitMLP

__all__ = ["ResidualStateSpace", "upper_norm"]


class ResidualStateSpace(StateSpaceModel):
    r"""A state-space model whose deviation from a linear one is bounded, for any value of its parameters.

    With $\|g(x, u) - g(x', u')\|_2 \le \gamma \|(x, u) - (x', u')\|_2$, the norm taken over states and scaled inputs
    together with equal weights, the state map satisfies

    $$\|F(x, u) - F(x', u')\|_2 \le L_x \|x - x'\|_2 + L_u \|u - u'\|_2, \qquad
    L_x = \|A\|_2 + \gamma, \quad L_u = \|B\|_2 + \gamma$$

    A and B are trained without a constraint, so these constants follow training and nothing keeps $L_x$ below one:
    `LipschitzStateSpace` does. In the form $x_{t+1} = x_t + g(x_t, u_t)$ usual for residual networks, A = I,
    $L_x = 1 + \gamma$ exceeds one whatever the bound: it can never be proved contracting this way.

    Args:
        data: Training data, whose scaling, sampling time and names the model keeps; or `Channels`.
        n_x: Number of states.
        hidden: Widths of the hidden layers of g.
        lipschitz: $\gamma$, in states per state or scaled input.
        activation: Name or torch.nn class.
        feedthrough: Whether inputs act on outputs at once.
        output_hidden: Hidden widths of a nonlinear part of the output; None for none.
        output_lipschitz: Its bound, in scaled outputs per state or scaled input.

    Raises:
        InvalidArgumentError: If an argument is out of its range.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> data = Dataset.from_arrays(rng.normal(size=100), rng.normal(size=100), 0.1)
        >>> ResidualStateSpace(data, 2, (8,), lipschitz=0.2).lipschitz_x  # A is zero before the start
        0.2
    """

    def __init__(
        self,
        data: Dataset | Channels,
        n_x: int,
        hidden: Sequence[int] = (16,),
        *,
        lipschitz: float,
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
        self.network = LBDN(
            n_x + self.n_u, self.hidden, n_x, lipschitz=lipschitz, activation=self.activation,
            dtype=torch.float64,
        )  # fmt: skip

    @property
    def lipschitz(self) -> float:
        r"""$\gamma$, in states per state or scaled input."""
        return self.network.lipschitz

    @property
    def lipschitz_x(self) -> float:
        """L_x of the present parameters."""
        return upper_norm(self.a) + self.lipschitz

    @property
    def lipschitz_u(self) -> float:
        """L_u of the present parameters, in states per scaled input."""
        return upper_norm(self.b) + self.lipschitz

    def settings(self) -> dict[str, Any]:
        """Return the arguments of the constructor but the data, as JSON values."""
        return {**super().settings(), "hidden": list(self.hidden), "lipschitz": self.lipschitz}

    def state_map(self) -> tuple[Tensor, Tensor, ExplicitMLP | None]:
        """Return A, B and f of F(x, u) = A x + B u + f(x, u), in scaled units."""
        return self.a, self.b, self.network.explicit()

    def _start_rate(self) -> float:
        return STABLE_RATE

    def _start_state_map(self, form: NormalForm, rng: np.random.Generator) -> None:
        with torch.no_grad():
            self.a.copy_(torch.from_numpy(form.a))
            self.b.copy_(torch.from_numpy(form.b))
        random_lbdn_(self.network, form.state_constant, rng)


def upper_norm(matrix: Tensor) -> float:
    """Return the spectral norm, with an allowance for the rounding of its computation."""
    allowance = 4.0 * max(matrix.shape, default=0) * torch.finfo(torch.float64).eps
    return float(spectral_norm(matrix.detach())) * (1.0 + allowance)
