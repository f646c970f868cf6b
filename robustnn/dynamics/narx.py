r"""A Lipschitz-bounded NARX model: the next output from past outputs and inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from robustnn.dynamics.base import StateSpaceModel, stored_bound
from robustnn.dynamics.channels import Channels
from robustnn.dynamics.data import Dataset
from robustnn.dynamics.linear import LinearStateSpace
from robustnn.dynamics.residual import upper_norm
from robustnn.dynamics.semilinear import SemilinearMap
from robustnn.errors import ShapeError, check_positive, check_positive_int, invalid
from robustnn.nn.lbdn import check_widths
from robustnn.params.explicit import ExplicitMLP

__all__ = ["LipschitzNARX"]

Array = NDArray[np.float64]
_LINEAR_SAMPLES = 20_000
# Share of the bound that the linear model may use at the start; eigenvalues of its simulation stay below the radius.
_SHARE, _RADIUS = 0.99, 0.999


class LipschitzNARX(StateSpaceModel):
    r"""The next output as a bounded function of the last ones and of the last inputs.

    $$y_{t+1} = F(\varphi_t), \quad \varphi_t = (y_t, \dots, y_{t-n_a+1}, u_{t-1}, \dots, u_{t-n_b+1}, u_t), \qquad
    \|F(\varphi) - F(\varphi')\|_2 \le \gamma \|\varphi - \varphi'\|_2$$

    in scaled outputs and inputs, for any value of the parameters. The bound is one of `predict`, the prediction of one
    sample from measured ones. As a state-space model its states are the first $n_a n_y + (n_b - 1) n_u$ entries of
    $\varphi$, and

    $$\|x_+ - x_+'\|_2^2 \le L_x^2 \|x - x'\|_2^2 + L_u^2 \|u - u'\|_2^2, \qquad
    L_x = \left\| \begin{bmatrix} \gamma I \\ S \end{bmatrix} \right\|_2$$

    with S the shift of the states. With $n_a > 1$ or $n_b > 2$ the shift alone has norm one, so that
    $L_x = \sqrt{\gamma^2 + 1}$: a simulation by this model cannot be proved contracting in this norm, whatever
    $\gamma$. Take a `LipschitzStateSpace` for that.

    Args:
        data: Training data, whose scaling, sampling time and names the model keeps; or `Channels`.
        n_a: Number of past outputs.
        n_b: Number of past inputs, the present one included.
        hidden: Widths of the hidden layers of F.
        lipschitz: $\gamma$, in scaled outputs per scaled output or input.
        activation: Name or torch.nn class.

    Raises:
        InvalidArgumentError: If an argument is out of its range.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> data = Dataset.from_arrays(rng.normal(size=100), rng.normal(size=100), 0.1)
        >>> model = LipschitzNARX(data, 2, 3, (8,), lipschitz=2.0)
        >>> model.n_x, model.predict(data.experiments[0].u, data.experiments[0].y).shape
        (4, (100, 1))
    """

    shift: Tensor

    def __init__(
        self,
        data: Dataset | Channels,
        n_a: int,
        n_b: int,
        hidden: Sequence[int] = (16,),
        *,
        lipschitz: float,
        activation: str | type[nn.Module] = "tanh",
    ) -> None:
        channels = Channels.of(data)
        n_a, n_b = check_positive_int("n_a", n_a), check_positive_int("n_b", n_b)
        n_y, n_u = channels.n_y, channels.n_u
        n_x = n_a * n_y + (n_b - 1) * n_u
        super().__init__(
            channels, n_x, feedthrough=False, output_hidden=None, output_lipschitz=1.0, activation=activation
        )
        self.n_a, self.n_b = n_a, n_b
        self.hidden = check_widths("hidden", hidden)
        self.lipschitz = check_positive("lipschitz", lipschitz)
        self.map = SemilinearMap(n_x + n_u, n_y, self.hidden, self.activation)
        # The output is the first state: nothing there is trained.
        del self.c, self.constant
        self.register_buffer("c", torch.eye(n_y, n_x, dtype=torch.float64), persistent=False)
        self.register_buffer("constant", torch.zeros(n_y, dtype=torch.float64), persistent=False)
        shift = torch.zeros(n_x, n_x + n_u, dtype=torch.float64)
        split = n_a * n_y
        shift[n_y:split, : split - n_y] = torch.eye(split - n_y, dtype=torch.float64)
        if n_b > 1:
            shift[split : split + n_u, n_x:] = torch.eye(n_u, dtype=torch.float64)
            shift[split + n_u :, split : n_x - n_u] = torch.eye(n_x - split - n_u, dtype=torch.float64)
        self.register_buffer("shift", shift, persistent=False)

    @property
    def lipschitz_x(self) -> float:
        """L_x of the state map, in the norm of all states together."""
        return self._stacked_norm(slice(0, self.n_x))

    @property
    def lipschitz_u(self) -> float:
        """L_u of the state map, in states per scaled input."""
        return self._stacked_norm(slice(self.n_x, None))

    def settings(self) -> dict[str, Any]:
        """Return the arguments of the constructor but the data, as JSON values."""
        return {
            "n_a": self.n_a, "n_b": self.n_b, "hidden": list(self.hidden), "lipschitz": self.lipschitz,
            "activation": self.activation,
        }  # fmt: skip

    def get_extra_state(self) -> dict[str, float]:
        """Return the bound, which travels with the state dict."""
        return {"lipschitz": self.lipschitz}

    def set_extra_state(self, state: Any) -> None:
        """Restore the bound from a state dict."""
        self.lipschitz = stored_bound(state, "lipschitz")

    def state_map(self) -> tuple[Tensor, Tensor, ExplicitMLP | None]:
        """Return A, B and f of the state map: F in the rows of the newest output, shifts in the others."""
        gain, network = self.map.parts()
        below = self.n_x - self.n_y
        last, bias = network.weights[-1], network.biases[-1]
        assert bias is not None
        last = torch.cat((self.lipschitz * last, last.new_zeros(below, last.shape[1])))
        bias = torch.cat((self.lipschitz * bias, bias.new_zeros(below)))
        f = ExplicitMLP((*network.weights[:-1], last), (*network.biases[:-1], bias), network.activation)
        matrix = self.shift
        if gain is not None:
            matrix = torch.cat((self.lipschitz * gain, self.shift[self.n_y :]))
        a, b = matrix.split((self.n_x, self.n_u), dim=1)
        return a, b, f

    def predict(self, u: ArrayLike, y: ArrayLike) -> Array:
        """Predict every output from the measured ones before it.

        Args:
            u: Inputs, shape (T, n_u), in the units of the data.
            y: Outputs, shape (T, n_y).

        Returns:
            Shape (T, n_y); row t comes from y[:t] and u[:t]. NaN in the first max(n_a, n_b) rows.

        Raises:
            ShapeError: If a shape is another one.
            NonFiniteError: If a sample is not finite.
        """
        inputs, measured = self._measured(u, y)
        result = np.full(measured.shape, np.nan)
        past = self._regressors(inputs, measured)[:-1]
        if len(past):
            x, now = torch.from_numpy(past).split((self.n_x, self.n_u), dim=1)
            with torch.no_grad():
                result[len(result) - len(past) :] = self.explicit().step(x, now)[:, : self.n_y].numpy()
        return self.channels.physical_y(result)

    def linear_start(self, data: Dataset) -> LinearStateSpace:
        """Identify the linear model from which a fit starts: least squares on the next output, within the bound.

        Args:
            data: Training data; of long records the first 20,000 samples serve.

        Returns:
            The model, in the units of the data; its states are those of this one.

        Raises:
            ShapeError: If no record is longer than the past.
        """
        past, following = self._pairs(data)
        moments = (past - past.mean(0)).T @ (past - past.mean(0)) / len(past)
        cross = (following - following.mean(0)).T @ (past - past.mean(0)) / len(past)
        gain = _bounded_least_squares(moments, cross, _SHARE * self.lipschitz)
        radius = np.abs(np.linalg.eigvals(self._linear_matrices(gain)[0])).max()
        if radius > _RADIUS:  # the roots of the simulation shrink alike
            for lag in range(self.n_a):
                gain[:, lag * self.n_y : (lag + 1) * self.n_y] *= (_RADIUS / radius) ** (lag + 1)
        a, b = self._linear_matrices(gain)
        scaling = self.channels.scaling
        c = scaling.y_scale[:, None] * self.c.numpy()
        d = np.zeros((self.n_y, self.n_u))
        return LinearStateSpace(a, b / scaling.u_scale, c, d, scaling.u_offset, scaling.y_offset, self.dt)

    def start_(self, linear: LinearStateSpace | None, data: Dataset, seed: int = 0) -> None:
        """Set the parameters so that the model starts near a linear one.

        Args:
            linear: As `linear_start` returns it, with the states of this model; None for that one.
            data: Training data.
            seed: Of the nonlinear units.

        Raises:
            InvalidArgumentError: If it has other states.
            ShapeError: If no record is longer than the past.
        """
        linear = self.linear_start(data) if linear is None else linear
        rows = np.concatenate((linear.a, linear.b * self.channels.scaling.u_scale), axis=1)
        expected = self.shift[self.n_y :].numpy()
        if rows.shape != tuple(self.shift.shape) or not np.allclose(rows[self.n_y :], expected, atol=1e-9):
            raise invalid(
                "linear", "a model whose states are past outputs and inputs, as linear_start returns it",
                f"one with matrices {linear.a.shape} and {linear.b.shape} that is none", "Pass None.",
            )  # fmt: skip
        gain = rows[: self.n_y]
        past, following = self._pairs(data)
        offset = following.mean(0) - gain @ past.mean(0)
        self.map.start_(
            gain / self.lipschitz, offset / self.lipschitz, np.random.default_rng(seed),
            effect=0.03 / self.lipschitz,
        )  # fmt: skip

    def initial_states(self, u: ArrayLike, y: ArrayLike) -> Array:
        """Return the states at the first samples of B windows, from the data without a search.

        The newest output of a state is y[0]. What came before the window is unknown and is taken as its reflection
        about the first sample, 2 y[0] - y[k] and u[k] for the sample -k, which continues a smooth output.

        Args:
            u: Shape (B, n, n_u), n >= 1, in the units of the data.
            y: Shape (B, n, n_y).

        Returns:
            Shape (B, n_x).

        Raises:
            ShapeError: If a shape is another one.
        """
        inputs, measured = self.channels.scaled_u(u), self.channels.scaled_y(y)
        if inputs.ndim != 3 or inputs.shape[:-1] != measured.shape[:-1] or not inputs.shape[1]:
            raise ShapeError(
                f"u, y: expected shapes (B, n, {self.n_u}) and (B, n, {self.n_y}), got {inputs.shape} and "
                f"{measured.shape}. Cut both alike."
            )
        last = inputs.shape[1] - 1
        outputs = [2.0 * measured[:, 0] - measured[:, min(k, last)] for k in range(1, self.n_a)]
        before = [inputs[:, min(k, last)] for k in range(1, self.n_b)]
        return np.concatenate([measured[:, 0], *outputs, *before], axis=1)

    def _stacked_norm(self, columns: slice) -> float:
        shift = self.shift[self.n_y :, columns]
        bound = self.lipschitz * torch.eye(shift.shape[1], dtype=torch.float64)
        return upper_norm(torch.cat((bound, shift)))

    def _linear_matrices(self, gain: Array) -> tuple[Array, Array]:
        rows = np.concatenate((gain, self.shift[self.n_y :].numpy()))
        return rows[:, : self.n_x], rows[:, self.n_x :]

    def _measured(self, u: ArrayLike, y: ArrayLike) -> tuple[Array, Array]:
        """Scaled inputs and outputs of equal lengths."""
        inputs, measured = self._inputs(u).numpy(), self.channels.scaled_y(y)
        if measured.ndim != 2 or len(measured) != len(inputs):
            raise ShapeError(
                f"y: expected shape ({len(inputs)}, {self.n_y}) as u has so many samples, got {measured.shape}. "
                "Cut both alike."
            )
        return inputs, measured

    def _regressors(self, inputs: Array, measured: Array) -> Array:
        """All phi_t of a scaled record, from t = max(n_a, n_b) - 1 on, shape (T - max + 1, n_x + n_u)."""
        most = max(self.n_a, self.n_b)
        if len(inputs) < most:
            return np.zeros((0, self.n_x + self.n_u))
        count = len(inputs) - most + 1

        def lagged(signal: Array, lags: int) -> Array:
            windows = sliding_window_view(signal, lags, axis=0)[
                -count:
            ]  # (count, channels, lags), oldest first
            return windows[..., ::-1].transpose(0, 2, 1).reshape(count, -1)

        u = lagged(inputs, self.n_b)
        return np.concatenate((lagged(measured, self.n_a), u[:, self.n_u :], u[:, : self.n_u]), axis=1)

    def _pairs(self, data: Dataset) -> tuple[Array, Array]:
        """Regressors and the outputs that follow them, of all records."""
        past, following = [], []
        for one in data:
            inputs, measured = self._measured(one.u[:_LINEAR_SAMPLES], one.y[:_LINEAR_SAMPLES])
            found = self._regressors(inputs, measured)[:-1]
            past.append(found)
            following.append(measured[len(measured) - len(found) :])
        result = np.concatenate(past), np.concatenate(following)
        if len(result[0]) < 2:
            raise ShapeError(
                f"data: expected a record of more than {max(self.n_a, self.n_b) + 1} samples, got none. Use longer "
                "records, or fewer past samples."
            )
        return result


def _bounded_least_squares(moments: Array, cross: Array, bound: float) -> Array:
    """Minimiser K of the squared error within ||K||_2 <= bound, for one output; a ridge estimate within it for more."""
    values, vectors = np.linalg.eigh(moments)
    values = np.maximum(values, 0.0)
    rotated = cross @ vectors

    def gain(ridge: float) -> Array:
        return np.asarray((rotated / (values + ridge)) @ vectors.T)

    low = 1e-12 * max(float(values[-1]), 1e-300)
    if np.linalg.norm(gain(low), 2) <= bound:
        return gain(low)
    high = low
    while np.linalg.norm(gain(high), 2) > bound:
        high *= 10.0
    for _ in range(100):
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if np.linalg.norm(gain(middle), 2) > bound else (low, middle)
    return gain(high)
