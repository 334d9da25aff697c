"""Claims and what came out of them, as a table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from uncertune.report.page import Column, Table, Value
from uncertune.statistics.findings import Finding
from uncertune.statistics.intervals import Estimate


def findings_table(findings: Iterable[Finding]) -> Table:
    """A row a claim: what came out, the effect with its interval, what was claimed of it, and the test in words."""
    rows: tuple[Mapping[str, Value], ...] = tuple(
        {
            "claim": f"{f.claim}: {f.says}",
            "outcome": f.outcome,
            "effect": shown(f.effect),
            "claimed": f"{'>' if f.side == 'above' else '<'} {f.level:g}",
            "test": f.test,
        }
        for f in findings
    )
    names = ("outcome", "effect", "claimed", "test")
    columns = tuple(Column(name, name, None, 0, words=name == "test") for name in names)
    caption = (
        "The effect is a mean with its 95 % interval over seeds. A claim is held where the whole interval is on the "
        "claimed side, not held where it is on the other, else undecided."
    )
    return Table("What came out", caption, columns, rows, "claim", None)


def shown(estimate: Estimate) -> str:
    """Three digits, or – where there is none; the interval only where there is one."""
    if math.isnan(estimate.value):
        return "–"
    return f"{estimate.value:.3g}" if math.isnan(estimate.low) else str(estimate)
