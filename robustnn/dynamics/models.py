"""The state-space model with a Lipschitz-bounded state map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from robustnn.dynamics.base import StateSpaceModel, stored_bound
from robustnn.dynamics.channels import Channels
from robustnn.dynamics.data import Dataset
from robustnn.dynamics.normal_form import NormalForm
from robustnn.dynamics.semilinear import SemilinearMap
from robustnn.errors import check_positive, invalid
from robustnn.nn.lbdn import check_widths
from robustnn.params.explicit import ExplicitMLP

__all__ = ["LipschitzStateSpace", "StateSpaceModel"]

Array = NDArray[np.float64]


class LipschitzStateSpace(StateSpaceModel):
    r"""A state-space model with guaranteed constants of its state map, for any value of its parameters.

    $$\|F(x, u) - F(x', u')\|_2^2 \le L_x^2 \|x - x'\|_2^2 + L_u^2 \|u - u'\|_2^2$$

    with F from a sandwich layer (Wang & Manchester, ICML 2023), part of whose units are linear, or from a deeper LBDN.
    With $L_x < 1$ the model is contracting: it forgets its initial state at that rate, and has a finite incremental
    gain. As the states are its own, the metric in which it contracts costs no generality: with a metric P, the states
    $P^{1/2} x$ have the Euclidean one. Training finds the coordinates with the rest.

    Args:
        data: Training data, whose scaling, sampling time and names the model keeps; or `Channels`.
        n_x: Number of states.
        hidden: Widths of the hidden layers of the state map.
        lipschitz_x: $L_x$.
        lipschitz_u: $L_u$ in states per scaled input; None to train it along.
        activation: Name or torch.nn class.
        feedthrough: Whether inputs act on outputs at once.
        output_hidden: Hidden widths of a nonlinear part of the output; None for none.
        output_lipschitz: Its bound, in scaled outputs per state or scaled input.

    Raises:
        InvalidArgumentError: If an argument is out of its range.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> data = Dataset.from_arrays(rng.normal(size=100), rng.normal(size=100), 0.1)
        >>> model = LipschitzStateSpace(data, 2, (8,), lipschitz_x=0.9)
        >>> model.simulate(data.experiments[0].u).shape
        (100, 1)
    """

    def __init__(
        self,
        data: Dataset | Channels,
        n_x: int,
        hidden: Sequence[int] = (16,),
        *,
        lipschitz_x: float,
        lipschitz_u: float | None = None,
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
        self.lipschitz_x = check_positive("lipschitz_x", lipschitz_x)
        self._lipschitz_u = None if lipschitz_u is None else check_positive("lipschitz_u", lipschitz_u)
        self.map = SemilinearMap(n_x + self.n_u, n_x, self.hidden, self.activation)
        self.register_parameter("log_lipschitz_u", None)
        if self._lipschitz_u is None:
            self.log_lipschitz_u = nn.Parameter(torch.zeros((), dtype=torch.float64))

    @property
    def lipschitz_u(self) -> float:
        """L_u, in states per scaled input."""
        return float(self._input_gain().detach())

    def set_lipschitz_x(self, lipschitz_x: float) -> None:
        """Change L_x; the function changes with it."""
        self.lipschitz_x = check_positive("lipschitz_x", lipschitz_x)

    def raise_lipschitz_x(self, bound: float) -> None:
        """Raise L_x without changing the function: what training may do from here on is all that changes.

        Args:
            bound: The new L_x, at least the present one. To lower it, use `set_lipschitz_x`.

        Raises:
            InvalidArgumentError: If it is smaller.
        """
        new = check_positive("bound", bound)
        if new < self.lipschitz_x:
            raise invalid(
                "bound", f"at least the present bound, {self.lipschitz_x:.8g}", new,
                "Use set_lipschitz_x, which changes the function.",
            )  # fmt: skip
        factors = np.concatenate((np.full(self.n_x, self.lipschitz_x / new), np.ones(self.n_u)))
        self.map.rescale_inputs_(factors)
        self.lipschitz_x = new

    def settings(self) -> dict[str, Any]:
        """Return the arguments of the constructor but the data, as JSON values."""
        own = {"hidden": list(self.hidden), "lipschitz_x": self.lipschitz_x, "lipschitz_u": self._lipschitz_u}
        return {**super().settings(), **own}

    def get_extra_state(self) -> dict[str, float | None]:
        """Return the fixed bounds, which travel with the state dict."""
        return {"lipschitz_x": self.lipschitz_x, "lipschitz_u": self._lipschitz_u}

    def set_extra_state(self, state: Any) -> None:
        """Restore the fixed bounds from a state dict (a trained one is a parameter)."""
        self.lipschitz_x = stored_bound(state, "lipschitz_x")
        if self._lipschitz_u is not None:
            self._lipschitz_u = stored_bound(state, "lipschitz_u")

    def state_map(self) -> tuple[Tensor, Tensor, ExplicitMLP | None]:
        """Return A, B and f of F(x, u) = A x + B u + f(x, u), in scaled units."""
        gain, network = self.map.parts()
        scale = torch.cat(
            (self.c.new_full((self.n_x,), self.lipschitz_x), self._input_gain().expand(self.n_u))
        )
        first = network.weights[0] * scale
        f = ExplicitMLP((first, *network.weights[1:]), network.biases, network.activation)
        if gain is None:
            gain = self.c.new_zeros(self.n_x, self.n_x + self.n_u)
        a, b = (gain * scale).split((self.n_x, self.n_u), dim=1)
        return a, b, f

    def _input_gain(self) -> Tensor:
        if self.log_lipschitz_u is None:
            return self.c.new_tensor(self._lipschitz_u)
        return self.log_lipschitz_u.clamp(-50.0, 50.0).exp()

    def _start_rate(self) -> float:
        return self.lipschitz_x

    def _start_state_map(self, form: NormalForm, rng: np.random.Generator) -> None:
        if (
            self.log_lipschitz_u is not None
        ):  # room for inputs that act more strongly than in the linear model
            with torch.no_grad():
                self.log_lipschitz_u.fill_(math.log(3.0 * form.input_gain))
        gain = np.concatenate((form.a / self.lipschitz_x, form.b / self.lipschitz_u), axis=1)
        self.map.start_(gain, form.state_constant, rng)
