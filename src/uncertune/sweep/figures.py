"""Figures of a sweep: trajectories, gains by metric and data set (the paper's Fig. 3, 5 and 6), and gains against q."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from uncertune.report.drawing import Drawn
from uncertune.report.page import Bar, Bars, Curves, Point, Points, Series
from uncertune.statistics.intervals import Estimate
from uncertune.statistics.pareto import pareto_front
from uncertune.sweep.curves import closer, trails
from uncertune.sweep.measures import HOW, MLE, Record, Sweep, families, mean

_GAIN = "gain over MLE"
_AXES = ("objective", "metric", "level")


def figures(sweep: Sweep) -> Iterator[tuple[str, list[Drawn]]]:
    """File stems and their panels."""
    if not sweep.others or MLE not in [arm["name"] for arm in sweep.arms]:
        return
    inside, outside = sweep.inside, sweep.outside
    if (plane := trails(sweep)) is not None:
        near = closer(plane)
        yield "trajectories", [plane] if near is None else [plane, near]
    if inside in sweep.relative:
        selecting = [arm for arm in sweep.arms if arm["objective"] == "masked_mle" and arm.get("metric") is not None]
        by_metric = dict.fromkeys(str(arm["metric"]) for arm in selecting)
        groups = [
            (metric, tuple(_bar(sweep, arm["name"], inside) for arm in selecting if str(arm["metric"]) == metric))
            for metric in by_metric
        ]
        if groups:
            caption = f"Masked MLE on {inside}, by the metric of the selection. {HOW}{_paper(sweep, '3')}"
            yield _stem(sweep, "figure-3"), [Bars("Gain in distribution", caption, _GAIN, tuple(groups))]
    groups = [(name, tuple(_bar(sweep, arm, name) for arm in sweep.others)) for name in sweep.main]
    caption = f"{inside} is in distribution. {HOW}{_paper(sweep, '5')}"
    if zero := [name for name in sweep.main if name not in sweep.relative]:
        caption += f" The gain on {', '.join(zero)} is undefined, since MLE has 0 with some seed."
    yield _stem(sweep, "figure-5"), [Bars("Gain on each data set", caption, _GAIN, tuple(groups))]
    if inside in sweep.relative and outside:
        yield _stem(sweep, "figure-6a"), [_pareto(sweep, outside)]
    yield _stem(sweep, "figure-6b"), [_won(sweep)]
    if curves := list(_by_q(sweep, bool(outside))):
        yield "q", curves


_STEMS = {"figure-3": "metrics", "figure-5": "data-sets", "figure-6a": "in-against-out", "figure-6b": "data-sets-won"}


def _stem(sweep: Sweep, paper: str) -> str:
    return paper if sweep.paper else _STEMS[paper]


def _paper(sweep: Sweep, number: str) -> str:
    return f" The paper's Fig. {number}." if sweep.paper else ""


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
        "to the right is better; the line joins the arms that no other arm beats in both."
        f"{_paper(sweep, '6 (A)')}"
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
    caption = "Share of data sets on which an arm's mean over seeds is better than MLE's." + _paper(sweep, "6 (B)")
    return Bars("Data sets won", caption, "share of data sets", (("", tuple(bars)),), end=1.0)


def _by_q(sweep: Sweep, outside: bool) -> Iterator[Drawn]:
    """Gains against q, in and out of distribution, with one line for each family of arms that differ in q alone."""
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
    """Objective, metric, level, and the other fields in which families differ."""
    parts = [arm[name] for name in _AXES if arm.get(name) is not None]
    others = [name for name in arm if name not in ("name", "q", *_AXES)]
    told = [name for name in others if len({repr(family[0].get(name)) for family in every if name in family[0]}) > 1]
    return ", ".join(map(str, [*parts, *(f"{name} {arm[name]}" for name in told)]))
