"""What the experiment on policies of images does: task, layers, bounds, training, sizes of the error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

PONG, DOT = "ALE/Pong-v5", "dot"


class Model(NamedTuple):
    """One policy of the comparison; gamma is None for SB3's policy without a bound."""

    gamma: float | None

    @property
    def label(self) -> str:
        """Name in tables and figures."""
        return "CnnPolicy" if self.gamma is None else f"LBDN, γ={self.gamma:g}"

    @property
    def key(self) -> str:
        """Name in file names."""
        return "CnnPolicy" if self.gamma is None else f"LBDN-{self.gamma:g}"


@dataclass(frozen=True)
class Config:
    """Settings of one run. Sizes of errors are l2 norms over the whole stack of frames, in units of a uint8 pixel.

    The training of the defaults is the one of the RL Baselines3 Zoo for Atari games.

    Attributes:
        env_id: `PONG`, or `DOT` for the small task of `robustnn.envs.DotImageEnv`.
        gammas: Bounds of the LBDN policies, logit per pixel from black to white.
        training_seeds: One PPO run per policy and seed.
        timesteps: Environment steps of training.
        conv: Convolutions of all policies: (channels, kernel, stride) or (channels, kernel).
        hidden: Widths of their dense hidden layers, at least one.
        frames: Frames that an observation stacks.
        n_envs: Environments of training.
        n_steps: Steps of every environment per rollout.
        batch_size: Samples per gradient step.
        n_epochs: Passes over a rollout.
        learning_rate: At the start; it falls linearly to zero, and so does `clip_range`.
        clip_range: Of PPO.
        ent_coef: Weight of the entropy.
        discount: Discount factor.
        episodes: Evaluation episodes, one in each of as many environments.
        attacked: Number of visited observations, drawn uniformly, whose decision is attacked at every size.
        eps: Sizes of the error, ascending.
        attack_iterations: Gradient steps of every attack.
        attack_restarts: Attacks on decisions that are not certified; a certified one is attacked once, as a check.
        device: Of training and attack; "auto" for a GPU where there is one.
    """

    env_id: str = PONG
    gammas: tuple[float, ...] = (10.0, 50.0)
    training_seeds: tuple[int, ...] = (0, 1, 2)
    timesteps: int = 10_000_000
    conv: tuple[tuple[int, ...], ...] = ((32, 8, 4), (64, 4, 2), (64, 3))
    hidden: tuple[int, ...] = (512,)
    frames: int = 4
    n_envs: int = 8
    n_steps: int = 128
    batch_size: int = 256
    n_epochs: int = 4
    learning_rate: float = 2.5e-4
    clip_range: float = 0.1
    ent_coef: float = 0.01
    discount: float = 0.99
    episodes: int = 10
    attacked: int = 256
    eps: tuple[float, ...] = (4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
    attack_iterations: int = 40
    attack_restarts: int = 4
    device: str = "auto"

    @property
    def models(self) -> tuple[Model, ...]:
        """The policies that are compared, SB3's first."""
        return (Model(None), *(Model(gamma) for gamma in self.gammas))

    @staticmethod
    def of(values: dict[str, Any]) -> Config:
        """Return the configuration that a run folder has stored as JSON values."""
        return Config(**{name: _tuples(value) for name, value in values.items()})


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


# What minutes on a CPU carry: nobody has learned to play by then. It shows certificates and attacks on real frames.
SHORT = Config(
    gammas=(10.0,), training_seeds=(0, 1), timesteps=8_192, episodes=1, attacked=48, eps=(4.0, 16.0, 64.0, 256.0),
    attack_iterations=20, attack_restarts=2, device="cpu",
)  # fmt: skip
SMALL = Config(
    DOT, gammas=(2.5, 10.0, 40.0), training_seeds=(0, 1, 2, 3, 4), timesteps=6_144, conv=((8, 3, 2), (16, 3, 2)),
    hidden=(32,), frames=2, n_envs=4, n_steps=64, batch_size=64, n_epochs=4, learning_rate=2e-3, clip_range=0.2,
    ent_coef=0.0, discount=0.9, episodes=24, attacked=128, device="cpu",
)  # fmt: skip
SMOKE = Config(
    DOT, gammas=(40.0,), training_seeds=(0, 1), timesteps=512, conv=((4, 3, 2),), hidden=(8,), frames=2, n_envs=2,
    n_steps=64, batch_size=64, n_epochs=4, learning_rate=2e-3, discount=0.9, episodes=4, attacked=12,
    eps=(8.0, 64.0), attack_iterations=6, attack_restarts=2, device="cpu",
)  # fmt: skip
