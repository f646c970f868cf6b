"""What the experiment on model-based training does: data, models, policies, sizes of the errors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

_PPO = {
    "n_steps": 32, "batch_size": 2048, "n_epochs": 8, "learning_rate": 1e-3, "gamma": 0.95, "clip_range": 0.3,
    "ent_coef": 1e-3, "target_kl": 0.03,
}  # fmt: skip


class Source(NamedTuple):
    """Where a policy is trained.

    Attributes:
        kind: "plant", "bounded" or "twin".
        bound: Of a bounded model: scaled observations per scaled observation or input.
    """

    kind: str
    bound: float | None = None

    @property
    def key(self) -> str:
        """Name in file names."""
        return self.kind if self.bound is None else f"{self.kind}-{self.bound:g}"

    @property
    def label(self) -> str:
        """Name in tables and figures."""
        if self.bound is not None:
            return f"model, bound {self.bound:g}"
        return {"plant": "true plant", "twin": "unconstrained model"}[self.kind]


@dataclass(frozen=True)
class Config:
    """Settings of one run.

    Attributes:
        bounds: Bounds of the Lipschitz models.
        training_seeds: One data set, one model of each kind, and one policy on each, per seed.
        observation_scale: What counts as one in (cos, sin, rad/s): the norm of models, policies and attacks.
        input_scale: What counts as one in the action, for the bound of a model.
        hidden: Hidden widths of models.
        records: Number of training records.
        record_steps: Their length in steps.
        hold: Largest number of steps for which a random torque is held.
        validation_records: Number of validation records.
        stages: Length in steps of the pieces of records that a model simulates, and iterations of L-BFGS, one pair
            after the other.
        horizons: Numbers of steps ahead in tables.
        policy_lipschitz: Bound of the policies, action per scaled observation.
        policy_hidden: Their hidden widths.
        value_hidden: Hidden widths of the value networks.
        timesteps: Environment steps of PPO.
        ppo: Arguments of PPO.
        num_envs: Copies of plant or model in training.
        reward_scale: Factor of the reward in training.
        episodes: Episodes of every evaluation, the same start states for all.
        calibration: Further episodes in closed loop that give the largest error of one step.
        sensitivity_eps: Size of the observation error whose effect on the learned loop is certified and searched.
        sensitivity_steps: Its number of steps.
        sensitivity_starts: Start states of the search.
        sensitivity_iterations: Gradient steps of the search.
        attack_eps: Sizes of the observation errors of the attacks.
        attack: Further arguments of the trajectory attacks.
    """

    bounds: tuple[float, ...] = (1.15, 1.5, 2.0)
    training_seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    observation_scale: tuple[float, ...] = (1.0, 1.0, 4.0)
    input_scale: float = 2.0
    hidden: tuple[int, ...] = (32,)
    records: int = 80
    record_steps: int = 40
    hold: int = 15
    validation_records: int = 20
    stages: tuple[tuple[int, int], ...] = ((5, 600), (20, 300))
    horizons: tuple[int, ...] = (1, 5, 20)
    policy_lipschitz: float = 10.0
    policy_hidden: tuple[int, ...] = (32, 32, 32)
    value_hidden: tuple[int, ...] = (64, 64)
    timesteps: int = 500_000
    ppo: dict[str, Any] = field(default_factory=lambda: dict(_PPO))
    num_envs: int = 512
    reward_scale: float = 0.1
    episodes: int = 64
    calibration: int = 64
    sensitivity_eps: float = 0.1
    sensitivity_steps: int = 20
    sensitivity_starts: int = 64
    sensitivity_iterations: int = 40
    attack_eps: tuple[float, ...] = (0.1, 0.2)
    attack: dict[str, Any] = field(
        default_factory=lambda: {
            "horizon": 40, "replan": 20, "iterations": 30, "warm_iterations": 10, "method": "steepest",
        }
    )  # fmt: skip

    @property
    def models(self) -> tuple[Source, ...]:
        """The learned models."""
        return (*(Source("bounded", bound) for bound in self.bounds), Source("twin"))

    @property
    def sources(self) -> tuple[Source, ...]:
        """What policies are trained on, the true plant first."""
        return (Source("plant"), *self.models)

    @staticmethod
    def of(values: dict[str, Any]) -> Config:
        """Return the configuration that a run folder has stored as JSON values."""
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        fields["stages"] = tuple(tuple(stage) for stage in values["stages"])
        return Config(**fields)


SMOKE = Config(
    bounds=(1.3,),
    training_seeds=(0, 1),
    hidden=(4,),
    records=6,
    record_steps=20,
    validation_records=3,
    stages=((5, 10),),
    horizons=(1, 5),
    policy_hidden=(8, 8),
    value_hidden=(8,),
    timesteps=2_048,
    ppo={**_PPO, "batch_size": 512, "n_epochs": 2},
    num_envs=64,
    episodes=3,
    calibration=3,
    sensitivity_steps=5,
    sensitivity_starts=4,
    sensitivity_iterations=3,
    attack_eps=(0.2,),
    attack={"horizon": 10, "iterations": 2, "method": "steepest"},
)
