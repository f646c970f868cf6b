"""Robust fine-tuning: gradients through the plant, for the policy and for the errors of its sensors at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor
from tqdm import tqdm

from robustnn.closedloop.ball import Ball, Norm
from robustnn.closedloop.evaluate import evaluate
from robustnn.closedloop.perturb import CLIP_LEAK
from robustnn.closedloop.rollout import check_plant
from robustnn.closedloop.trajectory import TrajectoryAttack
from robustnn.errors import (
    NonFiniteError,
    ShapeError,
    check_nonnegative,
    check_positive,
    check_positive_int,
    invalid,
)
from robustnn.training.game import Game, GameSettings
from robustnn.training.live_map import LiveMap

if TYPE_CHECKING:
    from robustnn.envs.plant import Plant

__all__ = ["RobustFineTuning", "RobustTrial", "robust_fine_tune"]

# Seeds of the validation episodes: far from the small numbers that evaluations use.
VALIDATION_SEED = 1_000_000_000
GRADIENT_LIMIT = 1.0


@dataclass(frozen=True)
class RobustTrial:
    """What a policy was worth at one moment of the fine-tuning, on the validation episodes.

    Attributes:
        step: Optimiser steps so far.
        nominal: Mean return per episode without errors.
        attacked: Mean return per episode under the validation attack at the full eps.
    """

    step: int
    nominal: float
    attacked: float


@dataclass(frozen=True)
class RobustFineTuning:
    """The course of a robust fine-tuning.

    Attributes:
        trials: All validations, the one before training first.
        kept: The one whose weights the policy has now.
        steps: Optimiser steps taken.
        skipped: How many of them were left out because the gradient was not finite.
    """

    trials: tuple[RobustTrial, ...]
    kept: RobustTrial
    steps: int
    skipped: int


def robust_fine_tune(
    model: Any,
    plant: Plant,
    *,
    eps: float,
    norm: Norm = "l2",
    scale: Sequence[float] | None = None,
    steps: int = 400,
    learning_rate: float = 1e-3,
    episodes: int = 128,
    attacked_share: float = 0.75,
    window: int = 50,
    advance: int = 5,
    moves: int = 2,
    step_fraction: float = 0.3,
    validations: int = 4,
    validation_episodes: int = 32,
    nominal_tolerance: float = 0.03,
    vec_env: VecEnv | None = None,
    seed: int = 0,
    progress: bool = False,
) -> RobustFineTuning:
    r"""Train a policy on, in place, against the sensor errors that hurt it most, by gradients through the plant.

    .. math:: \max_\phi \; (1 - w)\, E\Big[\sum_{t<H} r_t(0)\Big] + w\, E\Big[\min_{\|\delta_t / d\| \le \epsilon}
        \sum_{t<H} r_t(\delta)\Big], \qquad x_{t+1} = f(x_t, \pi_\phi(h(x_t) + \delta_t))

    with w the `attacked_share`. E episodes run side by side; of each the next H steps are simulated, and one backward
    pass gives the gradient for both players: the policy takes a step of Adam, every error a step of fixed length along
    the momentum of its own steepest direction, as in `TrajectoryAttack` ("free" adversarial training, Shafahi et al.,
    NeurIPS 2019, in closed loop). After `moves` of these the episodes move on by `advance` steps under the errors, and
    the rest of the plan is kept, so that an error has received about `moves * window / advance` steps when it is
    applied. The step size of Adam falls linearly to zero.

    Only the network from observation to action is trained: not critics, noise or the statistics of a normalisation.
    A policy of this package keeps its Lipschitz bound, which holds for all values of its parameters; a trained bound
    is held.

    Between equal blocks of steps the policy is validated, with and without an attack, on episodes of its own. In the
    end it gets the weights with the best attacked return among those whose nominal return is at most
    `nominal_tolerance` below that of the policy given; that one is a candidate too.

    Args:
        model: A trained agent or its policy: PPO, A2C, SAC, TD3 and others that `action_map` knows, of this package or
            SB3's own, with Box actions and the plant's observations.
        plant: The plant, with the reward that is to be maximised.
        eps: Radius of the errors, in observation units over those of the scale; greater than zero.
        norm: "l2" or "linf", over the components of one observation.
        scale: d, one positive number per observation component, in its unit; None for ones.
        steps: Optimiser steps, rounded up to whole windows.
        learning_rate: First step size of Adam. For a policy with a bound gamma the function moves in proportion to
            gamma, so that a small bound takes a larger step than a large one.
        episodes: E, episodes simulated side by side.
        attacked_share: Share w of the episodes that are attacked, in (0, 1].
        window: H, steps through which gradients flow; at most the plant's horizon.
        advance: Steps by which the episodes move on after each window, at most H.
        moves: Steps of both players per window.
        step_fraction: Length of one move of an error over eps.
        validations: Number of validations after the first one.
        validation_episodes: Episodes of each.
        nominal_tolerance: Loss of nominal return that is accepted, over the size of the nominal return at first.
        vec_env: The vector environment whose `VecNormalize`, if any, feeds the policy; its present statistics are
            used. None for the environment of the model.
        seed: Seed of start states and errors. On one machine and with one number of threads the result is the same to
            the last bit.
        progress: Whether to show a progress bar.

    Returns:
        The validations, and which of them the policy is now.

    Raises:
        InvalidArgumentError: If a setting is out of its range, or a part of the policy is no plain network.
        UnsupportedSpaceError: If the actions are discrete.
        ShapeError: If policy and plant differ in their numbers of observations or actions.
        NonFiniteError: If a tenth of the gradients, or a state in a validation, is not finite. The policy then has the
            best weights before that.

    Example:
        >>> from stable_baselines3 import PPO
        >>> from robustnn.envs import Pendulum
        >>> model = PPO("MlpPolicy", "robustnn.envs:robustnn/PendulumSwingUp-v0", device="cpu")
        >>> tuning = robust_fine_tune(model, Pendulum(), eps=0.3, steps=2, episodes=4, validations=1)
        >>> tuning.steps
        2
    """
    check_plant(plant)
    ball = Ball(check_positive("eps", eps), norm, scale)
    ball.check_components(plant.n_y)
    window = check_positive_int("window", window)
    settings = GameSettings(
        episodes=check_positive_int("episodes", episodes),
        attacked=max(1, round(_fraction("attacked_share", attacked_share) * episodes)),
        window=_at_most("window", window, "the plant's horizon", plant.horizon),
        advance=_at_most("advance", check_positive_int("advance", advance), "window", window),
        moves=check_positive_int("moves", moves),
        step_fraction=check_positive("step_fraction", step_fraction),
    )
    rounds = -(-check_positive_int("steps", steps) // settings.moves)
    validations = min(check_positive_int("validations", validations), rounds)
    if vec_env is None and hasattr(model, "get_env"):
        vec_env = model.get_env()
    live = LiveMap(model, vec_env, clip_leak=CLIP_LEAK)
    _check_sizes(live, plant)
    judge = _Judge(
        live,
        plant,
        ball,
        check_positive_int("validation_episodes", validation_episodes),
        check_nonnegative("nominal_tolerance", nominal_tolerance),
    )
    climber = _Climber(live, check_positive("learning_rate", learning_rate), rounds * settings.moves, window)
    game = Game(plant, ball, settings, check_positive_int("seed", seed, minimum=0), live.parameters[0])
    marks = {round(rounds * k / validations) for k in range(1, validations + 1)}
    judge.validate(0)
    try:
        for played in tqdm(range(1, rounds + 1), disable=not progress, desc="robust fine-tuning"):
            game.play(live, climber.improve)
            if played in marks:
                judge.validate(climber.steps)
    finally:
        judge.restore()
    return RobustFineTuning(tuple(judge.trials), judge.trials[judge.best], climber.steps, climber.skipped)


class _Climber:
    """Takes the policy's steps."""

    def __init__(self, live: LiveMap, learning_rate: float, total: int, window: int) -> None:
        self.parameters, self.total, self.window = live.parameters, total, window
        self.optimiser = torch.optim.Adam(self.parameters, lr=learning_rate)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimiser, lambda k: max(1.0 - k / total, 0.0))
        self.steps = self.skipped = 0

    def improve(self, returns: Tensor, errors: Tensor) -> None:
        """Raise the mean return per step of a window."""
        self.optimiser.zero_grad()
        (-returns.mean() / self.window).backward(inputs=[*self.parameters, errors])
        length = torch.nn.utils.clip_grad_norm_(self.parameters, GRADIENT_LIMIT)
        self.steps += 1
        if bool(length.isfinite()):
            self.optimiser.step()
        else:
            self.skipped += 1
            if 10 * self.skipped >= self.total:
                raise NonFiniteError(
                    f"gradient: expected finite entries, got NaN or infinity in {self.skipped} of {self.steps} steps. "
                    "Shorten the window, or start from a policy that keeps the plant in its bounds."
                )
        self.schedule.step()


