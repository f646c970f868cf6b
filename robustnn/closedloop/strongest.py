"""The strongest of several attacks: for every episode, and for every policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from robustnn.closedloop.evaluate import EvaluationResult
from robustnn.errors import invalid

__all__ = ["Strongest", "strongest"]


@dataclass(frozen=True, eq=False)
class Strongest:
    """Which attack did most damage; A attacks, E episodes of one policy or of a stack of S.

    Attributes:
        attacks: Names of the attacks, in the order given.
        returns: Returns under each of them, shape (A, E) or (A, S, E).
        per_episode: The least return of every episode with the attack that won, as an evaluation of its own. An
            attacker who may choose among the attacks when the start state is known does so much.
        episode_winner: Index of that attack, shape (E,) or (S, E); of equal ones, the first.
        per_policy: The returns under the attack with the least mean, as an evaluation of its own. An attacker
            who must choose once for every policy does so much.
        policy_winner: Index of that attack, shape () or (S,).
    """

    attacks: tuple[str, ...]
    returns: np.ndarray
    per_episode: EvaluationResult
    episode_winner: np.ndarray
    per_policy: EvaluationResult
    policy_winner: np.ndarray

    def shares(self) -> dict[str, np.ndarray]:
        """Return for every attack the share of episodes that it won, shape () or (S,) each."""
        return {name: (self.episode_winner == k).mean(axis=-1) for k, name in enumerate(self.attacks)}


def strongest(results: Sequence[EvaluationResult] | Mapping[str, EvaluationResult]) -> Strongest:
    r"""Take the worst of several attacks, :math:`\min_k R_k(e)` per episode e and :math:`\min_k \bar R_k` per policy.

    Args:
        results: Evaluations of the same policies over the same seeds, at least one; by name, or in a sequence, where
            the name of the perturbation is used and repeated ones are numbered.

    Returns:
        The worst returns, and which attack they are due to.

    Raises:
        InvalidArgumentError: If there is none, or seeds or policies differ.

    Example:
        >>> one = EvaluationResult(np.array([-1.0, -5.0]), np.ones(2), np.arange(2), {"name": "a"})
        >>> two = EvaluationResult(np.array([-2.0, -2.0]), np.ones(2), np.arange(2), {"name": "b"})
        >>> worst = strongest([one, two])
        >>> worst.per_episode.returns.tolist(), worst.shares()["a"].tolist()
        ([-2.0, -5.0], 0.5)
    """
    named = dict(results) if isinstance(results, Mapping) else _named(results)
    if not named or not all(isinstance(result, EvaluationResult) for result in named.values()):
        raise invalid("results", "at least one EvaluationResult", repr(results), "Pass those of evaluate().")
    first_name, first = next(iter(named.items()))
    for name, result in named.items():
        if not np.array_equal(result.seeds, first.seeds):
            raise invalid(
                "results", f"the seeds of {first_name!r} in all of them", f"others in {name!r}",
                "Returns of different episodes cannot be compared: evaluate all attacks with the same seeds.",
            )  # fmt: skip
        if result.returns.shape != first.returns.shape:
            raise invalid(
                "results", f"returns of shape {first.returns.shape} in all of them",
                f"{result.returns.shape} in {name!r}", "Evaluate all attacks on the same policies.",
            )  # fmt: skip
    returns = np.stack([result.returns for result in named.values()])
    if not np.isfinite(returns).all():
        raise invalid("results", "finite returns", "NaN or infinity", "Evaluate again.")
    lengths = np.stack([result.lengths for result in named.values()])
    episode = returns.argmin(axis=0)
    policy = returns.mean(axis=-1).argmin(axis=0)
    return Strongest(
        tuple(named),
        returns,
        _chosen(named, returns, lengths, episode, "strongest per episode"),
        episode,
        _chosen(
            named, returns, lengths, np.broadcast_to(policy[..., None], episode.shape), "strongest per policy"
        ),
        policy,
    )


def _named(results: Sequence[EvaluationResult]) -> dict[str, EvaluationResult]:
    """Results by the name of their perturbation, repeated names numbered from the second on."""
    named: dict[str, EvaluationResult] = {}
    for result in results:
        name = str(getattr(result, "perturbation", {}).get("name", "unnamed"))
        count, numbered = 1, name
        while numbered in named:
            count += 1
            numbered = f"{name} {count}"
        named[numbered] = result
    return named


def _chosen(
    named: Mapping[str, EvaluationResult],
    returns: np.ndarray,
    lengths: np.ndarray,
    choice: np.ndarray,
    name: str,
) -> EvaluationResult:
    """The evaluation with the chosen attack in every episode."""
    index = choice[None]
    seeds = next(iter(named.values())).seeds
    described = {"name": name, "of": {key: result.perturbation for key, result in named.items()}}
    taken, length = (np.take_along_axis(values, index, axis=0)[0] for values in (returns, lengths))
    flags = [result.terminated for result in named.values()]
    known = [flag for flag in flags if flag is not None]
    ended = np.take_along_axis(np.stack(known), index, axis=0)[0] if len(known) == len(flags) else None
    return EvaluationResult(taken, length, seeds, described, terminated=ended)
