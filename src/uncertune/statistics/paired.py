"""Paired comparison of two models on the same documents: values, differences, relative differences, with intervals.

A document's entry is a sum and a weight (1, or its tokens or instructions), and a model's value Σ sum / Σ weight.
Documents are the independent units.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uncertune.statistics.intervals import LEVEL, Estimate

Array = NDArray[np.float64]
_NAN = float("nan")
_ROUNDING = 1e-12
_UNKNOWN = Estimate(_NAN, _NAN, _NAN)


@dataclass(frozen=True)
class Paired:
    """A model less a baseline.

    ``error`` is the standard error of ``relative``. ``won`` and ``lost`` count the documents on which the model's entry
    is higher and lower.
    """

    difference: Estimate
    relative: Estimate
    error: float
    p: float
    test: str
    documents: int
    won: int
    lost: int


def mean(sums: Sequence[float], weights: Sequence[float]) -> Estimate:
    """Σ sum / Σ weight. Wilson's interval for shares of documents, Student's on the ratio's linear form otherwise."""
    x, w = np.asarray(sums, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    if not len(x) or w.sum() <= 0:
        return _UNKNOWN
    value = float(x.sum() / w.sum())
    if _is_binary(x, w):
        from scipy.stats import binomtest

        interval = binomtest(int(x.sum()), len(x)).proportion_ci(LEVEL, method="wilson")
        return Estimate(value, min(value, float(interval.low)), max(value, float(interval.high)))
    half = _t(len(x)) * _error(x - value * w) / w.sum()
    if not half > _ROUNDING * abs(value):  # one document, or the same ratio in all
        return Estimate(value, _NAN, _NAN)
    return Estimate(value, value - half, value + half)


def compare(model: Sequence[float], baseline: Sequence[float], weights: Sequence[float]) -> Paired:
    """The model against the baseline on the same documents, in the same order.

    Entries of 0 and 1: exact McNemar test, and the interval of Agresti and Min (2005) for the difference (half a
    document added to each cell). Others: paired t-test on the documents, weighted. The relative difference
    (model − baseline) / baseline has Fieller's interval: NaN where the baseline may be 0.
    """
    x, y = np.asarray(model, dtype=np.float64), np.asarray(baseline, dtype=np.float64)
    w = np.asarray(weights, dtype=np.float64)
    count, won, lost = len(x), int((x > y).sum()), int((x < y).sum())
    if not count or w.sum() <= 0:
        return Paired(_UNKNOWN, _UNKNOWN, _NAN, _NAN, "none", 0, 0, 0)
    relative, error = _relative(x, y)
    if _is_binary(x, w) and _is_binary(y, w):
        from scipy.stats import binomtest

        p = float(binomtest(won, won + lost).pvalue) if won + lost else 1.0
        return Paired(_share_difference(won, lost, count), relative, error, p, "exact McNemar test", count, won, lost)
    difference, p = _mean_difference(x - y, w)
    return Paired(difference, relative, error, p, "paired t-test", count, won, lost)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted by Holm's method; NaN stays NaN and does not count as a test."""
    known = sorted((p, place) for place, p in enumerate(p_values) if not math.isnan(p))
    out, highest = list(p_values), 0.0
    for rank, (p, place) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * p))
        out[place] = highest
    return out


def average(estimates: Sequence[Estimate], errors: Sequence[float]) -> Estimate:
    """The mean of independent estimates with known standard errors; without an interval if any error is unknown."""
    from scipy.stats import norm

    if not estimates:
        return _UNKNOWN
    value = math.fsum(one.value for one in estimates) / len(estimates)
    half = float(norm.ppf((1 + LEVEL) / 2)) * math.sqrt(math.fsum(error**2 for error in errors)) / len(estimates)
    return Estimate(value, value - half, value + half)


def _is_binary(x: Array, w: Array) -> bool:
    return bool(np.isin(x, (0.0, 1.0)).all() and (w == 1).all())


def _t(count: int) -> float:
    from scipy.stats import t

    return float(t.ppf((1 + LEVEL) / 2, count - 1)) if count > 1 else _NAN


def _error(residuals: Array) -> float:
    """The standard error of a sum of independent terms whose mean is 0."""
    count = len(residuals)
    return float(np.sqrt((residuals**2).sum() * count / (count - 1))) if count > 1 else _NAN


def _share_difference(won: int, lost: int, count: int) -> Estimate:
    from scipy.stats import norm

    centre = (won - lost) / (count + 2)
    spread = math.sqrt(won + lost + 1 - (won - lost) ** 2 / (count + 2)) / (count + 2)
    half = float(norm.ppf((1 + LEVEL) / 2)) * spread
    return Estimate((won - lost) / count, max(-1.0, centre - half), min(1.0, centre + half))


def _mean_difference(difference: Array, w: Array) -> tuple[Estimate, float]:
    from scipy.stats import t

    count, value = len(difference), float(difference.sum() / w.sum())
    error = _error(difference - value * w) / float(w.sum())
    if not error > _ROUNDING * abs(value):  # one document, or the same difference everywhere
        return Estimate(value, _NAN, _NAN), 1.0 if not difference.any() else _NAN
    half = _t(count) * error
    return Estimate(value, value - half, value + half), float(2 * t.sf(abs(value) / error, count - 1))


def _relative(x: Array, y: Array) -> tuple[Estimate, float]:
    """Σx / Σy − 1 with Fieller's interval, and its standard error."""
    top, bottom, count = float(x.sum()), float(y.sum()), len(x)
    if not bottom:
        return _UNKNOWN, _NAN
    ratio = top / bottom
    error = _error(x - ratio * y) / abs(bottom)
    if count < 2 or not error > 0:
        return Estimate(ratio - 1, _NAN, _NAN), _NAN
    (xx, xy), (_, yy) = np.cov(x, y) * count
    square = _t(count) ** 2
    a, b, c = bottom**2 - square * yy, top * bottom - square * xy, top**2 - square * xx
    if a <= 0:
        return Estimate(ratio - 1, _NAN, _NAN), error
    root = math.sqrt(max(0.0, b * b - a * c))
    return Estimate(ratio - 1, (b - root) / a - 1, (b + root) / a - 1), error
