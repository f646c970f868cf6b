from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from robustnn.errors import InvalidArgumentError, NonFiniteError, ShapeError
from robustnn.report import (
    area_under_profile,
    bootstrap_interval,
    median,
    optimality_gap,
    performance_profile,
    probability_of_improvement,
)

RNG = np.random.default_rng(0)
SIZES = [0.0, 0.1, 0.3]
SCORES = [RNG.normal(loc, 1.0, (6, 40)) for loc in (3.0, 2.0, 0.0)]


def test_median_and_its_interval() -> None:
    assert median(SCORES[0]) == float(np.median(SCORES[0]))
    interval = bootstrap_interval(SCORES[0], "median")
    assert interval.estimate == median(SCORES[0]) and interval.low < interval.estimate < interval.high


def test_profile_counts_successes() -> None:
    profile = performance_profile(SCORES, SIZES, 1.0)
    for one, interval in zip(SCORES, profile, strict=True):
        assert interval.estimate == pytest.approx(np.mean(one > 1.0), abs=1e-15)
        assert 0.0 <= interval.low <= interval.estimate <= interval.high <= 1.0
        # The interval of a mean of indicators over seeds: the same draws as the general function makes.
        assert interval == bootstrap_interval((one > 1.0).astype(float))


def test_area_is_the_trapezoid_and_its_interval_keeps_sizes_together() -> None:
    means = [one.mean() for one in SCORES]
    expected = (0.1 * (means[0] + means[1]) / 2 + 0.2 * (means[1] + means[2]) / 2) / 0.3
    area = area_under_profile(SCORES, SIZES)
    assert area.estimate == pytest.approx(expected, abs=1e-14)
    constant = area_under_profile([SCORES[0]] * 3, SIZES)
    whole = bootstrap_interval(SCORES[0])
    np.testing.assert_allclose(constant, whole, atol=1e-12)
    assert area_under_profile(SCORES, SIZES, "iqm").estimate != area.estimate


def test_gap_ignores_what_is_better_than_the_target() -> None:
    assert optimality_gap([[5.0, 9.0], [7.0, 8.0]], 8.0).estimate == pytest.approx((3 + 0 + 1 + 0) / 4)
    assert optimality_gap(SCORES[0], -100.0) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("ties", [False, True])
def test_probability_of_improvement_is_mann_whitney(ties: bool) -> None:
    a, b = RNG.normal(0.5, 1.0, 9), RNG.normal(0.0, 1.0, 7)
    if ties:
        a, b = np.round(a), np.round(b)
    expected = stats.mannwhitneyu(a, b).statistic / (9 * 7)
    found = probability_of_improvement(a, b)
    assert found.estimate == pytest.approx(expected, abs=1e-14)
    assert 0.0 <= found.low < found.estimate < found.high <= 1.0
    other = probability_of_improvement(b, a)
    assert other.estimate == pytest.approx(1.0 - expected, abs=1e-14)
    assert probability_of_improvement(a, a).estimate == 0.5


def test_interval_of_the_probability_covers_the_truth_as_often_as_it_says() -> None:
    truth = float(stats.norm.cdf(0.7 / math.sqrt(2.0)))
    rng = np.random.default_rng(5)
    covered = 0
    for seed in range(200):
        a, b = rng.normal(0.7, 1.0, 20), rng.normal(0.0, 1.0, 20)
        interval = probability_of_improvement(a, b, n_resamples=400, seed=seed)
        covered += interval.low <= truth <= interval.high
    # The percentile bootstrap of 20 runs is a little too narrow; 85 to 99 % of 200.
    assert 170 <= covered <= 198


def test_bad_calls() -> None:
    with pytest.raises(ShapeError, match="sizes: expected one increasing number"):
        performance_profile(SCORES, [0.3, 0.1, 0.0], 1.0)
    with pytest.raises(ShapeError, match="sizes"):
        area_under_profile(SCORES[:2], SIZES)
    with pytest.raises(ShapeError, match="at least two"):
        area_under_profile(SCORES[:1], SIZES[:1])
    with pytest.raises(ShapeError, match="equal shapes"):
        performance_profile([SCORES[0], SCORES[1][:, :3]], [0, 1], 1.0)
    with pytest.raises(NonFiniteError, match="threshold"):
        performance_profile(SCORES, SIZES, math.nan)
    with pytest.raises(NonFiniteError, match="target"):
        optimality_gap(SCORES[0], math.inf)
    with pytest.raises(ShapeError, match="strata"):
        probability_of_improvement(np.zeros((2, 3, 4)), np.zeros((3, 4)))
    with pytest.raises(InvalidArgumentError, match="statistic"):
        probability_of_improvement([1.0, 2.0], [1.0, 2.0], "mode")
    with pytest.raises(InvalidArgumentError, match="n_resamples"):
        probability_of_improvement([1.0, 2.0], [1.0, 2.0], n_resamples=0)
