"""Aggregates of returns over training seeds and episodes, with bootstrap intervals.

Which numbers to report, and why a mean of a few seeds needs an interval: Agarwal et al., "Deep reinforcement
learning at the edge of the statistical precipice", NeurIPS 2021.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from robustnn.errors import NonFiniteError, ShapeError, check_positive_int, invalid

FloatArray = NDArray[np.float64]

_CHUNK = 1 << 21  # resampled values held at a time: 16 MiB


class Interval(NamedTuple):
    """A point estimate and the ends of its confidence interval, in the unit of the data."""

    estimate: float
    low: float
    high: float


def mean(scores: ArrayLike) -> float:
    """Return the mean of all scores.

    Args:
        scores: any shape, for example (n_seeds, n_episodes).
    """
    return float(_mean(_pooled(scores)))


def iqm(scores: ArrayLike) -> float:
    """Return the interquartile mean: the mean of what remains when the lowest and highest quarter are cut.

    With N pooled scores, floor(N/4) are cut at either end (Agarwal et al. 2021, section 4.3). Less swayed by
    a single failed seed than the mean, and more precise than the median.

    Args:
        scores: any shape, for example (n_seeds, n_episodes); all entries are pooled.
    """
    return float(_iqm(_pooled(scores)))


def median(scores: ArrayLike) -> float:
    """Return the median of all scores.

    Args:
        scores: any shape, for example (n_seeds, n_episodes); all entries are pooled.
    """
    return float(_median(_pooled(scores)))


def worst_decile(scores: ArrayLike) -> float:
    """Return the mean of the lowest tenth of the scores: what the bad episodes look like.

    With N pooled scores, the ceil(N/10) lowest are averaged.

    Args:
        scores: any shape, for example (n_seeds, n_episodes); larger is better, all entries are pooled.
    """
    return float(_worst_decile(_pooled(scores)))


def aggregate(scores: ArrayLike, statistic: str = "mean") -> float:
    """Return the statistic of that name over all scores pooled.

    Args:
        scores: any shape, for example (n_seeds, n_episodes).
        statistic: "mean", "iqm", "median" or "worst_decile".

    Raises:
        InvalidArgumentError: the statistic is unknown.
    """
    return float(_function(statistic)(_pooled(scores)))


def bootstrap_interval(
    scores: ArrayLike,
    statistic: str = "mean",
    *,
    episodes: str = "fixed",
    level: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Return a statistic of the scores with its percentile-bootstrap interval over training seeds.

    Whole rows (training seeds) are drawn with replacement, because the episodes of one trained policy are not
    independent of each other. A third, leading axis holds strata (tasks, say): seeds are drawn within each
    stratum, and the statistic pools all of them (the stratified bootstrap of Agarwal et al. 2021). With fewer
    than about ten seeds the interval is too narrow rather than too wide; with two it is just their range.

    Args:
        scores: (n_seeds,), (n_seeds, n_episodes) or (n_strata, n_seeds, n_episodes), any unit, n_seeds >= 2.
        statistic: "mean", "iqm", "median" or "worst_decile".
        episodes: "fixed" keeps the episodes, for a conclusion about these initial states; "within" also draws
            episodes anew in every drawn seed; "shared" draws one set of episodes for all seeds, which is
            right when column j is the same initial state in every row.
        level: probability content of the interval, in (0, 1).
        n_resamples: number of bootstrap resamples.
        seed: seed of the resampling; the same seed gives the same interval.

    Returns:
        The statistic of ``scores``, and the two quantiles of it over the resamples.

    Raises:
        ShapeError: ``scores`` has another number of axes, or fewer than two seeds.
        NonFiniteError: ``scores`` holds NaN or infinity.
        InvalidArgumentError: an option is out of its range.

    Example:
        >>> bootstrap_interval([[-160.0, -170.0], [-158.0, -165.0], [-161.0, -169.0]]).estimate
        -163.83333333333334
    """
    strata = _strata("scores", scores)
    function = _function(statistic)
    resampled = _resample([strata], function, episodes, n_resamples, seed)[0]
    return _interval(float(function(strata.reshape(-1))), resampled, level)


