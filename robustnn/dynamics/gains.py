r"""Proved gains of maps with a linear part and slope-restricted units, without a solver.

With the units eliminated, $M \succeq 0$ of `robustnn.dynamics.slope_form` says $\Gamma(t) \preceq R$ with

$$\Gamma = -M_{\xi\xi}|_{R=0} + M_{\xi z} M_{zz}^{-1} M_{z\xi}, \qquad M_{zz} \succ 0,$$

so every t with $M_{zz} \succ 0$ gives the gain $\lambda_{\max}(R^{-1/2} \Gamma R^{-1/2})^{1/2}$ from $\|\xi\|_R$ to
$\|g\|_P$. It is minimised over $\log t$ by L-BFGS; what comes out is proved by a Cholesky factorisation of M that
allows for its own rounding (Rump, *Verification of positive definiteness*, BIT 2006), whatever led there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from robustnn.bounds.lbfgs import minimize
from robustnn.dynamics.slope_form import SlopeForm
from robustnn.errors import CertificateError

__all__ = [
    "STAGES", "GainProof", "descend", "gain", "gamma_matrix", "greedy_multipliers", "is_metric", "largest", "prove",
    "whitened",
]  # fmt: skip

_UNIT_ROUNDOFF = torch.finfo(torch.float64).eps / 2
# Relative excess of a bound over its value without regard to rounding.
_EXCESSES = (1e-13, 1e-12, 1e-11, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
# Order of the Schatten norm that stands for the largest eigenvalue, and weight of the barrier.
STAGES = ((16.0, 1e-2), (64.0, 1e-3), (256.0, 1e-4), (1024.0, 1e-5), (4096.0, 1e-6))
_TINY = 1e-280


@dataclass(frozen=True, eq=False)
class GainProof:
    r"""A gain between weighted norms and what proves it.

    $$\delta g^T P\, \delta g \le
      \lambda\, \delta\xi_1^T R_{11}\, \delta\xi_1 + \text{bound}^2\, \delta\xi_2^T R_{22}\, \delta\xi_2$$

    where $\xi_1$ are the first `fixed` inputs. With `fixed` = 0 it is the gain from $\|\xi\|_R$ to $\|g\|_P$.

    Attributes:
        bound: The gain.
        multipliers: t, shape (n_z,), positive, float64.
        target: P, shape (n_out, n_out).
        source: R, shape (n_in, n_in), block diagonal.
        fixed: Number of inputs whose part of R the bound does not multiply.
        decay: $\lambda$, in (0, 1].
    """

    bound: float
    multipliers: Tensor
    target: Tensor
    source: Tensor
    fixed: int = 0
    decay: float = 1.0

    def __float__(self) -> float:
        """Return the bound."""
        return self.bound

    def holds(self, form: SlopeForm) -> bool:
        """Prove the bound anew for a map, from its weights, the metrics and the multipliers alone."""
        shapes = ((form.n_z,), (form.n_out, form.n_out), (form.n_in, form.n_in))
        if tuple(tuple(one.shape) for one in (self.multipliers, self.target, self.source)) != shapes:
            return False
        if not math.isfinite(self.bound) or self.bound < 0.0 or not 0.0 < self.decay <= 1.0:
            return False
        if not all(bool(one.isfinite().all()) for one in (self.multipliers, self.target, self.source)):
            return False
        if not (is_metric(self.target) and is_metric(self.source)) or not bool((self.multipliers > 0).all()):
            return False
        if form.is_constant and not self.fixed:
            return True
        first, rest = slice(0, self.fixed), slice(self.fixed, None)
        if bool(self.source[first, rest].any()):
            return False
        scaled = self.source.clone()
        scaled[first, first] *= self.decay
        scaled[rest, rest] *= self.bound * self.bound
        matrix = form.matrix(self.target, scaled, self.multipliers)
        longest = 2 * form.n_out + form.n_z + form.n_in
        magnitude = form.magnitude(self.target, scaled, self.multipliers)
        return _definite(matrix, magnitude, 2 * form.roundings + longest + 32)


def prove(
    form: SlopeForm,
    t: Tensor,
    target: Tensor,
    source: Tensor,
    value: float,
    *,
    fixed: int = 0,
    decay: float = 1.0,
) -> GainProof:
    """Return the smallest gain, from `value` upwards, that multipliers prove with rounding allowed for.

    Args:
        form: The map.
        t: Multipliers, shape (n_z,).
        target: P.
        source: R.
        value: The gain without regard to rounding.
        fixed: As in `GainProof`.
        decay: As in `GainProof`.

    Raises:
        CertificateError: If none is proved.
    """
    t, target, source = t.detach(), target.detach(), source.detach()
    if form.is_constant and not fixed:
        return GainProof(0.0, torch.ones_like(t), target, source)
    if math.isfinite(value):
        for excess in _EXCESSES:
            proof = GainProof(value * (1.0 + excess), t, target, source, fixed, decay)
            if proof.holds(form):
                return proof
    raise CertificateError(
        f"gain: expected multipliers that prove a gain near {value:.6g} in float64, got an indefinite matrix. "
        "Use a model with smaller weights or a better conditioned metric."
    )


def gain(
    form: SlopeForm,
    target: Tensor | None = None,
    source: Tensor | None = None,
    *,
    start: Tensor | None = None,
    iterations: int = 200,
) -> GainProof:
    r"""Return the smallest gain from $\|\xi\|_R$ to $\|g\|_P$ that diagonal multipliers are found to prove.

    Args:
        form: The map.
        target: P, shape (n_out, n_out), positive definite; the identity if None.
        source: R, shape (n_in, n_in), positive definite; the identity if None.
        start: Multipliers to start from besides those in closed form.
        iterations: L-BFGS steps; 0 for none.

    Returns:
        The gain and its proof.

    Raises:
        CertificateError: If rounding leaves nothing proved.
    """
    like = form.g
    target = torch.eye(form.n_out, dtype=like.dtype) if target is None else target
    source = torch.eye(form.n_in, dtype=like.dtype) if source is None else source
    if form.is_constant:
        return prove(form, like.new_ones(form.n_z), target, source, 0.0)
    factor = torch.linalg.cholesky(source)

    def squared(t: Tensor) -> float:
        gamma = gamma_matrix(form, t, target)[0]
        return math.inf if gamma is None else float(torch.linalg.eigvalsh(whitened(gamma, factor))[-1])

    starts = [greedy_multipliers(form, target)]
    if start is not None and start.shape == (form.n_z,):
        starts.append(start)
    best = min(starts, key=squared)
    if form.n_z and iterations:
        current = best
        for order, barrier in STAGES:

            def objective(
                x: Tensor, order: float = order, barrier: float = barrier, base: Tensor = current
            ) -> Tensor:
                gamma, room = gamma_matrix(form, base * x.exp(), target)
                if gamma is None:
                    return x.new_tensor(math.inf)
                return largest(whitened(gamma, factor), order) - barrier * room

            current = (
                current * descend(objective, form.g.new_zeros(form.n_z), iterations // len(STAGES)).exp()
            )
            best = min((best, current), key=squared)
    return prove(form, best, target, source, math.sqrt(max(squared(best), 0.0)))


def gamma_matrix(form: SlopeForm, t: Tensor, target: Tensor) -> tuple[Tensor | None, Tensor]:
    r"""Return $\Gamma$ and $\log\det$ of $M_{zz}$ scaled by 2t, differentiable; None where it is not definite.

    Args:
        form: The map.
        t: Multipliers, shape (n_z,).
        target: P.
    """
    n = form.n_in
    m = form.matrix(target, None, t)
    zero = m.new_zeros(())
    if not form.n_z:
        return -m, zero
    factor, info = torch.linalg.cholesky_ex(m[n:, n:])
    pivots = factor.diagonal()
    if int(info) or not bool(factor.isfinite().all()):
        return None, zero
    half = torch.linalg.solve_triangular(factor, m[n:, :n], upper=False)
    gamma = half.mT @ half - m[:n, :n]
    return (gamma + gamma.mT) / 2.0, 2.0 * pivots.log().sum() - (2.0 * t).log().sum()


def greedy_multipliers(form: SlopeForm, target: Tensor) -> Tensor:
    r"""Admissible multipliers in closed form, one number per layer, from the last layer backwards.

    With Q what is left to bound after the later layers, $t = \lambda_{\max}(B Q_{zz} B) / (\beta (\beta - \alpha))$.

    Args:
        form: The map.
        target: P.
    """
    n = form.n_in
    q = form.g.mT @ target @ form.g
    t = form.g.new_zeros(form.n_z)
    floor = 1e-10 * max(float(q.diagonal().sum()), _TINY) / (1.0 + float(form.v.square().sum()))
    stop = form.n_z
    for size in reversed(form.blocks):
        begin = stop - size
        rows = slice(n + begin, n + stop)
        alpha, beta, v = form.alpha[begin:stop], form.beta[begin:stop], form.v[begin:stop, : n + begin]
        own = beta.unsqueeze(-1) * q[rows, rows] * beta
        chosen = torch.linalg.eigvalsh(own)[-1].clamp_min(floor) / (beta * (beta - alpha))
        t[begin:stop] = chosen
        hidden = torch.diag(2.0 * chosen) - q[rows, rows]
        cross = q[: n + begin, rows] + v.mT * ((alpha + beta) * chosen)
        rest = q[: n + begin, : n + begin] - v.mT @ ((2.0 * chosen * alpha * beta).unsqueeze(-1) * v)
        q = rest + cross @ torch.linalg.solve(hidden, cross.mT)
        q = (q + q.mT) / 2.0
        stop = begin
    return t


def largest(matrix: Tensor, order: float) -> Tensor:
    """Logarithm of a smooth majorant of the largest eigenvalue of a positive semidefinite matrix."""
    eigenvalues = torch.linalg.eigvalsh(matrix).clamp_min(_TINY)
    return torch.logsumexp(order * eigenvalues.log(), dim=-1) / order


def whitened(gamma: Tensor, factor: Tensor) -> Tensor:
    """Return L^{-1} Gamma L^{-T} for the Cholesky factor L of R."""
    half = torch.linalg.solve_triangular(factor, gamma, upper=False)
    full = torch.linalg.solve_triangular(factor, half.mT, upper=False)
    return (full + full.mT) / 2.0


def descend(value: Callable[[Tensor], Tensor], x: Tensor, iterations: int) -> Tensor:
    """Minimise a differentiable function that may be infinite, from where it is finite, by L-BFGS.

    Args:
        value: From x, shape (n,), to a number.
        x: Start.
        iterations: Largest number of steps.

    Returns:
        The best point found; the start if the function is infinite there.
    """

    def objective(point: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            point = point.detach().requires_grad_()
            found = value(point)
            if not bool(found.isfinite()):
                return found.detach().new_tensor(math.inf), torch.zeros_like(point)
            (gradient,) = torch.autograd.grad(found, point)
        if not bool(gradient.isfinite().all()):
            return found.detach().new_tensor(math.inf), torch.zeros_like(point)
        return found.detach(), gradient

    if not len(x) or not bool(objective(x)[0].isfinite()):
        return x
    return minimize(objective, x, iterations)


def is_metric(matrix: Tensor) -> bool:
    """Whether a matrix is symmetric and proved to be positive definite."""
    if not bool((matrix == matrix.mT).all()):
        return False
    return _definite(matrix, matrix.abs(), 4.0)


def _definite(matrix: Tensor, magnitude: Tensor, roundings: float) -> bool:
    """Whether every matrix within so many unit roundoffs of the magnitude is positive definite."""
    diagonal = matrix.diagonal()
    if not bool(matrix.isfinite().all() and (diagonal > 0).all()):
        return False
    root = diagonal.rsqrt()
    normal = root.unsqueeze(-1) * matrix * root
    u, n = _UNIT_ROUNDOFF, len(matrix)
    entries = roundings * u * float((root.unsqueeze(-1) * magnitude * root).sum(-1).max())
    factorisation = (n + 3) * u / (1.0 - 2.0 * (n + 3) * u) * n
    shift = 2.0 * (factorisation + entries + 16.0 * u * n)
    if not shift < 0.5:
        return False
    factor, info = torch.linalg.cholesky_ex(normal - shift * torch.eye(n, dtype=normal.dtype))
    return int(info) == 0 and bool(factor.isfinite().all())
