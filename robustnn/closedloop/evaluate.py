"""Evaluation of policies: per-episode returns with their seeds, so that every table can be rebuilt."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from robustnn.closedloop.perturb import (
    START_STREAM,
    Convergence,
    EpisodeRandom,
    NoPerturbation,
    Perturbation,
    Policy,
)
from robustnn.closedloop.rollout import check_plant, rollout
from robustnn.errors import CheckpointError, check_positive_int, invalid
from robustnn.files import atomic_write_text
from robustnn.params.explicit import ExplicitMLP
from robustnn.policies.action_map import ActionMap

if TYPE_CHECKING:
    from robustnn.envs.plant import Plant

__all__ = ["EvaluationResult", "average", "checked_seeds", "evaluate", "first_weight", "start_states"]

_COLUMNS = ("policy", "seed", "return", "length", "perturbation")
_TERMINATED = "terminated"


@dataclass(frozen=True, eq=False)
class EvaluationResult:
    """Returns of episodes, one per seed, of one policy or of a stack of S.

    Attributes:
        returns: Sum of rewards per episode, shape (E,) or (S, E), float64.
        lengths: Steps until the episode ended, same shape.
        seeds: Seed of each episode, shape (E,): the same start states for every policy.
        perturbation: Name and parameters of the perturbation, as plain JSON values.
        convergence: How attacks converged, averaged over the episodes; empty for anything else and after
            `from_csv`.
        terminated: Whether the plant ended the episode, rather than its time being up, same shape as the returns,
            bool; None where it was not recorded.
    """

    returns: np.ndarray
    lengths: np.ndarray
    seeds: np.ndarray
    perturbation: dict[str, Any]
    convergence: tuple[Convergence, ...] = ()
    terminated: np.ndarray | None = None

    @property
    def mean(self) -> np.ndarray:
        """Mean return over the episodes, shape () or (S,)."""
        return np.asarray(self.returns.mean(axis=-1))

    def to_rows(self) -> list[dict[str, Any]]:
        """Return one dictionary per episode and policy.

        Returns:
            Rows with the keys policy (index in the stack, or None), seed, return, length, perturbation
            (JSON text) and, where it was recorded, terminated.
        """
        text = json.dumps(self.perturbation, sort_keys=True)
        stacked = self.returns.ndim == 2
        returns, lengths = np.atleast_2d(self.returns), np.atleast_2d(self.lengths)
        ended = None if self.terminated is None else np.atleast_2d(self.terminated)
        return [
            {
                "policy": k if stacked else None,
                "seed": int(seed),
                "return": float(returns[k, e]),
                "length": int(lengths[k, e]),
                "perturbation": text,
                **({} if ended is None else {_TERMINATED: bool(ended[k, e])}),
            }
            for k in range(len(returns))
            for e, seed in enumerate(self.seeds)
        ]

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the rows to a file in one step: a reader sees the old file or the whole new one.

        Floats are written with all their digits, so that `from_csv` restores them bit for bit.

        Args:
            path: File to write; its folder must exist.
        """
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(_COLUMNS if self.terminated is None else (*_COLUMNS, _TERMINATED))
        for row in self.to_rows():
            policy = "" if row["policy"] is None else row["policy"]
            ended = [int(row[_TERMINATED])] if _TERMINATED in row else []
            writer.writerow(
                [policy, row["seed"], repr(row["return"]), row["length"], row["perturbation"], *ended]
            )
        atomic_write_text(path, buffer.getvalue())

    @classmethod
    def from_csv(cls, path: str | os.PathLike[str]) -> EvaluationResult:
        """Read a file written by `to_csv`.

        Args:
            path: The file.

        Returns:
            The result, without the convergence.

        Raises:
            CheckpointError: If the file is missing, incomplete, or not one of ours.
        """
        try:
            with Path(path).open(encoding="utf-8", newline="") as stream:
                reader = csv.DictReader(stream, strict=True)
                columns = tuple(reader.fieldnames or ())
                if columns not in (_COLUMNS, (*_COLUMNS, _TERMINATED)):
                    raise ValueError(f"columns {reader.fieldnames}")
                rows = list(reader)
            (text,) = {row["perturbation"] for row in rows}
            names = list(dict.fromkeys(row["policy"] for row in rows))
            shape = (len(names), len(rows) // len(names))
            seeds = np.array([int(row["seed"]) for row in rows]).reshape(shape)
            policies = np.array([row["policy"] for row in rows]).reshape(shape)
            if (seeds != seeds[0]).any() or (policies != policies[:, :1]).any():
                raise ValueError("rows of different seeds per policy")
            returns = np.array([float(row["return"]) for row in rows]).reshape(shape)
            lengths = np.array([int(row["length"]) for row in rows]).reshape(shape)
            perturbation = json.loads(text)
            ended = None
            if _TERMINATED in columns:
                known = {"0": False, "1": True}
                if not all(row[_TERMINATED] in known for row in rows):
                    raise ValueError(f"{_TERMINATED} other than 0 and 1")
                ended = np.array([known[row[_TERMINATED]] for row in rows]).reshape(shape)
        except (OSError, ValueError, TypeError, csv.Error) as error:
            raise CheckpointError(
                f"path: expected a table of EvaluationResult.to_csv, got {os.fspath(path)} ({error}). "
                "Write it again, or restore the file."
            ) from error
        if names == [""]:
            returns, lengths = returns[0], lengths[0]
            ended = None if ended is None else ended[0]
        return cls(returns, lengths, seeds[0], perturbation, terminated=ended)


def start_states(
    plant: Plant,
    seeds: Sequence[int],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return the start state of every seed, whatever the other seeds, the device and the policy.

    Args:
        plant: The plant.
        seeds: E non-negative integers.
        dtype: Of the states; None for torch's default.
        device: Where the states go.

    Returns:
        Shape (E, n_x).
    """
    uniform = EpisodeRandom(seeds, START_STREAM).uniform(1, plant.n_x)[0]
    return plant.initial(uniform).to(dtype=dtype or torch.get_default_dtype(), device=device)


def evaluate(
    policy: Policy,
    plant: Plant,
    perturbation: Perturbation | None = None,
    *,
    episodes: int | None = None,
    seeds: Sequence[int] | None = None,
    policies: int | None = None,
    steps: int | None = None,
    batch: int | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> EvaluationResult:
    """Run one episode per seed under a perturbation and return what each of them collected.

    An episode depends on its seed alone. For an `ActionMap` or `ExplicitMLP` and a plant that computes every row alike,
    as those of `robustnn.envs` do, it is the same to the last bit whatever the batch, on one thread of one CPU
    (`torch.set_num_threads(1)`; see `robustnn.closedloop.padded`). Otherwise it is the same up to rounding, which
    an unstable loop amplifies.

    Args:
        policy: Maps observations (E, n_y) to actions (E, n_u); a stack of S maps (S, E, n_y) to (S, E, n_u).
        plant: The plant.
        perturbation: What happens to the observations; None for nothing.
        episodes: Number of episodes, with seeds 0, 1, ...; None for 128. Give this or `seeds`.
        seeds: One non-negative integer per episode.
        policies: S for a stack of policies; None for a single one, or to read S from the weights of a stacked
            `ActionMap` or `ExplicitMLP`.
        steps: Length of the episodes; None for the plant's horizon.
        batch: Largest number of episodes simulated at once; None for all.
        dtype: Of the simulation; None for the dtype of the weights of a module, `ActionMap` or `ExplicitMLP`,
            and torch's default for other policies.
        device: Of the simulation; None for the device of those weights, and the CPU for other policies.

    Returns:
        Returns, lengths and seeds of all episodes.

    Raises:
        InvalidArgumentError: If an argument is of the wrong kind or out of its range.
        ShapeError: If the policy's actions have the wrong shape.
        NonFiniteError: If an action or a state is NaN or infinite.

    Example:
        >>> from robustnn.envs import Pendulum
        >>> result = evaluate(lambda y: -y[..., 1:2], Pendulum(), episodes=4, steps=10)
        >>> result.returns.shape
        (4,)
    """
    check_plant(plant)
    chosen = checked_seeds(episodes, seeds)
    weight = first_weight(policy)
    if policies is None and not isinstance(policy, nn.Module) and weight is not None and weight.ndim == 3:
        policies = weight.shape[0]
    if policies is not None:
        policies = check_positive_int("policies", policies)
    size = len(chosen) if batch is None else check_positive_int("batch", batch)
    dtype = dtype or (torch.get_default_dtype() if weight is None else weight.dtype)
    if not dtype.is_floating_point:
        raise invalid("dtype", "a floating-point type", dtype, "Use torch.float32 or torch.float64.")
    device = device or (torch.device("cpu") if weight is None else weight.device)
    perturbation = NoPerturbation() if perturbation is None else perturbation
    parts = []
    for begin in range(0, len(chosen), size):
        part = chosen[begin : begin + size]
        state0 = start_states(plant, part, dtype=dtype, device=device)
        if policies is not None:
            state0 = state0.expand(policies, *state0.shape)
        trajectory = rollout(plant, policy, state0, steps=steps, perturbation=perturbation, seeds=part)
        returns = _sum_in_order(trajectory.rewards.double().cpu().numpy())
        ended = perturbation.plant(plant).terminal(trajectory.states[-1]).cpu().numpy()
        parts.append((returns, trajectory.lengths.cpu().numpy(), trajectory.convergence, ended))
    return EvaluationResult(
        np.concatenate([part[0] for part in parts], axis=-1),
        np.concatenate([part[1] for part in parts], axis=-1),
        np.array(chosen),
        perturbation.describe(),
        average([part[2] for part in parts], [part[0].shape[-1] for part in parts]),
        np.concatenate([part[3] for part in parts], axis=-1),
    )


def _sum_in_order(rewards: np.ndarray) -> np.ndarray:
    """Sum over the first axis from its start to its end; library sums choose an order by the number of episodes."""
    total = np.zeros(rewards.shape[1:])
    for reward in rewards:
        total += reward
    return total


def first_weight(policy: Policy) -> Tensor | None:
    """A tensor of weights that tells dtype, device and stacking of the policy."""
    if isinstance(policy, nn.Module):
        return next(policy.parameters(), None)
    network = policy.network if isinstance(policy, ActionMap) else policy
    return network.weights[0] if isinstance(network, ExplicitMLP) else None


def checked_seeds(episodes: int | None, seeds: Sequence[int] | None) -> tuple[int, ...]:
    """Seeds of the episodes, from either argument."""
    if seeds is None:
        return tuple(range(check_positive_int("episodes", 128 if episodes is None else episodes)))
    if episodes is not None:
        raise invalid("episodes", "None where seeds are given", episodes, "Give episodes or seeds, not both.")
    if not hasattr(seeds, "__len__") or isinstance(seeds, str) or len(seeds) == 0:
        raise invalid("seeds", "at least one integer in a sequence", repr(seeds), "Pass range(n).")
    checked = tuple(check_positive_int("seeds", seed, minimum=0) for seed in seeds)
    if len(set(checked)) != len(checked):
        raise invalid("seeds", "different seeds", "repeated ones", "Equal seeds would repeat the episode.")
    return checked


def average(parts: Sequence[tuple[Convergence, ...]], weights: Sequence[int]) -> tuple[Convergence, ...]:
    """Average the convergence over batches of different numbers of episodes.

    Args:
        parts: Of every batch; the attacks in the same order. Where a batch ended early, the others are averaged.
        weights: Number of episodes of every batch.

    Returns:
        The convergence of every attack.
    """
    averaged = []
    for same in zip(*parts, strict=True):
        longest = max(same, key=lambda convergence: len(convergence.values))
        total, share = np.zeros(longest.values.shape), np.zeros((len(longest.values),))
        for convergence, weight in zip(same, weights, strict=True):
            stages = len(convergence.values)
            total[:stages] += weight * convergence.values
            share[:stages] += weight
        share = share.reshape(-1, *(1,) * (total.ndim - 1))
        averaged.append(Convergence(longest.objective, total / share, longest.counts))
    return tuple(averaged)
