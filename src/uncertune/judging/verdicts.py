"""Verdicts on each model: counts of outcomes, and the win rate over the baseline (``winrate``).

Two readings: *soft* rates are means of the judge's preferences, *decided* rates count prompts by the side that it
takes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from uncertune.errors import UserError
from uncertune.judging.judge import JUDGED
from uncertune.judging.judgements import MODEL_FIRST, Judgement
from uncertune.judging.pairs import Pair
from uncertune.statistics.decided import FEW_PROMPTS, Decided, count_decided, order_averaged
from uncertune.statistics.winrate import WinRate, win_rate

SMALL_MASS = 0.5
LIKE_LENGTH = 0.2
"""Answers whose lengths differ by at most this share of their mean count as of like length."""
_RATES = ("raw", "order_averaged", "adjusted", "position_bias", "length_effect")


def verdict(pairs: Sequence[Pair], judgements: Sequence[Judgement]) -> dict[str, Any]:
    """One model's entry of ``verdicts.json``; a rate is None if too few pairs were judged."""
    outcomes = Counter(one.outcome for one in judgements)
    notes = _notes(judgements)
    found = {pair.id: len(pair.model) - len(pair.baseline) for pair in pairs}
    judged = [one for one in judgements if one.outcome == JUDGED]
    rates: dict[str, Any] = dict.fromkeys((*_RATES, "decided"))
    try:
        rate = win_rate(
            [float(one.preference or 0) for one in judged],
            [found[one.id] for one in judged],
            [_position(one) for one in judged],
            [one.id for one in judged],
        )
    except UserError as error:
        notes.append(str(error).removeprefix("win_rate: "))
    else:
        rates = {**_rates(rate), "decided": _decided(rate.decided, pairs, judged)}
        notes += rate.warnings
        if rate.decided.prompts < FEW_PROMPTS:
            notes.append(f"only {rate.decided.prompts} prompts are decided (below {FEW_PROMPTS})")
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


def _decided(found: Decided, pairs: Sequence[Pair], judged: Sequence[Judgement]) -> dict[str, Any]:
    """Counts of prompts, the share won, at equal length by the model, and on the pairs of like length alone."""
    like = {pair.id for pair in pairs if _is_alike(len(pair.model), len(pair.baseline))}
    chosen = [one for one in judged if one.id in like]
    number = {name: place for place, name in enumerate(dict.fromkeys(one.id for one in chosen))}
    alike = count_decided(
        order_averaged(
            np.array([float(one.preference or 0) for one in chosen]),
            np.array([_position(one) for one in chosen]),
            np.array([number[one.id] for one in chosen], dtype=np.int64),
        )
    )
    return {
        "won": found.won,
        "lost": found.lost,
        "tied": found.tied,
        "one_order": found.one_order,
        "share": _share(found.share, found.interval),
        "adjusted": _share(found.adjusted, found.adjusted_interval),
        "like_length": {"won": alike.won, "lost": alike.lost, "share": _share(alike.share, alike.interval)},
    }


def _is_alike(one: int, other: int) -> bool:
    return abs(one - other) <= LIKE_LENGTH * (one + other) / 2


def _position(one: Judgement) -> int:
    """+1 if the model's answer was shown first, −1 if the baseline's was."""
    return 1 if one.order == MODEL_FIRST else -1


def _share(value: float | None, interval: tuple[float, float] | None) -> dict[str, float | None] | None:
    return None if value is None or interval is None else _estimate(value, interval)


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
            f"the judge puts only {mass:.0%} of its probability on the two letters: it ignores the instruction, "
            "so choose a stronger one"
        )
    return out


def _mean_mass(judged: Sequence[Judgement]) -> float | None:
    known = [one.mass for one in judged if one.mass is not None]
    return sum(known) / len(known) if known else None
