"""Upper bounds of the Lipschitz constant of an ordinary network, from its weights."""

from __future__ import annotations

import math

from robustnn.errors import invalid
from robustnn.linalg import spectral_norm
from robustnn.params.activations import ACTIVATIONS
from robustnn.params.explicit import ExplicitMLP

__all__ = ["product_bound"]


def product_bound(network: ExplicitMLP) -> float:
    r"""Product of the spectral norms of the weights and the largest slopes of the activations.

    $$\mathrm{Lip}(f) \le s_{max}^{L} \prod_{k=0}^{L} \|W_k\|_2$$

    Valid for every network and loose for deep ones: it lets every layer amplify the same direction at once.

    Args:
        network: A single network by value.

    Returns:
        The bound in the plain l2 norm, computed in float64.

    Raises:
        InvalidArgumentError: If the network is a stack.

    Example:
        >>> import torch
        >>> product_bound(ExplicitMLP((2 * torch.eye(2), 3 * torch.eye(2)), (None, None), "relu"))
        6.0
    """
    if network.weights[0].ndim != 2:
        raise invalid("network", "a single network", "a stack", "Bound its members one by one.")
    slope = ACTIVATIONS[network.activation].slope_max ** (len(network.weights) - 1)
    return slope * math.prod(float(spectral_norm(weight.detach())) for weight in network.weights)
