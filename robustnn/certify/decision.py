r"""How far an observation may move before a decision can change.

A greedy choice i stands against j while the difference of their outputs, less what rounding adds to both anywhere in
the ball, exceeds what the ball can move it by: $m_{ij} - a_i - a_j - (b_i + b_j) r \ge L_{ij} r$. The constants
$L_{ij} \le \sqrt2\,\gamma$ belong to the pair.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from robustnn.certify.certificate import PolicyCertificate
from robustnn.certify.local import local_change
from robustnn.errors import ShapeError, UnsupportedSpaceError, invalid
from robustnn.policies.rounding import comparison_error

__all__ = ["certified_radius", "decision_radius"]

# Rounding of the last division.
_INWARDS = 1.0 - 1e-9
# By how much a choice that is not allowed must exceed the others to be made all the same: sb3-contrib gives it a
# normalised logit of -1e8. This is a little less.
_MASKED = 0.999e8
# How many times the global radius the local one is looked for, and by how many bisections.
_REACH = 256.0
_BISECTIONS = 14
# Observations at a time, so that their numbers stay in the cache.
_CHUNK = 1024


@dataclass(frozen=True, eq=False)
class _Contest:
    """The choices of a batch of observations against all others; all of shape (B, n_out).

    Attributes:
        winner: Index of the output that is chosen in the group of every output.
        margin: By how much it wins; infinity where there is no contest.
        rounding: What rounding takes off the margin.
        slope: What a unit of the radius adds to that.
        rate: Change of the margin per unit of the radius.
    """

    winner: Tensor
    margin: Tensor
    rounding: Tensor
    slope: Tensor
    rate: Tensor

    def radius(self) -> Tensor:
        """Radius for which no choice can change, shape (B,)."""
        quotient = (self.margin - self.rounding) / (self.rate + self.slope)
        return quotient.nan_to_num(0.0, torch.inf).clamp_min(0.0).amin(-1) * _INWARDS


def certified_radius(
    certificate: PolicyCertificate,
    observation: Any,
    *,
    local: bool = False,
    action_masks: ArrayLike | None = None,
) -> Tensor:
    r"""Return how far an observation may move without changing the greedy action, as `predict` computes it.

    For every error $\delta$ of the raw observation with $\|\delta / d\| \le r$ the discrete action of
    `predict(..., deterministic=True)` is the one without error; of a MultiDiscrete or MultiBinary action all
    components. For continuous actions see `tolerance_radius`.

    Args:
        certificate: Of the policy, which has norm and scale.
        observation: Raw observations, with or without a batch axis, or a tensor of flat ones, shape (..., n_obs).
        local: Whether to bound the change over the ball itself as well (`robustnn.certify.local_change`), which takes
            about a thousand times as long and often gives a multiple of the radius.
        action_masks: For MaskablePPO the choices that are allowed, shape (..., n_out), as given to `predict`.

    Returns:
        Shape (...), float64, zero where nothing is certified: r in the norm and scale of the certificate.

    Raises:
        UnsupportedSpaceError: If actions are continuous.
        ShapeError: If a shape does not fit.

    Example:
        >>> from stable_baselines3 import DQN
        >>> from robustnn.certify import certify_policy
        >>> from robustnn.policies import LBDNDQNPolicy
        >>> model = DQN(LBDNDQNPolicy, "CartPole-v1", policy_kwargs=dict(lipschitz=50.0), device="cpu")
        >>> bool(certified_radius(certify_policy(model), torch.zeros(4)) > 0)
        True
    """
    return decision_radius(certificate, certificate.path.features(observation), local, action_masks)


def decision_radius(
    certificate: PolicyCertificate,
    features: Tensor,
    local: bool = False,
    action_masks: ArrayLike | None = None,
) -> Tensor:
    """As `certified_radius`, for inputs of the network (normalised observations), shape (..., n_obs)."""
    if not certificate.path.action_map.choices:
        raise UnsupportedSpaceError(
            "policy.action_space: expected discrete actions, got Box. Use tolerance_radius or action_change."
        )
    points = features.reshape(-1, features.shape[-1])
    allowed = checked_masks(certificate, action_masks, features.shape[:-1])
    parts = []
    for k in range(0, len(points), _CHUNK):
        part = slice(k, k + _CHUNK)
        contest = _contest(certificate, points[part], None if allowed is None else allowed[part])
        radius = contest.radius()
        whole = certificate.path.overflow_radius(points[part], certificate.unit)
        radius = torch.where(radius.isinf(), radius, torch.minimum(radius, whole))
        parts.append(_local_radius(certificate, points[part], contest, radius) if local else radius)
    joined = torch.cat(parts) if parts else points[:, 0]
    return joined.reshape(features.shape[:-1])


def _contest(certificate: PolicyCertificate, points: Tensor, allowed: Tensor | None) -> _Contest:
    path = certificate.path
    outputs = path.network(points)
    size, error = path.output_error(points)
    growth, slope = certificate.growth
    pairs = certificate.change.pairs
    if certificate.kind == "multibinary":
        # A probability is rounded to the nearer of 0 and 1.
        winner = torch.arange(outputs.shape[-1], device=outputs.device).expand(outputs.shape)
        shape = outputs.shape
        return _Contest(
            winner, outputs.abs(), error + 8.0 * path.eps, slope.expand(shape), pairs.diagonal().expand(shape)
        )
    columns: list[tuple[Tensor, ...]] = []
    begin = 0
    for n in path.action_map.choices:
        group = slice(begin, begin + n)
        scores = outputs[:, group]
        rivals = scores
        if allowed is not None:
            rivals = torch.where(allowed[:, group], scores, scores - _MASKED)
            scores = scores.masked_fill(~allowed[:, group], -torch.inf)
        best, index = scores.max(-1, keepdim=True)
        against = torch.arange(n, device=outputs.device) != index
        margin = (best - rivals).where(against, torch.inf)
        worst = error[:, group].gather(-1, index) + error[:, group]
        further = slope[group][index] + slope[group]
        compared = 2.0 * comparison_error(size[:, group], path.eps).unsqueeze(-1)
        compared_slope = 2.0 * comparison_error(growth[group], path.eps, constants=False)
        rate = pairs[group, group][index.squeeze(-1)]
        columns.append(
            (index.expand(-1, n) + begin, margin, worst + compared, further + compared_slope, rate)
        )
        begin += n
    return _Contest(*(torch.cat(column, dim=-1) for column in zip(*columns, strict=True)))


def checked_masks(
    certificate: PolicyCertificate, masks: ArrayLike | None, batch: Sequence[int]
) -> Tensor | None:
    """Return masks of shape (B, n_out), after checking them against a batch of observations; None for None."""
    if masks is None:
        return None
    if certificate.kind == "multibinary":
        raise invalid("action_masks", "None for two-valued actions without masks", "masks", "Leave them out.")
    allowed = torch.as_tensor(masks, dtype=torch.bool, device=certificate.path.device)
    n_out = certificate.path.network.out_features
    if tuple(allowed.shape) != (*batch, n_out):
        raise ShapeError(
            f"action_masks: expected shape {(*batch, n_out)}, got {tuple(allowed.shape)}. "
            "Give one mask per observation, as long as the logits."
        )
    allowed = allowed.reshape(-1, n_out)
    if not all(
        bool(part.any(-1).all()) for part in allowed.split(certificate.path.action_map.choices, dim=-1)
    ):
        raise invalid("action_masks", "at least one choice allowed", "none", "Check the environment.")
    return allowed


def _local_radius(
    certificate: PolicyCertificate, points: Tensor, contest: _Contest, radius: Tensor
) -> Tensor:
    *_, last = certificate.path.network.weights
    open_ = contest.margin.isfinite()
    whole = certificate.path.overflow_radius(points, certificate.unit)

    def stands(index: Tensor, r: Tensor) -> Tensor:
        rows = last[contest.winner[index]]
        if certificate.kind != "multibinary":
            rows = rows - last
        moved = torch.minimum(
            local_change(certificate, points[index], r, rows), contest.rate[index] * r.unsqueeze(-1)
        )
        left = contest.margin[index] - contest.rounding[index] - contest.slope[index] * r.unsqueeze(-1)
        return ((moved <= left) | ~open_[index]).all(-1) & (r <= whole[index])

    return largest_radius(stands, radius)


def largest_radius(stands: Callable[[Tensor, Tensor], Tensor], radius: Tensor) -> Tensor:
    """Enlarge certified radii by bisection.

    Args:
        stands: Whether a certificate holds, of the indices of observations and of as many radii.
        radius: Radii for which it does, shape (B,); zero and infinity stay what they are.

    Returns:
        Radii for which it does, at least as large, shape (B,).
    """
    result = radius.clone()
    index = ((radius > 0.0) & radius.isfinite()).nonzero().squeeze(-1)
    low, high = radius[index].log(), (_REACH * radius[index]).log()
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        good = stands(index, middle.exp())
        low, high = torch.where(good, middle, low), torch.where(good, high, middle)
    result[index] = torch.maximum(low.exp() * _INWARDS, radius[index])
    return result
