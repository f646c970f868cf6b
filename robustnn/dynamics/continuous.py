r"""A continuous-time model, simulated by the classical Runge-Kutta method, with the bound of its discrete step.

$$\dot x = A x + B u + g(x, u), \qquad \|g(x, u) - g(x', u')\|_2 \le \gamma \|(x, u) - (x', u')\|_2$$
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustnn.dynamics.normal_form import NormalForm
from robustnn.dynamics.random_start import random_lbdn_
from robustnn.dynamics.residual import ResidualStateSpace, upper_norm
from robustnn.dynamics.state_space import ExplicitStateSpace

__all__ = ["ContinuousStateSpace", "rate_matrix"]

Array = NDArray[np.float64]
# Eigenvalues of A for which one step reproduces an eigenvalue of the linear model: that one is moved to the nearest
# value of at least this magnitude, its argument at most that, where the step could not follow.
_LEAST, _LARGEST_ANGLE = 0.3, 2.0
# Allowance for the rounding of the matrix polynomials, per state and relative to the sum of their terms.
_ROUNDING = 16.0 * float(np.finfo(np.float64).eps)
# Condition of the eigenvectors up to which they are used.
_CONDITION = 1e8


class ContinuousStateSpace(ResidualStateSpace):
    r"""A state-space model in continuous time with a known bound of its discrete step.

    Time is measured in sampling periods, the input is constant between samples, and one step of the classical
    Runge-Kutta method leads from a sample to the next. With $a = \|A\|_2$, $b = \|B\|_2$ and
    $p(z) = z + z^2/2 + z^3/6 + z^4/24$, $q(z) = p(z) / z$ the step $\Phi(x, u)$ satisfies

    $$\|\Phi(x, u) - \Phi(x', u')\|_2 \le L_x \|x - x'\|_2 + L_u \|u - u'\|_2$$
    $$L_x = \|I + p(A)\|_2 + p(a + \gamma) - p(a), \qquad
    L_u = \|q(A) B\|_2 + q(a + \gamma)(b + \gamma) - q(a) b$$

    Proof: for two arguments every stage sees $F(x, u) - F(x', u') = (A + G)(x - x') + (B + H)(u - u')$ with
    $\|[G \; H]\|_2 \le \gamma$, another G and H in each. So the difference of the steps is a sum of products of such
    matrices with the coefficients of $1 + p$ and q; the part of it without any G or H is $I + p(A)$ and $q(A) B$, and
    each remaining product is at most what its norms allow. No derivative of g is needed. In particular
    $L_x \le 1 + l + l^2/2 + l^3/6 + l^4/24$ with $l = a + \gamma$, the bound that ignores the signs in A; unlike that
    one, $L_x$ may be below one: a damped model with a small enough nonlinearity is contracting.

    `lipschitz`, $\gamma$, is in states per sampling period, per state or scaled input. The other arguments, the errors
    and what is trained are those of `ResidualStateSpace`.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> data = Dataset.from_arrays(rng.normal(size=100), rng.normal(size=100), 0.1)
        >>> ContinuousStateSpace(data, 2, (8,), lipschitz=0.1).explicit().step_size
        1.0
    """

    @property
    def lipschitz_x(self) -> float:
        """L_x of one step with the present parameters."""
        a, identity = self.a.detach(), torch.eye(self.n_x).to(self.a)
        norm = upper_norm(a)
        rounding = self.n_x * _ROUNDING * (1.0 + norm * _q_of(norm))
        return upper_norm(identity + a @ _q(a, identity)) + _excess_p(norm, self.lipschitz) + rounding

    @property
    def lipschitz_u(self) -> float:
        """L_u of one step with the present parameters, in states per scaled input."""
        a, b, identity = self.a.detach(), self.b.detach(), torch.eye(self.n_x).to(self.a)
        norm_a, norm_b, gamma = upper_norm(a), upper_norm(b), self.lipschitz
        excess = _excess_q(norm_a, gamma) * norm_b + _q_of(norm_a + gamma) * gamma
        rounding = self.n_x * _ROUNDING * _q_of(norm_a) * norm_b
        return upper_norm(_q(a, identity) @ b) + excess + rounding

    def explicit(self) -> ExplicitStateSpace:
        """Return the model by value, in scaled units; with gradients enabled it carries the graph to the parameters."""
        return replace(super().explicit(), step_size=1.0)

    def _start_state_map(self, form: NormalForm, rng: np.random.Generator) -> None:
        a = rate_matrix(form.a)
        # One step multiplies what is constant over it by q(A).
        q = _q(torch.from_numpy(a), torch.eye(self.n_x, dtype=torch.float64)).numpy()
        held = np.linalg.solve(q, np.column_stack((form.b, form.state_constant)))
        with torch.no_grad():
            self.a.copy_(torch.from_numpy(a))
            self.b.copy_(torch.from_numpy(held[:, :-1].copy()))
        random_lbdn_(self.network, held[:, -1].copy(), rng)


def rate_matrix(a: Array) -> Array:
    r"""Return the real X with $I + p(X) = A$, one Runge-Kutta step of $\dot x = X x$; close to the matrix logarithm.

    Newton's method finds every eigenvalue of X from the logarithm of one of A. Eigenvalues of A that no step reproduces
    well (negative, or of magnitude below 0.3, or of argument above 2) are moved to the nearest that one does. Where the
    eigenvectors are too ill-conditioned, the result is A - I, Euler's rule, which is stable wherever A is.

    Args:
        a: Shape (n, n).

    Returns:
        Shape (n, n).
    """
    values, vectors = np.linalg.eig(a)
    if not np.linalg.cond(vectors) < _CONDITION:
        return np.asarray(a - np.eye(len(a)))
    complex_values = values.astype(np.complex128)
    angle = np.clip(np.angle(complex_values), -_LARGEST_ANGLE, _LARGEST_ANGLE)
    angle[complex_values.imag == 0.0] = 0.0
    target = np.maximum(np.abs(complex_values), _LEAST) * np.exp(1j * angle)
    negative = (complex_values.imag == 0.0) & (complex_values.real < 0.0)
    target[negative] = _LEAST
    z = np.log(target)
    for _ in range(50):
        z = z - (1.0 + z * _q_of(z) - target) / (1.0 + z * (1.0 + z * (0.5 + z / 6.0)))
    if not np.abs(1.0 + z * _q_of(z) - target).max() < 1e-9:
        return np.asarray(a - np.eye(len(a)))
    return np.asarray(((vectors * z) @ np.linalg.inv(vectors)).real)


def _q(a: Tensor, identity: Tensor) -> Tensor:
    """Value of q at a matrix."""
    return identity + a @ (identity / 2 + a @ (identity / 6 + a / 24))


def _q_of(z: Any) -> Any:
    """Value of q at a number or an array of numbers."""
    return 1.0 + z * (0.5 + z * (1.0 / 6.0 + z / 24.0))


def _excess_q(a: float, gamma: float) -> float:
    """Difference q(a + gamma) - q(a) without cancellation."""
    s = a + gamma
    return gamma * (0.5 + (s + a) / 6.0 + (s * s + s * a + a * a) / 24.0)


def _excess_p(a: float, gamma: float) -> float:
    """Difference p(a + gamma) - p(a) without cancellation."""
    return gamma * _q_of(a + gamma) + a * _excess_q(a, gamma)
