"""Angles and their encoding for sensors."""

from __future__ import annotations

import math

from array_api_compat import array_namespace

from robustnn.envs.plant import Array

__all__ = ["wrap_angle"]


def wrap_angle(theta: Array) -> Array:
    """Map angles to (-pi, pi], up to rounding; the derivative is 1.

    Args:
        theta: Angles, rad, any shape.

    Returns:
        Angles of the same direction, rad, same shape.
    """
    xp = array_namespace(theta)
    return theta - 2.0 * math.pi * xp.ceil((theta - math.pi) / (2.0 * math.pi))
