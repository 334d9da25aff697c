"""Bars from zero with intervals: places on one axis in percent of its width, and the numbers as text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import astuple, dataclass

from uncertune.report.page import Bars, Column
from uncertune.report.plots import LineStyle, signed_percent
from uncertune.report.tables import written

_LONGEST = 4  # an interval longer than this many times the longest bar is cut at the edge


@dataclass(frozen=True)
class Row:
    """One bar: ``left`` and ``width`` of it, ``low`` and ``high`` of its interval (None: not known, or cut off)."""

    name: str
    style: LineStyle
    left: float
    width: float
    line: tuple[float, float] | None
    caps: tuple[float, ...]
    text: str
    note: str


@dataclass(frozen=True)
class Drawing:
    """Groups of rows on one axis; ``ticks`` are places and labels."""

    groups: tuple[tuple[str, tuple[Row, ...]], ...]
    zero: float
    ticks: tuple[tuple[float, str], ...]


def drawing(bars: Bars, styles: Mapping[str, LineStyle]) -> Drawing:
    """Where everything lies. ``styles`` are from :func:`uncertune.report.plots.line_styles`."""
    low, high = _range(bars)
    signed = low < 0
    column = Column("", "", None, 1 if bars.percent else 3, bars.percent, signed)

    def place(value: float) -> float:
        return round(100 * (min(max(value, low), high) - low) / (high - low), 2)

    def row_of(name: str, value: float, ends: tuple[float, float], text: str, note: str) -> Row:
        known = all(math.isfinite(end) for end in ends)
        left, right = sorted((place(0.0), place(value if math.isfinite(value) else 0.0)))
        caps = tuple(place(end) for end in ends if known and low <= end <= high)
        line = (place(ends[0]), place(ends[1])) if known else None
        return Row(name, styles[name], left, round(right - left, 2), line, caps, text, note)

    groups = tuple(
        (
            heading,
            tuple(
                row_of(
                    bar.name,
                    bar.value.value,
                    (bar.value.low, bar.value.high),
                    " ".join(astuple(written(bar.value, column))),
                    bar.note,
                )
                for bar in group
            ),
        )
        for heading, group in bars.groups
    )
    ticks = tuple((place(tick), _tick(tick, signed, bars.percent)) for tick in _ticks(low, high))
    return Drawing(groups, place(0.0), ticks)


def _range(bars: Bars) -> tuple[float, float]:
    """From the lowest to the highest that is drawn, zero within, a little room at the ends."""
    every = [bar.value for _, group in bars.groups for bar in group]
    values = [one.value for one in every if math.isfinite(one.value)]
    ends = [end for one in every for end in (one.low, one.high) if math.isfinite(end)]
    longest = max((abs(value) for value in values), default=0.0) or max((abs(end) for end in ends), default=1.0) or 1.0
    edge = _LONGEST * longest
    low = min([0.0, *(max(end, -edge) for end in [*values, *ends])])
    high = max([bars.end, *(min(end, edge) for end in [*values, *ends])])
    room = 0.04 * (high - low) or 1.0
    return low - room if low < 0 else low, high + room if high > 0 else 0.0 if low < 0 else 1.0


def _ticks(low: float, high: float) -> list[float]:
    from matplotlib.ticker import MaxNLocator

    return [float(tick) for tick in MaxNLocator(4).tick_values(low, high) if low <= tick <= high]


def _tick(value: float, signed: bool, percent: bool) -> str:
    if signed and percent:
        return signed_percent(value)
    return f"{100 * value:.3g}%" if percent else f"{value:.3g}".replace("-", "−")
