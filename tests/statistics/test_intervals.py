"""Intervals, paired differences, how many seeds a difference needs, and the Pareto front: against plain code."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from uncertune.statistics.intervals import over_seeds, paired, seeds_needed
from uncertune.statistics.pareto import pareto_front

NUMBERS = st.floats(-100, 100).map(lambda value: round(value, 3))


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=2, max_size=8))
def test_the_paired_interval_is_that_of_scipy(pairs):
    mine, theirs = map(list, zip(*pairs, strict=True))
    found = paired(mine, theirs)
    differences = np.subtract(mine, theirs)
    assert found.value == pytest.approx(differences.mean())
    if differences.std() > 1e-9:
        low, high = stats.ttest_rel(mine, theirs).confidence_interval(0.95)
        assert (found.low, found.high) == pytest.approx((low, high))


def test_pairs_must_be_pairs():
    with pytest.raises(ValueError, match="2 values and 1 of the baseline"):
        paired([1, 2], [1])


@settings(deadline=None, max_examples=25)
@given(st.lists(NUMBERS, min_size=2, max_size=8))
def test_seeds_needed_is_the_first_number_whose_interval_is_clear_of_zero(differences):
    mean, spread = np.mean(differences), np.std(differences, ddof=1)
    counts = range(2, 10_001)
    factors = stats.t.ppf(0.975, np.array(counts) - 1)
    clear = (n for n, t in zip(counts, factors, strict=True) if t * spread / math.sqrt(n) < abs(mean))
    assert seeds_needed(differences) == next(clear, None)


def test_a_clear_difference_needs_no_more_seeds_than_it_has():
    differences = [1.0, 1.2, 0.9, 1.1]
    assert over_seeds(differences).low > 0
    assert seeds_needed(differences) <= len(differences)
    assert seeds_needed([0.0, 0.0]) is None
    assert seeds_needed([1.0]) is None


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=8))
def test_nothing_beats_a_point_on_the_pareto_front(points):
    for one, on_front in zip(points, pareto_front(points), strict=True):
        better = [other for other in points if other[0] <= one[0] and other[1] <= one[1] and other != one]
        assert on_front == (not better)


def test_values_that_are_not_finite_do_not_count():
    assert over_seeds([1.0, float("nan"), 3.0]) == over_seeds([1.0, 3.0])