def paired_difference(
    first: ArrayLike,
    second: ArrayLike,
    statistic: str = "mean",
    *,
    episodes: str = "fixed",
    level: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Return statistic(first) - statistic(second) with a bootstrap interval that keeps the pairs together.

    Each resample draws the same seeds, and the same episodes, of both models, so what the two have in common
    (the hard initial states, the luck of a seed) cancels. An interval that excludes 0 tells the models apart.

    Args:
        first: scores of one model, shaped as in `bootstrap_interval`.
        second: scores of the other model on the same seeds and episodes, of the same shape.
        statistic: "mean", "iqm", "median" or "worst_decile".
        episodes: as in `bootstrap_interval`.
        level: probability content of the interval, in (0, 1).
        n_resamples: number of bootstrap resamples.
        seed: seed of the resampling.

    Raises:
        ShapeError: the shapes differ, or as in `bootstrap_interval`.
        NonFiniteError: a score is NaN or infinite.
        InvalidArgumentError: an option is out of its range.
    """
    a, b = _strata("first", first), _strata("second", second)
    if a.shape != b.shape:
        raise ShapeError(
            f"first and second: expected the same shape, got {np.shape(first)} and {np.shape(second)}. "
            "Evaluate both models on the same seeds and episodes."
        )
    function = _function(statistic)
    resampled_a, resampled_b = _resample([a, b], function, episodes, n_resamples, seed)
    estimate = float(function(a.reshape(-1)) - function(b.reshape(-1)))
    return _interval(estimate, resampled_a - resampled_b, level)


def _mean(pooled: FloatArray) -> FloatArray:
    return np.asarray(pooled.mean(axis=-1))


def _iqm(pooled: FloatArray) -> FloatArray:
    n = pooled.shape[-1]
    cut = n // 4
    return np.asarray(np.sort(pooled, axis=-1)[..., cut : n - cut].mean(axis=-1))


def _worst_decile(pooled: FloatArray) -> FloatArray:
    k = (pooled.shape[-1] + 9) // 10
    return np.asarray(np.partition(pooled, k - 1, axis=-1)[..., :k].mean(axis=-1))


def _median(pooled: FloatArray) -> FloatArray:
    return np.asarray(np.median(pooled, axis=-1))


_STATISTICS: dict[str, Callable[[FloatArray], FloatArray]] = {
    "mean": _mean,
    "iqm": _iqm,
    "median": _median,
    "worst_decile": _worst_decile,
}


def _function(statistic: str) -> Callable[[FloatArray], FloatArray]:
    if statistic not in _STATISTICS:
        raise invalid("statistic", f"one of {sorted(_STATISTICS)}", repr(statistic), "Correct the name.")
    return _STATISTICS[statistic]


def _finite(name: str, scores: ArrayLike) -> FloatArray:
    try:
        array = np.asarray(scores, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ShapeError(
            f"{name}: expected a regular array of numbers, got {error}. Give every seed as many episodes."
        ) from error
    if array.size == 0:
        raise ShapeError(
            f"{name}: expected at least one score, got shape {array.shape}. Check the selection."
        )
    n_bad = int(np.count_nonzero(~np.isfinite(array)))
    if n_bad:
        raise NonFiniteError(
            f"{name}: expected finite numbers, got {n_bad} NaN or infinite of {array.size}. "
            "Look for the episode that diverged."
        )
    return array


def _pooled(scores: ArrayLike) -> FloatArray:
    return _finite("scores", scores).reshape(-1)


def _strata(name: str, scores: ArrayLike) -> FloatArray:
    array = _finite(name, scores)
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim == 2:
        array = array[None]
    if array.ndim != 3:
        raise ShapeError(
            f"{name}: expected shape (n_seeds,), (n_seeds, n_episodes) or (n_strata, n_seeds, n_episodes), "
            f"got {np.shape(scores)}. Move or merge the other axes."
        )
    if array.shape[1] < 2:
        raise ShapeError(
            f"{name}: expected at least 2 training seeds to tell their spread, got shape {np.shape(scores)}. "
            "Train more seeds, or report the value without an interval."
        )
    return array


def _resample(
    models: list[FloatArray],
    function: Callable[[FloatArray], FloatArray],
    episodes: str,
    n_resamples: int,
    seed: int,
) -> list[FloatArray]:
    """Return the statistic over the resamples, (n_resamples,) for each model, with the same draws for all."""
    if episodes not in ("fixed", "within", "shared"):
        raise invalid("episodes", "'fixed', 'within' or 'shared'", repr(episodes), "Correct the name.")
    check_positive_int("n_resamples", n_resamples)
    n_strata, n_seeds, n_episodes = models[0].shape
    rng = np.random.default_rng(seed)
    strata = np.arange(n_strata)[:, None, None]
    chunk = max(1, _CHUNK // models[0].size)
    results: list[list[FloatArray]] = [[] for _ in models]
    for start in range(0, n_resamples, chunk):
        size = min(chunk, n_resamples - start)
        rows = rng.integers(n_seeds, size=(size, n_strata, n_seeds, 1))
        if episodes == "fixed":
            columns = np.arange(n_episodes)
        else:
            drawn = n_seeds if episodes == "within" else 1
            columns = rng.integers(n_episodes, size=(size, n_strata, drawn, n_episodes))
        for result, scores in zip(results, models, strict=True):
            result.append(function(scores[strata, rows, columns].reshape(size, -1)))
    return [np.concatenate(result) for result in results]


def _interval(estimate: float, resampled: FloatArray, level: float) -> Interval:
    if not 0.0 < level < 1.0:
        raise invalid("level", "a number in (0, 1)", level, "Pass 0.95 for a 95 % interval.")
    low, high = np.quantile(resampled, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return Interval(estimate, float(low), float(high))
