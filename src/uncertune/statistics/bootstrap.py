"""Bootstrap over documents: tokens of a document are not independent, so whole documents are resampled.

A draw is a weight for each document: how many times it was drawn. Intervals are percentiles over the draws.

Shape legend: ``N`` tokens, ``G`` documents, ``R`` draws.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from uncertune.statistics.intervals import LEVEL, Estimate

Array = NDArray[np.float64]


def mean_of(values: Array, document: NDArray[np.int64], *, draws: int, seed: int) -> Estimate:
    """The mean over tokens, values (N,) of documents (N,)."""
    names, index = np.unique(document, return_inverse=True)
    weights_RG = document_draws(len(names), draws, seed)
    sums, counts = np.bincount(index, values), np.bincount(index)
    return estimate(float(values.mean()), (weights_RG @ sums) / (weights_RG @ counts))


def document_draws(documents: int, draws: int, seed: int) -> Array:
    """(R, G): how many times each document was drawn, G documents a draw."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(documents, np.full(documents, 1 / documents), size=draws).astype(np.float64)


def estimate(value: float, drawn: Array) -> Estimate:
    """The value with the percentile interval of its draws; non-finite draws do not count."""
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return Estimate(float(value), float("nan"), float("nan"))
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(value), float(low), float(high))
