"""What somebody who watches a closed loop sees of it: observations, actions and rewards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from robustnn.closedloop.evaluate import start_states
from robustnn.closedloop.perturb import (
    NOISE_STREAM,
    RADIUS_STREAM,
    Loop,
    NoPerturbation,
    Perturbation,
    Policy,
    Process,
)
from robustnn.closedloop.rollout import check_plant, rollout
from robustnn.errors import check_nonnegative, check_shape

if TYPE_CHECKING:
    from robustnn.envs.plant import Plant

__all__ = ["LEARNING_SEEDS", "Transitions", "watch"]

# Episodes that attackers learn from start elsewhere than those of evaluations with small seeds.
LEARNING_SEEDS = 1_000_000


@dataclass(frozen=True, eq=False)
class Transitions:
    """Steps of a closed loop in no particular order; `lead` is () or (S,) for a stack of S policies.

    Attributes:
        observations: Before the step, as the policy saw them, shape (*lead, N, n_y).
        actions: What the plant received, shape (*lead, N, n_u).
        rewards: Shape (*lead, N).
        next_observations: After the step, shape (*lead, N, n_y).
        ended: Whether the step ended the episode for good (not by its horizon), shape (*lead, N).
        valid: Whether the step took place: False after an episode's end, shape (*lead, N).
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    next_observations: Tensor
    ended: Tensor
    valid: Tensor

    def __post_init__(self) -> None:
        """Check the shapes."""
        lead = tuple(self.rewards.shape)
        for name in ("observations", "actions", "next_observations"):
            value = getattr(self, name)
            check_shape(
                name, value, f"{(*lead, 'n')}", tuple(value.shape[:-1]) == lead and value.ndim in (2, 3)
            )
        for name in ("ended", "valid"):
            check_shape(name, getattr(self, name), str(lead), tuple(getattr(self, name).shape) == lead)

    @property
    def count(self) -> int:
        """Number N of steps per policy."""
        return self.rewards.shape[-1]


def watch(
    policy: Policy,
    plant: Plant,
    *,
    episodes: int = 32,
    seeds: Sequence[int] | None = None,
    policies: int | None = None,
    exploration: float = 0.0,
    probe: Perturbation | None = None,
    steps: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Transitions:
    """Simulate episodes and keep their steps.

    Args:
        policy: Maps observations (E, n_y) to actions (E, n_u), or (S, E, n_y) to (S, E, n_u).
        plant: The plant.
        episodes: Number of episodes per policy.
        seeds: Their seeds; None for numbers from `LEARNING_SEEDS` on, which evaluations do not use.
        policies: S for a stack of policies; None for a single one.
        exploration: Largest standard deviation of white noise on the actions, in their unit; each episode has a
            level of its own, uniform up to this. Actions stay within their limits.
        probe: What the watcher does to the observations meanwhile, such as `UniformBall(eps)`, to see how the policy
            answers sensors that disagree; `observations` are then those the policy saw. None for nothing.
        steps: Length of the episodes; None for the plant's horizon.
        dtype: Of the simulation.
        device: Of the simulation.

    Returns:
        The steps.

    Raises:
        InvalidArgumentError: If an argument is of the wrong kind or out of its range.

    Example:
        >>> from robustnn.envs import Pendulum
        >>> watch(lambda y: -y[..., 1:2], Pendulum(), episodes=2, steps=5).observations.shape
        torch.Size([10, 3])
    """
    check_plant(plant)
    seeds = range(LEARNING_SEEDS, LEARNING_SEEDS + episodes) if seeds is None else seeds
    state0 = start_states(plant, seeds, dtype=dtype, device=device)
    if policies is not None:
        state0 = state0.expand(policies, *state0.shape)
    noise = _Exploration(check_nonnegative("exploration", exploration), probe or NoPerturbation())
    run = rollout(plant, policy, state0, steps=steps, perturbation=noise, seeds=seeds)
    last = plant.observation(run.states[-1]).unsqueeze(0)
    following = torch.cat((run.observations[1:], last))
    ended = plant.terminal(run.states[1:])
    fields = (run.perturbed, run.actions, run.rewards, following, ended, run.alive)
    # (T, *lead, E, ...) to (*lead, T E, ...)
    axis = run.rewards.ndim - 2
    return Transitions(*(field.movedim(0, axis).flatten(axis, axis + 1) for field in fields))


@dataclass(frozen=True)
class _Exploration(Perturbation):
    std: float
    probe: Perturbation
    name: ClassVar[str] = "exploration"

    def start(self, loop: Loop) -> Process:
        return _Exploring(self.std, self.probe.start(loop), loop)

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "std": self.std, "probe": self.probe.describe()}


class _Exploring(Process):
    def __init__(self, std: float, probe: Process, loop: Loop) -> None:
        self._probe = probe
        level = std * loop.random(RADIUS_STREAM).uniform(1, 1)[0]
        self._noise = level * loop.random(NOISE_STREAM).normal(loop.steps, loop.plant.n_u)
        space = loop.plant.action_space
        self._low, self._high = (self._noise.new_tensor(limit) for limit in (space.low, space.high))

    def __call__(self, step: int, state: Tensor, observation: Tensor) -> Tensor:
        return self._probe(step, state, observation)

    def actuate(self, step: int, action: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(action + self._noise[step], self._low), self._high)
