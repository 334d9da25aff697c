"""Results of a sweep at all points of its runs: trajectories in and out of distribution, and the arms compared at their
best point and at equal gain in distribution.

Gains over the base are (arm − base) / base, signed so that higher is better; out of distribution is the mean over data
sets.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from uncertune.report.page import Column, Point, Table, Trail, Trails, Value
from uncertune.report.tables import format_estimate
from uncertune.statistics.intervals import Estimate, over_seeds
from uncertune.sweep.gains import clear, gains_table
from uncertune.sweep.measures import LOWER, MLE, Record, Sweep, mean

_NAN = math.nan
_SHARE = Column("", "", None, 2, percent=True, sign=True)


def has_curves(sweep: Sweep) -> bool:
    """Whether runs were measured at several points."""
    return any(run.get("curve") for run in sweep.content["runs"])


def at_best(sweep: Sweep) -> Sweep:
    """The sweep with each run at its best point: the lowest loss (or highest score) in distribution."""
    measure = sweep.main.get(sweep.inside)
    return Sweep({**sweep.content, "runs": [_best(run, measure) for run in sweep.content["runs"]]})


def _best(run: Record, measure: str | None) -> Record:
    known = [one for one in run.get("curve") or [] if measure in one["in"]]
    if not known or measure is None:
        return run
    sign = 1.0 if measure in LOWER else -1.0
    best = min(known, key=lambda one: sign * float(one["in"][measure]))
    return {**run, **best}


# ---- the plane


def trails(sweep: Sweep) -> Trails | None:
    """Every arm's trajectory from the base, in and out of distribution; None without a measured base or other data."""
    if not has_curves(sweep) or not _usable(sweep):
        return None
    out = []
    for arm in [MLE, *sweep.others]:
        ways = list(_ways(sweep, arm).values())
        zero = Estimate(0.0, _NAN, _NAN)
        points = [Point("base", zero, zero)]
        for place in range(1, min(map(len, ways), default=0)):
            x, y = over_seeds([way[place][1] for way in ways]), over_seeds([way[place][2] for way in ways])
            points.append(Point(_moment(ways[0][place][0]), x, y))
        if len(points) > 1:
            out.append(Trail(arm, tuple(points)))
    caption = (
        f"Each line starts at the base, (0, 0), and has a dot for every measured point of training; the larger one is "
        "the end. Means and 95 % intervals over seeds; out of distribution is the mean over "
        f"{', '.join(_outside(sweep))}. Up and to the right is better; below 0 the model has forgotten."
    )
    x_label, y_label = "gain over the base in distribution", "gain over the base out of distribution"
    return Trails("From the base to the end", caption, x_label, y_label, tuple(out))


def closer(plane: Trails) -> Trails | None:
    """The plane without the arms that go more than twice as far as the median arm, on either axis, so that the others
    can be told apart; MLE always stays. None if no arm goes that far."""
    reach = {
        trail.name: [max(abs(getattr(point, axis).value) for point in trail.points) for axis in ("x", "y")]
        for trail in plane.trails
    }
    limits = [2 * statistics.median(axis) for axis in zip(*reach.values(), strict=True)]
    far = [
        name
        for name, reached in reach.items()
        if name != MLE and any(one > limit for one, limit in zip(reached, limits, strict=True))
    ]
    if not far:
        return None
    kept = tuple(trail for trail in plane.trails if trail.name not in far)
    return replace(plane, title="The same, closer", caption=f"Without {', '.join(far)}.", trails=kept)


def _moment(point: Record) -> str:
    return f"epoch {point['epoch']:g}" if point.get("epoch") is not None else f"step {point['step']}"


def _usable(sweep: Sweep) -> bool:
    measured = all(
        math.isfinite(base) and base for base in (sweep.base(name, sweep.main[name]) for name in _outside(sweep))
    )
    inside = sweep.main.get(sweep.inside)
    return bool(inside and _outside(sweep) and measured and math.isfinite(sweep.base(sweep.inside, inside)))


def _outside(sweep: Sweep) -> list[str]:
    """Data sets out of distribution that every point has: those measured token by token."""
    points = [one for run in sweep.content["runs"] for one in run.get("curve") or []]
    names = [name for name in sweep.main if name != sweep.inside]
    return [name for name in names if points and all(sweep.main[name] in one["out"].get(name, {}) for one in points)]


