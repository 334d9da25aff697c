"""Paired comparisons against scipy, and intervals that cover what they should."""

import math

import numpy as np
import pytest
from scipy import stats

from uncertune.statistics import paired
from uncertune.statistics.intervals import Estimate

ONES = np.ones(40)


def test_equal_weights_are_the_paired_t_test():
    rng = np.random.default_rng(0)
    x, y = rng.normal(1.0, 1.0, 40), rng.normal(0.6, 1.0, 40)
    found, expected = paired.compare(x, y, ONES), stats.ttest_rel(x, y)
    low, high = expected.confidence_interval(0.95)
    assert found.test == "paired t-test"
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.difference.low, found.difference.high) == pytest.approx((low, high))
    alone = stats.ttest_1samp(x, 0.0).confidence_interval(0.95)
    assert paired.mean(x, ONES) == Estimate(*map(pytest.approx, (x.mean(), alone.low, alone.high)))


def test_shares_are_the_exact_mcnemar_test():
    x = np.array([1] * 9 + [0] * 2 + [1] * 12 + [0] * 17)
    y = np.array([0] * 9 + [1] * 2 + [1] * 12 + [0] * 17)
    found = paired.compare(x, y, ONES)
    assert (found.won, found.lost, found.test) == (9, 2, "exact McNemar test")
    assert found.p == pytest.approx(2 * stats.binom.cdf(2, 11, 0.5))
    # Agresti and Min (2005): half a document more in each of the four cells
    cells = np.array([9.5, 2.5, 12.5, 17.5]) / 42
    centre = cells[0] - cells[1]
    half = stats.norm.ppf(0.975) * math.sqrt((cells[0] + cells[1] - centre**2) / 42)
    assert found.difference == Estimate(*map(pytest.approx, (7 / 40, centre - half, centre + half)))


def test_weights_make_a_ratio_of_sums():
    rng = np.random.default_rng(1)
    tokens = rng.integers(5, 50, 30).astype(float)
    x, y = tokens * rng.normal(2.0, 0.2, 30), tokens * rng.normal(2.1, 0.2, 30)
    found = paired.compare(x, y, tokens)
    assert found.difference.value == pytest.approx((x.sum() - y.sum()) / tokens.sum())
    assert found.relative.value == pytest.approx(x.sum() / y.sum() - 1)
    assert found.relative.low < found.relative.value < found.relative.high


def test_intervals_cover_at_their_rate():
    rng = np.random.default_rng(2)
    difference, relative, share = 0, 0, 0
    for _ in range(600):
        y = rng.gamma(4.0, 0.25, 50)
        found = paired.compare(1.2 * y + rng.normal(0, 0.3, 50), y, np.ones(50))
        difference += found.difference.low <= 0.2 <= found.difference.high
        relative += found.relative.low <= 0.2 <= found.relative.high
        level = rng.random(50)
        shares = paired.compare(level + rng.normal(0, 0.2, 50) < 0.5, level < 0.4, np.ones(50))
        share += shares.difference.low <= 0.1 <= shares.difference.high
    assert 0.92 < difference / 600 < 0.98
    assert 0.92 < relative / 600 < 0.98
    assert share / 600 > 0.92


def test_a_relative_difference_has_fiellers_interval():
    """Its ends are the ratios that a t-test of x − ratio · y just rejects: Student's t with few documents."""
    x, y = np.array([2.0, 3.5, 1.0, 4.2, 2.2]), np.array([1.8, 3.0, 1.4, 3.1, 2.0])
    found = paired.compare(x, y, np.ones(5)).relative
    for end in (found.low, found.high):
        assert stats.ttest_1samp(x - (1 + end) * y, 0).pvalue == pytest.approx(0.05)
    assert found.value == pytest.approx(x.sum() / y.sum() - 1)
    assert found.low < found.value < found.high


def test_a_baseline_near_nothing_has_no_relative_interval():
    y = np.array([1.0] + [0.0] * 39)
    found = paired.compare(np.ones(40), y, ONES)
    assert found.relative.value == pytest.approx(39)
    assert math.isnan(found.relative.low)
    assert math.isnan(paired.compare(ONES, 0 * ONES, ONES).relative.value)


def test_the_same_answers_differ_by_nothing():
    for x in (np.arange(40.0), np.arange(40) % 2):
        found = paired.compare(x, x, ONES)
        assert (found.difference.value, found.p) == (0, 1)
    assert paired.compare([], [], []).test == "none"
    assert math.isnan(paired.compare([2.0], [1.0], [1.0]).p)


def test_equal_values_have_no_interval_of_no_width():
    """Two documents that happen to agree say nothing of how much documents differ."""
    found = paired.mean([3.0, 3.0], [2.0, 2.0])
    assert found.value == 1.5
    assert math.isnan(found.low)
    assert math.isnan(paired.compare([0.3, 0.4], [0.2, 0.3], [1, 1]).difference.low), "but for rounding"


def test_a_share_has_wilsons_interval():
    found, z = paired.mean([1, 1, 1, 0, 0, 0, 0, 0, 0, 0], np.ones(10)), stats.norm.ppf(0.975)
    centre = (0.3 + z**2 / 20) / (1 + z**2 / 10)
    half = z * math.sqrt(0.3 * 0.7 / 10 + z**2 / 400) / (1 + z**2 / 10)
    assert found == Estimate(pytest.approx(0.3), pytest.approx(centre - half), pytest.approx(centre + half))


def test_holm_as_written():
    assert paired.holm([0.01, 0.04, math.nan, 0.03]) == [
        pytest.approx(0.03),
        pytest.approx(0.06),
        pytest.approx(math.nan, nan_ok=True),
        pytest.approx(0.06),
    ]
    assert paired.holm([]) == []


def test_a_mean_of_independent_gains():
    found = paired.average([Estimate(0.1, 0, 0), Estimate(0.3, 0, 0)], [0.03, 0.04])
    assert found.value == pytest.approx(0.2)
    assert found.high - found.value == pytest.approx(1.959964 * 0.025)
