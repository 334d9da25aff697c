"""Curves, points and bars, drawn by matplotlib for a page or for a paper, each with its :class:`Palette`.

``svg`` puts them into a page; ``draw_sections`` writes them as PNG and SVG.
"""

import contextlib
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from uncertune.report.page import Bars, Curves, Points, Section, Series, Trails
from uncertune.report.tables import signed_percent
from uncertune.runs.files import write_atomically
from uncertune.statistics.intervals import Estimate

Plot: TypeAlias = Curves | Points | Trails
Drawn: TypeAlias = Bars | Curves | Points | Trails

DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (5, 1.6, 1, 1.6), (1.2, 1.4))  # in line widths
MARKERS = {  # matplotlib's names, and the same shapes in a square of 12 units
    "o": "M2 6a4 4 0 1 0 8 0a4 4 0 1 0 -8 0Z",
    "s": "M2.5 2.5H9.5V9.5H2.5Z",
    "D": "M6 1L11 6L6 11L1 6Z",
    "^": "M6 1.5L10.5 10H1.5Z",
    "v": "M6 10.5L1.5 2H10.5Z",
    "P": "M4.5 1.5H7.5V4.5H10.5V7.5H7.5V10.5H4.5V7.5H1.5V4.5H4.5Z",
}
LINE_WIDTH = 2.0
RAW, SMOOTHED = "-raw", "-smoothed"
"""Suffixes of the ids of the lines that a plot's switch exchanges."""


@dataclass(frozen=True)
class Palette:
    """Colours and sizes of a drawing. With ``names``, the drawing itself has title, axis labels and legend."""

    ink: str
    rule: str
    series: tuple[str, ...]
    line_width: float
    marker_size: float
    names: bool


COLOURS = 7  # the page's style sheet defines --series-0 … --series-6
PAGE = Palette("#010101", "#020202", tuple(f"#0300{i:02x}" for i in range(COLOURS)), LINE_WIDTH, 8.0, names=False)
"""Placeholders that ``svg`` replaces by the classes of the style sheet."""
PAPER = Palette(
    "#595e66",
    "#d9dadd",
    ("#0068a8", "#c64f00", "#00795a", "#9c3f79", "#55595f", "#8a6d00", "#3b8fc6"),  # the page's, on light
    1.5,
    5.0,
    names=True,
)

_FEW = 5  # an axis with at most this many different values has a tick at each
_PANEL_INCHES, _ROW_INCHES = 4.2, 0.2
RC: dict[Any, Any] = {  # matplotlib types the keys one by one
    "svg.fonttype": "none",
    "svg.hashsalt": "uncertune",
    "text.parse_math": False,
    "axes.unicode_minus": True,
    "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-4, 6),
    "axes.spines.top": False,
    "axes.spines.right": False,
}


@dataclass(frozen=True)
class LineStyle:
    """The style of one name: an index of the palette's colours, dashes in line widths, and a marker."""

    colour: int
    dashes: tuple[float, ...]
    marker: str

    @property
    def dash_array(self) -> str:
        """The dashes as SVG writes them."""
        return " ".join(f"{LINE_WIDTH * length:g}" for length in self.dashes)

    @property
    def shape(self) -> str:
        """The marker as a path of SVG, in a square of 12 units."""
        return MARKERS[self.marker]


def line_styles(sections: Iterable[Section]) -> dict[str, LineStyle]:
    """A style for each name, in the order of first use; styles repeat after 28."""
    names = dict.fromkeys(name for section in sections for name in _names(section))
    shapes = list(MARKERS)
    return {
        name: LineStyle(i % COLOURS, DASHES[i % len(DASHES)], shapes[i % len(shapes)]) for i, name in enumerate(names)
    }


def _names(section: Section) -> list[str]:
    match section:
        case Curves():
            return [series.name for series in section.series]
        case Points():
            return [point.name for point in section.points]
        case Trails():
            return [trail.name for trail in section.trails]
        case Bars():
            return [bar.name for _, bars in section.groups for bar in bars]
    return []


def last_value(series: Series, percent: bool = False) -> str:
    """The last finite y with three significant digits or as a whole number; – if no y is finite."""
    finite = [y for y in series.y if math.isfinite(y)]
    if not finite:
        return "–"
    if percent:
        return signed_percent(finite[-1])
    return (f"{finite[-1]:,.0f}" if 1e3 <= abs(finite[-1]) < 1e9 else f"{finite[-1]:.3g}").replace("-", "−")


# ---- as files


