"""What the judgements say of each model: outcomes counted, and the win rate over the baseline (``winrate``)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from uncertune.errors import UserError
from uncertune.judging.judge import JUDGED
from uncertune.judging.judgements import MODEL_FIRST, Judgement
from uncertune.judging.pairs import Pair
from uncertune.statistics.winrate import WinRate, win_rate

SMALL_MASS = 0.5
_RATES = ("raw", "order_averaged", "adjusted", "position_bias", "length_effect")


def verdict(pairs: Sequence[Pair], judgements: Sequence[Judgement]) -> dict[str, Any]:
    """One model's entry of ``verdicts.json``; a rate is None where too few pairs were judged for it."""
    outcomes = Counter(one.outcome for one in judgements)
    notes = _notes(judgements)
    found = {pair.id: len(pair.model) - len(pair.baseline) for pair in pairs}
    judged = [one for one in judgements if one.outcome == JUDGED]
    rates: dict[str, Any] = dict.fromkeys(_RATES)
    try:
        rate = win_rate(
            [float(one.preference or 0) for one in judged],
            [found[one.id] for one in judged],
            [1 if one.order == MODEL_FIRST else -1 for one in judged],
            [one.id for one in judged],
        )
    except UserError as error:
        notes.append(str(error).removeprefix("win_rate: "))
    else:
        rates = _rates(rate)
        notes += rate.warnings
    return {
        "pairs": len(pairs),
        "outcomes": dict(sorted(outcomes.items(), key=lambda item: (item[0] != JUDGED, item[0]))),
        **rates,
        "label_mass": _mean_mass(judged),
        "warning": "; ".join(notes) or None,
    }


def _rates(rate: WinRate) -> dict[str, Any]:
    return {
        "raw": _estimate(rate.raw, rate.raw_interval),
        "order_averaged": _estimate(rate.order_averaged, rate.order_averaged_interval),
        "adjusted": _estimate(rate.win_rate, rate.interval),
        "position_bias": _estimate(rate.position_effect, rate.position_interval),
        "length_effect": _estimate(rate.length_effect, rate.length_interval),
    }


def _estimate(value: float, interval: tuple[float, float]) -> dict[str, float | None]:
    low, high = (None if math.isnan(end) else end for end in interval)
    return {"value": value, "low": low, "high": high}


def _notes(judgements: Sequence[Judgement]) -> list[str]:
    out = []
    lost = Counter(one.outcome for one in judgements if one.outcome != JUDGED)
    if lost:
        counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(lost.items()))
        out.append(f"{sum(lost.values())} of {len(judgements)} judgements are missing from the rates: {counts}")
    judged = [one for one in judgements if one.outcome == JUDGED]
    certain = sum(one.mass is None for one in judged)
    if certain:
        out.append(f"{certain} of {len(judged)} judgements came without probabilities: a letter counts as certain")
    mass = _mean_mass(judged)
    if mass is not None and mass < SMALL_MASS:
        out.append(
            f"the judge puts only {mass:.0%} of its probability on the two letters: it does not follow the question, "
            "so choose a stronger one"
        )
    return out


def _mean_mass(judged: Sequence[Judgement]) -> float | None:
    known = [one.mass for one in judged if one.mass is not None]
    return sum(known) / len(known) if known else None
