"""How far a continuous action can move when the observation does, limits of the action included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustnn.certify.certificate import PolicyCertificate
from robustnn.certify.decision import largest_radius
from robustnn.certify.local import local_change
from robustnn.errors import (
    ShapeError,
    UnsupportedSpaceError,
    check_nonnegative,
    check_positive,
)
from robustnn.params.explicit import ExplicitMLP

__all__ = ["ActionChange", "action_change", "tolerance_radius"]

# Radii that are looked at, around the one that the bound without limits of the action gives.
_SPAN = 1e6
_HUGE = 1e150
_BISECTIONS = 48


@dataclass(frozen=True, eq=False)
class ActionChange:
    r"""Certified changes of the deterministic action for observation errors of a given size.

    Attributes:
        action: Action without error, shape (..., n_act), in the units of the action space, before rounding.
        low: Least action that an error can cause, per component, shape (..., n_act).
        high: Largest action, of the same shape.
        component: Bound of $|\Delta a_i|$, shape (..., n_act).
        l2: Bound of $\|\Delta a\|_2$, shape (...); it may be less than the norm of `component`.
    """

    action: Tensor
    low: Tensor
    high: Tensor
    component: Tensor
    l2: Tensor


def action_change(
    certificate: PolicyCertificate, observation: Any, eps: float, *, local: bool = False
) -> ActionChange:
    r"""Bound the change of a continuous action over all errors $\|\delta / d\| \le$ eps of the raw observation.

    The output of the network before tanh or clipping is enclosed per component; both are monotone, so the ends of that
    interval give the ends of the action's, with whatever saturation and action limits take away. What float32 may add
    to the two actions is included.

    Args:
        certificate: Of the policy, which has norm and scale d.
        observation: Raw observations, with or without a batch axis, or a tensor of flat ones, shape (..., n_obs).
        eps: Size of the error, zero or greater, in the norm and scale of the certificate.
        local: Whether to bound the change over the ball itself as well (`robustnn.certify.local_change`).

    Returns:
        The bounds, float64.

    Raises:
        UnsupportedSpaceError: If actions are discrete.
        InvalidArgumentError: If `eps` is negative.

    Example:
        >>> from stable_baselines3 import TD3
        >>> from robustnn.certify import certify_policy
        >>> from robustnn.policies import LBDNTD3Policy
        >>> model = TD3(LBDNTD3Policy, "Pendulum-v1", policy_kwargs=dict(lipschitz=4.0), device="cpu")
        >>> bool(action_change(certify_policy(model), torch.zeros(3), 0.1).l2 <= 0.4 * (1 + 1e-4))
        True
    """
    _check_box(certificate)
    features = certificate.path.features(observation)
    points = features.reshape(-1, features.shape[-1])
    radius = points.new_full((len(points),), check_nonnegative("eps", eps))
    change = _change(certificate, points, radius, local)
    batch = features.shape[:-1]
    shape = (*batch, certificate.path.network.out_features)
    return ActionChange(
        change.action.reshape(shape),
        change.low.reshape(shape),
        change.high.reshape(shape),
        change.component.reshape(shape),
        change.l2.reshape(batch),
    )


def tolerance_radius(
    certificate: PolicyCertificate,
    observation: Any,
    tolerance: float | Sequence[float],
    *,
    local: bool = False,
) -> Tensor:
    r"""Return how large an error of the observation may be without moving the action by more than a tolerance.

    Args:
        certificate: Of the policy, which has norm and scale.
        observation: As in `action_change`.
        tolerance: Largest $\|\Delta a\|_2$ if a number, or largest $|\Delta a_i|$ of every component, in the units of
            the action space; positive.
        local: As in `action_change`.

    Returns:
        Shape (...), float64: the radius; zero where nothing is certified, infinity where no error is too large.

    Raises:
        UnsupportedSpaceError: If actions are discrete.
        InvalidArgumentError: If a tolerance is not positive.
        ShapeError: If there is not one tolerance per action component.
    """
    _check_box(certificate)
    features = certificate.path.features(observation)
    return radius_of_tolerance(certificate, features, tolerance, local)


def radius_of_tolerance(
    certificate: PolicyCertificate, features: Tensor, tolerance: float | Sequence[float], local: bool = False
) -> Tensor:
    """As `tolerance_radius`, for inputs of the network (normalised observations), shape (..., n_obs)."""
    points = features.reshape(-1, features.shape[-1])
    allowed = _checked_tolerance(tolerance, certificate.path.network.out_features).to(points)

    def holds(index: Tensor, radius: Tensor, inside: bool) -> Tensor:
        change = _change(certificate, points[index], radius, inside)
        return change.l2 <= allowed if allowed.ndim == 0 else (change.component <= allowed).all(-1)

    everything = torch.arange(len(points), device=points.device)
    rate = certificate.path.half_range() * certificate.change.pairs.diagonal()
    typical = (allowed / rate.clamp_min(1.0 / _HUGE)).amin().clamp(1.0 / _HUGE, _HUGE).log()
    reach = points.new_tensor(_SPAN).log()
    low, high = (typical - reach).expand(len(points)), (typical + reach).expand(len(points))
    possible = holds(everything, low.exp(), False)
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        good = holds(everything, middle.exp(), False)
        low, high = torch.where(good, middle, low), torch.where(good, high, middle)
    radius = torch.where(possible, low.exp(), 0.0)
    radius = torch.where(holds(everything, torch.full_like(radius, _HUGE), False), torch.inf, radius)
    if local:
        radius = largest_radius(lambda index, r: holds(index, r, True), radius)
    return radius.reshape(features.shape[:-1])


def _change(certificate: PolicyCertificate, points: Tensor, radius: Tensor, local: bool) -> ActionChange:
    path = certificate.path
    output = path.network(points)
    _, rounding = path.output_error(points)
    within = rounding + certificate.growth[1] * radius.unsqueeze(-1)
    overflows = radius > path.overflow_radius(points, certificate.unit)
    within = within.masked_fill(overflows.unsqueeze(-1), _HUGE)
    moved = certificate.change.pairs.diagonal() * radius.unsqueeze(-1)
    if local and bool((radius > 0.0).any()):
        safe = radius.clamp_min(1.0 / _HUGE)
        moved = torch.minimum(moved, local_change(certificate, points, safe, path.network.weights[-1]))
    half = path.half_range()
    together = certificate.change.norm(half) * radius + (half * (rounding + within)).norm(dim=-1)
    finish = _finish(certificate)
    low, high = finish(output - moved - within), finish(output + moved + within)
    last = path.eps * 8.0 * _limit(certificate)  # tanh and rescaling
    component = torch.maximum(high - finish(output - rounding), finish(output + rounding) - low) + last
    l2 = torch.minimum(component.norm(dim=-1), together + last.norm()) * (1.0 + 1e-12)
    return ActionChange(finish(output), low - last, high + last, component, l2)


def _finish(certificate: PolicyCertificate) -> Any:
    """What follows the network, as a function of its output."""
    policy_map = certificate.path.action_map
    eye = torch.eye(policy_map.network.out_features, dtype=torch.float64, device=certificate.path.device)
    return replace(policy_map, network=ExplicitMLP((eye,), (None,), "identity"), normalization=None)


def _limit(certificate: PolicyCertificate) -> Tensor:
    """Largest magnitude of every action component where it is computed, and zero where it is clipped."""
    policy_map = certificate.path.action_map
    half = certificate.path.half_range()
    if not policy_map.squash or policy_map.low is None or policy_map.high is None:
        return torch.zeros_like(half)
    return policy_map.low.abs() + policy_map.high.abs()


def _checked_tolerance(tolerance: float | Sequence[float], n_act: int) -> Tensor:
    if not isinstance(tolerance, (Sequence, np.ndarray)):
        return torch.tensor(check_positive("tolerance", tolerance), dtype=torch.float64)
    values = [check_positive(f"tolerance[{k}]", value) for k, value in enumerate(tolerance)]
    if len(values) != n_act:
        raise ShapeError(
            f"tolerance: expected a number or {n_act} numbers, got {len(values)}. One per action component."
        )
    return torch.tensor(values, dtype=torch.float64)


def _check_box(certificate: PolicyCertificate) -> None:
    if certificate.kind != "box":
        raise UnsupportedSpaceError(
            f"policy.action_space: expected Box, got actions of kind {certificate.kind}. "
            "A greedy choice does not move, it changes: use certified_radius."
        )
