"""The Gaussian of SB3 with one check of its mean in place of torch's checks of every argument."""

from __future__ import annotations

import torch
from stable_baselines3.common.distributions import DiagGaussianDistribution
from torch import Tensor
from torch.distributions import Normal

from robustnn.errors import NonFiniteError

__all__ = ["CheckedGaussian"]


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
        if not bool(mean_actions.isfinite().all()):
            raise NonFiniteError(
                "mean action: expected finite entries, got NaN or infinity. An observation is not finite or too "
                "large for its dtype, or training diverged: check the environment, or lower the learning rate."
            )
        std = torch.ones_like(mean_actions) * log_std.exp()
        self.distribution = Normal(mean_actions, std, validate_args=False)
        return self