def _ways(sweep: Sweep, arm: str) -> dict[int, list[tuple[Record, float, float]]]:
    """By seed, (point, gain in distribution, gain out of it) of every point, the base first."""
    out = {}
    for run in sweep.content["runs"]:
        if run["arm"] == arm and run["status"] == "done" and run.get("curve"):
            way = [({"step": 0, "epoch": 0.0}, 0.0, 0.0)]
            way += [(one, _gain(sweep, sweep.inside, one["in"]), _outside_gain(sweep, one)) for one in run["curve"]]
            out[run["seed"]] = way
    return out


def _gain(sweep: Sweep, name: str, measures: Mapping[str, Any]) -> float:
    measure = sweep.main[name]
    base = sweep.base(name, measure)
    return (-1.0 if measure in LOWER else 1.0) * (float(measures[measure]) - base) / base


def _outside_gain(sweep: Sweep, point: Record) -> float:
    names = _outside(sweep)
    return math.fsum(_gain(sweep, name, point["out"][name]) for name in names) / len(names)


# ---- tables


def curve_tables(sweep: Sweep) -> Iterator[Table]:
    """The arms at their best points, and at equal gain in distribution."""
    if not has_curves(sweep):
        return
    best = at_best(sweep)
    table = gains_table(best)
    rows = []
    for row in table.rows:
        kept = {run["seed"]: run for run in best.content["runs"] if run["arm"] == row["arm"] and run.get("step")}
        rows.append({**row, "epoch": ", ".join(_number(kept[seed]) for seed in sorted(kept)) or None})
    baseline = [run for run in best.content["runs"] if run["arm"] == MLE and run["status"] == "done"]
    rows.insert(0, {"arm": MLE, "epoch": ", ".join(map(_number, baseline))})
    columns = (Column("epoch", "Epoch kept, by seed", None, 0), *table.columns)
    caption = (
        f"Each run at its lowest {sweep.main.get(sweep.inside, 'loss')} on {sweep.inside}, MLE too: what early "
        "stopping would keep. For all arms the point is chosen on the documents that it is measured on. Gains are over "
        "MLE at its best point with the same seed."
    )
    yield Table("Kept at its best epoch", caption, columns, tuple(rows), "arm", None)
    if _usable(sweep):
        yield _equal_gain_table(sweep)


def _number(run: Record) -> str:
    return f"{run['epoch']:g}" if run.get("epoch") is not None else "end"


def equal_gain(sweep: Sweep, arm: str) -> dict[int, tuple[float, float]]:
    """By seed, (level, arm − MLE): gains over the base out of distribution at the first equal gain in distribution.

    The level is the highest gain in distribution that both reach: the smaller of their maxima. Trajectories are
    interpolated linearly between measured points.
    """
    ours, baseline = _ways(sweep, arm), _ways(sweep, MLE)
    out = {}
    for seed in sorted(set(ours) & set(baseline)):
        level = min(max(x for _, x, _ in way) for way in (ours[seed], baseline[seed]))
        if level > 0:
            out[seed] = level, _outside_at(ours[seed], level) - _outside_at(baseline[seed], level)
    return out


def _outside_at(way: list[tuple[Record, float, float]], level: float) -> float:
    """The gain out of distribution where the gain in distribution first reaches ``level``."""
    for (_, x0, y0), (_, x1, y1) in itertools.pairwise(way):
        if level <= x1:
            return y0 + (y1 - y0) * (level - x0) / (x1 - x0)
    return _NAN


def _equal_gain_table(sweep: Sweep) -> Table:
    rows: list[dict[str, Value]] = []
    for arm in sweep.others:
        found = equal_gain(sweep, arm)
        difference = mean({seed: one for seed, (_, one) in found.items()})
        rows.append(
            {
                "arm": arm,
                "seeds": len(found),
                "level": format_estimate(mean({seed: level for seed, (level, _) in found.items()}), _SHARE),
                "out": format_estimate(difference, _SHARE),
                "more": clear({seed: one for seed, (_, one) in found.items()}, difference),
            }
        )
    columns = (
        Column("seeds", "Seeds", None, 0),
        Column("level", "Gain in distribution of both", None, 0),
        Column("out", "Out of distribution, arm − MLE", None, 0),
        Column("more", "Extra seeds needed", None, 0),
    )
    caption = (
        "Each arm and MLE where they first reach the same gain over the base in distribution, the highest that both "
        "reach; then the difference of their gains over the base out of distribution, in points. Above 0 the arm has "
        "forgotten less for what it has learned. Means and 95 % intervals over seeds."
    )
    return Table("At equal gain in distribution", caption, columns, tuple(rows), "arm", None)
