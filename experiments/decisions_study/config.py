"""What the experiment on certified decisions does: task, bounds, sizes of the error."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from experiments.algorithms_study.config import Config as AlgorithmsConfig
from experiments.algorithms_study.config import Model, Task

_TASK = next(task for task in AlgorithmsConfig().tasks if task.algorithm == "DQN")


@dataclass(frozen=True)
class Config:
    """Settings of one run.

    Attributes:
        gammas: Bounds of the LBDN policies, Q-value per scaled observation.
        training_seeds: One DQN run per policy and seed.
        timesteps: Environment steps of training.
        eps: Sizes of the error: l2 norm of the error of the scaled observation.
        episodes: Episodes of every rollout.
        attacked: Number of visited states whose decision is attacked at every size.
    """

    gammas: tuple[float, ...] = (30.0, 100.0)
    training_seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    timesteps: int = 50_000
    eps: tuple[float, ...] = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16)
    episodes: int = 10
    attacked: int = 256

    @property
    def task(self) -> Task:
        """DQN on CartPole-v1 with the settings of the comparison of algorithms."""
        every = min(_TASK.eval_every, self.timesteps // 2)
        return replace(_TASK, gammas=self.gammas, timesteps=self.timesteps, eval_every=every)

    @property
    def models(self) -> tuple[Model, ...]:
        """The policies that are compared, SB3's first."""
        return self.task.models

    @staticmethod
    def of(values: dict[str, Any]) -> Config:
        """Return the configuration that a run folder has stored as JSON values."""
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return Config(**fields)


SMOKE = Config(
    gammas=(100.0,), training_seeds=(0, 1), timesteps=1_500, eps=(0.01, 0.1), episodes=2, attacked=8
)
