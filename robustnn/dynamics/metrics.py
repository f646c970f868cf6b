r"""Errors of simulated outputs.

$$\mathrm{RMSE} = \sqrt{\tfrac1N \textstyle\sum_t (y_t - \hat y_t)^2}, \quad \mathrm{NRMSE} = \frac{\mathrm{RMSE}}
  {\mathrm{std}(y)}, \quad \mathrm{fit} = 100\,(1 - \mathrm{NRMSE}), \quad R^2 = 1 - \mathrm{NRMSE}^2$$
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from robustnn.errors import ShapeError, check_finite, invalid

__all__ = ["fit_index", "nrmse", "r_squared", "rmse"]

Array = NDArray[np.float64]


def rmse(y: ArrayLike, simulated: ArrayLike) -> Array:
    """Return the root mean square error of every channel.

    Args:
        y: Measured outputs, shape (T, n_y).
        simulated: Shape (T, n_y).

    Returns:
        Shape (n_y,), in the units of the outputs.

    Raises:
        ShapeError: If the shapes differ.
    """
    measured, found = _pair(y, simulated)
    return np.sqrt(np.square(measured - found).mean(axis=0))


def nrmse(y: ArrayLike, simulated: ArrayLike) -> Array:
    """Return the RMSE over the standard deviation of the measured output, shape (n_y,).

    Raises:
        InvalidArgumentError: If a measured channel is constant.
    """
    measured, _ = _pair(y, simulated)
    std = measured.std(axis=0)
    if not (std > 0.0).all():
        raise invalid("y", "channels that vary", f"standard deviations {std.tolist()}", "Use rmse.")
    return rmse(y, simulated) / std


def fit_index(y: ArrayLike, simulated: ArrayLike) -> Array:
    """Return the fit in per cent, 100 for a perfect one and 0 for the mean value, shape (n_y,)."""
    return 100.0 * (1.0 - nrmse(y, simulated))


def r_squared(y: ArrayLike, simulated: ArrayLike) -> Array:
    """Return the coefficient of determination of every channel, shape (n_y,)."""
    return 1.0 - np.square(nrmse(y, simulated))


def _pair(y: ArrayLike, simulated: ArrayLike) -> tuple[Array, Array]:
    measured, found = (np.asarray(one, dtype=np.float64) for one in (y, simulated))
    if measured.ndim != 2 or measured.shape != found.shape or not len(measured):
        raise ShapeError(
            f"y, simulated: expected one shape (T, n_y), got {measured.shape} and {found.shape}. "
            "Time is the first axis."
        )
    check_finite("y", measured)
    check_finite("simulated", found)
    return measured, found
