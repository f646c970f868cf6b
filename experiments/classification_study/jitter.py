"""Colour jitter: brightness, contrast, saturation and hue of training images, changed at random."""

from __future__ import annotations

import torch
from torch import Tensor

from robustnn.errors import ShapeError, check_nonnegative, check_shape, invalid

# Ranges of Wang & Manchester (ICML 2023): factors of brightness, contrast and saturation, and a part of the colour
# circle that hues are turned by.
_FACTORS = ((0.9, 1.1), (0.5, 2.0), (0.3, 2.0))
_HUE = 0.02
# Red, green and blue as the eye weighs them (ITU-R BT.601).
_GREY = (0.2989, 0.587, 0.114)


def jittered(images: Tensor, generator: torch.Generator, strength: float = 1.0) -> Tensor:
    """Change brightness, contrast, saturation and hue of every image, each by a number of its own, in random order.

    The operations are those of torchvision's `ColorJitter`. At strength 1 factors are uniform in the ranges 0.9 to 1.1
    (brightness), 0.5 to 2 (contrast) and 0.3 to 2 (saturation), and the hue is turned by up to 0.02 of the circle; the
    distance of all limits from no change is proportional to the strength.

    Args:
        images: Pixels in [0, 1], shape (b, channels, height, width) with 1 or 3 channels. Grey images have no
            saturation and no hue.
        generator: Source of the numbers, on the CPU.
        strength: From 0, no change, to 1.

    Returns:
        Pixels in [0, 1] of the same shape.

    Raises:
        ShapeError: If there are other numbers of channels.
        InvalidArgumentError: If the strength is not in [0, 1].
    """
    check_shape("images", images, "(b, channels, height, width)", images.ndim == 4)
    if images.shape[1] not in (1, 3):
        raise ShapeError(f"images: expected 1 or 3 channels, got {images.shape[1]}. Set jitter=0.")
    if check_nonnegative("jitter", strength) > 1.0:
        raise invalid("jitter", "a strength from 0 to 1", strength, "1 gives the ranges of the paper.")
    n = len(images)
    drawn = torch.rand(4, n, generator=generator)
    order = torch.rand(4, n, generator=generator).argsort(dim=0)
    changed = images.clone()
    for step in range(4):
        for k, change in enumerate((_brightness, _contrast, _saturation, _hue)):
            index = torch.nonzero(order[step] == k).squeeze(1)
            if len(index) == 0 or (images.shape[1] == 1 and k >= 2):
                continue
            low, high = _limits(k, strength)
            amount = (low + (high - low) * drawn[k, index]).to(images)[:, None, None, None]
            place = index.to(images.device)
            changed[place] = change(changed[place], amount).clamp(0.0, 1.0)
    return changed


def _limits(k: int, strength: float) -> tuple[float, float]:
    """Least and largest factor, or angle for the last one."""
    if k == 3:
        return -strength * _HUE, strength * _HUE
    low, high = _FACTORS[k]
    return 1.0 + strength * (low - 1.0), 1.0 + strength * (high - 1.0)


def _brightness(x: Tensor, factor: Tensor) -> Tensor:
    return factor * x


def _contrast(x: Tensor, factor: Tensor) -> Tensor:
    mean = _grey(x).mean(dim=(1, 2, 3), keepdim=True)
    return factor * x + (1.0 - factor) * mean


def _saturation(x: Tensor, factor: Tensor) -> Tensor:
    return factor * x + (1.0 - factor) * _grey(x)


def _hue(x: Tensor, turn: Tensor) -> Tensor:
    """Turn the hue, keeping the largest channel (value) and saturation, as in HSV."""
    largest, least = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    chroma = largest - least
    red, green, blue = (x[:, k : k + 1] for k in range(3))
    safe = torch.where(chroma > 0.0, chroma, 1.0)
    second = torch.where(green == largest, 2.0 + (blue - red) / safe, 4.0 + (red - green) / safe)
    sixth = torch.where(red == largest, (green - blue) / safe, second)
    hue = torch.remainder(sixth / 6.0 + turn, 1.0) * 6.0
    # Channel n falls from the largest value as its distance from its own hue grows.
    distance = torch.cat([torch.remainder(n + hue, 6.0) for n in (5.0, 3.0, 1.0)], dim=1)
    return largest - chroma * torch.minimum(distance, 4.0 - distance).clamp(0.0, 1.0)


def _grey(x: Tensor) -> Tensor:
    """Shape (b, 1, height, width)."""
    if x.shape[1] == 1:
        return x
    return (x * x.new_tensor(_GREY)[:, None, None]).sum(1, keepdim=True)
