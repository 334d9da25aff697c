"""A claim holds if the whole interval is on its side of the level."""

import math

import pytest

from uncertune.statistics.findings import Finding
from uncertune.statistics.intervals import Estimate


@pytest.mark.parametrize(
    ("low", "high", "side", "level", "outcome"),
    [(0.1, 0.2, "above", 0.0, "held"), (0.1, 0.2, "below", 0.0, "not held"), (-0.1, 0.2, "above", 0.0, "undecided"),
     (-0.2, -0.1, "below", 0.0, "held"), (-0.2, -0.1, "above", 0.0, "not held"),
     (0.1, 0.2, "above", 0.05, "held"), (0.1, 0.2, "above", 0.15, "undecided"), (0.1, 0.2, "below", 0.3, "held"),
     (math.nan, math.nan, "above", 0.0, "undecided")],
)  # fmt: skip
def test_outcomes(low, high, side, level, outcome):
    effect = Estimate((low + high) / 2, low, high)
    assert Finding("C0", "", "", effect, side, level).outcome == outcome
