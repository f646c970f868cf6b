"""What the robustness study on a MuJoCo task does: the task, PPO, bounds, attacks and budgets."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from experiments.algorithms_study.config import Model

# Names of `robustnn.closedloop.perturbation_from_config`, with titles: those that need no model of the plant.
ATTACKS = {"uniform": "uniform in the ball", "mad": "MAD", "critic": "critic"}


@dataclass(frozen=True)
class Config:
    """Settings of one run.

    Attributes:
        env_id: Gymnasium id.
        models: What is compared: SB3's MlpPolicy, and LBDN policies by their bounds, action per scaled observation.
        scale: One number per observation component, in its unit: about its standard deviation along the way of a
            trained policy. Policies see observations divided by it, and errors have its unit.
        norm: Norm of the errors over the components.
        eps: Sizes of the errors, in units of the scale.
        attacks: Keys of `ATTACKS`; the worst case is taken over all of them.
        training_seeds: One policy per model and seed.
        timesteps: Environment steps of PPO.
        num_envs: Copies of the environment in training.
        ppo: Arguments of PPO.
        hidden: Hidden widths of policies and value networks.
        log_std: First logarithm of the standard deviation of the actions, in their unit.
        episodes: Episodes per policy and condition, the same start states for all.
        steps: Length of these episodes; None for that of the environment.
        states: Visited observations at which changes of the action are bounded and looked for.
        state_envs: Copies of the environment in which these are visited.
    """

    env_id: str
    models: tuple[Model, ...]
    scale: tuple[float, ...]
    eps: tuple[float, ...]
    timesteps: int
    ppo: dict[str, Any] = field(default_factory=dict)
    norm: str = "linf"
    attacks: tuple[str, ...] = tuple(ATTACKS)
    training_seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    num_envs: int = 8
    hidden: tuple[int, ...] = (64, 64)
    log_std: float = -1.0
    episodes: int = 32
    steps: int | None = None
    states: int = 64
    state_envs: int = 4

    @staticmethod
    def of(values: dict[str, Any]) -> Config:
        """Return the configuration that a run folder has stored as JSON values."""
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return Config(**{**fields, "models": tuple(Model(*model) for model in values["models"])})


# Height, angles of torso, thigh, leg and foot (m, rad), then the velocities of x, z and these angles (m/s, rad/s).
_HOPPER_SCALE = (0.15, 0.05, 0.2, 0.25, 0.6, 0.8, 1.3, 0.7, 1.6, 2.4, 6.0)
FULL = Config(
    env_id="Hopper-v5",
    models=(Model(None), Model(1.0), Model(3.0)),
    scale=_HOPPER_SCALE,
    eps=(0.025, 0.075, 0.15),
    timesteps=1_000_000,
    ppo={
        "n_steps": 256, "batch_size": 256, "n_epochs": 10, "learning_rate": 3e-4, "gamma": 0.99, "gae_lambda": 0.95,
        "clip_range": 0.2, "ent_coef": 0.0,
    },
)  # fmt: skip
SHORT = replace(FULL, models=FULL.models[:2], timesteps=150_000, episodes=16)
SMOKE = replace(
    FULL,
    models=FULL.models[:2],
    eps=(0.15,),
    training_seeds=(0, 1),
    timesteps=512,
    num_envs=2,
    ppo={**FULL.ppo, "batch_size": 128, "n_epochs": 1},
    hidden=(4, 4),
    episodes=3,
    steps=20,
    states=4,
    state_envs=2,
)
