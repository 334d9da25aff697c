"""Tests of the paper's claims C3 (§4.2) and C5 (§4.3) on a sweep's runs.

Effects are relative gains over MLE, (arm − MLE) / MLE of each seed signed so that higher is better; the gain out of
distribution is the mean over its data sets. Two arms are compared within each seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from uncertune.statistics.findings import Finding, Side
from uncertune.sweep.measures import Record, Sweep, less, mean, mean_over

_BALD = ("bald_samples", "bald_rate")


def claims(sweep: Sweep) -> Iterator[Finding]:
    """The tests of C3 and C5 for which the sweep has the arms."""
    if sweep.inside not in sweep.relative:
        return
    masked = [arm for arm in sweep.arms if arm["objective"] == "masked_mle" and arm.get("metric") is not None]
    yield from _c3(sweep, masked)
    for arm in masked:
        if arm["metric"] == "loss" and arm.get("level") == "token":
            yield from _c5(sweep, arm)


def _c3(sweep: Sweep, masked: list[Record]) -> Iterator[Finding]:
    tokens = [arm for arm in masked if arm.get("level") == "token"]
    for arm in tokens:
        other = _like(sweep, arm, level="document")
        yield from _better(sweep, f"tokens beat documents, by {arm['metric']}", arm["name"], other)
    for arm in tokens:
        if arm["metric"] != "loss":
            best = _like(sweep, arm, metric="loss")
            yield from _better(sweep, f"the highest loss is better than {arm['metric']}", best, arm["name"])


def _better(sweep: Sweep, says: str, one: str | None, other: str | None) -> Iterator[Finding]:
    """One arm against another in distribution, if the sweep has both."""
    if one is not None and other is not None:
        effect = mean(less(sweep.gains(one, sweep.inside), sweep.gains(other, sweep.inside)))
        yield Finding("C3", says, f"gain in distribution, {one} less {other}", effect, "above")


def _c5(sweep: Sweep, arm: Record) -> Iterator[Finding]:
    name, inside = arm["name"], sweep.inside
    yield Finding(
        "C5",
        "masked MLE gains in distribution",
        f"gain of {name} on {inside}",
        mean(sweep.gains(name, inside)),
        "above",
    )
    yield from _outside(sweep, "masked MLE loses", f"gain of {name}", "below", lambda one: sweep.gains(name, one))
    mixed = _like(sweep, arm, objective="masked_mle_distill")
    if mixed is None:
        return
    test = f"gain of {mixed} on {inside}"
    yield Finding("C5", "with distillation it gains in distribution", test, mean(sweep.gains(mixed, inside)), "above")
    recovered = "distillation recovers what masked MLE loses"
    yield from _outside(
        sweep,
        recovered,
        f"gain of {mixed} less that of {name}",
        "above",
        lambda one: less(sweep.gains(mixed, one), sweep.gains(name, one)),
    )


def _outside(
    sweep: Sweep, says: str, test: str, side: Side, gains: Callable[[str], Mapping[int, float]]
) -> Iterator[Finding]:
    """On each data set out of distribution, and on their mean if there are several."""
    by_set = {name: gains(name) for name in sweep.outside}
    for name, found in by_set.items():
        yield Finding("C5", f"{says} out of distribution, on {name}", test, mean(found), side)
    if len(by_set) > 1:
        means = mean_over(list(by_set.values()))
        yield Finding("C5", f"{says} out of distribution, mean of the data sets", test, mean(means), side)


def _like(sweep: Sweep, arm: Record, **changed: str) -> str | None:
    """The arm that differs from ``arm`` in this field alone; fields of BALD do not count."""
    wanted = {name: value for name, value in {**arm, **changed}.items() if name not in ("name", *_BALD)}
    for other in sweep.arms:
        if {name: value for name, value in other.items() if name not in ("name", *_BALD)} == wanted:
            return str(other["name"])
    return None
