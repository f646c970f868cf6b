r"""What a model has left unexplained: statistics of its residuals and their correlations.

Residuals of a model that explains its data are white and independent of past inputs (Ljung, *System Identification*,
2nd ed., section 16.6). With $e = y - \hat y$ less its mean, N samples and lag $\tau$,

$$r_e(\tau) = \frac{\sum_t e_t e_{t-\tau}}{\sum_t e_t^2}, \qquad
  r_{eu}(\tau) = \frac{\sum_t e_t u_{t-\tau}}{\sqrt{\sum_t e_t^2 \sum_t u_t^2}},$$

which lie within $\pm 2.58 / \sqrt N$ with probability 99 % if nothing is left, for large N and each lag by itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from robustnn.errors import ShapeError, check_finite, check_positive_int

__all__ = ["Residuals", "residual_statistics"]

Array = NDArray[np.float64]
# Quantile of the standard normal distribution that leaves half a per cent on either side.
_QUANTILE_99 = 2.58


@dataclass(frozen=True, eq=False)
class Residuals:
    """Statistics of the residuals of one model on one data set, in the units of the outputs.

    Of a simulation that diverged all are NaN, and no lag counts as inside the band.

    Attributes:
        mean: Shape (n_y,), in the units of the outputs: the offset of the model.
        std: Shape (n_y,), in the units of the outputs.
        largest: Largest magnitude, shape (n_y,), in the units of the outputs.
        auto_lags: Lags 0 ... n_lags, in samples.
        auto: Auto-correlation of every output's residual, shape (n_lags + 1, n_y).
        cross_lags: Lags -n_lags ... n_lags; a positive one is an input that came before the residual.
        cross: Cross-correlation with every input, shape (2 n_lags + 1, n_y, n_u).
        band: Half width of the 99 % band.
        auto_inside: Share of the lags 1 ... n_lags inside the band, shape (n_y,); about 0.99 for white residuals.
        cross_inside: Share of the lags 0 ... n_lags inside the band, shape (n_y, n_u); negative lags, which feedback
            from output to input makes large in a good model too, do not count.
    """

    mean: Array
    std: Array
    largest: Array
    auto_lags: NDArray[np.int64]
    auto: Array
    cross_lags: NDArray[np.int64]
    cross: Array
    band: float
    auto_inside: Array
    cross_inside: Array


def residual_statistics(residuals: Sequence[Array], inputs: Sequence[Array], n_lags: int = 25) -> Residuals:
    """Return statistics and correlations of residuals, pooled over uninterrupted records.

    Products of samples of different records never enter a correlation. The band of the cross-correlation is that of
    white residuals; where they are strongly coloured its 99 % are nominal.

    Args:
        residuals: Measured less simulated outputs of every record, shape (T, n_y), in the units of the outputs.
        inputs: Inputs of the same samples, shape (T, n_u) each.
        n_lags: Largest lag, in samples; lowered to the length of the shortest record less one.

    Returns:
        The statistics.

    Raises:
        ShapeError: If the lengths differ or there is no sample.
        InvalidArgumentError: If `n_lags` is not positive.

    Example:
        >>> e = np.random.default_rng(0).normal(size=(2000, 1))
        >>> found = residual_statistics([e], [np.roll(e, 1, axis=0)])
        >>> float(found.auto_inside[0]) >= 0.9, int(found.cross_lags[found.cross[:, 0, 0].argmax()])
        (True, -1)
    """
    n_lags = check_positive_int("n_lags", n_lags)
    lengths = [len(one) for one in residuals]
    if not lengths or min(lengths) == 0 or lengths != [len(one) for one in inputs]:
        raise ShapeError(
            f"residuals, inputs: expected records of equal, positive lengths, got {lengths} and "
            f"{[len(one) for one in inputs]} samples. Give the inputs of the samples that the residuals are of."
        )
    n_lags = max(0, min(n_lags, min(lengths) - 1))
    for one in inputs:
        check_finite("inputs", one)
    e, u = np.concatenate(residuals), np.concatenate(inputs)
    n_y, n_u = e.shape[1], u.shape[1]
    auto_lags, cross_lags = np.arange(n_lags + 1), np.arange(-n_lags, n_lags + 1)
    band = _QUANTILE_99 / math.sqrt(len(e))
    if not np.isfinite(e).all():
        unknown, none = np.full(n_y, np.nan), np.zeros
        auto, cross = np.full((n_lags + 1, n_y), np.nan), np.full((2 * n_lags + 1, n_y, n_u), np.nan)
        return Residuals(
            unknown, unknown, unknown, auto_lags, auto, cross_lags, cross, band, none(n_y), none((n_y, n_u))
        )
    scale = np.abs(e).max(axis=0)
    safe = np.where(
        scale > 0.0, scale, 1.0
    )  # residuals of a simulation about to diverge have no finite square
    mean, std = (e / safe).mean(axis=0), (e / safe).std(axis=0)
    e_parts = [_unit(one / safe - mean, std) for one in residuals]
    u_parts = [_unit(one - u.mean(axis=0), u.std(axis=0)) for one in inputs]
    auto = np.stack([_product(e_parts, e_parts, int(lag)).diagonal() for lag in auto_lags]) / len(e)
    cross = np.stack([_product(e_parts, u_parts, int(lag)) for lag in cross_lags]) / len(e)
    return Residuals(
        safe * mean,
        safe * std,
        scale,
        auto_lags,
        auto,
        cross_lags,
        cross,
        band,
        _share(np.abs(auto[1:]) <= band),
        _share(np.abs(cross[n_lags:]) <= band),
    )


def _unit(values: Array, std: Array) -> Array:
    """Values over their standard deviation; a signal that does not vary is zero and has no correlation."""
    return np.where(std > 0.0, values, 0.0) / np.where(std > 0.0, std, 1.0)


def _product(first: Sequence[Array], second: Sequence[Array], lag: int) -> Array:
    """Sum over time and records of first[t] second[t - lag], shape (channels of first, channels of second)."""
    parts = []
    for a, b in zip(first, second, strict=True):
        a, b = (a[lag:], b[: len(b) - lag]) if lag >= 0 else (a[:lag], b[-lag:])
        parts.append(a.T @ b)
    return np.asarray(sum(parts))


def _share(inside: NDArray[np.bool_]) -> Array:
    return np.asarray(inside.mean(axis=0)) if len(inside) else np.ones(inside.shape[1:])
