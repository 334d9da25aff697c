"""Correlations of token quantities, with intervals from a bootstrap over documents.

Tokens of a document are not independent, so whole documents are resampled (cluster bootstrap, percentile intervals); a
draw is a weight for each document: how many times it was drawn.

Shape legend: ``N`` tokens, ``G`` documents, ``R`` draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uncertune.statistics.bootstrap import document_draws, estimate
from uncertune.statistics.intervals import Estimate

Array = NDArray[np.float64]

UNCERTAINTIES = ("epistemic", "aleatoric")
PROXIES = ("loss", "entropy")


@dataclass(frozen=True)
class Correlations:
    """``by[kind][uncertainty, proxy]``, kind ``pearson`` or ``spearman``, and claim C1 as two differences:

    ``closer[kind]["epistemic"]`` = r(epistemic, loss) − r(epistemic, entropy),
    ``closer[kind]["aleatoric"]`` = r(aleatoric, entropy) − r(aleatoric, loss); the claim says both are above 0.
    """

    by: dict[str, dict[tuple[str, str], Estimate]]
    closer: dict[str, dict[str, Estimate]]
    tokens: int
    documents: int
    draws: int


def correlations(columns: Mapping[str, Array], document: NDArray[np.int64], *, draws: int, seed: int) -> Correlations:
    """Correlations of ``epistemic`` and ``aleatoric`` with ``loss`` and ``entropy``; all columns are (N,)."""
    names, index = np.unique(document, return_inverse=True)
    weights_RG = document_draws(len(names), draws, seed)
    by: dict[str, dict[tuple[str, str], Estimate]] = {}
    closer: dict[str, dict[str, Estimate]] = {}
    everything = np.ones((1, len(names)))
    for kind, compute in (("pearson", _pearson), ("spearman", _spearman)):
        whole = compute(columns, index, everything)
        drawn = compute(columns, index, weights_RG)
        by[kind] = {pair: estimate(whole[pair][0], drawn[pair]) for pair in whole}
        e_loss, e_entropy = ("epistemic", "loss"), ("epistemic", "entropy")
        a_loss, a_entropy = ("aleatoric", "loss"), ("aleatoric", "entropy")
        closer[kind] = {
            "epistemic": estimate((whole[e_loss] - whole[e_entropy])[0], drawn[e_loss] - drawn[e_entropy]),
            "aleatoric": estimate((whole[a_entropy] - whole[a_loss])[0], drawn[a_entropy] - drawn[a_loss]),
        }
    return Correlations(by, closer, len(document), len(names), draws)


def ranks(values: Array, weights: Array) -> Array:
    """Midranks (N,) of values that occur ``weights`` times each; equal values share a rank."""
    _, group = np.unique(values, return_inverse=True)
    return _ranks(group, weights)


def _ranks(group: NDArray[np.int64], weights: Array) -> Array:
    mass = np.bincount(group, weights)
    return (np.cumsum(mass) - (mass - 1) / 2)[group]


def _pearson(columns: Mapping[str, Array], index: NDArray[np.int64], weights_RG: Array) -> dict[tuple[str, str], Array]:
    """Each pair's coefficient for every draw, (R,), from sums over each document."""
    count = weights_RG @ np.bincount(index)

    def total(values: Array) -> Array:
        return weights_RG @ np.bincount(index, values)

    centred = {name: columns[name] - columns[name].mean() for name in (*UNCERTAINTIES, *PROXIES)}
    mean = {name: total(values) / count for name, values in centred.items()}
    deviation = {
        name: np.sqrt(np.maximum(total(values**2) / count - mean[name] ** 2, 0)) for name, values in centred.items()
    }
    return {
        (x, y): _ratio(total(centred[x] * centred[y]) / count - mean[x] * mean[y], deviation[x] * deviation[y])
        for x in UNCERTAINTIES
        for y in PROXIES
    }


def _spearman(
    columns: Mapping[str, Array], index: NDArray[np.int64], weights_RG: Array
) -> dict[tuple[str, str], Array]:
    """Pearson's coefficient of the ranks, which are computed for each draw."""
    groups = {name: np.unique(columns[name], return_inverse=True)[1] for name in (*UNCERTAINTIES, *PROXIES)}
    rows = []
    for weights_G in weights_RG:
        weights = weights_G[index]
        ranked = {name: _ranks(group, weights) for name, group in groups.items()}
        rows.append(_pearson(ranked, index, weights_G[None]))
    return {pair: np.concatenate([row[pair] for row in rows]) for pair in rows[0]}


def _ratio(covariance: Array, product: Array) -> Array:
    out = np.full_like(covariance, np.nan)
    np.divide(covariance, product, out=out, where=product > 1e-300)
    return np.clip(out, -1, 1)
