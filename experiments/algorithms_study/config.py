"""What the comparison of algorithms does: tasks, hyper-parameters, bounds, budgets."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple


class Model(NamedTuple):
    """One policy class of the comparison; lipschitz is None for SB3's MlpPolicy."""

    lipschitz: float | None

    @property
    def label(self) -> str:
        """Name in tables and figures."""
        return "MLP" if self.lipschitz is None else f"LBDN γ={self.lipschitz:g}"

    @property
    def key(self) -> str:
        """Name in file names."""
        return "MLP" if self.lipschitz is None else f"LBDN-{self.lipschitz:g}"


@dataclass(frozen=True)
class Task:
    """One algorithm on one environment.

    Attributes:
        algorithm: Name of a class of Stable-Baselines3.
        env_id: Gymnasium id.
        gammas: Bounds of the LBDN policies, action (or Q-value, or logit) per scaled observation.
        observation_scale: What counts as one in each observation component, in its unit; both policies see
            observations divided by it.
        timesteps: Environment steps of training.
        eval_every: Environment steps between two points of the learning curve.
        num_envs: Copies of the environment in training.
        settings: Arguments of the algorithm. "lin_x" is a schedule that falls linearly from x to zero, and
            "noise_std" the standard deviation of Gaussian action noise.
    """

    algorithm: str
    env_id: str
    gammas: tuple[float, ...]
    observation_scale: tuple[float, ...]
    timesteps: int
    eval_every: int
    num_envs: int = 1
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Name in tables and figures."""
        return f"{self.algorithm}, {self.env_id}"

    @property
    def key(self) -> str:
        """Name in file names."""
        return f"{self.algorithm}_{self.env_id}"

    @property
    def models(self) -> tuple[Model, ...]:
        """The policies that are compared, SB3's first."""
        return (Model(None), *(Model(gamma) for gamma in self.gammas))

    @property
    def points(self) -> tuple[int, ...]:
        """Environment steps at which the learning curve is evaluated."""
        return tuple(range(self.eval_every, self.timesteps + 1, self.eval_every))


# Hyper-parameters of rl-baselines3-zoo for these tasks (SB3's defaults where it says nothing), but for the widths and
# the learning rate of DQN (2.3e-3 there), with which neither policy learned reliably in a pilot.
_PENDULUM: dict[str, Any] = {"env_id": "Pendulum-v1", "observation_scale": (1.0, 1.0, 8.0)}
_CARTPOLE: dict[str, Any] = {"env_id": "CartPole-v1", "observation_scale": (2.4, 3.0, 0.2, 3.0)}
_SAC = Task(
    "SAC", **_PENDULUM, gammas=(60.0,), timesteps=20_000, eval_every=1_000, settings={"learning_rate": 1e-3}
)
_TD3 = Task(
    "TD3", **_PENDULUM, gammas=(60.0,), timesteps=20_000, eval_every=1_000,
    settings={
        "learning_rate": 1e-3, "gamma": 0.98, "buffer_size": 200_000, "learning_starts": 10_000,
        "train_freq": 1, "gradient_steps": 1, "noise_std": 0.1,
    },
)  # fmt: skip
_DQN = Task(
    "DQN", **_CARTPOLE, gammas=(100.0,), timesteps=50_000, eval_every=2_500,
    settings={
        "learning_rate": 1e-3, "batch_size": 64, "buffer_size": 100_000, "learning_starts": 1_000,
        "gamma": 0.99, "target_update_interval": 10, "train_freq": 256, "gradient_steps": 128,
        "exploration_fraction": 0.16, "exploration_final_eps": 0.04,
    },
)  # fmt: skip
_PPO = Task(
    "PPO", **_CARTPOLE, gammas=(10.0,), timesteps=100_000, eval_every=5_000, num_envs=8,
    settings={
        "n_steps": 32, "batch_size": 256, "gae_lambda": 0.8, "gamma": 0.98, "n_epochs": 20, "ent_coef": 0.0,
        "learning_rate": "lin_0.001", "clip_range": "lin_0.2",
    },
)  # fmt: skip


@dataclass(frozen=True)
class Config:
    """Settings of one run.

    Attributes:
        tasks: Algorithms and environments. The bounds are those of a pilot (`PILOT`) with other training seeds.
        training_seeds: One training run per task, policy and seed.
        hidden: Hidden widths of all networks.
        curve_episodes: Episodes per point of the learning curve, the same start states at every point.
        episodes: Episodes of the final evaluation, the same start states for every policy.
    """

    tasks: tuple[Task, ...] = (_SAC, _TD3, _DQN, _PPO)
    training_seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    hidden: tuple[int, ...] = (64, 64)
    curve_episodes: int = 10
    episodes: int = 50

    @staticmethod
    def of(values: dict[str, Any]) -> Config:
        """Return the configuration that a run folder has stored as JSON values."""
        tasks = tuple(Task(**_tuples(task)) for task in values["tasks"])
        return Config(**{**_tuples(values), "tasks": tasks})


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


# Bounds from which those of the study are chosen, with seeds that the study does not use. TD3 has that of SAC.
PILOT = Config(
    tasks=(
        replace(_SAC, gammas=(20.0, 40.0, 80.0), timesteps=8_000, eval_every=500),
        replace(_DQN, gammas=(100.0, 300.0, 1000.0)),
        replace(_PPO, gammas=(10.0, 30.0)),
    ),
    training_seeds=(100, 101),
)
SMOKE = Config(
    tasks=(
        replace(_SAC, timesteps=110, eval_every=55),
        replace(_TD3, timesteps=110, eval_every=55, settings={**_TD3.settings, "learning_starts": 100}),
        replace(_DQN, timesteps=1_600, eval_every=800, settings={**_DQN.settings, "gradient_steps": 4}),
        replace(_PPO, timesteps=512, eval_every=256),
    ),
    training_seeds=(0, 1),
    curve_episodes=2,
    episodes=3,
)
