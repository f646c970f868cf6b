"""SB3's action distributions: a Gaussian with cheaper checks, and copies without a graph."""

from __future__ import annotations

import copy
import math

import torch
from stable_baselines3.common.distributions import DiagGaussianDistribution, Distribution
from torch import Tensor
from torch.distributions import Normal

from robustnn.errors import NonFiniteError

__all__ = ["CheckedGaussian", "without_graph"]


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


def without_graph(action_dist: Distribution) -> Distribution:
    """Return a copy of an action distribution that holds no graph and no distribution of the last batch.

    Args:
        action_dist: SB3's object, which is given new parameters before every use.

    Returns:
        A shallow copy.
    """
    result = copy.copy(action_dist)
    for name, value in vars(action_dist).items():
        if isinstance(value, torch.distributions.Distribution):
            delattr(result, name)
        elif isinstance(value, Tensor):
            setattr(result, name, value.detach())
    return result
