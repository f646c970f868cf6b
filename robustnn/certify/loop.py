r"""Certified gain of a closed loop: a linear plant and a policy with a Lipschitz bound, against the worst one found.

The policy is taken apart into a linear map and a rest, $\Delta u = K \Delta\tilde y + \Delta r$ with
$\|\Delta r\|^2 \le \Delta\tilde y^T \Gamma \Delta\tilde y$ (`robustnn.certify.quadratic`). The plant under K is linear,
and by the small-gain theorem with a weight $\tau > 0$

$$\left\| \begin{bmatrix} G_{zd} / \gamma & G_{zr} / \sqrt\tau \\ \sqrt\tau\,\Gamma^{1/2} G_{yd} / \gamma &
  \Gamma^{1/2} G_{yr} \end{bmatrix} \right\|_\infty < 1 \quad\Rightarrow\quad \|\Delta z\|_2 \le \gamma \|d\|_2$$

for every disturbance $d = (w, \delta)$ of finite energy: $\Delta z$ is how far the loop departs from what it would have
done without it. K, the multipliers in $\Gamma$ and $\tau$ are chosen to make $\gamma$ small, over a grid of
frequencies; the value returned is then computed from the state-space matrices, without a grid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustnn.bounds.lbfgs import minimize
from robustnn.certify.quadratic import QuadraticPolicy, quadratic_policy
from robustnn.closedloop.linear import hinf_norm
from robustnn.closedloop.problem import ControlProblem, Matrix, root
from robustnn.closedloop.synthesis import close_loop, static_controller
from robustnn.errors import CertificateError, ShapeError, check_positive_int

__all__ = ["LoopCertificate", "certify_loop"]

# Relative margin for the rounding of norms computed in float64.
_MARGIN = 1e-8
_SHARES = (0.0, 0.5, 1.0, 0.75, 0.25)


@dataclass(frozen=True, eq=False)
class LoopCertificate:
    r"""A proved bound of the closed loop's incremental l2 gain from $(w, \delta)$ to z of `ControlProblem`.

    Attributes:
        gain: $\gamma$, an upper bound.
        linear: K, shape (n_u, n_y): the linear map that the policy was compared with.
        rest: $\Gamma$, shape (n_y, n_y): bound of what is left of it, squared.
        small_gain: $\|\Gamma^{1/2} G_{yr}\|_\infty$, less than one.
        linear_gain: Gain of the loop with the linear map alone.
        weight: $\tau$.
    """

    gain: float
    linear: Matrix
    rest: Matrix
    small_gain: float
    linear_gain: float
    weight: float


def certify_loop(
    problem: ControlProblem,
    policy: Any,
    *,
    limits: tuple[Any, Any] | None = None,
    iterations: int = 60,
    frequencies: int = 96,
) -> LoopCertificate:
    r"""Prove a bound of the gain from observation errors (and process disturbances) to the costs of a linear plant.

    The plant is `problem.a`, `b`, `c` everywhere, not only near a point. A linear plant that saturates is linear with
    `limits` in the policy. For a policy without saturation that is affine the bound is the H-infinity norm. What is
    certified is the map of the weights as they are; rounding of its evaluation is a disturbance like others.

    Args:
        problem: The plant, its costs, and the sizes of the disturbances.
        policy: An `ActionMap`, an `LBDN`, `ExplicitMLP` or other network from observation to action.
        limits: Lowest and highest action that the plant passes on.
        iterations: L-BFGS steps over K, multipliers and weight, for each of the two objectives and starts.
        frequencies: Points of the grid of the search.

    Returns:
        The certificate.

    Raises:
        CertificateError: If none was found. An unstable or marginal plant with a saturating policy has none at all.
        ShapeError: If the policy does not fit the plant.

    Example:
        >>> from robustnn.closedloop import control_problem
        >>> from robustnn.envs import SpringChain
        >>> from robustnn.nn import MLP
        >>> problem = control_problem(SpringChain(masses=1, damping=1.0), [0.0, 0.0], [0.0])
        >>> certificate = certify_loop(problem, MLP(2, [8], 1), limits=(-1.0, 1.0))
        >>> certificate.small_gain < 1.0
        True
    """
    check_positive_int("iterations", iterations)
    check_positive_int("frequencies", frequencies)
    known = quadratic_policy(policy, limits)
    n_u, n_y = known.chain.weights[-1].shape[0], known.chain.weights[0].shape[1]
    if (n_u, n_y) != (problem.b.shape[1], len(problem.c)):
        raise ShapeError(
            f"policy: expected {len(problem.c)} observations and {problem.b.shape[1]} actions, got {n_y} and {n_u}. "
            "Pass the policy of this plant."
        )
    search = _Search(problem, known, frequencies)
    best: LoopCertificate | None = None
    closest = math.inf
    slope = torch.autograd.functional.jacobian(known.function, torch.from_numpy(problem.observation))
    starts = [slope] if known.is_linear else [share * slope for share in _SHARES]
    theta = known.multipliers()
    tried = 0
    for start in starts:
        if _radius(problem, start) >= 1.0 or tried == 2:
            continue
        tried += 1
        x = search.start(start, theta)
        steps = 0 if known.is_linear else iterations
        x = minimize(search.level, x, steps) if steps else x
        closest = min(closest, math.sqrt(math.exp(float(search.level(x)[0]))))
        x = search.with_weight(x)
        if math.isfinite(float(search.gain(x)[0])):
            x = minimize(search.gain, x, steps) if steps else x
        found = search.certificate(x)
        if found is not None and (best is None or found.gain < best.gain):
            best = found
    if best is None:
        reason = (
            "no linear part of the policy stabilises it" if tried == 0 else f"a small gain of {closest:.3g}"
        )
        raise CertificateError(
            f"policy: expected a loop that the small-gain theorem covers, got {reason}. "
            "Lower the Lipschitz bound of the policy, add damping to the plant, or, for an unstable plant, use a "
            "policy without saturation that is nearly linear."
        )
    return best


class _Search:
    """Objectives over x = (log theta, K, log tau), relative to a start, on a grid of frequencies."""

    def __init__(self, problem: ControlProblem, known: QuadraticPolicy, frequencies: int) -> None:
        self.problem, self.known = problem, known
        poles = np.angle(np.linalg.eigvals(problem.a))
        near = [np.abs(pole) * (1.0 + s) for pole in poles for s in (-0.05, -0.01, 0.0, 0.01, 0.05)]
        spread = [np.linspace(0.0, math.pi, frequencies // 2), np.geomspace(1e-3, math.pi, frequencies // 2)]
        angles = np.unique(np.concatenate([*spread, np.clip(near, 0.0, math.pi)]))
        self.z = torch.exp(1j * torch.from_numpy(angles))
        self.a, self.b, self.c, self.v, self.w = (
            torch.from_numpy(m) for m in (problem.a, problem.b, problem.c, problem.sensor, problem.process)
        )
        self.q, self.r = (torch.from_numpy(m) for m in (problem.state_weight, problem.action_weight))

    def start(self, gain: Tensor, theta: tuple[Tensor, ...]) -> Tensor:
        self.gain_0, self.theta_0 = gain.detach(), theta
        # K enters relative to the size of the policy's slopes.
        self.unit = float(self.known.gamma(theta, torch.zeros_like(gain)).diagonal().max()) ** 0.5
        return torch.zeros(sum(len(t) for t in theta) + gain.numel() + 1, dtype=torch.float64)

    def split(self, x: Tensor) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
        sizes = [len(t) for t in self.theta_0]
        *logs, moved, tau = x.split([*sizes, self.gain_0.numel(), 1])
        theta = tuple(t * log.exp() for t, log in zip(self.theta_0, logs, strict=True))
        return theta, self.gain_0 + self.unit * moved.reshape(self.gain_0.shape), tau.exp()

    def _responses(self, gain: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """G_zd, G_zr, G_yd, G_yr on the grid."""
        a = self.a + self.b @ gain @ self.c
        eye = torch.eye(len(a), dtype=torch.complex128)
        inputs = torch.cat([self.w, self.b @ gain @ self.v, self.b], 1).to(eye)
        x = torch.linalg.solve(self.z[:, None, None] * eye - a.to(eye), inputs.expand(len(self.z), -1, -1))
        n_w, n_d = self.w.shape[1], self.w.shape[1] + len(self.v)
        direct = torch.zeros(len(self.c), inputs.shape[1], dtype=torch.float64)
        direct[:, n_w:n_d] = self.v
        y = self.c.to(eye) @ x + direct.to(eye)
        rest = torch.zeros(len(self.r), inputs.shape[1], dtype=torch.float64)
        rest[:, n_d:] = torch.eye(len(self.r), dtype=torch.float64)
        z = torch.cat([self.q.to(eye) @ x, (self.r @ gain).to(eye) @ y + (self.r @ rest).to(eye)], -2)
        return z[..., :n_d], z[..., n_d:], y[..., :n_d], y[..., n_d:]

    def level(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logarithm of the squared small gain, smoothed over the grid, and its gradient."""

        def value(theta: tuple[Tensor, ...], gain: Tensor, tau: Tensor) -> Tensor:
            gamma = self.known.gamma(theta, gain)
            if not bool(gamma.isfinite().all()):
                return gamma.sum() * 0.0 + torch.inf
            y = self._responses(gain)[3]
            levels = torch.linalg.eigvalsh(y.mH @ gamma.to(y) @ y)[:, -1].clamp_min(1e-200)
            return torch.logsumexp(32.0 * levels.log(), 0) / 32.0

        return self._evaluate(value, x)

    def gain(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logarithm of the squared bound, smoothed over the grid; infinite where the small gain is not below one."""

        def value(theta: tuple[Tensor, ...], gain: Tensor, tau: Tensor) -> Tensor:
            gamma = self.known.gamma(theta, gain)
            if not bool(gamma.isfinite().all()):
                return gamma.sum() * 0.0 + torch.inf
            zd, zr, yd, yr = self._responses(gain)
            weighted = tau * gamma.to(yr)
            inner = zr.mH @ zr + yr.mH @ weighted @ yr
            factor, info = torch.linalg.cholesky_ex(tau * torch.eye(inner.shape[-1]).to(inner) - inner)
            if bool(info.any()):
                return gamma.sum() * 0.0 + torch.inf
            cross = zr.mH @ zd + yr.mH @ weighted @ yd
            half = torch.linalg.solve_triangular(factor, cross, upper=False)
            total = zd.mH @ zd + yd.mH @ weighted @ yd + half.mH @ half
            return (
                torch.logsumexp(32.0 * torch.linalg.eigvalsh(total)[:, -1].clamp_min(1e-200).log(), 0) / 32.0
            )

        return self._evaluate(value, x)

    def _evaluate(self, value: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            theta, gain, tau = self.split(x)
            if _radius(self.problem, gain) >= 1.0:
                return torch.tensor(torch.inf, dtype=torch.float64), torch.zeros_like(x)
            result = value(theta, gain, tau)
            if not bool(result.isfinite()):
                return result.detach().new_tensor(torch.inf), torch.zeros_like(x)
            (gradient,) = torch.autograd.grad(result, x, allow_unused=True)
        return result.detach(), torch.zeros_like(x) if gradient is None else gradient.nan_to_num(0.0)

    def with_weight(self, x: Tensor) -> Tensor:
        """Return x with the best weight of a coarse scale, so that the units of z and d do not matter."""
        unit = float(self._responses(self.split(x)[1])[1].abs().square().sum((-2, -1)).max())
        logs = math.log(max(unit, 1e-200)) + torch.linspace(-4.0, 16.0, 41).to(x)
        trials = [torch.cat([x[:-1], log.reshape(1)]) for log in logs]
        return min(trials, key=lambda trial: float(self.gain(trial)[0]))

    def certificate(self, x: Tensor) -> LoopCertificate | None:
        """Prove a bound for the multipliers, K and tau of x, without the grid."""
        theta, gain, tau = self.split(x.detach())
        rest = self.known.proved(theta, gain).numpy()
        linear = gain.numpy()
        a, inputs, outputs, direct = close_loop(self.problem, static_controller(self.problem, linear))
        n_w, n_y = self.problem.process.shape[1], len(self.problem.c)
        n_d, n_u = n_w + n_y, self.problem.b.shape[1]
        n_z = len(outputs)
        b = np.hstack([inputs, self.problem.b])
        half = root(rest)
        c = np.vstack([outputs, half @ self.problem.c])
        d = np.zeros((n_z + n_y, n_d + n_u))
        d[:n_z, :n_d] = direct
        d[len(a) : n_z, n_d:] = self.problem.action_weight
        d[n_z:, n_w:n_d] = half @ self.problem.sensor
        small = hinf_norm(a, b[:, n_d:], c[n_z:]) * (1.0 + _MARGIN)
        if small >= 1.0:
            return None
        bare = hinf_norm(a, inputs, outputs, direct)

        def admits(weight: float, level: float) -> bool:
            """Whether the scaled norm is below one."""
            row = np.concatenate([np.ones(n_z), np.full(n_y, math.sqrt(weight))])
            column = np.concatenate([np.full(n_d, 1.0 / level), np.full(n_u, 1.0 / math.sqrt(weight))])
            scaled = (a, b * column, row[:, None] * c, row[:, None] * d * column)
            return hinf_norm(*scaled, tolerance=_MARGIN) * (1.0 + _MARGIN) < 1.0

        def bound(weight: float, accuracy: float) -> float:
            """The least level that is admitted for a weight."""
            low = math.log(max(bare, 1e-12))
            high = low + 1e-6
            while not admits(weight, math.exp(high)):
                if high > low + 30.0:
                    return math.inf
                high += max(high - low, 1e-3)
            while high - low > accuracy:
                middle = 0.5 * (low + high)
                low, high = (low, middle) if admits(weight, math.exp(middle)) else (middle, high)
            return math.exp(high)

        if not np.any(half > 1e-6 * (1.0 + np.abs(linear).max())):  # nothing but the linear map is left
            large = 1e6
            return LoopCertificate(bound(large, 1e-7), linear, rest, small, bare, large)
        weight = float(tau)
        level = bound(weight, 1e-3)
        for factor in (1e3, 10.0, 2.0, 1.2):
            for step in (factor, 1.0 / factor):
                while level > bare * (1.0 + 2e-3) and admits(weight * step, level * (1.0 - 1e-3)):
                    weight *= step
                    level = bound(weight, 1e-3)
        level = min(level, bound(weight, 1e-6))
        return LoopCertificate(level, linear, rest, small, bare, weight) if level < math.inf else None


def _radius(problem: ControlProblem, gain: Tensor) -> float:
    closed = problem.a + problem.b @ gain.detach().numpy() @ problem.c
    return float(np.abs(np.linalg.eigvals(closed)).max())
