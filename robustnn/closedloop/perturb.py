"""Perturbations of the observations a policy sees, by value: none, noise, and delay.

A perturbation is a frozen description. `Perturbation.start` turns it into a process for one batch of
episodes, which `rollout` calls once per step. Gradient attacks are perturbations too (`mad`, `trajectory`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from robustnn.closedloop.ball import Ball, Norm
from robustnn.closedloop.budget import Budget
from robustnn.closedloop.padded import Padded
from robustnn.errors import check_nonnegative, check_positive_int
from robustnn.policies.action_map import ActionMap

if TYPE_CHECKING:
    from robustnn.envs.plant import Plant

__all__ = [
    "Convergence",
    "Delay",
    "EpisodeRandom",
    "GaussianNoise",
    "Loop",
    "NoPerturbation",
    "Perturbation",
    "Policy",
    "Process",
    "UniformBall",
]

Policy = Callable[[Tensor], Tensor]
"""Maps observations (..., n_y) to actions (..., n_u)."""

# Slope beyond the action limits that gradient attacks see; of 0, 0.1 and 1 it was the one that did most damage.
CLIP_LEAK = 0.1

START_STREAM, NOISE_STREAM, RADIUS_STREAM, ATTACK_STREAM = range(4)


class EpisodeRandom:
    """Random numbers of a batch of episodes, each from its own generator.

    The generator of an episode is `numpy.random.default_rng([seed, stream])` on the CPU, so its draws depend
    neither on the other episodes of the batch nor on the device.

    Args:
        seeds: One non-negative integer per episode.
        stream: Which of the independent streams of an episode.
        dtype: Of the draws.
        device: Where the draws go.

    Raises:
        InvalidArgumentError: If a seed is not a non-negative integer.

    Example:
        >>> EpisodeRandom((0, 1), 1).normal(5, 3).shape
        torch.Size([5, 2, 3])
    """

    def __init__(
        self,
        seeds: Sequence[int],
        stream: int,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> None:
        """Make one generator per episode."""
        checked = [check_positive_int("seeds", seed, minimum=0) for seed in seeds]
        self._generators = [np.random.default_rng([seed, stream]) for seed in checked]
        self._dtype, self._device = dtype, device

    def normal(self, count: int, width: int) -> Tensor:
        """Return the next standard normal draws, shape (count, E, width)."""
        return self._to_tensor([g.standard_normal((count, width)) for g in self._generators], count, width)

    def uniform(self, count: int, width: int) -> Tensor:
        """Return the next draws of U[0, 1), shape (count, E, width)."""
        return self._to_tensor([g.random((count, width)) for g in self._generators], count, width)

    def _to_tensor(self, draws: list[np.ndarray], count: int, width: int) -> Tensor:
        stacked = np.stack(draws, axis=1) if draws else np.empty((count, 0, width))
        return torch.from_numpy(stacked).to(device=self._device, dtype=self._dtype)


@dataclass(frozen=True, eq=False)
class Loop:
    """What a perturbation knows of the closed loop when an episode starts.

    Attributes:
        plant: The plant.
        policy: The policy, unperturbed.
        steps: Length of the episode.
        shape: Leading axes of all states, (E,) or (S, E).
        seeds: E episode seeds.
        dtype: Floating-point type of states and observations.
        device: Their device.
        choices: Where the policy returns scores of discrete actions, the numbers of them that belong together, as
            in `ActionMap`; empty for continuous actions.
    """

    plant: Plant
    policy: Policy
    steps: int
    shape: tuple[int, ...]
    seeds: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    choices: tuple[int, ...] = ()

    @property
    def leaky_policy(self) -> Policy:
        """The policy for gradient attacks: same actions, but a gradient also where an `ActionMap` clips them."""
        policy = self.policy
        if isinstance(policy, Padded) and isinstance(policy.policy, ActionMap):
            return replace(policy, policy=replace(policy.policy, clip_leak=CLIP_LEAK))
        return replace(policy, clip_leak=CLIP_LEAK) if isinstance(policy, ActionMap) else policy

    def random(self, stream: int) -> EpisodeRandom:
        """Return one stream of random numbers of every episode."""
        return EpisodeRandom(self.seeds, stream, self.dtype, self.device)


@dataclass(frozen=True, eq=False)
class Convergence:
    """How an attack's objective developed with its iterations, averaged over the episodes.

    Attributes:
        objective: What the attack optimises, in words.
        values: Shape (stages, iterations + 1) or (stages, iterations + 1, S). Row k of a stage is the value
            after k iterations, the random start being row 0; a stage is one optimisation: one step of the
            episode, or one window of it.
        counts: Shape (stages,): iterations that the stage really took. Later entries of its row repeat.
    """

    objective: str
    values: np.ndarray
    counts: np.ndarray

    def mean(self) -> np.ndarray:
        """Return the values averaged over the stages, shape (iterations + 1,) or (iterations + 1, S)."""
        return self.values.mean(axis=0)


class Process(ABC):
    """A perturbation in the course of one batch of episodes."""

    @abstractmethod
    def __call__(self, step: int, state: Tensor, observation: Tensor) -> Tensor:
        """Return what the policy sees.

        Args:
            step: Index of the step; called once for each, in order.
            state: True state, shape (..., n_x).
            observation: True observation, shape (..., n_y).

        Returns:
            Perturbed observation, shape (..., n_y).
        """

    def actuate(self, step: int, action: Tensor) -> Tensor:
        """Return what the plant receives of the policy's action.

        Args:
            step: Index of the step; called once for each, in order.
            action: Action of the policy, shape (..., n_u).

        Returns:
            Shape (..., n_u).
        """
        return action

    def convergence(self) -> tuple[Convergence, ...]:
        """Return the convergence of an attack; empty for anything else."""
        return ()


class Perturbation(ABC):
    """A disturbance of the observations, by value."""

    name: ClassVar[str]

    @abstractmethod
    def start(self, loop: Loop) -> Process:
        """Return the process of one batch of episodes."""

    def plant(self, plant: Plant) -> Plant:
        """Return the plant that is simulated in the place of the nominal one, which the policy was made for."""
        return plant

    def budget(self, steps: int) -> Budget:
        """Return what an episode of so many steps costs the attacker; nothing for what is no attack."""
        return Budget()

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return name and parameters as plain JSON values."""


