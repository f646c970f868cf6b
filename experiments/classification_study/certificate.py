r"""Certified radii of a trained classifier, from its weights as they are rounded to float32, in float64.

The score of class j is $z_j$, the bound of the network gamma. Without a last normalised layer
$|(z_i - z_j)(x) - (z_i - z_j)(x')| \le \sqrt2 \gamma \|x - x'\|_2$; with rows w_j of the last layer it is
$\|w_i - w_j\| \gamma \|x - x'\|_2$. The decision for i stands within the smallest margin over these factors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from experiments.classification_study.networks import Classifier, scores
from robustnn.bounds import certify_cnn

# Margins are reduced by this share of the largest score, far above what rounding in float64 adds.
_SLACK = 1e-11


@dataclass(frozen=True, eq=False)
class ExactClassifier:
    """A trained classifier by value, with its proved bound.

    Attributes:
        network: From shifted pixels to features.
        mean: Shift of every channel.
        rows: Weight of the last layer, (n_classes, n_features), or None.
        bias: Its bias, or None.
        declared: Bound of the network by construction; infinite for the one without.
        proved: Bound that is proved from the weights.
    """

    network: Callable[[Tensor], Tensor]
    mean: Tensor
    rows: Tensor | None
    bias: Tensor | None
    declared: float
    proved: float

    @property
    def bound(self) -> float:
        """The smaller of the two bounds."""
        return min(self.declared, self.proved)

    def __call__(self, x: Tensor) -> Tensor:
        """Return the scores of pixels, shape (b, n_classes)."""
        return scores(self.network(x - self.mean), self.rows, self.bias)

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> ExactClassifier:
        """Return a copy on another device or in another dtype."""

        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device=device, dtype=dtype)

        network = self.network.to(device=device, dtype=dtype)  # type: ignore[attr-defined]
        mean = self.mean.to(device=device, dtype=dtype)
        return ExactClassifier(network, mean, move(self.rows), move(self.bias), self.declared, self.proved)

    def radii(self, x: Tensor, labels: Tensor, *, proved: bool = True) -> Tensor:
        """Return how far every image may move in l2 while its label stays the decision; not positive if it is not.

        Args:
            x: Pixels, shape (b, channels, height, width).
            labels: True classes, shape (b,).
            proved: Whether the smaller of both bounds counts, or the declared one alone.

        Returns:
            Shape (b,).
        """
        z = self(x)
        index = torch.arange(len(z), device=z.device)
        margin = z[index, labels][:, None] - z - _SLACK * z.abs().amax(dim=1, keepdim=True)
        factor = torch.full_like(margin, math.sqrt(2.0))
        if self.rows is not None:
            rows = self.rows.to(z)
            factor = torch.linalg.vector_norm(rows[:, None] - rows, dim=-1)[labels]
        gamma = self.bound if proved else self.declared
        radius = margin / (gamma * (1.0 + _SLACK) * factor.clamp_min(torch.finfo(z.dtype).tiny))
        radius[index, labels] = torch.inf
        return radius.amin(dim=1)


def exact(classifier: Classifier, device: torch.device | str = "cpu") -> ExactClassifier:
    """Return a classifier by value in float64, as its float32 weights define it.

    Args:
        classifier: The classifier.
        device: Device of the result.
    """
    with torch.no_grad():
        network = classifier.net.explicit()
        rows = classifier.rows()
        bias = None if classifier.bias is None else classifier.bias.detach()
        found = ExactClassifier(
            network, classifier.mean, rows, bias, classifier.net.lipschitz, certify_cnn(classifier.net).value
        )
    return found.to(device, torch.float64)


@torch.no_grad()
def certified_radii(
    found: ExactClassifier, images: Tensor, labels: Tensor, batch: int = 256, *, proved: bool = True
) -> Tensor:
    """Return `ExactClassifier.radii` of uint8 images, on the CPU, evaluated in float64 in batches."""
    device = found.mean.device
    pieces = [
        found.radii(part.to(device).double() / 255.0, label.to(device), proved=proved).cpu()
        for part, label in zip(images.split(batch), labels.split(batch), strict=True)
    ]
    return torch.cat(pieces)
