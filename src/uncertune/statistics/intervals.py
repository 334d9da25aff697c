"""A value with its interval, and the mean over independent seeds with Student's t interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval; NaN where it is not defined (a constant quantity, a single seed or document)."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


def over_seeds(values: Sequence[float] | NDArray[np.float64]) -> Estimate:
    """The mean of independent, roughly normal values with Student's t interval; NaN values do not count."""
    from scipy import stats

    known = np.asarray(values, dtype=np.float64)
    known = known[np.isfinite(known)]
    if not len(known):
        return Estimate(float("nan"), float("nan"), float("nan"))
    mean = float(known.mean())
    if len(known) < 2:
        return Estimate(mean, float("nan"), float("nan"))
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(known) - 1) * known.std(ddof=1) / np.sqrt(len(known)))
    return Estimate(mean, mean - half, mean + half)


def paired(values: Sequence[float], baseline: Sequence[float]) -> Estimate:
    """The mean of value − baseline over seeds, each pair of one seed, with Student's t interval."""
    if len(values) != len(baseline):
        raise ValueError(
            f"{len(values)} values and {len(baseline)} of the baseline: pairs of the same seeds are needed"
        )
    return over_seeds(np.asarray(values, dtype=np.float64) - np.asarray(baseline, dtype=np.float64))


MOST_SEEDS = 10_000


def seeds_needed(differences: Sequence[float] | NDArray[np.float64]) -> int | None:
    """The smallest number of seeds whose 95 % interval would exclude 0, if mean and standard deviation stay the same.

    The smallest n ≥ 2 with ``t(n − 1) · s / √n < |mean|``; None with fewer than two differences, or if n is above
    ``MOST_SEEDS``.
    """
    from scipy import stats

    known = np.asarray(differences, dtype=np.float64)
    if len(known) < 2 or not np.isfinite(known).all():
        return None
    mean, spread = abs(float(known.mean())), float(known.std(ddof=1))
    counts = np.arange(2, MOST_SEEDS + 1)
    enough = stats.t.ppf((1 + LEVEL) / 2, counts - 1) * spread / np.sqrt(counts) < mean
    return int(counts[enough][0]) if enough.any() else None
