"""Evaluation of a policy in any gymnasium environment, under perturbations that need no model of the plant."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize
from torch import Tensor

from robustnn.closedloop.decision import Decision
from robustnn.closedloop.evaluate import EvaluationResult, average, checked_seeds, first_weight
from robustnn.closedloop.gym_copies import Copies, Environment, copies_of
from robustnn.closedloop.padded import padded
from robustnn.closedloop.perturb import Convergence, Loop, NoPerturbation, Perturbation, Policy, Process
from robustnn.envs.plant import Plant
from robustnn.errors import (
    InvalidArgumentError,
    NonFiniteError,
    UnsupportedSpaceError,
    check_positive_int,
    check_shape,
    invalid,
)
from robustnn.policies.action_map import action_map
from robustnn.policies.deploy import DeployedPolicy
from robustnn.policies.observation import flatten_observation

__all__ = ["Signals", "evaluate_env", "policy_of"]


@dataclass(frozen=True)
class Signals:
    """What is known of a plant whose equations are not: the sizes of its signals.

    Asking for anything else, as attacks through the plant do, is an error that says which attacks work.

    Attributes:
        n_y: Number of components of the flat observation.
        n_u: Number of components of what the policy returns.
    """

    n_y: int
    n_u: int

    def __getattr__(self, name: str) -> Any:
        """Raise for everything else."""
        if name.startswith("_"):
            raise AttributeError(name)
        raise InvalidArgumentError(
            f"perturbation: expected one that needs observations and the policy only, got one that asks for {name!r} "
            "of the plant. Use noise, faults, a delay, MaximalActionDifference, MarginAttack or LearnedAdversary for "
            "gymnasium environments, and evaluate() for plants with equations."
        )


def evaluate_env(
    policy: Any,
    env: Environment,
    perturbation: Perturbation | None = None,
    *,
    episodes: int | None = None,
    seeds: Sequence[int] | None = None,
    n_envs: int = 32,
    processes: bool = False,
    steps: int | None = None,
    vec_env: VecEnv | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> EvaluationResult:
    """Run one episode per seed of any gymnasium environment under a perturbation.

    Every episode begins with `reset(seed=...)`, so all policies meet the same start states, and all episodes count,
    the long ones too. Actions are deterministic, rewards are those of the environment. Perturbations act on
    the flat raw observation, before any normalisation; statistics of a `VecNormalize` are those of the moment
    of the call. An episode depends on its seed alone, not on the number of copies: to the last bit on one
    thread of one CPU (see `evaluate`), and up to rounding under gradient attacks.

    Args:
        policy: A model or policy of Stable-Baselines3 or of this package, a `DeployedPolicy`, or a map from flat raw
            observations (E, n_y) to actions (E, n_u), for discrete actions to their scores (the highest is taken).
        env: An id, a function that makes an environment, a gymnasium `SyncVectorEnv` or `AsyncVectorEnv`, or an SB3
            `DummyVecEnv` or `SubprocVecEnv`, also within a `VecNormalize`.
        perturbation: What happens to the observations, and for continuous actions to these; None for nothing.
        episodes: Number of episodes, with seeds 0, 1, ...; None for 128. Give this or `seeds`.
        seeds: One non-negative integer per episode.
        n_envs: Largest number of copies that run at once, where they are made here.
        processes: Whether every copy made here runs in a process of its own.
        steps: Length after which episodes are truncated; None for the limit of the environment.
        vec_env: Environment whose `VecNormalize` feeds the model; None for `env` if it is one, else the model's own.
        dtype: Of observations and perturbations; None for that of the weights, and torch's default without any.
        device: None for that of the weights, and the CPU without any.

    Returns:
        Returns, lengths, seeds, and which episodes terminated. The convergence of an attack is averaged over all
        copies; one that has ended counts with its last observation until the batch is over.

    Raises:
        InvalidArgumentError: If an argument cannot be used, or the perturbation needs the equations of the plant.
        UnsupportedSpaceError: If a space is not supported, or actions are discrete and the perturbation changes them.
        ShapeError: If the policy's output has the wrong shape.
        NonFiniteError: If an action or a reward is NaN or infinite.

    Example:
        >>> result = evaluate_env(lambda y: -y[:, 1:2], "Pendulum-v1", episodes=2, steps=10)
        >>> result.lengths
        array([10, 10])
    """
    chosen = checked_seeds(episodes, seeds)
    perturbation = NoPerturbation() if perturbation is None else perturbation
    if not isinstance(perturbation, Perturbation):
        fix = "Pass a perturbation of robustnn.closedloop."
        raise invalid("perturbation", "a Perturbation", type(perturbation).__name__, fix)
    mapped = policy_of(policy, env if vec_env is None else vec_env, dtype)
    weight = first_weight(mapped)
    dtype = dtype or (torch.get_default_dtype() if weight is None else weight.dtype)
    device = torch.device(device or ("cpu" if weight is None else weight.device))
    count = min(check_positive_int("n_envs", n_envs), len(chosen))
    copies = copies_of(env, count, perturbation, processes=processes)
    try:
        limit = _limit(copies, steps)
        runs = []
        for begin in range(0, len(chosen), copies.count):
            part = chosen[begin : begin + copies.count]
            batch = _Batch(copies, padded(mapped), perturbation, limit, part, dtype, device)
            runs.append(batch.run())
    finally:
        copies.close()
    return EvaluationResult(
        np.concatenate([run.returns for run in runs]),
        np.concatenate([run.lengths for run in runs]),
        np.array(chosen),
        perturbation.describe(),
        average([run.convergence for run in runs], [len(run.returns) for run in runs]),
        np.concatenate([run.terminated for run in runs]),
    )


def policy_of(policy: Any, vec_env: Any = None, dtype: torch.dtype | None = None) -> Policy:
    """Return a model's deterministic policy as a map from raw observations; anything else that can be called as it is.

    Args:
        policy: A model or policy of Stable-Baselines3, a `DeployedPolicy`, or a map of tensors.
        vec_env: Where it is a vector environment of SB3 with a `VecNormalize`, this feeds a model; otherwise the
            model's own does.
        dtype: Of the map of a model; None for float64.

    Returns:
        Flat raw observation -> action, or scores of discrete actions.

    Raises:
        InvalidArgumentError: If it is none of these.
    """
    dtype = dtype or torch.float64
    if isinstance(policy, DeployedPolicy):
        return policy.action_map(dtype=dtype)
    if isinstance(policy, (BaseAlgorithm, BasePolicy)):
        return action_map(policy, vec_env if _normalises(vec_env) else None, dtype=dtype)
    if not callable(policy) or isinstance(policy, type):
        raise invalid(
            "policy", "a model, a policy or a map", type(policy).__name__, "Pass a map of observations."
        )
    return cast(Policy, policy)


def _normalises(env: Any) -> bool:
    while isinstance(env, VecEnvWrapper):
        if isinstance(env, VecNormalize):
            return True
        env = env.venv
    return False


def _limit(copies: Copies, steps: int | None) -> int:
    """Longest episode."""
    if steps is not None:
        return check_positive_int("steps", steps)
    known = getattr(copies.attribute("spec"), "max_episode_steps", None)
    if known is None:
        plant = copies.attribute("plant")
        known = plant.horizon if isinstance(plant, Plant) else None
    if known is None:
        fix = "Pass steps=..., or wrap it in gymnasium.wrappers.TimeLimit."
        raise invalid("steps", "a number, as the environment has no limit of its own", None, fix)
    return check_positive_int("max_episode_steps", known)


@dataclass(frozen=True, eq=False)
class _Run:
    returns: np.ndarray
    lengths: np.ndarray
    terminated: np.ndarray
    convergence: tuple[Convergence, ...]


@dataclass(frozen=True, eq=False)
class _Batch:
    """Episodes that run at once."""

    copies: Copies
    policy: Callable[[Tensor], Tensor]
    perturbation: Perturbation
    limit: int
    seeds: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @torch.no_grad()
    def run(self) -> _Run:
        """Step all episodes until each has ended."""
        count = len(self.seeds)
        fillers = [self.seeds[-1]] * (self.copies.count - count)  # nobody looks at these copies
        seen_first = self.copies.reset([*self.seeds, *fillers])
        decide = Decision(self.copies.action_space)
        observation = self._flat(seen_first)
        process = self._start(decide, observation.shape[-1])
        returns, lengths = np.zeros(count), np.zeros(count, dtype=np.int64)
        terminated, alive = np.zeros(count, dtype=np.bool_), np.ones(count, dtype=np.bool_)
        unknown = observation.new_zeros(count, 0)
        for step in range(self.limit):
            seen = process(step, unknown, observation)
            output = self.policy(seen)
            if step == 0:
                _check_output(output, (count, decide.n_u))
            action = decide(process.actuate(step, output))
            if not bool(output.isfinite()[torch.from_numpy(alive)].all()):
                raise NonFiniteError(
                    f"policy(observation): expected finite entries only, got NaN or infinity at step {step}. "
                    "Look for non-finite weights or a wrong normalisation."
                )
            action = np.concatenate([action, np.repeat(action[-1:], self.copies.count - count, axis=0)])
            raw, reward, ended, cut = (_first(values, count) for values in self.copies.step(action))
            if not np.isfinite(reward[alive]).all():
                raise NonFiniteError(
                    f"reward: expected finite numbers only, got NaN or infinity at step {step}. Look at the "
                    "environment."
                )
            returns[alive] += reward[alive]
            lengths[alive] += 1
            terminated |= alive & ended
            alive &= ~(ended | cut)
            if not alive.any():
                break
            running = torch.from_numpy(alive).to(self.device).unsqueeze(-1)
            observation = torch.where(running, self._flat(raw), observation)
        return _Run(returns, lengths, terminated, process.convergence())

    def _flat(self, raw: Any) -> Tensor:
        """Flat observations of the episodes, shape (E, n_y)."""
        flat = flatten_observation(self.copies.observation_space, _first(raw, len(self.seeds)))
        return torch.from_numpy(flat).to(device=self.device, dtype=self.dtype)

    def _start(self, decide: Decision, n_y: int) -> Process:
        signals = cast(Plant, Signals(n_y, decide.n_u))
        shape, seeds = (len(self.seeds),), self.seeds
        loop = Loop(signals, self.policy, self.limit, shape, seeds, self.dtype, self.device, decide.choices)
        process = self.perturbation.start(loop)
        if decide.choices and getattr(self.perturbation, "action", ()):
            raise UnsupportedSpaceError(
                f"action_space: expected a Box for faults of the action, got {self.copies.action_space}. "
                "Leave these faults out."
            )
        return process


def _first(values: Any, count: int) -> Any:
    """The first entries of an array, or of every array of a dict."""
    if isinstance(values, dict):
        return {key: value[:count] for key, value in values.items()}
    return values[:count]


def _check_output(output: Any, expected: tuple[int, int]) -> None:
    if not isinstance(output, Tensor):
        raise invalid("policy", "a tensor", type(output).__name__, "Return a torch.Tensor.")
    ok = tuple(output.shape) == expected
    check_shape(
        "policy(observation)", output, str(expected), ok, f"The policy must return {expected[1]} values."
    )
