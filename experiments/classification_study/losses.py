r"""Losses that ask for margins.

===========================  ==================================================================================
`margin-cross-entropy`       $\tau \, CE((z - \sqrt2 \cdot 1.5 \, e_y) / \tau)$ with $\tau = 0.25$
`multi-margin`               $\frac1n \sum_{j \ne y} \max(0, 0.5 - z_y + z_j)$
===========================  ==================================================================================

The first is that of Araujo et al. (ICLR 2023), used by Wang & Manchester (ICML 2023) for certified networks; the second
is theirs for CIFAR-10.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

_OFFSET, _TEMPERATURE, _MARGIN = 1.5 * math.sqrt(2.0), 0.25, 0.5


def margin_cross_entropy(z: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross entropy after the margin was taken off the score of the label.

    Args:
        z: Scores, shape (b, n_classes).
        labels: True classes, shape (b,).
    """
    asked = z - _OFFSET * functional.one_hot(labels, z.shape[1]).to(z.dtype)
    return functional.cross_entropy(asked / _TEMPERATURE, labels) * _TEMPERATURE


def multi_margin(z: Tensor, labels: Tensor) -> Tensor:
    """Return the mean hinge loss over all other classes; arguments as in `margin_cross_entropy`."""
    return functional.multi_margin_loss(z, labels, margin=_MARGIN)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "margin-cross-entropy": margin_cross_entropy,
    "multi-margin": multi_margin,
}