class _Unchanged(Process):
    def __call__(self, step: int, state: Tensor, observation: Tensor) -> Tensor:
        return observation


@dataclass(frozen=True)
class NoPerturbation(Perturbation):
    """The policy sees the true observation."""

    name: ClassVar[str] = "none"

    def start(self, loop: Loop) -> Process:
        """Return the process of one batch of episodes."""
        return _Unchanged()

    def describe(self) -> dict[str, Any]:
        """Return name and parameters as plain JSON values."""
        return {"name": self.name}


class _Additive(Process):
    """Adds perturbations known in advance, shape (steps, ..., n_y)."""

    def __init__(self, deltas: Tensor) -> None:
        self._deltas = deltas.unbind(0)

    def __call__(self, step: int, state: Tensor, observation: Tensor) -> Tensor:
        return observation + self._deltas[step]


@dataclass(frozen=True)
class GaussianNoise(Perturbation):
    r"""White noise $\delta_t \sim N(0, \mathrm{diag}(\sigma d)^2)$, independent over steps and components.

    Args:
        std: Standard deviation sigma, in observation units over those of the scale; zero or greater.
        scale: d, one positive number per observation component; None for ones.

    Raises:
        InvalidArgumentError: If std is negative or a scale is not positive.

    Example:
        >>> GaussianNoise(0.1).describe()
        {'name': 'gaussian', 'std': 0.1, 'scale': None}
    """

    std: float
    scale: Sequence[float] | None = None
    name: ClassVar[str] = "gaussian"

    def __post_init__(self) -> None:
        """Check the arguments."""
        object.__setattr__(self, "std", check_nonnegative("std", self.std))
        object.__setattr__(self, "scale", Ball(0.0, "l2", self.scale).scale)

    def start(self, loop: Loop) -> Process:
        """Draw the noise of every episode."""
        weights = Ball(0.0, "l2", self.scale)
        weights.check_components(loop.plant.n_y)
        draws = loop.random(NOISE_STREAM).normal(loop.steps, loop.plant.n_y)
        return _Additive(_per_policy(weights.to_observation(self.std * draws), loop))

    def describe(self) -> dict[str, Any]:
        """Return name and parameters as plain JSON values."""
        return {"name": self.name, "std": self.std, "scale": None if self.scale is None else list(self.scale)}