@contextlib.contextmanager
def paper_figure(stem: Path, panels: int, size: tuple[float, float]) -> Iterator[tuple[Any, Any]]:
    """A figure with panels side by side, written as ``stem``.png and .svg at the end, reproducible byte for byte."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    stem.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(RC | {"font.size": 9.0})
        figure = Figure(figsize=size, layout="constrained")
        yield figure, figure.subplots(1, panels, squeeze=False)[0]
        for suffix, extra in (("png", {"dpi": 160}), ("svg", {"metadata": {"Date": None}})):
            file = io.BytesIO()
            figure.savefig(file, format=suffix, **extra)
            write_atomically(stem.with_name(f"{stem.name}.{suffix}"), file.getvalue())


def draw_sections(stem: Path, sections: Sequence[Drawn]) -> None:
    """Write ``stem``.png and ``stem``.svg with one panel per section; a name has the same colour in all panels."""
    styles = line_styles(sections)
    rows = [sum(1 + len(bars) for _, bars in one.groups) for one in sections if isinstance(one, Bars)]
    height = max([3.2 if len(rows) < len(sections) else 1.2, *(0.9 + _ROW_INCHES * count for count in rows)])
    width = sum(_PANEL_INCHES * (1.5 if isinstance(one, Points | Trails) else 1.0) for one in sections)
    with paper_figure(stem, len(sections), (width, height)) as (_, panels):
        for axes, section in zip(panels, sections, strict=True):
            draw(axes, section, styles, PAPER)


# ---- the drawing


def draw(axes: Any, section: Drawn, styles: Mapping[str, LineStyle], palette: Palette) -> None:
    """Draw one section into matplotlib axes. ``styles`` is from :func:`line_styles`."""
    axes.tick_params(length=0, pad=5, labelcolor=palette.ink)
    axes.spines["left"].set_visible(False)
    axes.spines["bottom"].set_color(palette.ink)
    axes.set_axisbelow(True)
    match section:
        case Bars():
            _draw_bars(axes, section, styles, palette)
        case Curves():
            _draw_curves(axes, section, styles, palette)
        case Points():
            _draw_points(axes, section, styles, palette)
        case Trails():
            _draw_trails(axes, section, styles, palette)
    if palette.names:
        axes.set_title(section.title, loc="left")


def _draw_bars(axes: Any, section: Bars, styles: Mapping[str, LineStyle], palette: Palette) -> None:
    """One row per bar. Pages draw their bars in HTML, see ``html.bars``."""
    place, places, labels = 0.0, [], []
    for heading, bars in section.groups:
        if heading:
            places.append(place)
            labels.append(heading)
            place += 1
        for bar in bars:
            axes.barh(place, bar.value.value, height=0.7, color=palette.series[styles[bar.name].colour])
            if (whiskers := _whiskers(bar.value)) is not None:
                axes.errorbar(bar.value.value, place, xerr=whiskers, color="black", linewidth=0.8, capsize=2)
            places.append(place)
            labels.append(f"{bar.name}  ")
            place += 1
    axes.set_yticks(places, labels)
    headings = {heading for heading, _ in section.groups}
    for label in axes.get_yticklabels():
        label.set_fontweight("bold" if label.get_text() in headings else "normal")
    axes.axvline(0, color=palette.ink, linewidth=0.8)
    axes.grid(axis="x", color=palette.rule, linewidth=0.8)
    axes.set_ylim(place - 0.4, -0.6)
    axes.set_xlabel(section.axis)
    if section.end:
        axes.set_xlim(0, section.end)
    if section.percent:
        _as_percent(axes.xaxis)


def _draw_curves(axes: Any, curves: Curves, styles: Mapping[str, LineStyle], palette: Palette) -> None:
    from matplotlib.ticker import MaxNLocator

    for series in curves.series:
        style, colour = styles[series.name], palette.series[styles[series.name].colour]
        x, y = _finite(series)
        (line,) = axes.plot(x, y, color=colour, linewidth=palette.line_width, label=series.name)
        if style.dashes:
            line.set_dashes(style.dashes)
        if series.window and not palette.names:
            line.set_gid(RAW)
            axes.plot(x, smoothed(y, series.window), color=colour, linewidth=palette.line_width, gid=SMOOTHED)
        if sum(not math.isnan(value) for value in y) == 1:
            line.set_marker("o")
        elif series.dots:
            line.set(marker=style.marker, markersize=0.7 * palette.marker_size)
        elif palette.names and len(x) <= _FEW:
            line.set(marker=style.marker, markersize=palette.marker_size)
        if series.band is not None:
            axes.fill_between(series.x, *series.band, color=colour, alpha=0.11, linewidth=0)
    axes.grid(axis="y", color=palette.rule, linewidth=0.8)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    every_x = [x for series in curves.series for x in series.x]
    whole = not curves.percent and all(float(x).is_integer() for x in every_x)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=whole))
    if not whole and 1 < len(set(every_x)) <= _FEW:
        axes.set_xticks(sorted(set(every_x)), [f"{x:g}" for x in sorted(set(every_x))])
    axes.margins(x=0.01, y=0.06)
    if curves.percent:
        axes.axhline(0, color=palette.ink, linewidth=1.0)
        _as_percent(axes.yaxis)
    if palette.names:
        _name_axes(axes, curves)
        axes.legend(frameon=False, fontsize=7)


def smoothed(y: Sequence[float], window: int) -> list[float]:
    """The mean of the last ``window`` values at each point, without NaN; NaN if the value itself is NaN."""
    out = []
    for place, value in enumerate(y):
        known = [one for one in y[max(0, place + 1 - window) : place + 1] if not math.isnan(one)]
        out.append(math.nan if math.isnan(value) else sum(known) / len(known))
    return out


def _draw_points(axes: Any, plot: Points, styles: Mapping[str, LineStyle], palette: Palette) -> None:
    for line in (axes.axhline, axes.axvline):
        line(0, color=palette.ink, linewidth=1.0)
    axes.plot(*plot.front_line, color=palette.ink, linewidth=1.2)
    for point in filter(lambda one: one.known, plot.points):
        style = styles[point.name]
        axes.errorbar(
            point.x.value,
            point.y.value,
            xerr=_whiskers(point.x),
            yerr=_whiskers(point.y),
            color=palette.series[style.colour],
            marker=style.marker,
            markersize=palette.marker_size,
            linewidth=0.7 * palette.line_width,
            linestyle="none",
            label=point.name,
        )
    _plane(axes, plot, palette)


def _draw_trails(axes: Any, plot: Trails, styles: Mapping[str, LineStyle], palette: Palette) -> None:
    for line in (axes.axhline, axes.axvline):
        line(0, color=palette.ink, linewidth=1.0)
    for trail in plot.trails:
        style, points = styles[trail.name], trail.known
        colour = palette.series[style.colour]
        x, y = [one.x.value for one in points], [one.y.value for one in points]
        for one in points:
            whiskers = {"xerr": _whiskers(one.x), "yerr": _whiskers(one.y)}
            axes.errorbar(one.x.value, one.y.value, **whiskers, color=colour, linewidth=0.8, alpha=0.45)
        (line,) = axes.plot(x, y, color=colour, linewidth=0.8 * palette.line_width)
        if style.dashes:
            line.set_dashes(style.dashes)
        dots = {"color": colour, "marker": style.marker, "linestyle": "none"}
        axes.plot(x[:-1], y[:-1], markersize=0.5 * palette.marker_size, **dots)
        axes.plot(x[-1:], y[-1:], markersize=palette.marker_size, label=trail.name, **dots)
    _plane(axes, plot, palette)


def _plane(axes: Any, plot: Points | Trails, palette: Palette) -> None:
    """Grid, ticks and axis labels of a plot of one quantity against another."""
    from matplotlib.ticker import MaxNLocator

    axes.grid(color=palette.rule, linewidth=0.8)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5))
    if plot.percent:
        _as_percent(axes.xaxis, axes.yaxis)
    axes.margins(0.08)
    if palette.names:
        _name_axes(axes, plot)
        axes.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _name_axes(axes: Any, plot: Plot) -> None:
    axes.set_xlabel(plot.x_label)
    axes.set_ylabel(plot.y_label)


def _as_percent(*several: Any) -> None:
    """Format matplotlib axes in signed percent."""
    from matplotlib.ticker import FuncFormatter

    for axis in several:
        axis.set_major_formatter(FuncFormatter(lambda value, _: signed_percent(value)))


def _whiskers(value: Estimate) -> list[list[float]] | None:
    """An interval as matplotlib takes it, the distances down and up; None if unknown."""
    if not (math.isfinite(value.low) and math.isfinite(value.high)):
        return None
    return [[max(0.0, value.value - value.low)], [max(0.0, value.high - value.value)]]


def _finite(series: Series) -> tuple[list[float], list[float]]:
    """The points with a finite x; a non-finite y becomes NaN, which is drawn as a gap."""
    points = [(float(x), float(y)) for x, y in zip(series.x, series.y, strict=True) if math.isfinite(x)]
    return [x for x, _ in points], [y if math.isfinite(y) else math.nan for _, y in points]
