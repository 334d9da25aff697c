"""The table of gains over MLE."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from uncertune.report.page import Column, Table, Value
from uncertune.report.tables import format_estimate
from uncertune.statistics.intervals import MOST_SEEDS, Estimate, seeds_needed
from uncertune.sweep.measures import HOW, Sweep, mean


def gains_table(sweep: Sweep) -> Table:
    """Every arm's gains over MLE at the end of training, and the extra seeds that an undecided one needs."""
    columns = [Column("seeds", "Seeds", None, 0)]
    share = Column("", "", None, 2, percent=True, sign=True)
    rows: list[dict[str, Value]] = []
    sides = {"in": sweep.inside in sweep.relative, "out": any(name != sweep.inside for name in sweep.relative)}
    labels = {"in": "In distribution", "out": "Out of distribution"}
    for side in (side for side, there in sides.items() if there):
        columns.append(replace(share, key=side, label=labels[side]))
        columns.append(Column(f"{side}_more", "Extra seeds needed", None, 0))
    for arm in sweep.others:
        row: dict[str, Value] = {"arm": arm}
        for side, gains in (("in", _inside(sweep, arm)), ("out", sweep.mean_gains(arm))):
            found = mean(gains)
            row["seeds"] = max(int(str(row.get("seeds", 0))), len(gains))
            row[side] = format_estimate(found, share)
            row[f"{side}_more"] = clear(gains, found)
        rows.append(row)
    caption = (
        f"{HOW} “Extra seeds needed”: how many more seeds would make the interval exclude 0 if mean and standard "
        "deviation stayed the same; “none” if it excludes 0 already."
    )
    return Table("Gains over MLE", caption, tuple(columns), tuple(rows), "arm", None)


def _inside(sweep: Sweep, arm: str) -> dict[int, float]:
    return sweep.gains(arm, sweep.inside) if sweep.inside in sweep.main else {}


def clear(gains: Mapping[int, float], found: Estimate) -> str | None:
    """The number of extra seeds for an interval that excludes 0: “none” if it does; None without an interval."""
    if math.isnan(found.low) or found.low == found.high:  # equal values do not show their spread
        return None
    if found.low > 0 or found.high < 0:
        return "none"
    needed = seeds_needed(list(gains.values()))
    return f"over {MOST_SEEDS:,}" if needed is None else str(needed - len(gains))
