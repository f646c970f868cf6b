"""From a trained agent to a bounded one that withstands wrong sensors, in one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from stable_baselines3.common.base_class import BaseAlgorithm

from robustnn.closedloop.ball import Norm
from robustnn.errors import invalid
from robustnn.policies import convert_policy
from robustnn.policies.base import LipschitzPolicy
from robustnn.training.through_plant import RobustFineTuning, robust_fine_tune

if TYPE_CHECKING:
    from robustnn.envs.plant import Plant

__all__ = ["Robustified", "robustify"]

Model = TypeVar("Model", bound=BaseAlgorithm)


@dataclass(frozen=True, eq=False)
class Robustified(Generic[Model]):
    """What `robustify` returns.

    Attributes:
        model: The agent, with a bounded policy.
        lipschitz: Its bound gamma, in the norms of `LipschitzPolicy`.
        tuning: The course of the training.
    """

    model: Model
    lipschitz: float
    tuning: RobustFineTuning


def robustify(
    model: Model,
    plant: Plant,
    *,
    eps: float,
    norm: Norm = "l2",
    scale: Sequence[float] | None = None,
    lipschitz: float | None = None,
    steps: int = 400,
    learning_rate: float = 2e-3,
    seed: int = 0,
    progress: bool = False,
) -> Robustified[Model]:
    """Make an agent's policy Lipschitz-bounded without changing it, then train it on against wrong sensors.

    This is the recipe that the study in docs/robustness.md recommends: `convert_policy`, then `robust_fine_tune`. The
    bound is that of the trained policy and holds through the training.

    Args:
        model: A trained agent with continuous actions: SB3's own "MlpPolicy", which is left as it is, or one with a
            bounded policy, which is trained in place.
        plant: The plant, differentiable, with the reward that is to be maximised.
        eps: Size of the errors, in observation units over those of the scale. Choose it as large as the nominal return
            allows: training against larger errors helped against smaller ones as well.
        norm: "l2" or "linf", over the components of one observation.
        scale: One positive number per observation component, in its unit; None for ones.
        lipschitz: The bound wanted, at least what is proved of the policy; None for that times 1.05. Not for a policy
            that has one.
        steps: Optimiser steps.
        learning_rate: First step size of Adam.
        seed: Of start states and errors.
        progress: Whether to show a progress bar.

    Returns:
        The agent, its bound, and the course of the training.

    Raises:
        InvalidArgumentError: If an argument is not acceptable, as in `convert_policy` and `robust_fine_tune`, or a
            bound is given for a policy that has one.
        UnsupportedSpaceError: If the actions are discrete.

    Example:
        >>> from stable_baselines3 import PPO
        >>> from robustnn.envs import Pendulum
        >>> model = PPO("MlpPolicy", "robustnn.envs:robustnn/PendulumSwingUp-v0", device="cpu")
        >>> robust = robustify(model, Pendulum(horizon=10), eps=0.3, steps=2)  # doctest: +SKIP
        >>> type(robust.model.policy).__name__  # doctest: +SKIP
        'LBDNActorCriticPolicy'
    """
    if not isinstance(model, BaseAlgorithm):
        raise invalid(
            "model", "an agent of Stable-Baselines3", type(model).__name__, "Pass what learn() was called on."
        )
    policy: Any = model.policy
    if not isinstance(policy, LipschitzPolicy):
        model = convert_policy(model, lipschitz=lipschitz)
    elif lipschitz is not None:
        raise invalid(
            "lipschitz", "None for a policy that has a bound already", lipschitz,
            "Lower it with robustnn.policies.fine_tune.",
        )  # fmt: skip
    horizon = int(plant.horizon)
    tuning = robust_fine_tune(
        model, plant, eps=eps, norm=norm, scale=scale, steps=steps, learning_rate=learning_rate, seed=seed,
        window=min(50, horizon), advance=min(5, horizon), progress=progress,
    )  # fmt: skip
    bounded: Any = model.policy
    return Robustified(model, float(bounded.lipschitz), tuning)
