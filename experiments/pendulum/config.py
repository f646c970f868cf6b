"""What the pendulum robustness experiment does: models, training budget, attacks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from robustnn.closedloop import (
    GaussianNoise,
    MaximalActionDifference,
    NoPerturbation,
    Perturbation,
    TrajectoryAttack,
    UniformBall,
)

N_OBS = 3


class Model(NamedTuple):
    """One policy class of the comparison; lipschitz is None for the unbounded MLP."""

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
class Config:
    """Settings of one run.

    Attributes:
        gammas: Bounds of the LBDN policies, action units per weighted observation unit.
        timesteps: Environment steps after which policies are evaluated, ascending; one training run gives all.
        training_seeds: One training run per model and seed.
        episodes: Evaluation episodes per policy, with seeds 0, 1, ...; the same for every policy and attack.
        eps: Perturbation sizes, l2 on the raw observation (cos theta, sin theta, omega in rad/s).
        attacks: Names from `perturbation`.
        observation_scale: Weights of the observation norm inside the bound: 4 rad/s count as one.
        hidden: Hidden widths of all actors.
        value_hidden: Hidden widths of all critics.
        num_envs: Copies of the pendulum in training.
        n_steps: Steps per copy and rollout.
        batch_size: Minibatch of PPO.
        n_epochs: Passes over a rollout.
        learning_rate: Adam step size.
        discount: Discount factor per step.
        clip_range: PPO clipping.
        ent_coef: Entropy bonus.
        target_kl: PPO stops the passes over a rollout when the policy has moved this far.
        reward_scale: Factor on the rewards in training.
        device: Torch device of training and evaluation.
    """

    gammas: tuple[float, ...] = (4.0, 6.0, 10.0, 20.0)
    timesteps: tuple[int, ...] = (500_000, 4_000_000)
    training_seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    episodes: int = 128
    eps: tuple[float, ...] = (0.06, 0.11, 0.15, 0.2, 0.3, 0.45)
    attacks: tuple[str, ...] = ("gaussian", "uniform", "mad", "paper", "strong", "strongest")
    observation_scale: tuple[float, ...] = (1.0, 1.0, 4.0)
    hidden: tuple[int, ...] = (32, 32, 32)
    value_hidden: tuple[int, ...] = (64, 64)
    num_envs: int = 512
    n_steps: int = 32
    batch_size: int = 2048
    n_epochs: int = 8
    learning_rate: float = 1e-3
    discount: float = 0.95
    clip_range: float = 0.3
    ent_coef: float = 1e-3
    target_kl: float = 0.03
    reward_scale: float = 0.1
    device: str = "cpu"

    @property
    def models(self) -> tuple[Model, ...]:
        """All policy classes, the unbounded one first."""
        return (Model(None), *(Model(gamma) for gamma in self.gammas))

    @property
    def conditions(self) -> tuple[tuple[str, float], ...]:
        """All (attack, eps) to evaluate; without perturbation once."""
        return (("none", 0.0), *((attack, eps) for attack in self.attacks for eps in self.eps))


DEMO = Config(
    gammas=(4.0, 10.0, 20.0),
    timesteps=(300_000,),
    training_seeds=(0, 1, 2),
    episodes=64,
    eps=(0.2,),
    attacks=("gaussian", "strong"),
)
SMOKE = Config(
    gammas=(10.0,),
    timesteps=(4_096,),
    training_seeds=(0, 1),
    episodes=4,
    eps=(0.3,),
    attacks=("gaussian", "mad", "strong"),
    num_envs=64,
    batch_size=512,
)

ATTACK_TITLES = {
    "none": "no perturbation",
    "gaussian": "Gaussian noise",
    "uniform": "uniform in the ball",
    "mad": "MAD, per-step PGD",
    "paper": "trajectory attack, published",
    "strong": "trajectory attack, strong",
    "strongest": "trajectory attack, strongest",
}


def perturbation(attack: str, eps: float) -> Perturbation:
    """Return the perturbation of a name and size.

    Args:
        attack: A key of `ATTACK_TITLES`.
        eps: l2 size on the raw observation; for Gaussian noise the root mean square of its l2 norm.

    Returns:
        The perturbation.

    Raises:
        KeyError: If the name is unknown.
    """
    if attack == "none":
        return NoPerturbation()
    makers = {
        "gaussian": lambda: GaussianNoise(eps / N_OBS**0.5),
        "uniform": lambda: UniformBall(eps),
        "mad": lambda: MaximalActionDifference(eps),
        "paper": lambda: TrajectoryAttack.paper(eps),
        "strong": lambda: TrajectoryAttack.strong(eps),
        "strongest": lambda: TrajectoryAttack.strongest(eps),
    }
    return makers[attack]()
