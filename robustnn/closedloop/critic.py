"""Critic attack: at every step the observation error after which a critic expects least."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from robustnn.closedloop.attacks import repeat_episodes
from robustnn.closedloop.ball import Ball, Norm
from robustnn.closedloop.budget import Budget
from robustnn.closedloop.critics import Critic, Takes
from robustnn.closedloop.parts import check_callable, check_model, describe_part, model_state, planning_policy
from robustnn.closedloop.per_step import PerStepProcess, ball_of, check_per_step, describe_per_step
from robustnn.closedloop.perturb import Loop, Perturbation, Policy, Process
from robustnn.errors import invalid

__all__ = ["CriticAttack"]


@dataclass(frozen=True)
class CriticAttack(Perturbation):
    r"""Projected gradient descent on a critic's value, anew at every step.

    With a critic of actions (SAC, TD3, robust Sarsa) the error after which the policy does the worst thing to do:

    .. math:: \delta_t \approx \arg\min_{\|\delta / d\| \le \epsilon} Q(y_t, \pi(y_t + \delta))

    (Pattanaik et al., AAMAS 2018, as formulated by Zhang et al., NeurIPS 2020: the state in Q is the true one). With
    a critic of discrete actions the same, :math:`\pi` taking the action of the largest logit, and its gradient that
    of the expectation under their softmax. A critic of states alone (PPO, A2C) cannot see the action; there the
    literature shows the policy the observation of least value,

    .. math:: \delta_t \approx \arg\min_{\|\delta / d\| \le \epsilon} V(y_t + \delta)

    which need not change the action for the worse. Where the policy answers bad news by acting more firmly, the error
    even helps it, as with the pendulum of `robustnn.envs`; `show="best"` hides the trouble instead, by the largest
    V(y + delta). With a model, V is asked one step later instead, and the action counts again:

    .. math:: \delta_t \approx \arg\min_{\|\delta / d\| \le \epsilon} V(h(f(x_t, \pi(y_t + \delta))))

    (without the reward of the step, whose unit in training may be another).

    Args:
        eps: Radius, in observation units over those of the scale; zero or greater.
        critic: A `Critic`, or another callable: V(y), or Q(y, a), of raw observations (..., n_y) and actions
            (..., n_u), with values (...); or Q(y) of all discrete actions, with values (..., n_actions).
        norm: "l2" or "linf".
        scale: d, one positive number per observation component; None for ones.
        iterations: Gradient steps per step of the episode.
        step_fraction: Length of a gradient step over eps; `iterations * step_fraction` should exceed 2.
        restarts: Starts; every second one is the opposite of the one before.
        takes: What a callable that is no `Critic` takes: "observation", "action" or "choice".
        show: Of a critic of observations alone: show the policy the "worst" observation (as published) or the "best".
        model: Of a critic of observations alone: the plant, or a model of it as in `TrajectoryAttack`, to ask for the
            value of the next observation; None to ask for that of the present one.
        surrogate: The policy to differentiate in the place of the attacked one; None for that one.

    Raises:
        InvalidArgumentError: If an argument is out of its range.

    Example:
        >>> CriticAttack(0.1, lambda y: y.sum(-1), takes="observation").describe()["takes"]
        'observation'
    """

    eps: float
    critic: Critic | Callable[..., Tensor]
    norm: Norm = "l2"
    scale: Sequence[float] | None = None
    iterations: int = 20
    step_fraction: float = 0.25
    restarts: int = 2
    takes: Takes | None = None
    show: Literal["worst", "best"] = "worst"
    surrogate: Policy | None = None
    model: Any = None
    name: ClassVar[str] = "critic"

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_per_step(self)
        check_callable("critic", self.critic, "Pass critic_of(model), or a callable.")
        if self.surrogate is not None:
            check_callable("surrogate", self.surrogate, "Pass a policy, or None for the attacked one.")
        known = self.critic.takes if isinstance(self.critic, Critic) else None
        takes = self.takes or known
        if takes not in get_args(Takes) or (known is not None and takes != known):
            expected = "'observation', 'action' or 'choice'" if known is None else f"{known!r} or None"
            raise invalid("takes", expected, repr(self.takes), "Say what the critic is a function of.")
        object.__setattr__(self, "takes", takes)
        allowed = ("worst", "best") if takes == "observation" else ("worst",)
        if self.show not in allowed:
            raise invalid("show", " or ".join(map(repr, allowed)), repr(self.show), "Choose one of these.")
        if self.model is not None:
            check_model("model", self.model)
            if takes != "observation" or self.show != "worst":
                fix = "Leave the model out: the critic knows the action."
                raise invalid("model", "None but for takes='observation', show='worst'", takes, fix)

    @property
    def ball(self) -> Ball:
        """The set of admissible perturbations."""
        return ball_of(self)

    def start(self, loop: Loop) -> Process:
        """Return the process of one batch of episodes."""
        return _CriticProcess(self, loop)

    def describe(self) -> dict[str, Any]:
        """Return name and parameters as plain JSON values."""
        parts = {"takes": self.takes, "show": self.show, "critic": describe_part(self.critic)}
        for name in ("surrogate", "model"):
            if getattr(self, name) is not None:
                parts[name] = describe_part(getattr(self, name))
        return {"name": self.name, **describe_per_step(self), **parts}

    def budget(self, steps: int) -> Budget:
        """Return what an episode of so many steps costs."""
        count = steps * self.iterations * self.restarts
        if self.model is not None:
            return Budget(policy=count, plant=count, critic=count)
        if self.takes == "observation":
            return Budget(critic=count)
        # Values of discrete actions at the true observation are constants.
        return Budget(policy=count, critic=count if self.takes == "action" else 0)


class _CriticProcess(PerStepProcess):
    objective: ClassVar[str] = "value of the critic"

    def __init__(self, attack: CriticAttack, loop: Loop) -> None:
        super().__init__(attack, loop)
        self._takes, self._model, self._restarts = attack.takes, attack.model, attack.restarts
        self.sign = 1.0 if attack.show == "worst" else -1.0
        self._policy = planning_policy(loop, attack.surrogate)
        critic = attack.critic
        self._critic = critic.to(loop.device, loop.dtype) if isinstance(critic, Critic) else critic

    def cost(self, observation: Tensor) -> Callable[[Tensor], Tensor]:
        if self._model is not None:
            return self._value_ahead(observation)
        if self._takes == "observation":
            return lambda seen: self.sign * self._critic(seen)
        if self._takes == "action":
            return lambda seen: self._critic(observation, self._policy(seen))
        with torch.no_grad():
            values = self._critic(observation)
        return lambda seen: _value_of_choice(values, self._policy(seen))

    def _value_ahead(self, observation: Tensor) -> Callable[[Tensor], Tensor]:
        model = self._model
        if hasattr(model, "state_of"):
            begin = model.state_of(observation)
        else:
            begin = repeat_episodes(model_state(model, self._state, observation), self._restarts).detach()
        return lambda seen: self._critic(model.observation(model.transition(begin, self._policy(seen))))


def _value_of_choice(values: Tensor, logits: Tensor) -> Tensor:
    """Value of the action with the largest logit, with the gradient of the value expected under their softmax.

    Args:
        values: Shape (..., n_actions).
        logits: Shape (..., n_actions), or Q-values; brought to unit spread, so that the softmax is soft.

    Returns:
        Shape (...).
    """
    spread = logits.detach().std(dim=-1, keepdim=True, correction=0)
    shares = (logits / spread.clamp_min(torch.finfo(logits.dtype).tiny)).softmax(dim=-1)
    expected = (shares * values).sum(-1)
    chosen = values.gather(-1, logits.argmax(-1, keepdim=True)).squeeze(-1)
    return chosen + (expected - expected.detach())