class _Judge:
    """Validates the policy and keeps the best weights."""

    def __init__(self, live: LiveMap, plant: Plant, ball: Ball, episodes: int, tolerance: float) -> None:
        self.live, self.plant, self.tolerance = live, plant, tolerance
        self.seeds = range(VALIDATION_SEED, VALIDATION_SEED + episodes)
        self.attack = TrajectoryAttack(
            ball.eps, ball.norm, ball.scale, replan=25, iterations=20, warm_iterations=10,
            method="steepest", refine=10,
        )  # fmt: skip
        self.trials: list[RobustTrial] = []
        self.best = 0
        self.weights: list[Tensor] = []

    def validate(self, step: int) -> None:
        """Take the two returns, and the weights if they are the best."""
        policy = self.live.detached()
        nominal, attacked = (
            float(evaluate(policy, self.plant, perturbation, seeds=self.seeds).mean)
            for perturbation in (None, self.attack)
        )
        self.trials.append(RobustTrial(step, nominal, attacked))
        least = self.trials[0].nominal - self.tolerance * abs(self.trials[0].nominal)
        if not self.weights or (nominal >= least and attacked >= self.trials[self.best].attacked):
            self.best = len(self.trials) - 1
            self.weights = [p.detach().clone() for p in self.live.parameters]

    def restore(self) -> None:
        """Give the policy the best weights."""
        with torch.no_grad():
            for parameter, weight in zip(self.live.parameters, self.weights, strict=True):
                parameter.copy_(weight)
                parameter.grad = None


def _check_sizes(live: LiveMap, plant: Plant) -> None:
    got, expected = live.sizes, (plant.n_y, plant.n_u)
    if got != expected:
        raise ShapeError(
            f"model: expected {expected[0]} observations and {expected[1]} actions, as the plant has, got {got[0]} and "
            f"{got[1]}. Pass the plant that the policy was trained on; stacked frames are not supported."
        )


def _fraction(name: str, value: float) -> float:
    if not 0.0 < check_positive(name, value) <= 1.0:
        raise invalid(name, "a share in (0, 1]", value, "Use 0.75.")
    return float(value)


def _at_most(name: str, value: int, what: str, limit: int) -> int:
    if value > limit:
        raise invalid(name, f"at most {what} = {limit}", value, "Lower it.")
    return value
