r"""Penalties on how fast a policy's action changes, inside the training loss of any Stable-Baselines3 algorithm.

===============  ==========================================================================================
`CAPS`           $\lambda_T \|\mu(o_t) - \mu(o_{t+1})\| + \lambda_S \|\mu(o) - \mu(o')\|$, $o' \sim N(o, \sigma^2)$
`SARegulariser`  $\kappa \max_{\|\delta / d\| \le \epsilon} D(\mu(o), \mu(o + \delta))$
===============  ==========================================================================================

$\mu$ is the mean action: before clipping in the units of the action space, or behind tanh in units of half the action
range. o is what the policy receives, that is normalised where there is a `VecNormalize`. A penalty makes large gains
expensive where the policy goes, and proves nothing; a bound by construction holds everywhere.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from robustnn.closedloop.attacks import SteepestSteps, descend
from robustnn.closedloop.ball import Ball, Norm
from robustnn.errors import check_nonnegative, check_positive, check_positive_int, invalid
from robustnn.policies.action_map import ActionMap

__all__ = ["CAPS", "MeanAction", "Penalty", "SARegulariser", "penalty_from_config"]


@dataclass(frozen=True, eq=False)
class MeanAction:
    """The mean action of a policy, with the graph to its parameters and without.

    Attributes:
        live: The map of the present parameters, with a graph.
        std: Standard deviation of the exploration, (n_act,), where it does not depend on the observation; else None.
    """

    live: ActionMap
    std: Tensor | None = None

    def __call__(self, observation: Tensor) -> Tensor:
        """Return mean actions (batch, n_act) of observations (batch, n_obs)."""
        output = self.live.network(observation)
        if self.live.mean_clip is not None:
            output = output.clamp(-self.live.mean_clip, self.live.mean_clip)
        return output.tanh() if self.live.squash else output

    def detached(self) -> MeanAction:
        """Return the same function by value."""
        return replace(self, live=replace(self.live, network=self.live.network.detach()))


class Penalty(ABC):
    """A term of the actor's loss, by value."""

    name: ClassVar[str]

    @abstractmethod
    def __call__(
        self, mean: MeanAction, observations: Tensor, following: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Return the penalty.

        Args:
            mean: The policy.
            observations: Visited ones, shape (batch, n_obs).
            following: The observations one step later, shape (batch, n_obs).
            generator: Source of random numbers, on the CPU.

        Returns:
            Shape (), with the graph to the parameters of the policy.
        """

    def describe(self) -> dict[str, Any]:
        """Return name and parameters as plain JSON values, the format of `penalty_from_config`."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return {"name": self.name, **{k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}}


@dataclass(frozen=True)
class CAPS(Penalty):
    r"""Conditioning for action policy smoothness (Mysore et al., ICRA 2021, arXiv 2012.06644, equations 2 to 4).

    $$\lambda_T \|\mu(o_t) - \mu(o_{t+1})\|_2 + \lambda_S \|\mu(o) - \mu(o')\|_2, \qquad
      o' \sim N(o, \mathrm{diag}(\sigma d)^2)$$

    averaged over the batch. Steps from the end of an episode to the start of the next do not count.

    Args:
        temporal: $\lambda_T$ >= 0.
        spatial: $\lambda_S$ >= 0.
        sigma: Standard deviation of the draws, in observation units over those of the scale.
        scale: d, one positive number per observation component; None for ones.

    Raises:
        InvalidArgumentError: If a weight is negative or a scale not positive.

    Example:
        >>> CAPS(temporal=0.01, spatial=0.05, sigma=0.1).describe()["spatial"]
        0.05
    """

    temporal: float = 0.0
    spatial: float = 0.0
    sigma: float = 0.05
    scale: Sequence[float] | None = None
    name: ClassVar[str] = "caps"

    def __post_init__(self) -> None:
        """Check the arguments."""
        for field in ("temporal", "spatial", "sigma"):
            object.__setattr__(self, field, check_nonnegative(field, getattr(self, field)))
        object.__setattr__(self, "scale", Ball(0.0, "l2", self.scale).scale)

    def __call__(
        self, mean: MeanAction, observations: Tensor, following: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Return the penalty; see `Penalty`."""
        here = mean(observations)
        total = here.new_zeros(())
        if self.temporal:
            total = total + self.temporal * _length(here - mean(following)).mean()
        if self.spatial:
            weights = Ball(self.sigma, "l2", self.scale)
            weights.check_components(observations.shape[-1])
            shift = weights.to_observation(self.sigma * _normal(observations, generator))
            total = total + self.spatial * _length(here - mean(observations + shift)).mean()
        return total


@dataclass(frozen=True)
class SARegulariser(Penalty):
    r"""The smooth policy regulariser of state-adversarial training (Zhang et al., NeurIPS 2020, arXiv 2003.08938).

    $$\kappa \, \mathrm{mean}_o \max_{\|\delta / d\| \le \epsilon} D(\mu(o), \mu(o + \delta))$$

    with D the Kullback-Leibler divergence of two Gaussians of one standard deviation $\sigma$ (a constant here),
    $\|(\mu - \mu') / \sigma\|^2 / 2$, as in their PPO, or $\|\mu - \mu'\|_2$, as in their DDPG. The maximum is sought
    by projected gradient ascent from random points of the surface.

    Args:
        weight: $\kappa$ >= 0.
        eps: Radius, in observation units over those of the scale.
        norm: "l2" or "linf".
        scale: d, one positive number per observation component; None for ones.
        divergence: "kl" (PPO and A2C without gSDE only) or "l2".
        iterations: Gradient steps of the inner maximisation.
        step_fraction: Length of such a step over eps.

    Raises:
        InvalidArgumentError: If an argument is out of its range.

    Example:
        >>> SARegulariser(weight=0.1, eps=0.1, divergence="l2").norm
        'l2'
    """

    weight: float
    eps: float
    norm: Norm = "l2"
    scale: Sequence[float] | None = None
    divergence: Literal["kl", "l2"] = "kl"
    iterations: int = 5
    step_fraction: float = 0.5
    name: ClassVar[str] = "sa"

    def __post_init__(self) -> None:
        """Check the arguments."""
        ball = Ball(self.eps, self.norm, self.scale)
        object.__setattr__(self, "weight", check_nonnegative("weight", self.weight))
        object.__setattr__(self, "eps", ball.eps)
        object.__setattr__(self, "scale", ball.scale)
        object.__setattr__(self, "iterations", check_positive_int("iterations", self.iterations))
        object.__setattr__(self, "step_fraction", check_positive("step_fraction", self.step_fraction))
        if self.divergence not in ("kl", "l2"):
            raise invalid("divergence", "'kl' or 'l2'", repr(self.divergence), "Choose one of these.")

    def __call__(
        self, mean: MeanAction, observations: Tensor, following: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Return the penalty; see `Penalty`."""
        moved = observations + self.worst(mean.detached(), observations, generator)
        change = (mean(observations) - mean(moved)) / self._unit(mean)
        if self.divergence == "kl":
            return self.weight * 0.5 * change.square().sum(-1).mean()
        return self.weight * _length(change).mean()

    def worst(self, mean: MeanAction, observations: Tensor, generator: torch.Generator) -> Tensor:
        """Return the perturbations of largest change that were found, shape (batch, n_obs), without graph.

        Args:
            mean: The policy by value.
            observations: Shape (batch, n_obs).
            generator: Source of the starting points.
        """
        ball, unit = Ball(self.eps, self.norm, self.scale), self._unit(mean)
        ball.check_components(observations.shape[-1])
        with torch.no_grad():
            nominal = mean(observations)

        def cost(z: Tensor) -> Tensor:
            return -((mean(observations + ball.to_observation(z)) - nominal) / unit).square().sum(-1)

        start = ball.surface_sample(_normal(observations, generator))
        z, _, _ = descend(cost, start, SteepestSteps(ball, self.step_fraction), self.iterations)
        return ball.to_observation(z)

    def _unit(self, mean: MeanAction) -> Tensor | float:
        if self.divergence == "l2":
            return 1.0
        if mean.std is None:
            raise invalid(
                "divergence", "'l2' for a policy whose standard deviation depends on the observation, or that has none",
                "'kl'", "Pass divergence='l2'.",
            )  # fmt: skip
        return mean.std


_PENALTIES: dict[str, type[Penalty]] = {kind.name: kind for kind in (CAPS, SARegulariser)}


def penalty_from_config(config: Mapping[str, Any]) -> Penalty:
    """Build a penalty from plain values, as `Penalty.describe` returns them.

    Args:
        config: `{"name": "caps" or "sa", parameter: value, ...}`.

    Returns:
        The penalty.

    Raises:
        InvalidArgumentError: If the name or a parameter is unknown.
    """
    if not isinstance(config, Mapping) or config.get("name") not in _PENALTIES:
        raise invalid(
            "penalty", f"a mapping with a name of {sorted(_PENALTIES)}", config, "Correct the name."
        )
    kind = _PENALTIES[config["name"]]
    try:
        return kind(**{key: value for key, value in config.items() if key != "name"})
    except TypeError as error:
        known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
        raise invalid(f"penalty {kind.name!r}", f"parameters {known}", sorted(config), str(error)) from error


def _length(change: Tensor) -> Tensor:
    """Euclidean norm over the components, of derivative zero at zero."""
    return torch.linalg.vector_norm(change, dim=-1)


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal draws of the shape and on the device of a tensor; the same on every device."""
    return torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device)
