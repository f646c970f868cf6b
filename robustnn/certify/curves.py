"""Curves over the size of the observation error: what is certified, beside what the strongest attack achieves.

Both sides are of the same states and the same policy, and an attack above its certificate is an error, not a point in
a figure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from robustnn.certify.action import action_change, tolerance_radius
from robustnn.certify.attack import attack_decision, predict_flat
from robustnn.certify.certificate import PolicyCertificate, certify_policy
from robustnn.certify.decision import certified_radius
from robustnn.certify.loop import certify_loop
from robustnn.certify.rate import _visit
from robustnn.certify.worst import worst_gain
from robustnn.closedloop.ball import Ball
from robustnn.closedloop.problem import ControlProblem
from robustnn.errors import CertificateError, check_nonnegative, check_positive_int, invalid
from robustnn.policies.normalization import normalization_of

__all__ = [
    "ActionChangeCurve",
    "DecisionCurve",
    "GainCurve",
    "action_change_curve",
    "decision_curve",
    "gain_curve",
    "visited_observations",
]

# Slope beyond the action limits that the attack sees, and rounding that must not carry it out of the ball.
_LEAK = 0.1
_INWARDS = 1.0 - 1e-12


@dataclass(frozen=True, eq=False)
class ActionChangeCurve:
    r"""Changes $\|\Delta a\|_2$ of a continuous action over the size of the observation error.

    Attributes:
        eps: Sizes, shape (K,), in the norm and scale below.
        certified: No error of that size changes the action by more, shape (K, N), one column per state.
        found: Change of the action of the live policy that the attack achieves, shape (K, N).
        norm: "l2" or "linf".
        scale: d of the norm |delta / d|.
    """

    eps: NDArray[np.float64]
    certified: NDArray[np.float64]
    found: NDArray[np.float64]
    norm: str
    scale: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class DecisionCurve:
    """Fractions of states whose decision stands, over the size of the observation error.

    Attributes:
        eps: Sizes, shape (K,), in the norm and scale below.
        certified: Fraction of the states that are certified, shape (K,).
        unchanged: Fraction of the states whose decision the attack could not change, shape (K,).
        radius: Certified radius of every state, shape (N,).
        norm: "l2" or "linf".
        scale: d of the norm |delta / d|.
        tolerance: Change of a continuous action that counts as none; None for discrete actions.
    """

    eps: NDArray[np.float64]
    certified: NDArray[np.float64]
    unchanged: NDArray[np.float64]
    radius: NDArray[np.float64]
    norm: str
    scale: tuple[float, ...]
    tolerance: float | None


@dataclass(frozen=True, eq=False)
class GainCurve:
    """Gains of the closed loop of a linear plant with several policies.

    Attributes:
        certified: Proved bounds, shape (n,); NaN where there is no certificate.
        found: Worst gains found, shape (n,).
    """

    certified: NDArray[np.float64]
    found: NDArray[np.float64]


def action_change_curve(
    policy: Any,
    certificate: PolicyCertificate,
    observation: Any,
    eps: Iterable[float],
    *,
    local: bool = False,
    iterations: int = 20,
    restarts: int = 3,
    step_fraction: float = 0.25,
    seed: int = 0,
) -> ActionChangeCurve:
    r"""Return certified and achieved changes of a continuous action for errors of several sizes.

    The attack ascends $\|a(o + \delta) - a(o)\|_2$ by projected gradient steps from points of the surface of the ball
    and from the best point of the size before; what it finds is judged by `predict` of the live policy.

    Args:
        policy: The policy or model that was certified.
        certificate: Of the policy; has norm and scale.
        observation: Raw observations, with a batch axis, or flat ones, shape (N, n_obs).
        eps: Sizes of the error, ascending, zero or greater.
        local: As in `action_change`.
        iterations: Gradient steps.
        restarts: Random starts.
        step_fraction: Length of the first step over eps; it falls to zero linearly.
        seed: Seed of the starts.

    Returns:
        The curve; `found` rises with eps, as a small error is an admissible large one.

    Raises:
        CertificateError: If the attack is above the certificate: one of the two is wrong.
        UnsupportedSpaceError: If actions are discrete.
    """
    sizes = _checked_sizes(eps)
    check_positive_int("iterations", iterations)
    check_positive_int("restarts", restarts)
    points = certificate.path.flat(observation).reshape(-1, certificate.path.network.in_features)
    certified = np.stack(
        [action_change(certificate, points, float(r), local=local).l2.cpu().numpy() for r in sizes]
    )
    found = np.zeros_like(certified)
    generator = torch.Generator().manual_seed(seed)
    before = torch.as_tensor(predict_flat(policy, certificate, points), dtype=torch.float64)
    kept = torch.zeros_like(points)
    for k, size in enumerate(sizes):
        starts = [kept, *(_draw(points, generator) for _ in range(restarts))]
        largest = torch.from_numpy(found[k - 1] if k else found[k])
        for start in starts:
            z = _ascend(certificate, points, float(size), start, iterations, step_fraction)
            moved = points + _reach(certificate, points, float(size)) * z
            after = torch.as_tensor(predict_flat(policy, certificate, moved), dtype=torch.float64)
            change = (after - before).reshape(len(points), -1).norm(dim=-1)
            better = change > largest
            largest = torch.where(better, change, largest)
            kept = torch.where(better.to(z.device).unsqueeze(-1), z, kept)
        found[k] = largest.numpy()
    if (found > certified).any():
        k, n = divmod(int((found - certified).argmax()), found.shape[1])
        raise CertificateError(
            f"certificate: expected no change of the action above {certified[k, n]:.9g} at eps {sizes[k]:g}, the "
            f"attack achieved {found[k, n]:.9g}. Certify the policy as it is now, with its frozen normalisation."
        )
    return ActionChangeCurve(sizes, certified, found, certificate.norm, certificate.scale)


def decision_curve(
    policy: Any,
    certificate: PolicyCertificate,
    observation: Any,
    eps: Iterable[float],
    *,
    tolerance: float | None = None,
    local: bool = False,
    iterations: int = 10,
    restarts: int = 2,
    seed: int = 0,
    action_masks: ArrayLike | None = None,
) -> DecisionCurve:
    """Return the fractions of states that are certified, and that an attack could not change.

    Args:
        policy: The policy or model that was certified.
        certificate: Of the policy; has norm and scale.
        observation: Raw observations, with a batch axis, or flat ones, shape (N, n_obs); see `visited_observations`.
        eps: Sizes of the error, ascending, zero or greater.
        tolerance: For continuous actions: l2 change of the action that counts as none, in its units.
        local: As in `certified_radius`.
        iterations: Gradient steps of the attack.
        restarts: Random starts of the attack.
        seed: Seed of the starts.
        action_masks: For MaskablePPO, shape (N, n_out).

    Returns:
        The curve.

    Raises:
        CertificateError: If the attack changed a certified decision.
        InvalidArgumentError: If a tolerance is missing or superfluous, or sizes do not ascend.
    """
    sizes = _checked_sizes(eps)
    box = certificate.kind == "box"
    if box != (tolerance is not None):
        raise invalid(
            "tolerance", "a change of the action that is allowed, for continuous actions only", tolerance,
            f"The actions are of kind {certificate.kind}.",
        )  # fmt: skip
    points = certificate.path.flat(observation).reshape(-1, certificate.path.network.in_features)
    if box:
        curve = action_change_curve(
            policy, certificate, points, sizes, local=local, iterations=iterations, restarts=max(1, restarts),
            seed=seed,
        )  # fmt: skip
        radius = tolerance_radius(certificate, points, float(tolerance or 0.0), local=local).cpu().numpy()
        changed = curve.found > float(tolerance or 0.0)
    else:
        found = certified_radius(certificate, points, local=local, action_masks=action_masks)
        radius = found.cpu().numpy()
        rows = [
            attack_decision(
                policy, certificate, points, float(size), iterations=iterations, restarts=restarts, seed=seed,
                action_masks=action_masks,
            ).changed.cpu().numpy()
            for size in sizes
        ]  # fmt: skip
        changed = np.logical_or.accumulate(np.stack(rows), axis=0)
    certified = radius >= sizes[:, None]
    wrong = int((certified & changed).sum())
    if wrong:
        raise CertificateError(
            f"certificate: expected no change of a certified decision, the attack changed {wrong} of "
            f"{int(certified.sum())}. Certify the policy as it is now, with its frozen normalisation."
        )
    return DecisionCurve(
        sizes,
        certified.mean(1),
        1.0 - changed.mean(1),
        radius,
        certificate.norm,
        certificate.scale,
        tolerance,
    )


def gain_curve(
    problem: ControlProblem,
    policies: Sequence[Any],
    *,
    limits: tuple[Any, Any] | None = None,
    steps: int = 200,
    iterations: int = 60,
    attack_iterations: int = 40,
) -> GainCurve:
    """Return certified and worst found gains of the loops of one linear plant with several policies.

    Args:
        problem: The plant; `sensor_error_limit` or `hinf_controller` give the limit of all controllers.
        policies: As in `certify_loop`.
        limits: As in `certify_loop`.
        steps: As in `worst_gain`.
        iterations: As in `certify_loop`.
        attack_iterations: Iterations of `worst_gain`.

    Returns:
        The gains.

    Raises:
        CertificateError: If a gain found is above the certified one.
    """
    certified, found = np.full(len(policies), np.nan), np.empty(len(policies))
    for k, policy in enumerate(policies):
        found[k] = worst_gain(problem, policy, limits=limits, steps=steps, iterations=attack_iterations).gain
        try:
            certified[k] = certify_loop(problem, policy, limits=limits, iterations=iterations).gain
        except CertificateError:
            continue
        if found[k] > certified[k]:
            raise CertificateError(
                f"policies[{k}]: expected no gain above {certified[k]:.9g}, the attack achieved {found[k]:.9g}. "
                "Report this: a proof is wrong."
            )
    return GainCurve(certified, found)


def visited_observations(model: Any, vec_env: VecEnv, steps: int, *, seed: int = 0) -> Tensor:
    """Return the raw observations that the deterministic policy meets along rollouts.

    Args:
        model: The model or policy.
        vec_env: The vector environment with all wrappers, statistics frozen; it is seeded and reset.
        steps: Number of steps of every environment.
        seed: Seed of the environments.

    Returns:
        Flat raw observations, shape (steps * n_envs, n_obs), float64; where a normalisation clips, those at its limit.
    """
    check_positive_int("steps", steps)
    certificate = certify_policy(model, vec_env, method="declared")
    visited = _visit(model, vec_env, certificate, None, steps, seed, False)
    normalization = normalization_of(vec_env, certificate.path.observation_space)
    inputs = visited.inputs.to(torch.float64)
    if normalization is None:
        return inputs
    return inputs * normalization.std.to(inputs) + normalization.mean.to(inputs)


def _reach(certificate: PolicyCertificate, points: Tensor, size: float) -> Tensor:
    return size * points.new_tensor(certificate.scale) * _INWARDS


def _ball(certificate: PolicyCertificate) -> Ball:
    return Ball(1.0, "l2" if certificate.norm == "l2" else "linf")


def _draw(points: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(points.shape, dtype=torch.float64, generator=generator).to(points)


def _ascend(
    certificate: PolicyCertificate,
    points: Tensor,
    size: float,
    start: Tensor,
    iterations: int,
    step_fraction: float,
) -> Tensor:
    """The points of the unit ball that change the action most, on the way from a start."""
    ball, reach = _ball(certificate), _reach(certificate, points, size)
    policy_map = certificate.path.action_map
    leaky = replace(policy_map, clip_leak=_LEAK)
    with torch.no_grad():
        nominal = policy_map(points)
    z = ball.project(start)  # not zero everywhere: the squared change has no gradient there
    best, largest = z, torch.full_like(points[:, 0], -1.0)
    for step in range(iterations + 1):
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            change = (leaky(points + reach * z) - nominal).square().sum(-1)
            (gradient,) = torch.autograd.grad(change.sum(), z)
        with torch.no_grad():
            better = change > largest
            largest = torch.where(better, change, largest)
            best = torch.where(better.unsqueeze(-1), z, best)
            length = step_fraction * (1.0 - step / (iterations + 1))
            z = ball.project(z + length * ball.steepest(gradient.nan_to_num(0.0)))
    return best.detach()


def _checked_sizes(eps: Iterable[float]) -> NDArray[np.float64]:
    sizes = np.array([check_nonnegative("eps", value) for value in eps], dtype=np.float64)
    if len(sizes) == 0 or (np.diff(sizes) <= 0.0).any():
        raise invalid("eps", "at least one number, ascending", sizes.tolist(), "Sort the sizes.")
    return sizes
