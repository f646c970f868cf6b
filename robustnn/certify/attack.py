"""An attack on greedy decisions: a cross-check of certified radii, and an upper bound where they are loose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from robustnn.certify.certificate import PolicyCertificate
from robustnn.certify.decision import checked_masks
from robustnn.closedloop.ball import Ball
from robustnn.errors import (
    ShapeError,
    UnsupportedSpaceError,
    check_positive_int,
    invalid,
)
from robustnn.policies.observation import parts, size_of

__all__ = ["DecisionAttack", "attack_decision", "predict_flat"]

# Rounding of a sum must not carry a perturbation out of the ball.
_INWARDS = 1.0 - 1e-12


@dataclass(frozen=True, eq=False)
class DecisionAttack:
    """What an attack on decisions found.

    Attributes:
        changed: Whether `predict` decided otherwise for one of the perturbed observations, shape (...), bool.
        observation: Flat raw observation for which it did, else the one with the smallest margin, shape (..., n_obs).
        margin: Smallest margin that was found, in float64 and before the comparison, shape (...).
    """

    changed: Tensor
    observation: Tensor
    margin: Tensor


def attack_decision(
    policy: Any,
    certificate: PolicyCertificate,
    observation: Any,
    radius: Tensor | float,
    *,
    iterations: int = 10,
    restarts: int = 2,
    step_fraction: float = 0.4,
    seed: int = 0,
    action_masks: ArrayLike | None = None,
) -> DecisionAttack:
    r"""Try to change the greedy action within $\|\delta / d\| \le r$ by projected gradient descent.

    For every choice that could win instead the margin over it is lowered, first from the observation itself, with a
    step along the gradient to the surface of the ball, then from random points of the surface. The gradient is that
    of the float64 map; the best point of every run is then given to `predict` of the live policy, in float32.

    Args:
        policy: The policy or model that was certified.
        certificate: Has the predict path, the norm and the scale d.
        observation: Raw observations, with or without a batch axis, or a tensor of flat ones, shape (..., n_obs).
        radius: r, zero or greater, a number or shape (...).
        iterations: Gradient steps.
        restarts: Random starts, besides the one along the gradient.
        step_fraction: Length of the first step over r; it falls to zero linearly.
        seed: Seed of the starts.
        action_masks: For MaskablePPO the choices that are allowed, shape (..., n_out).

    Returns:
        What was found.

    Raises:
        UnsupportedSpaceError: If actions are continuous.
        ShapeError: If shapes do not fit.
        InvalidArgumentError: If a radius is negative or not finite.
    """
    path = certificate.path
    if not path.action_map.choices:
        raise UnsupportedSpaceError(
            "policy.action_space: expected discrete actions, got Box. "
            "Use robustnn.closedloop.MaximalActionDifference."
        )
    check_positive_int("iterations", iterations)
    check_positive_int("restarts", restarts, minimum=0)
    flat = path.flat(observation)
    batch, points = flat.shape[:-1], flat.reshape(-1, flat.shape[-1])
    sizes = _checked_radius(radius, batch, points)
    with torch.no_grad():
        nominal = path.action_map(points)
        masks = checked_masks(certificate, action_masks, batch)
    masked = None if masks is None else masks.cpu().numpy()
    before = predict_flat(policy, certificate, points, masked)
    reach = sizes * points.new_tensor(certificate.scale) * _INWARDS
    ball = Ball(1.0, "l2" if certificate.norm == "l2" else "linf")
    generator = torch.Generator().manual_seed(seed)
    best, lowest = points, torch.full_like(points[:, 0], torch.inf)
    changed = torch.zeros(len(points), dtype=torch.bool, device=points.device)
    for target in range(nominal.shape[-1]):

        def margin_at(moved: Tensor, target: int = target) -> Tensor:
            return _margin(certificate, nominal, path.action_map(moved), target, masks)

        if not bool(margin_at(points).isfinite().any()):
            continue
        for start in range(restarts + 1):
            z = torch.zeros_like(points)
            if start:
                noise = torch.randn(points.shape, dtype=torch.float64, generator=generator).to(points)
                z = ball.surface_sample(noise * (reach > 0.0))
            found, least = _descend(margin_at, points, reach, z, ball, iterations, step_fraction)
            after = predict_flat(policy, certificate, found, masked)
            flipped = torch.as_tensor((after != before).reshape(len(points), -1).any(-1)).to(changed.device)
            better = (flipped & ~changed) | ((least < lowest) & (flipped | ~changed))
            best = torch.where(better.unsqueeze(-1), found, best)
            lowest = torch.minimum(least, lowest)
            changed = changed | flipped
    return DecisionAttack(changed.reshape(batch), best.reshape(flat.shape), lowest.reshape(batch))


def _descend(
    margin_at: Callable[[Tensor], Tensor],
    points: Tensor,
    reach: Tensor,
    z: Tensor,
    ball: Ball,
    iterations: int,
    step_fraction: float,
) -> tuple[Tensor, Tensor]:
    """The points with the smallest margins on the way, and those margins."""
    found, least = points, torch.full_like(points[:, 0], torch.inf)
    for step in range(iterations + 1):
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            moved = points + reach * z
            margin = margin_at(moved)
            (gradient,) = torch.autograd.grad(margin.where(margin.isfinite(), 0.0).sum(), z)
        with torch.no_grad():
            better = margin < least
            least = torch.where(better, margin, least)
            found = torch.where(better.unsqueeze(-1), moved, found)
            length = 1.0 if step == 0 else step_fraction * (1.0 - step / (iterations + 1))
            z = ball.project(z - length * ball.steepest(gradient.nan_to_num(0.0)))
    return found.detach(), least.detach()


def predict_flat(
    policy: Any, certificate: PolicyCertificate, points: Tensor, action_masks: NDArray[np.bool_] | None = None
) -> NDArray[Any]:
    """Return what `predict` of the live policy decides for flat raw observations.

    Args:
        policy: The policy or model that was certified.
        certificate: Has the normalisation and the observation space.
        points: Flat raw observations, shape (B, n_obs).
        action_masks: For MaskablePPO, shape (B, n_out).

    Returns:
        Deterministic actions, with a batch axis.
    """
    path = certificate.path
    inputs = points.detach()
    if path.action_map.normalization is not None:
        inputs = path.action_map.normalization(inputs).to(torch.float32)
    rows = inputs.cpu().numpy()
    space = path.observation_space
    blocks: dict[str, NDArray[Any]] = {}
    begin = 0
    for key, part in parts(space):
        block = rows[:, begin : begin + size_of(part)]
        begin += size_of(part)
        if isinstance(part, spaces.Discrete):
            block = block.argmax(-1)
        elif isinstance(part, spaces.MultiDiscrete):
            ends = np.cumsum(part.nvec)[:-1]
            block = np.stack([one.argmax(-1) for one in np.split(block, ends, axis=-1)], axis=-1)
        else:
            block = block.reshape(len(rows), *(part.shape or ()))
        blocks[key] = block
    given: Any = blocks if isinstance(space, spaces.Dict) else blocks[""]
    extra = {} if action_masks is None else {"action_masks": action_masks}
    actions: NDArray[Any] = policy.predict(given, deterministic=True, **extra)[0]
    return actions


def _margin(
    certificate: PolicyCertificate, nominal: Tensor, outputs: Tensor, target: int, masks: Tensor | None
) -> Tensor:
    """By how much the choices for `nominal` win against `target` for `outputs`; infinity where it is one of them."""
    if certificate.kind == "multibinary":
        return outputs[:, target] * (nominal[:, target] > 0.0).to(outputs).mul(2.0).sub(1.0)
    begin = 0
    for n in certificate.path.action_map.choices:
        if target < begin + n:
            break
        begin += n
    scores = nominal[:, begin : begin + n]
    if masks is not None:
        scores = scores.masked_fill(~masks[:, begin : begin + n], -torch.inf)
    index = scores.argmax(-1, keepdim=True)
    margin = (outputs[:, begin : begin + n].gather(-1, index) - outputs[:, target : target + 1]).squeeze(-1)
    out = index.squeeze(-1) == target - begin
    if masks is not None:
        out = out | ~masks[:, target]
    return margin.masked_fill(out, torch.inf)


def _checked_radius(radius: Tensor | float, batch: Sequence[int], points: Tensor) -> Tensor:
    sizes = torch.as_tensor(radius, dtype=torch.float64).to(points.device)
    if not bool(sizes.isfinite().all()) or bool((sizes < 0.0).any()):
        raise invalid("radius", "finite numbers >= 0", radius, "Clamp infinite radii first.")
    if sizes.ndim and tuple(sizes.shape) != tuple(batch):
        raise ShapeError(
            f"radius: expected a number or shape {tuple(batch)}, got {tuple(sizes.shape)}. One per observation."
        )
    return sizes.expand(tuple(batch)).reshape(-1, 1)
