"""Which answer a judge prefers on each prompt, whatever its confidence: a second reading of a win rate.

A weak judge may side with the better answer on nearly every prompt while its preferences all lie near one half; their
mean is then near one half too. Here each prompt counts once, by the sign of its log-odds averaged over both orders,
which a constant preference for a position does not change.

Legend: N judgements, P prompts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from uncertune.errors import UserError
from uncertune.statistics.intervals import LEVEL

Array = NDArray[np.float64]

FEW_PROMPTS = 30
_SMALLEST = 1e-9  # a letter without a probability counts as nearly certain, in both orders
_TIE = 1e-6  # mean log-odds so near 0 are rounding


@dataclass(frozen=True)
class Decided:
    """Prompts by the side that the judge takes; ``share`` is won / (won + lost), None where no prompt is decided.

    ``interval`` is exact (Clopper and Pearson, 1934; 95 %). ``adjusted`` is the share at equal length: σ(θ) of
    P(won) = σ(θ + β · tanh(Δ / sd)) over the decided prompts, None if the fit does not exist. ``one_order`` counts the
    prompts that were judged in one known order only; they are not decided, since they still contain the judge's
    preference for a position.
    """

    won: int
    lost: int
    tied: int
    one_order: int
    share: float | None
    interval: tuple[float, float] | None
    adjusted: float | None = None
    adjusted_interval: tuple[float, float] | None = None

    @property
    def prompts(self) -> int:
        return self.won + self.lost


@dataclass(frozen=True)
class Temperature:
    """How far a judge's log-odds are from those of known outcomes: P(right) = σ(log-odds / value).

    Below 1 its preferences are compressed, above 1 exaggerated; infinite if it agrees with at most half of the known
    answers. ``agreement`` is the share of known pairs whose better answer it prefers, ties not counted, with its exact
    interval.
    """

    value: float
    agreement: float
    interval: tuple[float, float]
    pairs: int


def order_averaged(preference_N: Array, position_N: Array, prompt_N: NDArray[np.int64]) -> Array:
    """(P,) log-odds of each prompt: the mean of its two orders' means, NaN where only one known order was judged.

    Judgements of unknown order (0) count as balanced if a prompt has no others.
    """
    log_odds_N = _log_odds(preference_N)
    count = int(prompt_N.max()) + 1 if len(prompt_N) else 0

    def mean(side: int) -> Array:
        chosen = position_N == side
        number = np.bincount(prompt_N[chosen], minlength=count).astype(np.float64)
        total = np.bincount(prompt_N[chosen], weights=log_odds_N[chosen], minlength=count)
        return np.divide(total, number, out=np.full(count, np.nan), where=number > 0)

    first, second, unknown = mean(1), mean(-1), mean(0)
    known = ~(np.isnan(first) & np.isnan(second))
    averaged = np.where(known, (first + second) / 2, unknown)
    return np.where(np.abs(averaged) < _TIE, 0.0, averaged)


def count_decided(log_odds_P: Array) -> Decided:
    """Count the prompts by the sign of their log-odds."""
    won, lost = int((log_odds_P > 0).sum()), int((log_odds_P < 0).sum())
    one_order = int(np.isnan(log_odds_P).sum())
    tied = len(log_odds_P) - won - lost - one_order
    if not won + lost:
        return Decided(won, lost, tied, one_order, None, None)
    return Decided(won, lost, tied, one_order, won / (won + lost), exact_interval(won, won + lost))


def exact_interval(won: int, count: int) -> tuple[float, float]:
    """The interval of Clopper and Pearson (1934) for a share, 95 %."""
    from scipy.stats import binomtest

    found = binomtest(won, count).proportion_ci(LEVEL, method="exact")
    return float(found.low), float(found.high)


def fit_temperature(log_odds: ArrayLike, right: ArrayLike) -> Temperature:
    """Fit the temperature by maximum likelihood on pairs whose better answer is known.

    Half a right and half a wrong pair at the mean absolute log-odds are added, so that the temperature is finite and
    above 0 even if the judge is right on every pair.

    Args:
        log_odds: (P,) order-averaged log-odds of the judge for the first answer of each pair.
        right: (P,) 1 where the first answer is the better one, 0 where the second is.

    Raises:
        UserError: no pairs, lengths that differ, a non-finite value, or only ties.
    """
    from scipy.optimize import minimize_scalar

    x, y = np.asarray(log_odds, dtype=np.float64), np.asarray(right, dtype=np.float64)
    if x.shape != y.shape or not len(x) or not np.isfinite(x).all() or not np.isin(y, (0, 1)).all():
        raise UserError("temperature: known pairs need finite log-odds and an outcome of 0 or 1 each")
    signed = np.where(y == 1, x, -x)
    decided = count_decided(signed)
    if decided.share is None or decided.interval is None:
        raise UserError("temperature: the judge is undecided on all known pairs")
    scale = float(np.abs(x).mean())
    unit = np.append(signed, [scale, -scale]) / scale
    weights = np.append(np.ones(len(x)), [0.5, 0.5])

    def loss(slope: float) -> float:
        return float(weights @ np.logaddexp(0.0, -slope * unit))

    slope = float(minimize_scalar(loss, bounds=(0.0, 1e3), method="bounded", options={"xatol": 1e-9}).x)
    value = scale / slope if slope > 1e-6 else float("inf")
    return Temperature(value, decided.share, decided.interval, decided.prompts)


def tempered_rate(log_odds: ArrayLike, temperature: float) -> tuple[float, tuple[float, float]]:
    """The mean over prompts of σ(log-odds / temperature), with Student's interval; NaN at its ends for one prompt."""
    from scipy.special import expit

    from uncertune.statistics.intervals import over_seeds

    x = np.asarray(log_odds, dtype=np.float64)
    found = over_seeds(expit(x[np.isfinite(x)] / temperature))
    return found.value, (max(0.0, found.low), min(1.0, found.high))


def _log_odds(preference: Array) -> Array:
    y = np.clip(preference, _SMALLEST, 1 - _SMALLEST)
    return np.log(y) - np.log1p(-y)
