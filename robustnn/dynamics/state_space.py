r"""A nonlinear state-space model by value: what all dynamics models convert to, and what is simulated.

$$x_{t+1} = A x_t + B u_t + f(x_t, u_t), \qquad y_t = C x_t + D u_t + c + h(x_t, u_t)$$
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robustnn.errors import InvalidArgumentError, ShapeError
from robustnn.params.explicit import ExplicitMLP

__all__ = ["ExplicitStateSpace"]


@dataclass(frozen=True, eq=False)
class ExplicitStateSpace:
    r"""Matrices and explicit networks of a state-space model, in the scaled units of its channels.

    $x_{t+1} = F(x_t, u_t)$ with $F(x, u) = A x + B u + f(x, u)$; or, where `step_size` is given, one step of the
    classical Runge-Kutta method on $\dot x = F(x, u)$ with constant input. A part that is None is zero.

    Attributes:
        a: Shape (n_x, n_x).
        b: Shape (n_x, n_u).
        c: Shape (n_y, n_x).
        d: Shape (n_y, n_u).
        f: Network from (x, u), n_x + n_u inputs, to n_x outputs; None for none. Its last bias is the constant part.
        h: Network from (x, u) to n_y outputs; None for none.
        constant: c, shape (n_y,); None for zero.
        step_size: Sampling time of a continuous-time model, in its unit of time; None for discrete time.
    """

    a: Tensor
    b: Tensor
    c: Tensor
    d: Tensor
    f: ExplicitMLP | None = None
    h: ExplicitMLP | None = None
    constant: Tensor | None = None
    step_size: float | None = None

    def __post_init__(self) -> None:
        """Check that the parts fit each other."""
        n_x, n_u, n_y = self.n_x, self.n_u, self.n_y
        for name, shape in (("a", (n_x, n_x)), ("b", (n_x, n_u)), ("c", (n_y, n_x)), ("d", (n_y, n_u))):
            found = tuple(getattr(self, name).shape)
            if found != shape:
                raise ShapeError(f"{name}: expected shape {shape}, got {found}. Rows are what it gives.")
        if self.constant is not None and tuple(self.constant.shape) != (n_y,):
            raise ShapeError(f"constant: expected shape {(n_y,)}, got {tuple(self.constant.shape)}.")
        for name, network, n_out in (("f", self.f, n_x), ("h", self.h, n_y)):
            if network is None:
                continue
            sizes = (network.in_features, network.out_features)
            if sizes != (n_x + n_u, n_out):
                raise ShapeError(
                    f"{name}: expected a network from {n_x + n_u} inputs (x, u) to {n_out} outputs, got {sizes}. "
                    "The state comes first."
                )
            if network.weights[0].dtype != self.a.dtype:
                raise InvalidArgumentError(
                    f"{name}: expected dtype {self.a.dtype}, that of a, got {network.weights[0].dtype}. Convert it."
                )

    @property
    def n_x(self) -> int:
        """Number of states."""
        return self.a.shape[0]

    @property
    def n_u(self) -> int:
        """Number of inputs."""
        return self.b.shape[-1]

    @property
    def n_y(self) -> int:
        """Number of outputs."""
        return self.c.shape[0]

    def step(self, x: Tensor, u: Tensor) -> Tensor:
        """Return the next state.

        Args:
            x: Shape (..., n_x).
            u: Shape (..., n_u), with the same leading axes.

        Returns:
            Shape (..., n_x).
        """
        if self.step_size is None:
            return self.rate(x, u)
        h = self.step_size
        k1 = self.rate(x, u)
        k2 = self.rate(x + 0.5 * h * k1, u)
        k3 = self.rate(x + 0.5 * h * k2, u)
        k4 = self.rate(x + h * k3, u)
        return x + (h / 6.0) * (k1 + 2.0 * k2 + 2.0 * k3 + k4)

    def rate(self, x: Tensor, u: Tensor) -> Tensor:
        """Return F(x, u), shape (..., n_x): the next state, or its time derivative in continuous time."""
        linear = x @ self.a.mT + u @ self.b.mT
        return linear if self.f is None else linear + self.f(torch.cat((x, u), dim=-1))

    def output(self, x: Tensor, u: Tensor) -> Tensor:
        """Return the output, shape (..., n_y); arguments as in `step`."""
        linear = x @ self.c.mT + u @ self.d.mT
        if self.constant is not None:
            linear = linear + self.constant
        return linear if self.h is None else linear + self.h(torch.cat((x, u), dim=-1))

    def map(self, function: Callable[[Tensor], Tensor]) -> ExplicitStateSpace:
        """Return a copy with `function` applied to every tensor."""
        return replace(
            self,
            a=function(self.a),
            b=function(self.b),
            c=function(self.c),
            d=function(self.d),
            f=None if self.f is None else self.f.map(function),
            h=None if self.h is None else self.h.map(function),
            constant=None if self.constant is None else function(self.constant),
        )

    def detach(self) -> ExplicitStateSpace:
        """Return a copy that shares the values and no graph."""
        return self.map(Tensor.detach)

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> ExplicitStateSpace:
        """Return a copy on another device or in another dtype."""
        return self.map(lambda tensor: tensor.to(device=device, dtype=dtype))
