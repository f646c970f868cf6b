r"""Aggregates over perturbation sizes and between models, with bootstrap intervals over training seeds.

=============================  =========================================================================================
`performance_profile`          fraction of episodes with a score above a threshold, at every perturbation size
`area_under_profile`           mean of a statistic over the range of sizes: one number for "how robust"
`optimality_gap`               how far scores fall short of a target on average; scores above it count as the target
`probability_of_improvement`   that a training run of one model beats one of another, ties half
=============================  =========================================================================================

All after Agarwal et al., "Deep reinforcement learning at the edge of the statistical precipice", NeurIPS 2021.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from robustnn.errors import ShapeError, check_finite, invalid
from robustnn.report.statistics import FloatArray, Interval, _function, _interval, _resample, _strata

__all__ = ["area_under_profile", "optimality_gap", "performance_profile", "probability_of_improvement"]


def _by_size(scores: Sequence[ArrayLike], sizes: ArrayLike) -> tuple[list[FloatArray], FloatArray]:
    points = np.asarray(sizes, dtype=np.float64)
    check_finite("sizes", points)
    if points.ndim != 1 or len(points) != len(scores) or len(points) == 0 or (np.diff(points) <= 0).any():
        raise ShapeError(
            f"sizes: expected one increasing number per array of scores ({len(scores)}), got {points.tolist()}. "
            "Sort the sizes, and give the scores in their order."
        )
    strata = [_strata(f"scores[{k}]", one) for k, one in enumerate(scores)]
    if len({one.shape for one in strata}) > 1:
        raise ShapeError(
            f"scores: expected equal shapes at all sizes, got {[np.shape(one) for one in scores]}. "
            "Evaluate the same seeds and episodes at every size."
        )
    return strata, points


def performance_profile(
    scores: Sequence[ArrayLike],
    sizes: ArrayLike,
    threshold: float,
    *,
    level: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> list[Interval]:
    """Return the fraction of episodes that score above a threshold, at every perturbation size.

    Args:
        scores: one array per size, each (n_seeds, n_episodes) or as in `bootstrap_interval`, of one shape.
        sizes: (n_sizes,), increasing, in the unit of the perturbation.
        threshold: what counts as a success, in the unit of the scores.
        level: probability content of the intervals, in (0, 1).
        n_resamples: number of bootstrap resamples.
        seed: seed of the resampling; all sizes are resampled together.

    Returns:
        One interval per size, of fractions in [0, 1].

    Raises:
        ShapeError: sizes and scores do not fit together.
    """
    strata, _ = _by_size(scores, sizes)
    check_finite("threshold", threshold)
    above = [(one > threshold).astype(np.float64) for one in strata]
    resampled = _resample(above, _function("mean"), "fixed", n_resamples, seed)
    return [_interval(float(one.mean()), draws, level) for one, draws in zip(above, resampled, strict=True)]


def area_under_profile(
    scores: Sequence[ArrayLike],
    sizes: ArrayLike,
    statistic: str = "mean",
    *,
    level: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    r"""Return the mean of a statistic over the range of perturbation sizes, by the trapezoidal rule.

    $$\frac{1}{\epsilon_n - \epsilon_1} \int_{\epsilon_1}^{\epsilon_n} s(\epsilon)\, d\epsilon$$

    Args:
        scores: one array per size, each (n_seeds, n_episodes) or as in `bootstrap_interval`, of one shape.
        sizes: (n_sizes,), increasing, at least two, in the unit of the perturbation.
        statistic: "mean", "iqm", "median" or "worst_decile".
        level: probability content of the interval, in (0, 1).
        n_resamples: number of bootstrap resamples.
        seed: seed of the resampling; all sizes are resampled together.

    Returns:
        The area over the width of the range, in the unit of the scores.

    Raises:
        ShapeError: sizes and scores do not fit together, or there is one size only.
    """
    strata, points = _by_size(scores, sizes)
    if len(points) < 2:
        raise ShapeError(
            f"sizes: expected at least two, got {points.tolist()}. An area needs a range of sizes."
        )
    function = _function(statistic)
    resampled = np.stack(_resample(strata, function, "fixed", n_resamples, seed))
    values = np.array([float(function(one.reshape(-1))) for one in strata])
    width = points[-1] - points[0]
    area = np.trapezoid if hasattr(np, "trapezoid") else np.trapz  # type: ignore[attr-defined, unused-ignore]
    estimate = float(area(values, points)) / width
    return _interval(estimate, np.asarray(area(resampled, points, axis=0)) / width, level)


def optimality_gap(
    scores: ArrayLike, target: float, *, level: float = 0.95, n_resamples: int = 2000, seed: int = 0
) -> Interval:
    """Return by how much scores fall short of a target on average; better ones count as the target.

    Args:
        scores: (n_seeds, n_episodes) or as in `bootstrap_interval`.
        target: the score aimed at, in the same unit.
        level: probability content of the interval, in (0, 1).
        n_resamples: number of bootstrap resamples.
        seed: seed of the resampling.

    Returns:
        The gap, zero or greater, in the unit of the scores; smaller is better.
    """
    check_finite("target", target)
    short = np.maximum(target - _strata("scores", scores), 0.0)
    (resampled,) = _resample([short], _function("mean"), "fixed", n_resamples, seed)
    return _interval(float(short.mean()), resampled, level)


def probability_of_improvement(
    first: ArrayLike,
    second: ArrayLike,
    statistic: str = "mean",
    *,
    level: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    r"""Return the probability that a training run of the first model beats one of the second, ties counting half.

    The score of a run is a statistic of its episodes; the probability is the mean over all pairs of runs
    (Mann-Whitney's U over the number of pairs), averaged over the strata. Runs of the two models are drawn
    independently.

    Args:
        first: scores of one model, (n_seeds,), (n_seeds, n_episodes) or (n_strata, n_seeds, n_episodes).
        second: scores of the other, with as many strata; seeds and episodes may differ in number.
        statistic: "mean", "iqm", "median" or "worst_decile" over the episodes of a run.
        level: probability content of the interval, in (0, 1).
        n_resamples: number of bootstrap resamples.
        seed: seed of the resampling.

    Returns:
        A probability in [0, 1]; one half for models that do not differ.

    Raises:
        ShapeError: the numbers of strata differ, or there are fewer than two seeds.
    """
    function: Callable[[FloatArray], FloatArray] = _function(statistic)
    a, b = (function(_strata(name, one)) for name, one in (("first", first), ("second", second)))
    if len(a) != len(b):
        raise ShapeError(
            f"first and second: expected as many strata, got {len(a)} and {len(b)}. Compare on the same tasks."
        )
    if n_resamples < 1:
        raise invalid("n_resamples", "an integer >= 1", n_resamples, "Use 2000.")

    def beats(x: FloatArray, y: FloatArray) -> FloatArray:
        wins = (x[..., :, None] > y[..., None, :]) + 0.5 * (x[..., :, None] == y[..., None, :])
        return np.asarray(wins.mean(axis=(-3, -2, -1)))

    rng = np.random.default_rng(seed)
    strata = np.arange(len(a))[:, None]
    rows = [rng.integers(x.shape[1], size=(n_resamples, *x.shape)) for x in (a, b)]
    resampled = beats(a[strata, rows[0]], b[strata, rows[1]])
    return _interval(float(beats(a, b)), resampled, level)
