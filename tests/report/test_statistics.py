from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from robustnn.errors import InvalidArgumentError, NonFiniteError, ShapeError
from robustnn.report import (
    Interval,
    aggregate,
    bootstrap_interval,
    iqm,
    mean,
    paired_difference,
    worst_decile,
)

STATISTICS = ("mean", "iqm", "worst_decile")


def scores(n_seeds: int = 5, n_episodes: int = 12, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return -160.0 + 8.0 * rng.standard_normal((n_seeds, 1)) + 3.0 * rng.standard_normal((n_seeds, n_episodes))


@pytest.mark.parametrize("shape", [(1,), (3,), (5, 7), (4, 25), (2, 2, 10)])
def test_point_statistics_agree_with_scipy_and_sorting(shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(1).standard_normal(shape)
    ordered = sorted(x.ravel().tolist())
    k = max(1, -(-len(ordered) // 10))
    assert mean(x) == pytest.approx(sum(ordered) / len(ordered), abs=1e-14)
    assert iqm(x) == pytest.approx(stats.trim_mean(x.ravel(), 0.25), abs=1e-14)
    assert worst_decile(x) == pytest.approx(sum(ordered[:k]) / k, abs=1e-14)
    assert [aggregate(x, name) for name in STATISTICS] == [mean(x), iqm(x), worst_decile(x)]


def test_worst_decile_is_exactly_the_tenth() -> None:
    assert worst_decile(np.arange(30)) == 1.0
    assert worst_decile(np.arange(31)) == 1.5


def test_iqm_ignores_one_failed_seed() -> None:
    x = np.array([-160.0, -161.0, -162.0, -163.0, -1500.0])
    assert iqm(x) == -162.0
    assert mean(x) < -400.0


def test_interval_equals_enumeration_of_all_resamples() -> None:
    """With three seeds all 27 resamples can be listed; 200,000 draws must give their quantiles."""
    x = np.array([[1.0, 2.0], [5.0, 9.0], [20.0, 30.0]])
    listed = [x[list(rows)].mean() for rows in itertools.product(range(3), repeat=3)]
    interval = bootstrap_interval(x, level=0.8, n_resamples=200_000)
    expected = np.quantile(listed, [0.1, 0.9], method="inverted_cdf")
    assert interval.estimate == pytest.approx(x.mean(), abs=1e-13)
    np.testing.assert_allclose(interval[1:], expected, rtol=1e-12)


def test_interval_agrees_with_scipy_for_one_score_per_seed() -> None:
    x = np.random.default_rng(3).standard_normal(12)
    ours = bootstrap_interval(x, n_resamples=40_000)
    theirs = stats.bootstrap(
        (x,), np.mean, method="percentile", n_resamples=40_000, rng=np.random.default_rng(4)
    )
    # The quantiles of 40,000 resamples scatter by about 1 % of the standard error of the mean.
    np.testing.assert_allclose(ours[1:], theirs.confidence_interval, atol=0.05 * x.std() / np.sqrt(12))


def test_episodes_of_a_seed_are_no_independent_evidence() -> None:
    """Repeating every seed's score a hundred times must not narrow the interval."""
    x = scores(6, 1)
    single, repeated = bootstrap_interval(x), bootstrap_interval(np.repeat(x, 100, axis=1))
    np.testing.assert_allclose(repeated, single, rtol=1e-12)


@pytest.mark.parametrize("episodes", ["within", "shared"])
def test_drawing_episodes_adds_their_spread(episodes: str) -> None:
    rng = np.random.default_rng(5)
    same_seeds = np.tile(rng.standard_normal(50), (4, 1))  # no spread over seeds, all of it over episodes
    assert bootstrap_interval(same_seeds) == pytest.approx((same_seeds.mean(),) * 3, abs=1e-14)
    interval = bootstrap_interval(same_seeds, episodes=episodes)
    error = same_seeds[0].std() / np.sqrt(50 if episodes == "shared" else 200)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_strata_are_resampled_apart() -> None:
    """Two tasks at different levels, each without spread: pooling their seeds would invent a spread."""
    x = np.array([[[0.0], [0.0], [0.0]], [[10.0], [10.0], [10.0]]])
    assert bootstrap_interval(x) == Interval(5.0, 5.0, 5.0)
    pooled = bootstrap_interval(x.reshape(6, 1))
    assert pooled.low < 3.0 and pooled.high > 7.0


def test_coverage_is_near_the_level() -> None:
    rng = np.random.default_rng(6)
    n_trials, hits = 300, 0
    for trial in range(n_trials):
        x = rng.standard_normal((25, 1))
        interval = bootstrap_interval(x, n_resamples=400, seed=trial)
        hits += interval.low <= 0.0 <= interval.high
    assert 0.88 < hits / n_trials < 0.985


@pytest.mark.parametrize("statistic", STATISTICS)
def test_same_seed_same_interval_and_two_seeds_work(statistic: str) -> None:
    x = scores()
    first, again = (bootstrap_interval(x, statistic, seed=3) for _ in range(2))
    assert first == again
    assert first.low <= first.high
    two = bootstrap_interval(np.array([1.0, 2.0]), statistic)
    assert 1.0 <= two.low <= two.high <= 2.0


def test_many_episodes_are_resampled_in_chunks_with_one_stream() -> None:
    x = scores(5, 300)
    interval = bootstrap_interval(x, "iqm", n_resamples=3000, episodes="shared")
    assert interval.low < iqm(x) < interval.high


def test_pairing_removes_what_the_models_share() -> None:
    rng = np.random.default_rng(7)
    common = 50.0 * rng.standard_normal((6, 20))
    first, second = common + 2.0, common + 0.01 * rng.standard_normal((6, 20))
    interval = paired_difference(first, second, episodes="within")
    assert interval.estimate == pytest.approx(mean(first) - mean(second), abs=1e-12)
    assert 1.98 < interval.low < interval.high < 2.02
    assert paired_difference(second, first, episodes="within").high < -1.98
    assert paired_difference(first, first, "iqm") == Interval(0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("values", "options", "error", "match"),
    [
        ([[1.0, 2.0]], {}, ShapeError, "scores: expected at least 2 training seeds"),
        (np.zeros((2, 2, 2, 2)), {}, ShapeError, "scores: expected shape"),
        (np.zeros((3, 0)), {}, ShapeError, "at least one score"),
        ([[1.0, 2.0], [3.0]], {}, ShapeError, "scores: expected a regular array"),
        ([1.0, float("nan")], {}, NonFiniteError, "1 NaN or infinite of 2"),
        ([1.0, 2.0], {"statistic": "mode"}, InvalidArgumentError, "statistic: expected one of"),
        ([1.0, 2.0], {"episodes": "all"}, InvalidArgumentError, "episodes: expected"),
        ([1.0, 2.0], {"level": 95.0}, InvalidArgumentError, "level: expected"),
        ([1.0, 2.0], {"n_resamples": 0}, InvalidArgumentError, "n_resamples: expected"),
    ],
)
def test_bad_calls_name_the_argument(
    values: object, options: dict, error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        bootstrap_interval(values, **options)


def test_pairs_need_equal_shapes() -> None:
    with pytest.raises(ShapeError, match="first and second"):
        paired_difference(np.zeros((3, 4)), np.zeros((3, 5)))
