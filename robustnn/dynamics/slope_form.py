r"""Maps of a state-space model as a linear part and slope-restricted units, by value.

$$v = V_\xi\,\xi + V_z z + \text{const}, \qquad z = \sigma(v), \qquad g = G_\xi\,\xi + G_z z + \text{const}$$

with $V_z$ strictly lower triangular and $\xi = (x, u)$. One step of a model, its output, both together, and the four
stages of a Runge-Kutta step all have this form, whatever the depth of the networks. For differences of two arguments
the constants drop out, and for slopes in $[\alpha, \beta]$ and any $t \ge 0$

$$2 \sum_i t_i\, (\delta z_i - \alpha_i\, \delta v_i)(\beta_i\, \delta v_i - \delta z_i) \ge 0,$$

so that $\delta g^T P\, \delta g \le \delta\xi^T R\, \delta\xi$ holds if the quadratic form

$$M = \delta\xi^T R\, \delta\xi - \delta g^T P\, \delta g
  - 2 \sum_i t_i (\delta z_i - \alpha_i \delta v_i)(\beta_i \delta v_i - \delta z_i)$$

in $(\delta\xi, \delta z)$ is positive semidefinite (Fazlyab et al., *LipSDP*, NeurIPS 2019, with a linear part).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from robustnn.dynamics.state_space import ExplicitStateSpace
from robustnn.errors import check_finite
from robustnn.params.activations import ACTIVATIONS
from robustnn.params.explicit import ExplicitMLP

__all__ = ["SlopeForm", "joint_form", "output_form", "step_form"]


class _Signal(NamedTuple):
    """A linear function of (xi, z) and a bound of the magnitude of everything that was summed up in it."""

    value: Tensor
    magnitude: Tensor

    def through(self, weight: Tensor) -> _Signal:
        return _Signal(weight @ self.value, weight.abs() @ self.magnitude)

    def plus(self, other: _Signal, factor: float = 1.0) -> _Signal:
        return _Signal(self.value + factor * other.value, self.magnitude + abs(factor) * other.magnitude)

    def times(self, factor: float) -> _Signal:
        return _Signal(factor * self.value, abs(factor) * self.magnitude)


@dataclass(frozen=True, eq=False)
class SlopeForm:
    """A map with slope-restricted units, in float64 on the CPU; see the head of this file.

    Attributes:
        g: (G_xi G_z), shape (n_out, n_in + n_z).
        v: (V_xi V_z), shape (n_z, n_in + n_z).
        g_magnitude: Sum of the absolute values of all products that make up an entry of g.
        v_magnitude: The same of v.
        alpha: Smallest slopes, shape (n_z,).
        beta: Largest slopes, shape (n_z,), greater than the smallest.
        blocks: Numbers of units of the layers, in the order in which they are evaluated.
        n_in: Number of inputs.
        roundings: An entry of g or v is wrong by at most so many unit roundoffs of its magnitude.
    """

    g: Tensor
    v: Tensor
    g_magnitude: Tensor
    v_magnitude: Tensor
    alpha: Tensor
    beta: Tensor
    blocks: tuple[int, ...]
    n_in: int
    roundings: int

    @property
    def n_out(self) -> int:
        """Number of outputs."""
        return len(self.g)

    @property
    def n_z(self) -> int:
        """Number of units."""
        return len(self.v)

    @property
    def is_constant(self) -> bool:
        """Whether no input acts on an output, exactly."""
        n = self.n_in
        direct, units = self.g_magnitude[:, :n].any(), self.v_magnitude[:, :n].any()
        return not bool(direct) and not (bool(units) and bool(self.g_magnitude[:, n:].any()))

    def inputs(self, start: int, stop: int) -> SlopeForm:
        """Return the map as a function of the inputs from `start` to `stop`, the others being held."""
        n = self.n_in

        def kept(matrix: Tensor) -> Tensor:
            return torch.cat((matrix[:, start:stop], matrix[:, n:]), dim=1)

        return replace(
            self,
            g=kept(self.g), v=kept(self.v), g_magnitude=kept(self.g_magnitude), v_magnitude=kept(self.v_magnitude),
            n_in=stop - start,
        )  # fmt: skip

    def output(self, index: int) -> SlopeForm:
        """Return the map to one output."""
        rows = slice(index, index + 1)
        return replace(self, g=self.g[rows], g_magnitude=self.g_magnitude[rows])

    def scaled(self, input_factor: Tensor, output_factor: Tensor) -> SlopeForm:
        """Return the map for inputs and outputs in other units.

        Args:
            input_factor: What inputs are multiplied with before this map, shape (n_in,), positive.
            output_factor: What outputs are multiplied with after it, shape (n_out,), positive.
        """
        columns = torch.cat((input_factor, input_factor.new_ones(self.n_z)))
        rows = output_factor.unsqueeze(-1)
        return replace(
            self,
            g=rows * (self.g * columns),
            v=self.v * columns,
            g_magnitude=rows * (self.g_magnitude * columns),
            v_magnitude=self.v_magnitude * columns,
            roundings=self.roundings + 4,
        )

    def matrix(self, target: Tensor, source: Tensor | None, t: Tensor) -> Tensor:
        """Return M.

        Args:
            target: P, shape (n_out, n_out).
            source: R, shape (n_in, n_in); None for zero.
            t: Shape (n_z,).

        Returns:
            Symmetric, shape (n_in + n_z, n_in + n_z), differentiable in all arguments.
        """
        return self._assemble(self.g, self.v, target, source, t, -1.0)

    def magnitude(self, target: Tensor, source: Tensor, t: Tensor) -> Tensor:
        """Return a bound of the sum of the absolute values of all products that make up an entry of M."""
        return self._assemble(self.g_magnitude, self.v_magnitude, target.abs(), source.abs(), t, 1.0)

    def _assemble(
        self, g: Tensor, v: Tensor, target: Tensor, source: Tensor | None, t: Tensor, sign: float
    ) -> Tensor:
        n = self.n_in
        total = sign * (g.mT @ target @ g)
        if source is not None:
            total = total + torch.nn.functional.pad(source, (0, self.n_z, 0, self.n_z))
        if self.n_z:
            cross = sign * ((self.alpha + self.beta) * t).unsqueeze(-1) * v
            cross = torch.nn.functional.pad(cross, (0, 0, n, 0))
            own = torch.diag_embed(torch.cat((t.new_zeros(n), 2.0 * t)))
            total = total + own + cross + cross.mT
            if bool(self.alpha.any()):
                total = total + v.mT @ ((2.0 * t * self.alpha * self.beta).unsqueeze(-1) * v)
        return (total + total.mT) / 2.0


def step_form(model: ExplicitStateSpace) -> SlopeForm:
    """Return one step of a model, from (x, u) to the next state, in the units of the model."""
    return _form(model, step=True, output=False)


def output_form(model: ExplicitStateSpace) -> SlopeForm:
    """Return the output of a model as a function of (x, u), in the units of the model."""
    return _form(model, step=False, output=True)


def joint_form(model: ExplicitStateSpace) -> SlopeForm:
    """Return the next state followed by the output, as a function of (x, u), in the units of the model."""
    return _form(model, step=True, output=True)


def _form(model: ExplicitStateSpace, *, step: bool, output: bool) -> SlopeForm:
    model = model.detach().to("cpu", torch.float64)
    model.map(_finite)
    builder = _Builder(model, step, output)
    signals = []
    if step:
        signals.append(builder.step())
    if output:
        signals.append(builder.output())
    n = model.n_x + model.n_u
    empty = model.a.new_zeros(0, n + builder.n_z)
    rows = builder.rows
    inner = sum(
        weight.shape[1] + 4 for network in (model.f, model.h) if network for weight in network.weights
    )
    return SlopeForm(
        g=torch.cat([one.value for one in signals]),
        v=torch.cat([empty, *(one.value for one in rows)]),
        g_magnitude=torch.cat([one.magnitude for one in signals]),
        v_magnitude=torch.cat([empty, *(one.magnitude for one in rows)]),
        alpha=torch.cat(
            [empty[:, 0], *(model.a.new_full((len(r.value),), s[0]) for r, s in builder.units())]
        ),
        beta=torch.cat([empty[:, 0], *(model.a.new_full((len(r.value),), s[1]) for r, s in builder.units())]),
        blocks=tuple(len(one.value) for one in rows),
        n_in=n,
        roundings=(1 if model.step_size is None else 4) * (inner + n + 16),
    )


def _finite(tensor: Tensor) -> Tensor:
    check_finite("model", tensor, "Train it anew: its weights have overflowed.")
    return tensor


class _Builder:
    """Passes linear functions of (xi, z) through a model; every slope-restricted layer adds its units to z."""

    def __init__(self, model: ExplicitStateSpace, step: bool, output: bool) -> None:
        self.model = model
        stages = 1 if model.step_size is None else 4
        self.n_z = (stages * _n_units(model.f) if step else 0) + (_n_units(model.h) if output else 0)
        self.rows: list[_Signal] = []
        self._slopes: list[tuple[float, float]] = []
        self._next = model.n_x + model.n_u
        eye = torch.eye(self._next + self.n_z, dtype=torch.float64)
        self._eye = eye
        self._x = _Signal(eye[: model.n_x], eye[: model.n_x])
        inputs = eye[model.n_x : model.n_x + model.n_u]
        self._u = _Signal(inputs, inputs)

    def units(self) -> list[tuple[_Signal, tuple[float, float]]]:
        return list(zip(self.rows, self._slopes, strict=True))

    def step(self) -> _Signal:
        h = self.model.step_size
        if h is None:
            return self._rate(self._x)
        k1 = self._rate(self._x)
        k2 = self._rate(self._x.plus(k1, 0.5 * h))
        k3 = self._rate(self._x.plus(k2, 0.5 * h))
        k4 = self._rate(self._x.plus(k3, h))
        return self._x.plus(k1.plus(k2, 2.0).plus(k3, 2.0).plus(k4), h / 6.0)

    def output(self) -> _Signal:
        linear = self._x.through(self.model.c).plus(self._u.through(self.model.d))
        return linear if self.model.h is None else linear.plus(self._network(self.model.h, self._x))

    def _rate(self, x: _Signal) -> _Signal:
        linear = x.through(self.model.a).plus(self._u.through(self.model.b))
        return linear if self.model.f is None else linear.plus(self._network(self.model.f, x))

    def _network(self, network: ExplicitMLP, x: _Signal) -> _Signal:
        low, high = _slopes(network)
        signal = _Signal(
            torch.cat((x.value, self._u.value)), torch.cat((x.magnitude, self._u.magnitude))
        ).through(network.weights[0])
        for weight in network.weights[1:]:
            if low == high:
                signal = signal.times(high)
            else:
                self.rows.append(signal)
                self._slopes.append((low, high))
                own = self._eye[self._next : self._next + len(signal.value)]
                self._next += len(own)
                signal = _Signal(own, own)
            signal = signal.through(weight)
        return signal


def _slopes(network: ExplicitMLP) -> tuple[float, float]:
    entry = ACTIVATIONS[network.activation]
    return entry.slope_min, entry.slope_max


def _n_units(network: ExplicitMLP | None) -> int:
    if network is None or len(set(_slopes(network))) == 1:
        return 0
    return sum(len(weight) for weight in network.weights[:-1])
