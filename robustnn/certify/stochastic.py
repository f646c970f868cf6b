r"""How far the distribution of the action can move when the observation does.

Gaussian with constant standard deviations, means $\mu$ and $\mu'$ before clipping, $m = \|\Sigma^{-1/2}\Delta\mu\|_2$:

$$W_2 = \|\Delta\mu\|_2, \qquad \mathrm{KL} = \tfrac12 m^2, \qquad \mathrm{TV} = \mathrm{erf}\big(m / \sqrt 8\big)$$

(Pinsker's $\sqrt{\mathrm{KL}/2} = m/2$ is a quarter more). Clipping moves two actions no further apart, so the
first bounds that of the clipped actions too, and the other two are no larger for them.

Categorical with logits that move by $\Delta_i$, of range $\rho = \max_{ij} |\Delta_i - \Delta_j|$: both
divergences are largest where $\Delta$ is $\rho$ on a set of choices of probability a and zero on the rest,

$$\mathrm{KL} = \log(1 - a + a e^\rho) - a \rho \le \tfrac18 \rho^2, \qquad
  \mathrm{TV} = \frac{a (1 - a) (e^\rho - 1)}{1 + a (e^\rho - 1)} \le \tanh \tfrac14 \rho,$$

where no a lies between $1 - p_{max}$ and $p_{max}$ (the inequalities are Hoeffding's lemma, and the maximum over a).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn import functional

from robustnn.certify.certificate import PolicyCertificate
from robustnn.certify.decision import checked_masks
from robustnn.certify.local import local_change
from robustnn.errors import UnsupportedSpaceError, check_nonnegative

__all__ = ["DistributionChange", "distribution_change"]

# Below this range the exact divergence is computed from differences of small numbers.
_SMALL = 1e-2
# Above this one its exponential may be infinite.
_WIDE = 500.0


@dataclass(frozen=True, eq=False)
class DistributionChange:
    """Certified changes of the distribution of the action for observation errors of a given size.

    Attributes:
        kl: Bound of KL(pi(o) || pi(o')), shape (...), in nats.
        tv: Bound of the total variation distance, shape (...).
        w2: Bound of the 2-Wasserstein distance of the actions before clipping, and of the clipped ones, shape (...), in
            the units of the action space; None for discrete actions.
    """

    kl: Tensor
    tv: Tensor
    w2: Tensor | None = None


def distribution_change(
    certificate: PolicyCertificate,
    observation: Any,
    eps: float,
    *,
    local: bool = False,
    action_masks: ArrayLike | None = None,
) -> DistributionChange:
    r"""Bound the change of a stochastic policy over all errors $\|\delta / d\| \le$ eps of the raw observation.

    For PPO, A2C, TRPO and MaskablePPO: Gaussian actions without gSDE, and all discrete ones, with float32 included.

    Args:
        certificate: Of the policy, which has norm and scale d.
        observation: Raw observations, with or without a batch axis, or a tensor of flat ones, shape (..., n_obs).
        eps: Size of the error, zero or greater, in the norm and scale of the certificate.
        local: Whether to bound the change over the ball itself as well (`robustnn.certify.local_change`).
        action_masks: For MaskablePPO the choices that are allowed, shape (..., n_out).

    Returns:
        The bounds, float64.

    Raises:
        UnsupportedSpaceError: If the policy has no such distribution; the message has the reason.
        InvalidArgumentError: If `eps` is negative.

    Example:
        >>> from stable_baselines3 import PPO
        >>> from robustnn.certify import certify_policy
        >>> from robustnn.policies import LBDNActorCriticPolicy
        >>> model = PPO(LBDNActorCriticPolicy, "CartPole-v1", policy_kwargs=dict(lipschitz=4.0), device="cpu")
        >>> bool(distribution_change(certify_policy(model), torch.zeros(4), 0.1).kl < 0.4**2 / 4)
        True
    """
    noise = certificate.noise
    if not noise.kind:
        raise UnsupportedSpaceError(
            f"policy: expected a Gaussian with constant standard deviations, or probabilities from logits, got another "
            f"policy: {noise.reason}. Use PPO, A2C or TRPO without gSDE."
        )
    features = certificate.path.features(observation)
    points = features.reshape(-1, features.shape[-1])
    radius = check_nonnegative("eps", eps)
    change = (
        _gaussian(certificate, points, radius, local)
        if noise.std is not None
        else _categorical(certificate, points, radius, local, features.shape[:-1], action_masks)
    )
    beyond = certificate.path.overflow_radius(points, certificate.unit) < radius
    change = DistributionChange(
        change.kl.masked_fill(beyond, torch.inf),
        change.tv.masked_fill(beyond, 1.0),
        None if change.w2 is None else change.w2.masked_fill(beyond, torch.inf),
    )
    batch = features.shape[:-1]
    w2 = None if change.w2 is None else change.w2.reshape(batch)
    return DistributionChange(change.kl.reshape(batch), change.tv.reshape(batch), w2)


def _gaussian(
    certificate: PolicyCertificate, points: Tensor, radius: float, local: bool
) -> DistributionChange:
    path, std = certificate.path, certificate.noise.std
    if std is None:
        raise UnsupportedSpaceError(
            "certificate.noise: expected standard deviations, got none. Certify anew."
        )
    precision = 1.0 / std * (1.0 + 8.0 * path.eps * (1.0 + std.log().abs()))
    _, rounding = path.output_error(points)
    further = 2.0 * rounding + certificate.growth[1] * radius
    moved = _locally(certificate, points, radius, path.network.weights[-1]) if local else None

    def length(weight: Tensor) -> Tensor:
        result = certificate.change.norm(weight) * radius
        if moved is not None:
            result = torch.minimum(result, (weight * moved).norm(dim=-1))
        return result + (weight * further).norm(dim=-1)

    mahalanobis = length(precision)
    return DistributionChange(
        0.5 * mahalanobis.square(), torch.erf(mahalanobis / math.sqrt(8.0)), length(torch.ones_like(std))
    )


def _categorical(
    certificate: PolicyCertificate,
    points: Tensor,
    radius: float,
    local: bool,
    batch: torch.Size,
    action_masks: ArrayLike | None,
) -> DistributionChange:
    path, pairs = certificate.path, certificate.change.pairs
    outputs = path.network(points)
    allowed = checked_masks(certificate, action_masks, batch)
    if allowed is not None:
        outputs = outputs.masked_fill(~allowed, -torch.inf)
    _, rounding = path.output_error(points)
    further = 2.0 * rounding + certificate.growth[1] * radius
    last = path.network.weights[-1]
    kl: list[Tensor] = []
    kept: list[Tensor] = []
    begin = 0
    for n in path.action_map.choices:
        group = slice(begin, begin + n)
        if certificate.kind == "multibinary":
            index = [(0, 0)]
            rows, rates = last[group], pairs[begin, begin].expand(1)
            rest = functional.logsigmoid(-outputs[:, begin].abs())
            rounded = further[:, begin]
        else:
            index = [(i, j) for i in range(n) for j in range(i + 1, n)]
            rows = torch.stack([last[begin + i] - last[begin + j] for i, j in index])
            rates = torch.stack([pairs[begin + i, begin + j] for i, j in index])
            scores = outputs[:, group].log_softmax(-1)
            rest = scores.scatter(-1, scores.argmax(-1, keepdim=True), -torch.inf).logsumexp(-1)
            rounded = 2.0 * further[:, group].amax(-1)
        moved = (rates * radius).expand(len(points), -1)
        if local:
            moved = torch.minimum(moved, _locally(certificate, points, radius, rows))
        if allowed is not None:
            both = [allowed[:, begin + i] & allowed[:, begin + j] for i, j in index]
            moved = moved * torch.stack(both, dim=-1)
        span = moved.amax(-1) + rounded
        rest = (rest + rounded).clamp_max(0.0)
        kl.append(_divergence(span, rest))
        kept.append(torch.log1p(-_variation(span, rest).clamp_max(1.0)))
        begin += n
    # All logits together move by no more than this; a group of them has at most the root of two as its range.
    whole = certificate.change.norm(outputs.new_ones(outputs.shape[-1])) * radius + further.norm(dim=-1)
    joint = whole.square() / (8.0 if certificate.kind == "multibinary" else 4.0)
    divergence = torch.minimum(torch.stack(kl).sum(0), joint)
    variation = -torch.expm1(torch.stack(kept).sum(0))  # of independent components
    variation = torch.minimum(variation, (0.5 * divergence).sqrt())  # Pinsker
    return DistributionChange(divergence, torch.minimum(variation, (-torch.expm1(-divergence)).sqrt()))


def _locally(certificate: PolicyCertificate, points: Tensor, radius: float, rows: Tensor) -> Tensor:
    return local_change(certificate, points, points.new_full((len(points),), max(radius, 1e-150)), rows)


def _divergence(span: Tensor, log_rest: Tensor) -> Tensor:
    """Largest KL divergence for a range of the changes of logits.

    Args:
        span: The range, zero or greater.
        log_rest: Logarithm of the probability of all choices but the likeliest, of the same shape.

    Returns:
        Of the same shape.
    """
    rest = log_rest.exp()
    # Its second derivative in the range is the variance of the set, which then has at most this probability.
    most = (rest * span.clamp_max(1.0).exp()).clamp_max(0.5)
    small = 0.5 * most * (1.0 - most) * span.square()
    wide = span.clamp_min(_SMALL)
    peak = 1.0 / wide - 1.0 / torch.expm1(wide)
    at_peak = torch.logaddexp(torch.log1p(-peak), peak.log() + wide) - peak * wide
    gained = torch.where(
        wide < _WIDE,
        torch.log1p(rest * torch.expm1(wide)),
        torch.logaddexp(torch.zeros_like(wide), log_rest + wide),
    )
    ends = torch.maximum(gained - rest * wide, rest * wide + torch.log1p(rest * torch.expm1(-wide)))
    exact = torch.where((peak <= rest) | (peak >= 1.0 - rest), at_peak, ends)
    return torch.where(span < _SMALL, small, exact * (1.0 + 1e-10)).clamp_min(0.0)


def _variation(span: Tensor, log_rest: Tensor) -> Tensor:
    """Largest total variation distance, as `_divergence`."""
    rest = log_rest.exp()
    peak = 1.0 / (1.0 + (0.5 * span).exp())
    inverse = 1.0 / torch.expm1(span)
    # Of the two ends the smaller probability gives more.
    ends = (rest * (1.0 - rest) / (inverse + torch.minimum(rest, 1.0 - rest))).nan_to_num(0.0)
    free = (peak <= rest) | (peak >= 1.0 - rest)
    return torch.where(free, torch.tanh(0.25 * span), ends) * (1.0 + 1e-12)
