"""Win rate of one model over another from a judge's preferences, adjusted for length and presentation order.

    P(the model wins) = σ(θ + β · tanh(Δ / sd) + γ · s)

Δ: length of the model's answer minus that of the baseline's, sd: its standard deviation (ddof 1); s: +1 if the
model's answer was shown first, −1 if second, 0 if unknown. σ(θ) is the win rate at equal length, adjusted for
presentation order. The length term is that of length-controlled AlpacaEval (Dubois et al., 2024); the paper (§4.1)
adjusts for both.

Legend: N judgements, C columns (constant, length, position).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from uncertune.errors import UserError
from uncertune.statistics.decided import Decided, count_decided, order_averaged
from uncertune.statistics.intervals import LEVEL

Array = NDArray[np.float64]

LARGE_MOVE = 0.10  # an adjustment beyond this rests on the form of the model more than on judgements
_CERTAIN = 0.01  # a preference so near 0 or 1 counts as a plain loss or win when looking for separation
_NO_SPREAD = 1e-12
_FLAT = 1e14  # condition of the likelihood's curvature beyond which a coefficient is not determined
_NAN = float("nan")


@dataclass(frozen=True)
class WinRate:
    """Rates in [0, 1]; effects in log-odds; intervals of 95 %, clustered by prompt.

    ``order_averaged`` is the rate at equal length as the mean of both orders; it is nearer to one half than
    ``win_rate`` if the judge has a position bias. An effect whose column is constant or unknown is left out of the
    model: it is 0, its interval NaN, and ``warnings`` names it. ``decided`` counts prompts by the side that the judge
    takes, whatever its confidence.
    """

    win_rate: float
    standard_error: float
    interval: tuple[float, float]
    order_averaged: float
    order_averaged_interval: tuple[float, float]
    raw: float
    raw_interval: tuple[float, float]
    length_effect: float
    length_interval: tuple[float, float]
    position_effect: float
    position_interval: tuple[float, float]
    judgements: int
    prompts: int
    decided: Decided
    warnings: tuple[str, ...] = ()


def win_rate(
    preference: ArrayLike,
    length_difference: ArrayLike,
    position: ArrayLike,
    prompt: Sequence[Hashable] | NDArray[Any],
) -> WinRate:
    """Fit the model by maximum likelihood; standard errors by a sandwich clustered by prompt.

    Equals a binomial GLM with cluster covariance and small-sample correction; intervals by Student's t on the scale of
    log-odds. If no finite fit exists (every judgement a win, or the longer or first answer always preferred), half a
    won and half a lost prompt are added for each coefficient (the log-F(1, 1) prior of Greenland and Mansournia, 2015),
    and ``warnings`` says so.

    Args:
        preference: (N,) in [0, 1], how sure the judge is that the model's answer is the better one.
        length_difference: (N,) characters, model − baseline.
        position: (N,) +1 the model's answer was shown first, −1 second, 0 unknown.
        prompt: (N,) labels of any kind; judgements of one prompt depend on each other.

    Raises:
        UserError: lengths that differ, values out of range or non-finite, fewer than two prompts.
    """
    y, length, place = (np.asarray(one, dtype=np.float64).ravel() for one in (preference, length_difference, position))
    cluster = _clusters(prompt)
    _check(y, length, place, cluster)
    notes: list[str] = []
    X_NC, kept = _design(length, place, notes)
    fit, penalised = _finite_fit(X_NC, y, cluster)
    if penalised:
        notes.append(
            "the judgements are too uniform for a finite fit: half a won and half a lost prompt were added "
            "for each coefficient"
        )
    raw, _ = _finite_fit(X_NC[:, :1], y, cluster)
    return _result(fit, raw, kept, y, cluster, _decided(y, length, place, cluster), notes)


@dataclass(frozen=True)
class _Fit:
    coefficients: Array
    covariance: Array
    clusters: int


def _clusters(prompt: Sequence[Hashable] | NDArray[Any]) -> NDArray[np.int64]:
    labels = prompt.tolist() if isinstance(prompt, np.ndarray) else list(prompt)
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(label, len(numbers)) for label in labels], dtype=np.int64)


def _check(y: Array, length: Array, place: Array, cluster: NDArray[np.int64]) -> None:
    sizes = [len(one) for one in (y, length, place, cluster)]
    if len(set(sizes)) > 1:
        raise UserError(f"win_rate: preference, length_difference, position, prompt differ in length: {sizes}")
    if not all(np.isfinite(one).all() for one in (y, length, place)):
        raise UserError("win_rate: preference, length_difference and position must be finite; leave failed ones out")
    if len(y) and (y.min() < 0 or y.max() > 1):
        raise UserError(f"win_rate: preference must be in [0, 1], got {y.min():g} to {y.max():g}")
    if not np.isin(place, (-1, 0, 1)).all():
        raise UserError("win_rate: position must be +1 (shown first), -1 (second) or 0 (unknown)")
    if len(np.unique(cluster)) < 2:
        raise UserError(f"win_rate: {len(np.unique(cluster))} prompts have judgements, an interval needs two or more")


def _design(length: Array, place: Array, notes: list[str]) -> tuple[Array, list[str]]:
    """The columns of the model: a constant, and those of length and position that add to the rank."""
    spread = float(np.std(length, ddof=1))
    scaled = np.tanh(length / spread) if spread > 0 else np.zeros_like(length)
    columns, kept = [np.ones_like(length)], ["constant"]
    for name, column in (("length", scaled), ("position", place)):
        tried = np.column_stack([*columns, column])
        if np.linalg.matrix_rank(tried) > len(columns) and tried.shape[0] > tried.shape[1]:
            columns.append(column)
            kept.append(name)
        else:
            notes.append(f"the {name} term is left out: its column does not vary by itself")
    return np.column_stack(columns), kept


def _separated(X_NC: Array, y: Array) -> bool:
    """Whether the data are separable, so that the likelihood has no maximum (Konis, 2007), by a linear programme."""
    from scipy.optimize import linprog

    sign = np.where(y >= 1 - _CERTAIN, 1.0, np.where(y <= _CERTAIN, -1.0, 0.0))
    signed, soft = sign[sign != 0, None] * X_NC[sign != 0], X_NC[sign == 0]
    if not len(signed):
        return False
    found = linprog(
        -signed.sum(axis=0),
        A_ub=-signed,
        b_ub=np.zeros(len(signed)),
        A_eq=soft if len(soft) else None,
        b_eq=np.zeros(len(soft)) if len(soft) else None,
        bounds=[(-1, 1)] * X_NC.shape[1],
    )
    return bool(found.status == 0 and -found.fun > 1e-7)


def _decided(y: Array, length: Array, place: Array, cluster: NDArray[np.int64]) -> Decided:
    """Prompts by the sign of their order-averaged log-odds, and the share at equal length."""
    log_odds_P = order_averaged(y, place, cluster)
    counted = count_decided(log_odds_P)
    chosen = np.isfinite(log_odds_P) & (log_odds_P != 0)
    if chosen.sum() < 3:
        return counted
    length_P = np.bincount(cluster, weights=length) / np.bincount(cluster)
    won, prompt = (log_odds_P[chosen] > 0).astype(np.float64), np.arange(int(chosen.sum()))
    X_PC, kept = _design(length_P[chosen], np.zeros(len(won)), [])
    fit, _ = _finite_fit(X_PC, won, prompt)
    from scipy.special import expit

    theta, (low, high) = _ends(fit, kept)["constant"]
    return replace(counted, adjusted=float(expit(theta)), adjusted_interval=(float(expit(low)), float(expit(high))))


def _finite_fit(X_NC: Array, y: Array, cluster: NDArray[np.int64]) -> tuple[_Fit, bool]:
    """The fit, and whether half a pair was added for each coefficient: the plain fit is not finite or has error 0."""
    weights = np.ones(len(y))
    fit = None if _separated(X_NC, y) else _fit(X_NC, y, weights, cluster)
    if fit is not None and fit.covariance[0, 0] > _NO_SPREAD:
        return fit, False
    count, a_prompt = X_NC.shape[1], len(y) / (cluster.max() + 1)
    fit = _fit(
        np.vstack([X_NC, np.eye(count)]),
        np.concatenate([y, np.full(count, 0.5)]),
        np.concatenate([weights, np.full(count, a_prompt)]),
        np.concatenate([cluster, cluster.max() + 1 + np.arange(count)]),
    )
    assert fit is not None, "the added pairs bound every coefficient"
    return fit, True


def _fit(X_NC: Array, y: Array, weights: Array, cluster: NDArray[np.int64]) -> _Fit | None:
    """Logistic regression on soft outcomes with the covariance clustered; None where the likelihood has no peak."""
    from scipy.optimize import minimize
    from scipy.special import expit, xlogy

    # Relative to the best possible value, so that the minimum is near 0 and rounding errors are small.
    entropy = -(xlogy(y, y) + xlogy(1 - y, 1 - y))

    def value(b: Array) -> float:
        eta = X_NC @ b
        return float(weights @ (np.logaddexp(0, eta) - y * eta - entropy))

    def gradient(b: Array) -> Array:
        return X_NC.T @ (weights * (expit(X_NC @ b) - y))

    def hessian(b: Array) -> Array:
        p = expit(X_NC @ b)
        return (X_NC * (weights * p * (1 - p))[:, None]).T @ X_NC

    start = np.zeros(X_NC.shape[1])
    b = minimize(value, start, jac=gradient, hess=hessian, method="trust-exact", options={"gtol": 1e-8}).x
    scores = X_NC * (weights * (y - expit(X_NC @ b)))[:, None]
    summed = np.zeros((cluster.max() + 1, X_NC.shape[1]))
    np.add.at(summed, cluster, scores)
    clusters, (rows, columns) = len(summed), X_NC.shape
    correction = clusters / (clusters - 1) * (rows - 1) / (rows - columns)
    curvature = hessian(b)
    if np.linalg.cond(curvature) > _FLAT:
        return None
    bread = np.linalg.inv(curvature)
    covariance = correction * bread @ (summed.T @ summed) @ bread
    if covariance[0, 0] <= _NO_SPREAD:  # both orders cancel within each prompt: take the model's own covariance
        covariance = bread * rows / clusters
    return _Fit(b, covariance, clusters)


def _ends(fit: _Fit, names: list[str]) -> dict[str, tuple[float, tuple[float, float]]]:
    """Each coefficient with its interval."""
    from scipy import stats

    half = stats.t.ppf((1 + LEVEL) / 2, fit.clusters - 1) * np.sqrt(np.diag(fit.covariance))
    ends = zip(names, fit.coefficients, half, strict=True)
    return {name: (float(b), (float(b - h), float(b + h))) for name, b, h in ends}


def _averaged(fit: _Fit, names: list[str]) -> tuple[float, tuple[float, float]]:
    """The mean of the rates in both orders, and its interval by the delta method on the scale of log-odds."""
    from scipy import stats
    from scipy.special import expit, log_expit

    signs = np.array([[float(name == "constant") + sign * (name == "position") for name in names] for sign in (1, -1)])
    eta = signs @ fit.coefficients
    won, lost = log_expit(eta), log_expit(-eta)  # logarithms, since a rate may round to 0 or 1
    mean_won, mean_lost = (np.logaddexp(*one) - np.log(2) for one in (won, lost))
    gradient = np.exp(won + lost - np.log(2) - mean_won - mean_lost) @ signs
    error = float(np.sqrt(gradient @ fit.covariance @ gradient))
    half = stats.t.ppf((1 + LEVEL) / 2, fit.clusters - 1) * error
    centre = mean_won - mean_lost
    return float(expit(centre)), (float(expit(centre - half)), float(expit(centre + half)))


def _result(
    fit: _Fit,
    raw_fit: _Fit,
    kept: list[str],
    y: Array,
    cluster: NDArray[np.int64],
    decided: Decided,
    notes: list[str],
) -> WinRate:
    from scipy.special import expit

    ends = _ends(fit, kept)
    theta, (low, high) = ends["constant"]
    length, length_interval = ends.get("length", (0.0, (_NAN, _NAN)))
    position, position_interval = ends.get("position", (0.0, (_NAN, _NAN)))
    rate, raw = float(expit(theta)), float(y.mean())
    averaged, averaged_interval = _averaged(fit, kept)
    if abs(averaged - raw) > LARGE_MOVE:
        notes.append(
            f"the adjustment moves the rate from {raw:.1%} to {averaged:.1%}, by more than {LARGE_MOVE * 100:.0f} "
            "points: it extrapolates; the raw rate and the length effect say more than the adjusted rate"
        )
    elif abs(rate - raw) > LARGE_MOVE:
        notes.append(
            f"the adjustment moves the rate from {raw:.1%} to {rate:.1%}, by more than {LARGE_MOVE * 100:.0f} points, "
            f"by removing the position bias; averaged over both orders it is {averaged:.1%}"
        )
    raw_low, raw_high = _ends(raw_fit, ["constant"])["constant"][1]
    return WinRate(
        win_rate=rate,
        standard_error=float(rate * (1 - rate) * np.sqrt(fit.covariance[0, 0])),
        interval=(float(expit(low)), float(expit(high))),
        order_averaged=averaged,
        order_averaged_interval=averaged_interval,
        raw=raw,
        raw_interval=(min(raw, float(expit(raw_low))), max(raw, float(expit(raw_high)))),
        length_effect=length,
        length_interval=length_interval,
        position_effect=position,
        position_interval=position_interval,
        judgements=len(y),
        prompts=int(cluster.max()) + 1,
        decided=decided,
        warnings=tuple(notes),
    )
