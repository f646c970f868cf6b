r"""Linear state-space models from data: the start of every nonlinear fit, and the model to beat.

$$x_{t+1} = A x_t + B u_t, \qquad y_t = C x_t + D u_t + c$$
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import qr, schur

from robustnn.dynamics.data import Dataset
from robustnn.errors import ShapeError, check_finite, check_positive, check_positive_int, invalid

__all__ = ["LinearStateSpace", "stable_projection", "subspace"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LinearStateSpace:
    """A discrete-time linear model in the units of its data.

    Attributes:
        a: Shape (n_x, n_x).
        b: Shape (n_x, n_u).
        c: Shape (n_y, n_x).
        d: Shape (n_y, n_u).
        u_offset: Subtracted from the inputs, shape (n_u,).
        y_offset: Added to the outputs, shape (n_y,).
        dt: Sampling time in s.
    """

    a: Array
    b: Array
    c: Array
    d: Array
    u_offset: Array
    y_offset: Array
    dt: float

    @property
    def n_x(self) -> int:
        """Number of states."""
        return len(self.a)

    @property
    def spectral_radius(self) -> float:
        """Largest magnitude of the eigenvalues of A; below one for a stable model."""
        return float(np.abs(np.linalg.eigvals(self.a)).max(initial=0.0))

    def simulate(self, u: ArrayLike, x0: ArrayLike | None = None) -> Array:
        """Return the outputs to an input, without looking at measured outputs.

        Args:
            u: Shape (T, n_u).
            x0: State at the first sample, shape (n_x,); None for zero.

        Returns:
            Shape (T, n_y).
        """
        inputs = self._inputs(u)
        state = np.zeros(self.n_x) if x0 is None else np.asarray(x0, dtype=np.float64)
        states = _states(self.a, inputs @ self.b.T, state)
        return states @ self.c.T + inputs @ self.d.T + self.y_offset

    def initial_state(self, u: ArrayLike, y: ArrayLike) -> Array:
        """Return the state at the first sample that fits measured outputs best, in the least-squares sense.

        Args:
            u: Inputs of the window, shape (n, n_u).
            y: Outputs of the window, shape (n, n_y).

        Returns:
            Shape (n_x,).
        """
        measured = np.asarray(y, dtype=np.float64)
        forced = self.simulate(u)
        free = _free_response(self.a, self.c, len(measured))
        return np.asarray(np.linalg.lstsq(free, (measured - forced).reshape(-1), rcond=None)[0])

    def _inputs(self, u: ArrayLike) -> Array:
        inputs = np.asarray(u, dtype=np.float64)
        if inputs.ndim != 2 or inputs.shape[1] != self.b.shape[1]:
            raise ShapeError(
                f"u: expected shape (T, {self.b.shape[1]}), got {inputs.shape}. Time is the first axis."
            )
        check_finite("u", inputs)
        return inputs - self.u_offset


def subspace(
    data: Dataset,
    n_x: int,
    *,
    horizon: int | None = None,
    radius: float = 1.0 - 1e-6,
    feedthrough: bool = True,
) -> LinearStateSpace:
    r"""Identify a linear model by a subspace method, without iteration.

    The observability matrix comes from the part of the future outputs that past data explain and future inputs do
    not (past-output MOESP; Verhaegen, Automatica 30, 1994), A from its shift invariance, made stable where it is not,
    and B, D and the initial states of all experiments from one linear least-squares problem on the simulated outputs.

    Args:
        data: At least one experiment.
        n_x: Number of states.
        horizon: Number of past and of future samples; None for a choice by n_x and the length of the data.
        radius: Largest magnitude that the eigenvalues of A may have.
        feedthrough: Whether D is estimated; otherwise it is zero.

    Returns:
        The model.

    Raises:
        ShapeError: If the data are too short for the horizon.
        InvalidArgumentError: If an argument is out of its range, or a channel is constant.

    Example:
        >>> u = np.random.default_rng(0).normal(size=(500, 1))
        >>> system = LinearStateSpace(*(np.array([[v]]) for v in (0.9, 0.5, 1.0, 0.0)), np.zeros(1), np.zeros(1), 1.0)
        >>> model = subspace(Dataset.from_arrays(u, system.simulate(u), 1.0), 1)
        >>> bool(abs(model.a[0, 0] - 0.9) < 1e-9)
        True
    """
    if not isinstance(data, Dataset):
        raise invalid("data", "a Dataset", type(data).__name__, "Make one with Dataset.from_arrays.")
    n_x = check_positive_int("n_x", n_x)
    radius = check_positive("radius", radius)
    if horizon is None:
        shortest = min(len(one) for one in data)
        horizon = max(n_x + 1, min(max(2 * n_x, 20), shortest // 10))
    horizon = check_positive_int("horizon", horizon)
    if horizon * data.n_y <= n_x:
        raise invalid("horizon", f"more than n_x / n_y = {n_x / data.n_y:g}", horizon, "Raise it.")
    data.check_channels()
    scaling = data.scaling()
    records = [
        ((one.u - scaling.u_offset) / scaling.u_scale, (one.y - scaling.y_offset) / scaling.y_scale)
        for one in data
    ]
    gamma = _observability(records, n_x, horizon)
    n_y = data.n_y
    a = np.linalg.lstsq(gamma[:-n_y], gamma[n_y:], rcond=None)[0]
    a = stable_projection(a, radius)
    c = gamma[:n_y]
    b, d, constant = _input_matrices(a, c, records, feedthrough)
    y_scale = scaling.y_scale[:, None]
    return LinearStateSpace(
        a,
        b / scaling.u_scale,
        y_scale * c,
        y_scale * d / scaling.u_scale,
        scaling.u_offset,
        scaling.y_offset + scaling.y_scale * constant,
        data.dt,
    )


def stable_projection(a: ArrayLike, radius: float = 1.0 - 1e-6) -> Array:
    """Return a matrix with the eigenvalues of a, those of larger magnitude shrunk to the radius.

    The Schur vectors are kept, so a matrix that is stable already is returned as it is.

    Args:
        a: Shape (n, n).
        radius: Largest magnitude of an eigenvalue.

    Returns:
        Shape (n, n).
    """
    matrix = np.array(a, dtype=np.float64)
    check_finite("a", matrix)
    if np.abs(np.linalg.eigvals(matrix)).max(initial=0.0) <= radius:
        return matrix
    triangular, vectors = schur(matrix, output="real")
    row = 0
    while row < len(matrix):
        # Diagonal blocks are real eigenvalues, and conjugate pairs of two rows.
        size = 2 if row + 1 < len(matrix) and triangular[row + 1, row] != 0.0 else 1
        block = slice(row, row + size)
        largest = np.abs(np.linalg.eigvals(triangular[block, block])).max()
        if largest > radius:
            triangular[block, block] *= radius / largest
        row += size
    return np.asarray(vectors @ triangular @ vectors.T)


def _observability(records: Sequence[tuple[Array, Array]], n_x: int, horizon: int) -> Array:
    """Extended observability matrix (horizon n_y, n_x)."""
    columns = [len(y) - 2 * horizon + 1 for _, y in records]
    n_u, n_y = records[0][0].shape[1], records[0][1].shape[1]
    rows = 1 + 2 * horizon * (n_u + n_y)
    if sum(max(0, k) for k in columns) < rows:
        raise ShapeError(
            f"data: expected at least {rows} windows of {2 * horizon} samples for a horizon of {horizon}, got "
            f"{sum(max(0, k) for k in columns)}. Use longer records or a smaller horizon."
        )
    blocks = [
        np.concatenate(
            (
                np.ones((k, 1)),  # a constant offset is no state
                _hankel(u, horizon, 2 * horizon),
                _hankel(u, 0, horizon)[:k],
                _hankel(y, 0, horizon)[:k],
                _hankel(y, horizon, 2 * horizon),
            ),
            axis=1,
        )
        for (u, y), k in zip(records, columns, strict=True)
        if k > 0
    ]
    lower = qr(np.concatenate(blocks), mode="r")[0][:rows].T
    first = 1 + horizon * n_u
    second = first + horizon * (n_u + n_y)
    vectors, values, _ = np.linalg.svd(lower[second:, first:second], full_matrices=False)
    return np.asarray(vectors[:, :n_x] * np.sqrt(values[:n_x]))


def _hankel(signal: Array, start: int, stop: int) -> Array:
    """Windows [start, stop) of all starting points, one per row, shape (T - stop + 1, (stop - start) channels)."""
    count = len(signal) - stop + 1
    return np.concatenate([signal[k : k + count] for k in range(start, stop)], axis=1)


def _input_matrices(
    a: Array, c: Array, records: Sequence[tuple[Array, Array]], feedthrough: bool
) -> tuple[Array, Array, Array]:
    """B, D and a constant by least squares on the simulated outputs, with the initial state of every record."""
    n_x, n_y, n_u = len(a), len(c), records[0][0].shape[1]
    regressors, targets = [], []
    for k, (u, y) in enumerate(records):
        parts = [_basis_response(a, c, u)]
        if feedthrough:
            parts.append(
                np.einsum("tj,ip->tijp", u, np.eye(n_y)).transpose(0, 1, 3, 2).reshape(len(u) * n_y, -1)
            )
        parts.append(np.tile(np.eye(n_y), (len(u), 1)))
        free = _free_response(a, c, len(u))
        parts += [free if j == k else np.zeros_like(free) for j in range(len(records))]
        regressors.append(np.concatenate(parts, axis=1))
        targets.append(y.reshape(-1))
    solution = np.linalg.lstsq(np.concatenate(regressors), np.concatenate(targets), rcond=None)[0]
    b = solution[: n_x * n_u].reshape(n_u, n_x).T
    rest = solution[n_x * n_u :]
    d = np.zeros((n_y, n_u))
    if feedthrough:
        d, rest = rest[: n_y * n_u].reshape(n_y, n_u), rest[n_y * n_u :]
    return b, d, rest[:n_y]


def _basis_response(a: Array, c: Array, u: Array) -> Array:
    """Outputs to every input through every unit vector in the place of B, shape (T n_y, n_u n_x)."""
    n_x, n_u = len(a), u.shape[1]
    state = np.zeros((n_x, n_u * n_x))
    unit = np.eye(n_x)
    outputs = np.empty((len(u), len(c), n_u * n_x))
    for t, one in enumerate(u):
        outputs[t] = c @ state
        state = a @ state + np.concatenate([value * unit for value in one], axis=1)
    return outputs.reshape(len(u) * len(c), -1)


def _free_response(a: Array, c: Array, steps: int) -> Array:
    """C A^t for t = 0 ... steps - 1, shape (steps n_y, n_x)."""
    outputs = np.empty((steps, *c.shape))
    row = c
    for t in range(steps):
        outputs[t] = row
        row = row @ a
    return outputs.reshape(steps * len(c), -1)


def _states(a: Array, drive: Array, x0: Array) -> Array:
    """States before every sample, shape (T, n_x)."""
    states = np.empty((len(drive), len(a)))
    state = x0
    for t, one in enumerate(drive):
        states[t] = state
        state = a @ state + one
    return states