@dataclass(frozen=True)
class UniformBall(Perturbation):
    r"""Noise drawn uniformly from the ball $\|\delta / d\| \le \epsilon$, independent over steps.

    Args:
        eps: Radius, in observation units over those of the scale; zero or greater.
        norm: "l2" or "linf".
        scale: d, one positive number per observation component; None for ones.

    Raises:
        InvalidArgumentError: If eps is negative, a scale is not positive, or the norm is unknown.

    Example:
        >>> UniformBall(0.1, norm="linf").describe()["norm"]
        'linf'
    """

    eps: float
    norm: Norm = "l2"
    scale: Sequence[float] | None = None
    name: ClassVar[str] = "uniform"

    def __post_init__(self) -> None:
        """Check the arguments."""
        checked = self._ball()
        object.__setattr__(self, "eps", checked.eps)
        object.__setattr__(self, "scale", checked.scale)

    def _ball(self) -> Ball:
        return Ball(self.eps, self.norm, self.scale)

    def start(self, loop: Loop) -> Process:
        """Draw the noise of every episode."""
        ball = self._ball()
        ball.check_components(loop.plant.n_y)
        return _Additive(ball.to_observation(self.draw(loop)))

    def draw(self, loop: Loop) -> Tensor:
        """Return the noise of every episode in units of the scale, shape (steps, *shape, n_y)."""
        n_y = loop.plant.n_y
        if self.norm == "linf":
            draws = self.eps * (2.0 * loop.random(NOISE_STREAM).uniform(loop.steps, n_y) - 1.0)
        else:
            surface = self._ball().surface_sample(loop.random(NOISE_STREAM).normal(loop.steps, n_y))
            draws = surface * loop.random(RADIUS_STREAM).uniform(loop.steps, 1) ** (1.0 / n_y)
        return _per_policy(draws, loop)

    def describe(self) -> dict[str, Any]:
        """Return name and parameters as plain JSON values."""
        return {"name": self.name, **self._ball().describe()}


class _Delayed(Process):
    def __init__(self, steps: int) -> None:
        self._buffer: deque[Tensor] = deque(maxlen=steps + 1)

    def __call__(self, step: int, state: Tensor, observation: Tensor) -> Tensor:
        if step == 0:
            self._buffer.extend([observation] * (self._buffer.maxlen or 1))
        else:
            self._buffer.append(observation)
        return self._buffer[0]


@dataclass(frozen=True)
class Delay(Perturbation):
    r"""The policy sees the observation of `steps` steps ago, $y_{\max(t - k, 0)}$.

    The first observation fills the buffer, as in arXiv 2405.11432.

    Args:
        steps: The delay k in sampling times; zero or greater.

    Raises:
        InvalidArgumentError: If steps is not a non-negative integer.

    Example:
        >>> Delay(2).describe()
        {'name': 'delay', 'steps': 2}
    """

    steps: int
    name: ClassVar[str] = "delay"

    def __post_init__(self) -> None:
        """Check the argument."""
        object.__setattr__(self, "steps", check_positive_int("steps", self.steps, minimum=0))

    def start(self, loop: Loop) -> Process:
        """Return an empty buffer."""
        return _Delayed(self.steps)

    def describe(self) -> dict[str, Any]:
        """Return name and parameters as plain JSON values."""
        return {"name": self.name, "steps": self.steps}


def _per_policy(deltas: Tensor, loop: Loop) -> Tensor:
    """Give all policies the same draws: (steps, E, n) to (steps, *shape, n), as a view."""
    extra = len(loop.shape) - 1
    view = deltas.reshape(deltas.shape[0], *(1,) * extra, *deltas.shape[1:])
    return view.expand(deltas.shape[0], *loop.shape, deltas.shape[-1])
