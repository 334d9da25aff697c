"""Every model × every task: values, paired tests against the baseline, and the gains that the figures show."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from uncertune.comparison.data import Comparison, Record
from uncertune.errors import UserError
from uncertune.report.page import Column
from uncertune.report.tables import headline, metric_column, metric_name
from uncertune.statistics import paired
from uncertune.statistics.intervals import Estimate

HEAD_TO_HEAD = "head to head"
_NAN = float("nan")
_Z = 1.959964  # of a 95 % interval


@dataclass(frozen=True)
class Measured:
    """One model's value of one measure; figures show the ``main`` measure of each task.

    ``baseline`` is the baseline's value (NaN for the baseline itself, or without a value), ``against`` the paired
    comparison with it (None without common samples), ``adjusted_p`` its p adjusted by Holm over all main measures.
    """

    task: str
    metric: str
    column: Column
    model: str
    main: bool
    value: Estimate
    baseline: float
    against: paired.Paired | None
    adjusted_p: float = _NAN

    @property
    def name(self) -> str:
        return metric_name(self.metric)

    @property
    def relative(self) -> float:
        """(model − baseline) / baseline; NaN without a baseline, if it is 0, or if the measure has no direction."""
        if not self.baseline or self.column.better is None:
            return _NAN
        return (self.value.value - self.baseline) / self.baseline


@dataclass(frozen=True)
class Gain:
    """Improvement of a model over the baseline on a task; higher is better.

    ``value`` and its standard ``error`` are relative to the baseline, NaN if that is 0; ``ahead`` is the difference.
    """

    task: str
    model: str
    value: Estimate
    error: float
    ahead: Estimate


def measure(found: Comparison, baseline: str) -> list[Measured]:
    """By task, metric and model."""
    out = [
        _measured(found, task, metric, metric == _main(by_model), model, baseline)
        for task, by_model in found.results.items()
        for metric in dict.fromkeys(name for one in by_model.values() for name in headline(one))
        for model, one in by_model.items()
        if metric in one["metrics"]
    ]
    tested = [one.against.p if one.main and one.against is not None else _NAN for one in out]
    return [replace(one, adjusted_p=p) for one, p in zip(out, paired.holm(tested), strict=True)]


def gains(measured: Sequence[Measured], verdicts: Record) -> list[Gain]:
    """The main measure of each task, and the adjusted win rate w as (w − ½) / ½."""
    out = []
    for one in measured:
        if not one.main or one.column.better is None or math.isnan(one.baseline):
            continue
        sign = 1.0 if one.column.better == "higher" else -1.0
        ahead, error = Estimate(one.value.value - one.baseline, _NAN, _NAN), _NAN
        value = Estimate(one.relative, _NAN, _NAN)
        if one.against is not None:
            value, ahead, error = one.against.relative, one.against.difference, one.against.error
        out.append(Gain(one.task, one.model, _signed(value, sign), error, _signed(ahead, sign)))
    for model, verdict in verdicts.get("models", {}).items():
        rate = estimate(verdict.get("adjusted"))
        if not math.isnan(rate.value):
            value = Estimate(*(2 * end - 1 for end in (rate.value, rate.low, rate.high)))
            out.append(Gain(HEAD_TO_HEAD, model, value, (value.high - value.low) / (2 * _Z), value))
    return out


def _signed(value: Estimate, sign: float) -> Estimate:
    low, high = sorted((sign * value.low, sign * value.high))
    return Estimate(sign * value.value, low, high)


def mean_gain(chosen: Sequence[Gain]) -> Estimate:
    """The mean over tasks, which are independent; tasks without a relative gain do not count."""
    known = [one for one in chosen if not math.isnan(one.value.value)]
    return paired.average([one.value for one in known], [one.error for one in known])


def estimate(found: Mapping[str, Any] | None) -> Estimate:
    """A rate of ``verdicts.json``; null becomes NaN."""
    values = [(found or {}).get(name) for name in ("value", "low", "high")]
    return Estimate(*(_NAN if value is None else float(value) for value in values))


def _main(by_model: Mapping[str, Record]) -> str | None:
    """The first metric with a direction."""
    for one in by_model.values():
        for metric in headline(one):
            if (one.get("higher_is_better") or {}).get(metric) is not None:
                return metric
    return None


def _measured(found: Comparison, task: str, metric: str, main: bool, model: str, baseline: str) -> Measured:
    result = found.results[task][model]
    reported = float(result["metrics"][metric])
    mine = _entries(found, task, model, metric)
    if mine:
        value = replace(paired.mean(*zip(*mine.values(), strict=True)), value=reported)
    else:
        half = _Z * float((result.get("stderr") or {}).get(metric, _NAN))
        value = Estimate(reported, reported - half, reported + half)
    other = found.results[task].get(baseline)
    theirs, against = _NAN, None
    if other is not None and model != baseline and metric in other["metrics"]:
        theirs = float(other["metrics"][metric])
        against = _against(mine, _entries(found, task, baseline, metric))
    return Measured(task, metric, metric_column(result, metric), model, main, value, theirs, against)


def _entries(found: Comparison, task: str, model: str, metric: str) -> dict[Any, tuple[float, float]]:
    """Sum and weight of each document; empty if they are missing or do not give the reported value."""
    lines = found.samples.get((task, model), [])
    out = {}
    for line in lines:
        entry = _entry(line, metric)
        if entry is None:
            return {}
        out[line["doc_id"], line.get("doc_hash")] = entry
    total = math.fsum(weight for _, weight in out.values())
    reported = float(found.results[task][model]["metrics"][metric])
    if not total or not math.isclose(math.fsum(x for x, _ in out.values()) / total, reported, abs_tol=1e-6):
        return {}
    return out


def _entry(line: Record, metric: str) -> tuple[float, float] | None:
    scores = line["scores"]
    if metric not in scores:
        return None
    if "tokens" in scores:  # sums over a document's tokens
        return float(scores[metric]), float(scores["tokens"])
    weight = float(line.get("weights", {}).get(metric, 1))
    return float(scores[metric]) * weight, weight


def _against(
    mine: Mapping[Any, tuple[float, float]], theirs: Mapping[Any, tuple[float, float]]
) -> paired.Paired | None:
    common = [name for name in mine if name in theirs and mine[name][1] == theirs[name][1]]
    if len(common) < max(len(mine), len(theirs)) or not common:
        return None
    return paired.compare(
        [mine[name][0] for name in common], [theirs[name][0] for name in common], [mine[name][1] for name in common]
    )


def choose_baseline(found: Comparison, named: str | None) -> str:
    """The given baseline, else that of the verdicts, else ``mle``, else the first model."""
    for name in (named, found.verdicts.get("baseline")):
        if name is not None and name not in found.models and name != found.verdicts.get("baseline"):
            raise UserError(f"baseline: there is no model {name!r}; choose from {', '.join(found.models)}")
        if name is not None:
            return str(name)
    return "mle" if "mle" in found.models else found.models[0]


def tasks_of(found: Comparison) -> Iterator[str]:
    """The names of all tasks, with the judged answers as one task."""
    yield from found.results
    if found.verdicts.get("models"):
        yield HEAD_TO_HEAD
