"""What the study of fine-tuning does: an agent, the bounds that it is brought down to, and the steps in between."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from experiments.robustness_study.config import Config as Study
from experiments.robustness_study.config import Method
from experiments.robustness_study.settings import PENDULUM
from experiments.robustness_study.settings import SMOKE as SMALL

START = Method()
# At its first bound, the smallest one proved of the MLP with some slack; the bound is fixed, not lowered.
PLAYED = Method("converted", training="game")


@dataclass(frozen=True)
class Config:
    """Settings of one run.

    Attributes:
        study: Plant, PPO, attacks and seeds. Its first method is the MLP agent that everything starts from.
        levels: Bounds gamma in falling order, action per scaled observation.
        level_steps: Environment steps of PPO from one bound to the next.
        learning_rate: Step size of PPO from then on. The one of the training destroys a converted policy within a few
            rollouts, though its function is the same.
        fall: Fraction of these steps over which the bound falls; the rest is trained at the bound reached.
        played: The bounds of which a copy is trained on by gradients through the plant.
        game: Parameters of that training, at every bound the same.
        measure_eps: Size of the random errors of the measure taken at the end of every level.
    """

    study: Study
    levels: tuple[float, ...]
    level_steps: int
    learning_rate: float
    fall: float
    played: tuple[float, ...]
    game: dict[str, Any] = field(default_factory=dict)
    measure_eps: float = 0.15

    @property
    def training_seeds(self) -> tuple[int, ...]:
        """One agent per seed, taken through all levels."""
        return self.study.training_seeds

    @property
    def longer(self) -> Method:
        """The control."""
        return longer(self.study.timesteps, self.levels, self.level_steps)

    @staticmethod
    def of(values: dict[str, Any]) -> Config:
        """Return the configuration that a run folder has stored as JSON values."""
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return Config(**{**fields, "study": Study.of(values["study"])})


def lowered(gamma: float, *, game: bool = False) -> Method:
    """Return the agent at one bound, trained by PPO down to it, and by gradients through the plant after that."""
    return Method("converted", gamma, "game" if game else "")


def longer(timesteps: int, levels: tuple[float, ...], level_steps: int) -> Method:
    """Return the control: the MLP itself, trained by PPO for as many steps as the whole way down takes."""
    return Method(steps=round(1.0 + len(levels) * level_steps / timesteps, 6))


def _study(
    base: Study, levels: tuple[float, ...], played: tuple[float, ...], level_steps: int, **changes: Any
) -> Study:
    methods = (
        START,
        longer(changes.get("timesteps", base.timesteps), levels, level_steps),
        *(lowered(gamma) for gamma in levels),
        PLAYED,
        *(lowered(gamma, game=True) for gamma in played),
    )
    return replace(
        base, methods=methods, recipe=methods.index(PLAYED), controls=(0,), twins=(), learned=(), learned_eps=(),
        faults={}, equilibrium=None, attacks=("mad", "critic", "trajectory-strongest"), more_attacks=(),
        attack_settings={}, game={}, **changes,
    )  # fmt: skip


_LEVELS = (16.0, 12.0, 9.0, 7.0, 5.0, 4.0)
_PLAYED = (9.0,)
_STEPS = 200_000
FULL = Config(
    study=_study(
        PENDULUM,
        _LEVELS,
        _PLAYED,
        _STEPS,
        training_seeds=tuple(range(30, 35)),
        episodes=32,
        eps=(0.15, 0.2),
        claimed_from=0.15,
    ),
    levels=_LEVELS,
    level_steps=_STEPS,
    learning_rate=3e-4,
    fall=0.5,
    played=_PLAYED,
    game={**PENDULUM.game, "steps": 300, "validations": 2},
)
# After a few rollouts the gain of an MLP is still near that of its small first weights.
_FEW = (0.01, 0.005)
SMOKE = Config(
    study=_study(SMALL, _FEW, _FEW[1:], 2_048, parameters={"horizon": 10}, eps=(0.3,), claimed_from=0.3),
    levels=_FEW,
    level_steps=2_048,
    learning_rate=3e-4,
    fall=0.5,
    played=_FEW[1:],
    game=SMALL.game,
)
