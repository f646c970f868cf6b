"""SB3's action distributions: a Gaussian with cheaper checks, and copies without a graph."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import torch
from stable_baselines3.common.distributions import (
    DiagGaussianDistribution,
    Distribution,
    SquashedDiagGaussianDistribution,
    StateDependentNoiseDistribution,
)
from torch import Tensor
from torch.distributions import Normal

from robustnn.errors import NonFiniteError

__all__ = ["CheckedGaussian", "copyable", "without_graph"]

AnyDistribution = TypeVar("AnyDistribution", bound=Distribution)


class CheckedGaussian(DiagGaussianDistribution):
    """Diagonal Gaussian over actions whose mean is checked once.

    torch validates mean, standard deviation and sample at every use, which takes as long as a forward pass
    of a small network. What can go wrong here is the mean.

    Args:
        action_dim: Number of action components.
    """

    def proba_distribution(self, mean_actions: Tensor, log_std: Tensor) -> CheckedGaussian:
        """Set mean and standard deviation.

        Args:
            mean_actions: Shape (batch, n_act), in the units of the action space.
            log_std: Shape (n_act,), logarithm of the standard deviation.

        Returns:
            This distribution.

        Raises:
            NonFiniteError: If a mean is NaN or infinite.
        """
        if not math.isfinite(float(mean_actions.detach().sum())) and not bool(mean_actions.isfinite().all()):
            raise NonFiniteError(
                "mean action: expected finite entries, got NaN or infinity. An observation is not finite or too "
                "large for its dtype, or training diverged: check the environment, or lower the learning rate."
            )
        std = torch.ones_like(mean_actions) * log_std.exp()
        self.distribution = Normal(mean_actions, std, validate_args=False)
        return self


def without_graph(action_dist: AnyDistribution) -> AnyDistribution:
    """Return a copy of an action distribution that holds no graph and no distribution of the last batch.

    Args:
        action_dist: SB3's object, which is given new parameters before every use.

    Returns:
        A shallow copy.
    """
    return _with_state(type(action_dist), _state_without_graph(action_dist))


def _with_state(kind: type[AnyDistribution], state: dict[str, Any]) -> AnyDistribution:
    result = kind.__new__(kind)
    vars(result).update(state)
    return result


def _state_without_graph(action_dist: Distribution) -> dict[str, Any]:
    state = {}
    for name, value in vars(action_dist).items():
        if isinstance(value, torch.distributions.Distribution):
            continue
        if isinstance(value, list):  # one distribution per component
            value = [item for item in value if not isinstance(item, torch.distributions.Distribution)]
        state[name] = value.detach() if isinstance(value, Tensor) else value
    return state


class _Copyable(Distribution):
    """A distribution that is copied and pickled without its graph: an actor of SB3 holds one."""

    def __getstate__(self) -> dict[str, Any]:
        return _state_without_graph(self)


class _SquashedGaussian(_Copyable, SquashedDiagGaussianDistribution):
    pass


class _StateDependentNoise(_Copyable, StateDependentNoiseDistribution):
    pass


_COPYABLE: dict[type, type[_Copyable]] = {
    SquashedDiagGaussianDistribution: _SquashedGaussian,
    StateDependentNoiseDistribution: _StateDependentNoise,
}


def copyable(action_dist: Distribution) -> Distribution:
    """Return the action distribution of an SB3 actor in a form that can be copied after training.

    Args:
        action_dist: SB3's object, squashed Gaussian or gSDE.

    Returns:
        An object with its settings.
    """
    return _with_state(_COPYABLE[type(action_dist)], vars(action_dist))
