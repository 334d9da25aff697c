"""The paper's figures redrawn from the runs of a sweep, and what the selected share q does."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from uncertune.report.drawing import Drawn
from uncertune.report.page import Bar, Bars, Curves, Point, Points, Series
from uncertune.statistics.intervals import Estimate
from uncertune.statistics.pareto import pareto_front
from uncertune.sweep.measures import MLE, Record, Sweep, families, mean

HOW = (
    "(arm − MLE) / MLE of each seed, turned so that more is better: of the loss where there is one. Lines are 95 % "
    "intervals over seeds."
)
_GAIN = "gain over MLE"
_AXES = ("objective", "metric", "level")


def figures(sweep: Sweep) -> Iterator[tuple[str, list[Drawn]]]:
    """File stems and their panels."""
    if not sweep.others or MLE not in [arm["name"] for arm in sweep.arms]:
        return
    inside, outside = sweep.inside, sweep.outside
    if inside in sweep.relative:
        selecting = [arm for arm in sweep.arms if arm["objective"] == "masked_mle" and arm.get("metric") is not None]
        by_metric = dict.fromkeys(str(arm["metric"]) for arm in selecting)
        groups = [
            (metric, tuple(_bar(sweep, arm["name"], inside) for arm in selecting if str(arm["metric"]) == metric))
            for metric in by_metric
        ]
        if groups:
            caption = f"Masked MLE on {inside}, by what tokens or documents are ranked by. {HOW} The paper's Fig. 3."
            yield "figure-3", [Bars("Gain in distribution", caption, _GAIN, tuple(groups))]
    groups = [(name, tuple(_bar(sweep, arm, name) for arm in sweep.others)) for name in sweep.main]
    caption = f"{inside} is in distribution. {HOW} The paper's Fig. 5."
    if zero := [name for name in sweep.main if name not in sweep.relative]:
        caption += f" There is no such gain on {', '.join(zero)}, where MLE has 0 with some seed."
    yield "figure-5", [Bars("Gain on each data set", caption, _GAIN, tuple(groups))]
    if inside in sweep.relative and outside:
        yield "figure-6a", [_pareto(sweep, outside)]
    yield "figure-6b", [_won(sweep)]
    if curves := list(_by_q(sweep, bool(outside))):
        yield "q", curves


def _bar(sweep: Sweep, arm: str, name: str) -> Bar:
    return Bar(arm, mean(sweep.gains(arm, name)))


def _pareto(sweep: Sweep, outside: list[str]) -> Points:
    zero = Estimate(0.0, math.nan, math.nan)
    points = [Point(MLE, zero, zero)]
    points += [Point(arm, mean(sweep.gains(arm, sweep.inside)), mean(sweep.mean_gains(arm))) for arm in sweep.others]
    known = [one for one in points if one.known]
    best = pareto_front([(-one.x.value, -one.y.value) for one in known])
    caption = (
        f"Mean gains and 95 % intervals over seeds; out of distribution is the mean over {', '.join(outside)}. Up and "
        "to the right is better; the line joins the arms that no other beats on both sides. The paper's Fig. 6 (A)."
    )
    return Points(
        "In against out of distribution",
        caption,
        f"{_GAIN} in distribution",
        f"{_GAIN} out of distribution",
        tuple(points),
        front=tuple(one.name for one, on_front in zip(known, best, strict=True) if on_front),
    )


def _won(sweep: Sweep) -> Bars:
    bars = []
    for arm in sweep.others:
        gains = [one for name in sweep.main if not math.isnan((one := mean(sweep.ahead(arm, name))).value)]
        better, sure = sum(one.value > 0 for one in gains), sum(one.low > 0 for one in gains)
        share = better / len(gains) if gains else math.nan
        note = f"{better} of {len(gains)}, {sure} with an interval above 0"
        bars.append(Bar(arm, Estimate(share, math.nan, math.nan), note))
    caption = "Share of data sets on which an arm's mean over seeds is better than MLE's. The paper's Fig. 6 (B)."
    return Bars("Data sets won", caption, "share of data sets", (("", tuple(bars)),), end=1.0)


def _by_q(sweep: Sweep, outside: bool) -> Iterator[Drawn]:
    """Gains against q, in and out of distribution, one line a family of arms that differ in q alone."""
    found = families(sweep.arms)
    if not found:
        return
    sides: list[tuple[str, Callable[[str], dict[int, float]]]] = []
    if sweep.inside in sweep.relative:
        sides.append(("in", lambda arm: sweep.gains(arm, sweep.inside)))
    if outside:
        sides.append(("out of", sweep.mean_gains))
    for side, gains in sides:
        series = []
        for family in found:
            values = [mean(gains(arm["name"])) for arm in family]
            band = tuple(one.low for one in values), tuple(one.high for one in values)
            x = tuple(float(arm["q"]) for arm in family)
            series.append(Series(_family(family[0], found), x, tuple(one.value for one in values), band))
        caption = "Means over seeds, shaded 95 % intervals."
        yield Curves(f"Share selected, {side} distribution", caption, "q", _GAIN, tuple(series), percent=True)


def _family(arm: Record, every: list[list[Record]]) -> str:
    """Objective, metric, level, and what else families differ in."""
    parts = [arm[name] for name in _AXES if arm.get(name) is not None]
    others = [name for name in arm if name not in ("name", "q", *_AXES)]
    told = [name for name in others if len({repr(family[0].get(name)) for family in every if name in family[0]}) > 1]
    return ", ".join(map(str, [*parts, *(f"{name} {arm[name]}" for name in told)]))
