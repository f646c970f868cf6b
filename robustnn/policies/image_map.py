"""The whole deterministic predict path of a policy of images, by value."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from robustnn.errors import UnsupportedSpaceError
from robustnn.params.conv_explicit import ExplicitCNN
from robustnn.policies.action_map import ActionMap, choices_of

__all__ = ["ImageMap", "cnn_sha256", "image_map"]


@dataclass(frozen=True, eq=False)
class ImageMap(ActionMap):
    r"""The whole deterministic predict path of a policy of images by value: from raw pixels to the action.

    $$\pi(o) = \text{clip}(f(o / 255))$$

    with the convolutional network f, or its scores for discrete actions. It is differentiable, takes any real numbers
    for pixels, and is what the bound speaks of.

    Attributes:
        network: Explicit weights, pixels from black (0) to white (1) -> mean action, logits or Q-values.
        white: What raw pixels are divided by: 255, or 1 where the policy does not scale images.

    Example:
        >>> policy_map = action_map(model.policy)  # doctest: +SKIP
        >>> policy_map(torch.as_tensor(frames).double())  # (batch, channels, height, width)  # doctest: +SKIP
    """

    network: ExplicitCNN  # type: ignore[assignment]
    white: float = 255.0

    def __call__(self, observation: Tensor) -> Tensor:
        """Return the deterministic actions (or the logits or Q-values) of raw images.

        Args:
            observation: Shape (..., channels, height, width), raw pixels, in the dtype of the weights.

        Returns:
            Shape (..., n_act), in the units of the action space.
        """
        return super().__call__(observation / self.white)

    @property
    def network_sha256(self) -> str:
        """Digest of the weights and of what is done with pixels and outputs; that of `Bound.network_sha256`."""
        found = hashlib.sha256(f"robustnn image map 2 {self.white!r} {self.kind} {self.choices}".encode())
        for limit in (self.low, self.high):
            if limit is not None:
                found.update(limit.detach().cpu().double().numpy().astype("<f8").tobytes())
        found.update(cnn_sha256(self.network).encode())
        return found.hexdigest()

    @staticmethod
    def stack(maps: Sequence[ActionMap]) -> ActionMap:
        """Refuse: convolutional networks are not evaluated together.

        Raises:
            UnsupportedSpaceError: Always.
        """
        raise UnsupportedSpaceError(
            f"maps: expected policies of vectors, got {len(maps)} of images. Evaluate them one by one."
        )


def image_map(policy: Any, *, dtype: torch.dtype = torch.float64) -> ImageMap:
    """Return the deterministic predict path of a policy of images by value.

    Args:
        policy: An `LBDNCnnPolicy` or `LBDNCnnDQNPolicy`.
        dtype: Dtype of the result; float64 evaluates the float32 weights without further rounding.

    Returns:
        Raw images with their channels first -> what `predict(..., deterministic=True)` returns, or the logits or
        Q-values that it compares, on the policy's device, without graph.
    """
    space = policy.action_space
    with torch.no_grad():
        network = policy.lbdn.explicit().to(dtype=dtype)
    white = 255.0 if policy.normalize_images else 1.0
    if isinstance(space, spaces.Box):
        low, high = (
            torch.from_numpy(np.array(limit, dtype=np.float64).reshape(-1))
            for limit in (space.low, space.high)
        )
        found = ImageMap(network, low=low, high=high, white=white)
    else:
        kind, choices = choices_of(space, policy.lbdn.out_features)
        found = ImageMap(network, kind=kind, choices=choices, white=white)
    return found.to(network.weights[0].device, dtype)  # type: ignore[return-value]


def cnn_sha256(network: ExplicitCNN) -> str:
    """Digest of a convolutional network by value: stages with their settings, and weights in float64.

    Args:
        network: The network.

    Returns:
        64 hexadecimal digits.
    """
    found = hashlib.sha256(f"{network.in_channels} {network.image_size}".encode())
    for stage in network.stages:
        tensors = stage.tensors()
        settings = sorted(
            (k, repr(v)) for k, v in vars(stage).items() if isinstance(v, (int, str, float, tuple))
        )
        found.update(f"{type(stage).__name__} {settings}".encode())
        for name, tensor in tensors.items():
            found.update(f"{name} {tuple(tensor.shape)}".encode())
            found.update(tensor.detach().cpu().double().contiguous().numpy().astype("<f8").tobytes())
    return found.hexdigest()
