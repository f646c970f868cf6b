r"""What a network with slope-restricted activations does beyond a linear map, as a quadratic form of its input change.

For a policy $\pi$ and any matrix K, with $\Delta r = \Delta\pi - K \Delta y$,

$$\|\Delta r\|_2^2 \le \Delta y^T \Gamma\, \Delta y, \qquad
  \Gamma = K^T K - 2 W_0^T \alpha\beta T_0 W_0 + M^T H^{-1} M$$

for positive diagonal multipliers $T_k$ with $H \succ 0$: the LipSDP inequality (Fazlyab et al., NeurIPS 2019) with the
hidden layers eliminated, H its block of the hidden neurons and M the one between them and the input, which K enters
through the last layer. With K = 0 the largest eigenvalue of $\Gamma$ is a squared Lipschitz bound.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robustnn.bounds import as_network
from robustnn.bounds.network import Chain
from robustnn.bounds.recursion import greedy, improve, product_rule
from robustnn.errors import CertificateError, check_finite, invalid
from robustnn.params.activations import ACTIVATIONS
from robustnn.policies.action_map import ActionMap

__all__ = ["QuadraticPolicy", "quadratic_policy"]

_EPS = torch.finfo(torch.float64).eps


@dataclass(frozen=True, eq=False)
class QuadraticPolicy:
    """A policy by value, as a chain of matrices and slope intervals from raw observation to actuator.

    Attributes:
        function: The policy itself, float64: observations (..., n_y) to actions (..., n_u), limits included.
        chain: Weights and slopes of all layers, saturations included.
    """

    function: Callable[[Tensor], Tensor]
    chain: Chain

    @property
    def is_linear(self) -> bool:
        """Whether the policy is affine."""
        return not self.chain.widths

    def multipliers(self, iterations: int = 100) -> tuple[Tensor, ...]:
        """Return multipliers that give a small Lipschitz bound, as a start."""
        if self.is_linear:
            return ()
        starts = [product_rule(self.chain), greedy(self.chain)]
        found = [improve(self.chain, start, iterations) for start in starts]
        return min(found, key=lambda theta: float(torch.linalg.eigvalsh(self._gamma(theta, None))[-1]))

    def gamma(self, theta: tuple[Tensor, ...], gain: Tensor) -> Tensor:
        """Return Gamma, differentiable in both arguments; not finite where multipliers are not admissible.

        Args:
            theta: One tensor (n_k,) per hidden layer, T (beta - alpha).
            gain: K, shape (n_u, n_y).

        Returns:
            Shape (n_y, n_y), symmetric.
        """
        return self._gamma(theta, gain)

    def _gamma(self, theta: tuple[Tensor, ...], gain: Tensor | None) -> Tensor:
        weights = self.chain.weights
        n_u, n_y = weights[-1].shape[0], weights[0].shape[1]
        k = weights[0].new_zeros(n_u, n_y) if gain is None else gain
        if self.is_linear:
            rest = weights[0] - k
            return rest.mT @ rest
        hidden, cross, corner = self._blocks(theta, k)
        factor, info = torch.linalg.cholesky_ex(hidden)
        if int(info):
            return torch.full_like(corner, torch.inf)
        half = torch.linalg.solve_triangular(factor, cross, upper=False)
        return corner + half.mT @ half

    def _blocks(self, theta: tuple[Tensor, ...], k: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """H, M and what K and the first layer add to Gamma."""
        weights, alpha, beta = self.chain.weights, self.chain.alpha, self.chain.beta
        t = [one / (b - a) for one, a, b in zip(theta, alpha, beta, strict=True)]
        widths = self.chain.widths
        begins = [sum(widths[:i]) for i in range(len(widths))]
        n = sum(widths)
        hidden = torch.diag(2.0 * torch.cat(t))
        cross = weights[0].new_zeros(n, weights[0].shape[1])
        additions: list[tuple[int, int, Tensor]] = []
        for i in range(1, len(widths)):
            both = ((alpha[i] + beta[i]) * t[i]).unsqueeze(-1) * weights[i]
            product = weights[i].mT @ ((2.0 * alpha[i] * beta[i] * t[i]).unsqueeze(-1) * weights[i])
            additions += [
                (i, i - 1, -both),
                (i - 1, i, -both.mT),
                (i - 1, i - 1, product),
            ]
        last = len(widths) - 1
        additions.append((last, last, -weights[-1].mT @ weights[-1]))
        for row, column, block in additions:
            r, c = begins[row], begins[column]
            after = (c, n - c - widths[column], r, n - r - widths[row])
            hidden = hidden + torch.nn.functional.pad(block, after)
        first = -((alpha[0] + beta[0]) * t[0]).unsqueeze(-1) * weights[0]
        cross = torch.cat([first, cross[widths[0] :]])
        to_last = torch.cat([cross.new_zeros(begins[last], cross.shape[1]), weights[-1].mT @ k])
        corner = k.mT @ k - weights[0].mT @ ((2.0 * alpha[0] * beta[0] * t[0]).unsqueeze(-1) * weights[0])
        return hidden, cross + to_last, corner

    def proved(self, theta: tuple[Tensor, ...], gain: Tensor) -> Tensor:
        """Return a slightly larger Gamma for which the whole inequality holds with room for rounding.

        Args:
            theta: Multipliers.
            gain: K.

        Returns:
            Shape (n_y, n_y).

        Raises:
            CertificateError: If no such matrix was found.
        """
        gamma = self._gamma(theta, gain).detach()
        n_y = gamma.shape[0]
        eye = torch.eye(n_y, dtype=gamma.dtype)
        if self.is_linear:
            size = self.chain.weights[0].norm() + gain.norm()
            return gamma + 16.0 * n_y * _EPS * float(size) ** 2 * eye
        hidden, cross, corner = (block.detach() for block in self._blocks(theta, gain))
        scale = float((corner.diagonal().abs() + cross.square().sum(0) / hidden.diagonal().min()).max())
        for exponent in range(-10, -4):
            larger = gamma + 10.0**exponent * (gamma.diagonal().max() + _EPS * scale) * eye
            whole = torch.cat([torch.cat([larger - corner, cross.mT], 1), torch.cat([cross, hidden], 1)])
            # Unit diagonal: the shift then covers the rounding of blocks and factorisation alike.
            root = whole.diagonal().clamp_min(torch.finfo(gamma.dtype).tiny).rsqrt()
            normal = root.unsqueeze(-1) * whole * root
            shift = 8.0 * len(normal) * _EPS
            if int(torch.linalg.cholesky_ex(normal - shift * torch.eye(len(normal)).to(normal))[1]) == 0:
                return larger
        raise CertificateError(
            "policy: expected multipliers that prove the bound in float64, got an indefinite matrix. "
            "Use a wider margin, or a network with smaller weights."
        )


def quadratic_policy(policy: Any, limits: tuple[Any, Any] | None = None) -> QuadraticPolicy:
    """Return a policy by value with its saturations as layers.

    Args:
        policy: An `ActionMap` of continuous actions, or anything that `robustnn.bounds.as_network` accepts.
        limits: Lowest and highest action that the actuator passes on, numbers or (n_u,), in the units of the action;
            None for an actuator without limits. A linear plant that saturates has limits.

    Returns:
        The policy, float64, on the CPU.

    Raises:
        InvalidArgumentError: If actions are discrete, or limits are not in order.
    """
    weights: list[Tensor] = []
    slopes: list[tuple[float, float]] = []
    stages: list[Callable[[Tensor], Tensor]] = []
    if isinstance(policy, ActionMap):
        if policy.choices:
            raise invalid(
                "policy", "continuous actions", f"actions of kind {policy.kind}", "A loop needs a signal."
            )
        policy = policy.to(device="cpu", dtype=torch.float64)
    network = policy.network if isinstance(policy, ActionMap) else as_network(policy)
    network = as_network(network).to(device="cpu", dtype=torch.float64)
    std = None
    if isinstance(policy, ActionMap) and policy.normalization is not None:
        std = policy.normalization.std
        if bool(torch.as_tensor(policy.normalization.clip).isfinite().any()):
            weights.append(torch.diag(1.0 / std))
            slopes.append((0.0, 1.0))
            std = None
    entry = ACTIVATIONS[network.activation]
    for index, weight in enumerate(network.weights):
        matrix = weight / std if index == 0 and std is not None else weight
        weights.append(matrix)
        if index + 1 < len(network.weights):
            slopes.append((entry.slope_min, entry.slope_max))
    n_u = weights[-1].shape[0]
    eye = torch.eye(n_u, dtype=torch.float64)
    if isinstance(policy, ActionMap):
        if policy.mean_clip is not None:
            weights, slopes = [*weights, eye], [*slopes, (0.0, 1.0)]
        if policy.low is not None and policy.high is not None:
            last = torch.diag(0.5 * (policy.high - policy.low)) if policy.squash else eye
            weights, slopes = [*weights, last], [*slopes, (0.0, 1.0)]
    stages.append(policy if isinstance(policy, ActionMap) else network)
    if limits is not None:
        low, high = (torch.as_tensor(one, dtype=torch.float64).reshape(-1).expand(n_u) for one in limits)
        check_finite("limits", torch.cat([low, high]))
        if bool((low >= high).any()):
            raise invalid("limits", "low < high", (low.tolist(), high.tolist()), "Swap or correct them.")
        weights, slopes = [*weights, eye], [*slopes, (0.0, 1.0)]
        stages.append(lambda u: torch.minimum(torch.maximum(u, low), high))

    def function(observation: Tensor) -> Tensor:
        for stage in stages:
            observation = stage(observation)
        return observation

    merged, kept = [weights[0]], []
    for weight, (least, most) in zip(weights[1:], slopes, strict=True):
        if least == most:
            merged[-1] = most * weight @ merged[-1]
        else:
            merged.append(weight)
            kept.append((least, most))
    alpha, beta = (
        tuple(torch.full_like(w[:, 0], pair[i]) for w, pair in zip(merged, kept, strict=False))
        for i in (0, 1)
    )
    return QuadraticPolicy(function, Chain(tuple(merged), alpha, beta, (None,) * len(merged)))
