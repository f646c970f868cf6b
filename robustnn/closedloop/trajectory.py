"""Trajectory attack: observation errors optimised through the differentiable plant and policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from robustnn.closedloop.ball import Ball, Norm
from robustnn.closedloop.budget import Budget
from robustnn.closedloop.parts import check_callable, check_model, describe_part
from robustnn.closedloop.perturb import Loop, Perturbation, Policy, Process
from robustnn.closedloop.planner import TrajectoryProcess
from robustnn.errors import check_positive, check_positive_int, invalid

__all__ = ["TrajectoryAttack"]


@dataclass(frozen=True)
class TrajectoryAttack(Perturbation):
    r"""Minimise the reward over a horizon by gradients through plant and policy, window by window.

    .. math:: \min_{\delta_0, \ldots, \delta_{H-1}} \sum_{t<H} r_t \;\text{ or }\; r_{H-1}
        \quad\text{s.t.}\quad x_{t+1} = f(x_t, \pi(h(x_t) + \delta_t)),\; \|\delta_t / d\| \le \epsilon

    The attacker knows the true state. It optimises a window of `horizon` steps, applies the first `replan` of
    them, and repeats from the state reached. With `keep_best` every episode keeps its best iterate in each
    window, and over the whole episode the attack is never weaker than no perturbation, nor than
    `UniformBall` noise of the same size and seeds.

    Args:
        eps: Radius, in observation units over those of the scale; zero or greater.
        norm: "l2" or "linf", over the components of one observation.
        scale: d, one positive number per observation component; None for ones.
        horizon: H, steps per window.
        replan: Steps applied before the next window is optimised; None for the whole window. A shorter one
            starts the next window from what is left of the plan.
        iterations: Gradient steps per window.
        warm_iterations: Gradient steps of windows that start from the rest of a plan; None for `iterations`.
        method: "adam" (for l2 on free vectors that are scaled to length eps, for linf on the cube);
            "steepest" takes steps along the momentum of each observation's normalised gradient, shortened
            along a cosine, and projects.
        lr: Step size of "adam", in the units of eps.
        step_fraction: First step of "steepest" over eps.
        objective: "sum" of the rewards of the window, or its "final" one.
        keep_best: Use the best iterate instead of the last one.
        restarts: Random starts per window, every second one opposite to the one before; the best is used.
        refine: Gradient steps on the perturbations of the whole episode at once, by "steepest" with half the
            `step_fraction`, after all windows; needs `keep_best`, and neither model nor surrogate.
        model: What the attacker plans with in the place of the plant: the plant with other parameters, or a learned
            model, of the plant's states, or of states of its own that its method `state_of(observation)` gives.
            It has the methods `transition`, `observation`, `reward` and `terminal` of a plant, and n_x. Every
            window is planned from the state that was really reached, and the promise above is lost. The plant
            itself is then only simulated and needs no gradients. None for the plant.
        surrogate: The policy the attacker plans with; None for the attacked one.

    Raises:
        InvalidArgumentError: If an argument is out of its range.

    Example:
        >>> TrajectoryAttack.paper(0.15).objective
        'final'
    """

    eps: float
    norm: Norm = "l2"
    scale: Sequence[float] | None = None
    horizon: int = 50
    replan: int | None = None
    iterations: int = 60
    warm_iterations: int | None = None
    method: Literal["adam", "steepest"] = "adam"
    lr: float = 2e-2
    step_fraction: float = 0.1
    objective: Literal["final", "sum"] = "sum"
    keep_best: bool = True
    restarts: int = 1
    refine: int = 0
    model: Any = None
    surrogate: Policy | None = None
    name: ClassVar[str] = "trajectory"

    def __post_init__(self) -> None:
        """Check the arguments."""
        checked = self.ball
        object.__setattr__(self, "eps", checked.eps)
        object.__setattr__(self, "scale", checked.scale)
        for field in ("horizon", "iterations", "restarts"):
            object.__setattr__(self, field, check_positive_int(field, getattr(self, field)))
        for field in ("replan", "warm_iterations"):
            if getattr(self, field) is not None:
                object.__setattr__(self, field, check_positive_int(field, getattr(self, field)))
        object.__setattr__(self, "refine", check_positive_int("refine", self.refine, minimum=0))
        for field in ("lr", "step_fraction"):
            object.__setattr__(self, field, check_positive(field, getattr(self, field)))
        if self.replan is not None and self.replan > self.horizon:
            raise invalid("replan", f"at most horizon = {self.horizon}", self.replan, "Lower it.")
        if self.objective not in ("final", "sum"):
            raise invalid("objective", "'final' or 'sum'", repr(self.objective), "Choose one of these.")
        if self.method not in ("adam", "steepest"):
            raise invalid("method", "'adam' or 'steepest'", repr(self.method), "Choose one of these.")
        if self.refine and not self.keep_best:
            raise invalid("refine", "0 without keep_best", self.refine, "Set keep_best=True.")
        if self.refine and not (self.model is None and self.surrogate is None):
            raise invalid(
                "refine", "0 with a model or surrogate", self.refine, "Whole episodes are not predicted."
            )
        if self.surrogate is not None:
            check_callable("surrogate", self.surrogate, "Pass a policy, or None for the attacked one.")
        if self.model is not None:
            check_model("model", self.model)

    @classmethod
    def paper(cls, eps: float, norm: Norm = "l2", scale: Sequence[float] | None = None) -> TrajectoryAttack:
        """Return the attack of arXiv 2405.11432: final reward, 20 Adam steps of 8e-3, last iterate.

        Args:
            eps: Length of every perturbation.
            norm: "l2" as published, or "linf".
            scale: One positive number per observation component; None for ones.
        """
        return cls(eps, norm, scale, iterations=20, lr=8e-3, objective="final", keep_best=False)

    @classmethod
    def strong(cls, eps: float, norm: Norm = "l2", scale: Sequence[float] | None = None) -> TrajectoryAttack:
        """Return the stronger setting: sum of rewards, 60 Adam steps of 2e-2, best iterate of each episode.

        Every 25 steps the next 50 are optimised, so that a window's end does not count as the end of time.

        Args:
            eps: Length of every perturbation.
            norm: "l2" or "linf".
            scale: One positive number per observation component; None for ones.
        """
        return cls(eps, norm, scale, replan=25, iterations=60, lr=2e-2, objective="sum", keep_best=True)

    @classmethod
    def strongest(
        cls, eps: float, norm: Norm = "l2", scale: Sequence[float] | None = None
    ) -> TrajectoryAttack:
        """Return the setting that did most damage per second: overlapping windows, then the whole episode.

        Args:
            eps: Largest length of a perturbation.
            norm: "l2" or "linf".
            scale: One positive number per observation component; None for ones.
        """
        return cls(
            eps, norm, scale, replan=10, iterations=60, warm_iterations=12, method="steepest", refine=60
        )

    @property
    def ball(self) -> Ball:
        """The set of admissible perturbations."""
        return Ball(self.eps, self.norm, self.scale)

    def describe(self) -> dict[str, Any]:
        """Return name and parameters as plain JSON values."""
        fields = ("horizon", "replan", "iterations", "warm_iterations", "method", "lr")
        more = ("step_fraction", "objective", "keep_best", "restarts", "refine")
        parts = {name: describe_part(part) for name, part in self._substitutes.items()}
        return {
            "name": self.name,
            **self.ball.describe(),
            **{field: getattr(self, field) for field in (*fields, *more)},
            **parts,
        }

    @property
    def _substitutes(self) -> dict[str, Any]:
        parts = {"model": self.model, "surrogate": self.surrogate}
        return {name: part for name, part in parts.items() if part is not None}

    def window(self, begin: int, steps: int) -> tuple[int, int]:
        """Return the length of the window that begins with a step, and how many of its steps are applied."""
        length = min(self.horizon, steps - begin)
        return length, length if begin + length == steps else min(self.replan or length, length)

    def iterations_of(self, warm: bool) -> int:
        """Return the gradient steps of a window, warm if it starts from the rest of a plan."""
        return self.iterations if self.warm_iterations is None or not warm else self.warm_iterations

    def budget(self, steps: int) -> Budget:
        """Return what an episode of so many steps costs."""
        count, begin, warm = 0, 0, False
        while begin < steps:
            length, applied = self.window(begin, steps)
            count += length * self.iterations_of(warm) * self.restarts
            begin, warm = begin + applied, applied < length
        count = count + steps * self.refine if self.eps > 0.0 else 0
        return Budget(policy=count, plant=count)

    def start(self, loop: Loop) -> Process:
        """Return the process of one batch of episodes."""
        self.ball.check_components(loop.plant.n_y)
        return TrajectoryProcess(self, loop)
