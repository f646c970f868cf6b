r"""Projected gradient attacks in l2 on the pixels: what a certificate must never contradict.

Every attack maximises $z_t - z_y$ by steps of fixed length along the gradient, with momentum, projected onto the ball
around the image and onto [0, 1]. The first attack starts at the image and always aims at the strongest other class; the
following ones start at random points and aim at the second, third, ... class that was strongest at the image. The
steps shrink from eps / 2 to eps / 40 by a half cosine, so the path is several times as long as the ball is wide.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from robustnn.errors import CertificateError, RobustNNError, check_positive, check_positive_int

Scores = Callable[[Tensor], Tensor]
_MOMENTUM = 0.75
# Keeps projections in float64 within the ball.
_INSIDE = 1.0 - 1e-13


def pgd_attack(
    function: Scores,
    images: Tensor,
    labels: Tensor,
    eps: float,
    *,
    iterations: int = 40,
    restarts: int = 4,
    seed: int = 0,
    candidates: Tensor | None = None,
) -> Tensor:
    """Return the worst images found within l2 balls around images.

    Args:
        function: Differentiable scores of pixels, (b, channels, height, width) -> (b, n_classes).
        images: Pixels in [0, 1].
        labels: True classes, shape (b,).
        eps: Radius of the balls, > 0.
        iterations: Gradient steps of every attack.
        restarts: Number of attacks on an image; an image whose decision has changed is not attacked again.
        seed: Of the random starts.
        candidates: Perturbed images to start the comparison with, perhaps of a smaller eps; those outside the ball are
            left out.

    Returns:
        Images in the balls and in [0, 1], the worst of all iterates of all attacks.
    """
    eps = check_positive("eps", eps)
    generator = torch.Generator().manual_seed(seed)
    worst, gain = images.clone(), _margin(function, images, labels)
    order = _others(function, images, labels)
    if candidates is not None:
        inside = (candidates - images).flatten(1).norm(dim=1) <= eps
        value = torch.where(inside, _margin(function, candidates, labels), -torch.inf)
        worst, gain = _better(worst, gain, candidates, value)
    for k in range(check_positive_int("restarts", restarts)):
        noise = torch.randn(images.shape, generator=generator, dtype=torch.float64).to(images)
        left = torch.nonzero(gain <= 0.0).squeeze(1)
        if len(left) == 0:
            break
        x, y = images[left], labels[left]
        start = x.clone() if k == 0 else _projected(x + eps * _unit(noise[left]), x, eps)
        target = None if k == 0 else order[left, (k - 1) % order.shape[1]]
        found, value = _ascend(function, x, y, start, target, eps, iterations)
        worst[left], gain[left] = _better(worst[left], gain[left], found, value)
    return worst


def attacked_correct(
    exact: Scores,
    fast: Scores,
    images: Tensor,
    labels: Tensor,
    eps: tuple[float, ...],
    radii: Tensor,
    *,
    iterations: int = 40,
    restarts: int = 4,
    seed: int = 0,
    batch: int = 256,
) -> Tensor:
    """Return which images are classified correctly after the attack at every size.

    Certified images are attacked once, others `restarts` times. What counts is the decision in float64; a change at a
    smaller size counts at a larger one.

    Args:
        exact: The classifier in float64.
        fast: The same in float32, whose gradients are used.
        images: uint8 images, on the CPU.
        labels: True classes.
        eps: Sizes, increasing.
        radii: Certified radii, shape (b,).
        iterations: See `pgd_attack`.
        restarts: See `pgd_attack`.
        seed: See `pgd_attack`.
        batch: Images at once.

    Returns:
        Flags, shape (len(eps), b).

    Raises:
        CertificateError: If the attack changed a certified decision: the bound or the attack is wrong.
    """
    device = getattr(fast, "mean", images).device
    parts = []
    for k, (part, label, radius) in enumerate(
        zip(images.split(batch), labels.split(batch), radii.split(batch), strict=True)
    ):
        x, y = part.to(device).double() / 255.0, label.to(device)
        with torch.no_grad():
            correct = exact(x).argmax(dim=1) == y
        worst, rows = x.float(), []
        for size in eps:
            certified = (radius > size).to(device)
            for group, attempts in ((correct & certified, 1), (correct & ~certified, restarts)):
                index = torch.nonzero(group).squeeze(1)
                if len(index):
                    worst[index] = pgd_attack(
                        fast, x[index].float(), y[index], size, iterations=iterations,
                        restarts=attempts, seed=seed + k, candidates=worst[index],
                    )  # fmt: skip
            moved = _projected(worst.double(), x, size * _INSIDE)
            with torch.no_grad():
                changed = exact(moved).argmax(dim=1) != y
            wrong = int((changed & certified).sum())
            if wrong:
                raise CertificateError(
                    f"certified radii: expected no changed decision within {size:g}, got {wrong}. The bound does not "
                    "hold: do not use it."
                )
            correct = correct & ~changed
            rows.append(correct.cpu())
        parts.append(torch.stack(rows))
    return torch.cat(parts, dim=1)


def autoattack_correct(
    function: Scores, images: Tensor, labels: Tensor, eps: float, batch: int = 256
) -> Tensor:
    """Return which images are classified correctly after AutoAttack (Croce & Hein, ICML 2020), standard version, l2.

    Args:
        function: Differentiable scores of pixels in [0, 1].
        images: Pixels, on the device of the function.
        labels: True classes.
        eps: Radius of the balls.
        batch: Images at once.

    Returns:
        Flags, shape (b,).

    Raises:
        RobustNNError: If the package is not installed.
    """
    try:
        package: Any = importlib.import_module("autoattack")
    except ImportError as error:
        raise RobustNNError(
            "autoattack: expected the package of Croce & Hein, got none. Install it from its repository, or set "
            "autoattack=False; the attack by projected gradients needs nothing."
        ) from error
    adversary = package.AutoAttack(
        function, norm="L2", eps=eps, version="standard", device=str(images.device), verbose=False
    )
    moved = adversary.run_standard_evaluation(images, labels, bs=batch)
    with torch.no_grad():
        found: Tensor = function(moved).argmax(dim=1) == labels
    return found


def _ascend(
    function: Scores, x: Tensor, y: Tensor, start: Tensor, target: Tensor | None, eps: float, iterations: int
) -> tuple[Tensor, Tensor]:
    """Return the best iterates and their margins."""
    point, direction = start, torch.zeros_like(start)
    best, value = start.clone(), torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device)
    for step in range(iterations + 1):
        point = point.detach().requires_grad_(True)
        with torch.enable_grad():
            z = function(point)
            margin = _margin_of(z, y)
            objective = margin if target is None else _pick(z, target) - _pick(z, y)
        best, value = _better(best, value, point.detach(), margin.detach())
        if step == iterations:
            break
        (gradient,) = torch.autograd.grad(objective.sum(), point)
        direction = _MOMENTUM * direction + (1.0 - _MOMENTUM) * _unit(gradient)
        share = 0.5 * (1.0 + math.cos(math.pi * step / iterations))
        length = eps * (0.025 + 0.475 * share)
        point = _projected(point.detach() + length * _unit(direction), x, eps)
    return best, value


def _better(a: Tensor, value_a: Tensor, b: Tensor, value_b: Tensor) -> tuple[Tensor, Tensor]:
    take = value_b > value_a
    return torch.where(take[:, None, None, None], b, a), torch.where(take, value_b, value_a)


def _projected(point: Tensor, x: Tensor, eps: float) -> Tensor:
    """Project onto the box, and shrink towards the image (which is in the box) onto the ball."""
    delta = point.clamp(0.0, 1.0) - x
    norm = delta.flatten(1).norm(dim=1)[:, None, None, None]
    return x + delta * (eps / norm.clamp_min(eps))


def _unit(x: Tensor) -> Tensor:
    norm = x.flatten(1).norm(dim=1)[:, None, None, None]
    return x / norm.clamp_min(torch.finfo(x.dtype).tiny)


def _pick(z: Tensor, index: Tensor) -> Tensor:
    return z.gather(1, index[:, None]).squeeze(1)


def _margin_of(z: Tensor, y: Tensor) -> Tensor:
    """Largest other score minus that of the label: positive where the decision has changed."""
    others = z.scatter(1, y[:, None], -torch.inf)
    return others.amax(dim=1) - _pick(z, y)


@torch.no_grad()
def _margin(function: Scores, x: Tensor, y: Tensor) -> Tensor:
    return _margin_of(function(x), y)


@torch.no_grad()
def _others(function: Scores, x: Tensor, y: Tensor) -> Tensor:
    """Return the other classes, the strongest first, shape (b, n_classes - 1)."""
    z = function(x).scatter(1, y[:, None], -torch.inf)
    return z.argsort(dim=1, descending=True)[:, :-1]
