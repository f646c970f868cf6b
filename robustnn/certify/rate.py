"""How many of the states that a policy visits are certified, as a function of the size of the error."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from robustnn.certify.action import radius_of_tolerance
from robustnn.certify.certificate import PolicyCertificate, certify_policy
from robustnn.certify.decision import decision_radius
from robustnn.errors import check_nonnegative, check_positive_int, invalid
from robustnn.policies import flatten_observation

__all__ = ["CertificationRate", "certification_rate"]


@dataclass(frozen=True, eq=False)
class CertificationRate:
    """Certified radii along rollouts of the deterministic policy.

    Attributes:
        radius: Certified radius of every visited state, shape (N,), in the norm and scale below; 0 for none, infinity
            where no error is too large.
        episode: Number of the episode of every state, shape (N,).
        step: Number of the step in its episode, shape (N,).
        eps: Sizes of the error asked for, shape (K,).
        rate: Fraction of the states that are certified at each of them, shape (K,).
        norm: "l2" or "linf" over the flat raw observation, stacked frames included.
        scale: d of the norm |delta / d|, one number per component, in its unit.
        tolerance: What counts as certified for continuous actions; None for discrete ones.
        seed: Seed of the environments.
    """

    radius: NDArray[np.float64]
    episode: NDArray[np.int64]
    step: NDArray[np.int64]
    eps: NDArray[np.float64]
    rate: NDArray[np.float64]
    norm: str
    scale: tuple[float, ...]
    tolerance: float | tuple[float, ...] | None
    seed: int

    def rate_at(self, eps: ArrayLike) -> NDArray[np.float64]:
        """Return the fraction of the visited states that are certified for errors of the sizes `eps`."""
        return _rate(self.radius, np.asarray(eps, dtype=np.float64))


def certification_rate(
    model: Any,
    vec_env: VecEnv,
    eps: Iterable[float],
    *,
    episodes: int | None = None,
    steps: int | None = None,
    seed: int = 0,
    norm: str = "l2",
    scale: Sequence[float] | Mapping[str, Sequence[float]] | None = None,
    tolerance: float | Sequence[float] | None = None,
    method: str = "auto",
    local: bool = False,
    masked: bool = False,
) -> CertificationRate:
    r"""Roll the deterministic policy out and certify every state that it visits.

    For discrete actions a state is certified at eps if no error $\|\delta / d\| \le$ eps of the raw observation changes
    the greedy action; for continuous ones if none moves the action by more than `tolerance`. A state is certified, not
    an episode: under errors the policy visits other states.

    Args:
        model: The model or policy.
        vec_env: The vector environment with all wrappers, statistics frozen; it is seeded and reset.
        eps: Sizes of the error, zero or greater, in the norm and scale below.
        episodes: Number of complete episodes, divided evenly among the environments, so that short ones are not
            favoured. Give this or `steps`.
        steps: Number of steps of every environment.
        seed: Seed of the environments.
        norm: As in `certify_policy`.
        scale: As in `certify_policy`, in raw units.
        tolerance: For continuous actions: largest l2 change, or one number per component, in the units of the actions.
        method: As in `certify_policy`.
        local: As in `certified_radius`.
        masked: Whether to ask the environments for `action_masks()`, as MaskablePPO does.

    Returns:
        The radii and rates.

    Raises:
        InvalidArgumentError: If an argument is not acceptable.

    Example:
        >>> from stable_baselines3 import DQN
        >>> from robustnn.policies import LBDNDQNPolicy
        >>> model = DQN(LBDNDQNPolicy, "CartPole-v1", policy_kwargs=dict(lipschitz=50.0), device="cpu")
        >>> rate = certification_rate(model, model.get_env(), [0.0, 1e-3, 1e-2], steps=20)
        >>> rate.radius.shape, bool((np.diff(rate.rate) <= 0).all())
        ((20,), True)
    """
    sizes = np.array([check_nonnegative("eps", value) for value in eps], dtype=np.float64)
    if (episodes is None) == (steps is None):
        raise invalid("episodes, steps", "one of the two", f"{episodes}, {steps}", "Give episodes or steps.")
    if episodes is not None:
        check_positive_int("episodes", episodes)
    if steps is not None:
        check_positive_int("steps", steps)
    certificate = certify_policy(model, vec_env, norm=norm, scale=scale, method=method)
    if (certificate.kind == "box") != (tolerance is not None):
        raise invalid(
            "tolerance", "a change of the action that is allowed, for continuous actions only", tolerance,
            f"The actions are of kind {certificate.kind}.",
        )  # fmt: skip
    visited = _visit(model, vec_env, certificate, episodes, steps, seed, masked)
    if tolerance is None:
        radius = decision_radius(certificate, visited.inputs, local, visited.masks)
    else:
        radius = radius_of_tolerance(certificate, visited.inputs, tolerance, local)
    radii = radius.cpu().numpy()
    allowed = tuple(tolerance) if isinstance(tolerance, Sequence) else tolerance
    return CertificationRate(
        radii,
        visited.episode,
        visited.step,
        sizes,
        _rate(radii, sizes),
        norm,
        certificate.scale,
        allowed,
        seed,
    )


def _rate(radius: NDArray[np.float64], eps: NDArray[np.float64]) -> NDArray[np.float64]:
    below = np.searchsorted(np.sort(radius), eps, side="left")
    return np.asarray(1.0 - below / len(radius), dtype=np.float64)


@dataclass(frozen=True, eq=False)
class _Visited:
    """States along rollouts: inputs of the network, masks, and where they belong."""

    inputs: Tensor
    masks: NDArray[np.bool_] | None
    episode: NDArray[np.int64]
    step: NDArray[np.int64]


def _visit(
    model: Any,
    vec_env: VecEnv,
    certificate: PolicyCertificate,
    episodes: int | None,
    steps: int | None,
    seed: int,
    masked: bool,
) -> _Visited:
    n_envs = vec_env.num_envs
    wanted = np.full(n_envs, np.iinfo(np.int64).max)
    if episodes is not None:  # as SB3's evaluate_policy
        wanted = np.array([(episodes + k) // n_envs for k in range(n_envs)])
    space = certificate.path.observation_space
    vec_env.seed(seed)
    observation = vec_env.reset()
    done_episodes, step = np.zeros(n_envs, np.int64), np.zeros(n_envs, np.int64)
    episode = np.arange(n_envs)
    rows: list[tuple[NDArray[Any], ...]] = []
    count = 0
    while count < (steps or count + 1) and bool((done_episodes < wanted).any()):
        masks = (
            np.stack(vec_env.env_method("action_masks")) if masked else np.ones((n_envs, 0), dtype=np.bool_)
        )
        extra = {"action_masks": masks} if masked else {}
        actions = model.predict(observation, deterministic=True, **extra)[0]
        kept = done_episodes < wanted
        inputs = flatten_observation(space, observation)
        rows.append(tuple(values[kept] for values in (inputs, masks, episode, step)))
        observation, _, dones, _ = vec_env.step(actions)
        step = np.where(dones, 0, step + 1)
        for k in np.flatnonzero(dones):
            done_episodes[k] += 1
            episode[k] = episode.max() + 1
        count += 1
    inputs, masks, numbers, positions = (np.concatenate(column) for column in zip(*rows, strict=True))
    given = torch.as_tensor(inputs).to(certificate.path.device)
    return _Visited(given, masks if masked else None, numbers, positions)
