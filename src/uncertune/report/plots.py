"""Curves as inline SVG that takes its colours from the page.

matplotlib sets the lines and the numbers on the axes; every name stays in HTML, where it can wrap and be read. The
SVG leaves with classes in the place of colours (one drawing for a light and a dark page), with attributes in the
place of ``style`` (the page forbids inline styles), and with ids that are unique in the page.
"""

import contextlib
import io
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from markupsafe import Markup

from uncertune.report.page import Bars, Curves, Points, Section, Series
from uncertune.statistics.intervals import Estimate

COLOURS = 7  # the page's style sheet defines --series-0 … --series-6
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
_FEW = 5  # so many places on an axis are each named

_SIZE_INCHES = (5.0, 3.1)  # 360 × 223 units: near one unit a pixel on a phone
_SVG = "{http://www.w3.org/2000/svg}"
_HREF = "{http://www.w3.org/1999/xlink}href"
_INK, _RULE = "#010101", "#020202"
_MARK_COLOURS = {_INK: "ink", _RULE: "rule"} | {f"#0300{i:02x}": f"series-{i}" for i in range(COLOURS)}
_RC: dict[Any, Any] = {  # matplotlib types the keys one by one
    "svg.fonttype": "none",
    "svg.hashsalt": "uncertune",
    "font.size": 12.0,
    "text.parse_math": False,
    "axes.unicode_minus": True,
    "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-4, 6),
}


@dataclass(frozen=True)
class LineStyle:
    """How one name is drawn: an index of the page's colours, dashes in units of the line's width, and a marker."""

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
    """A style for each name, in the order in which the page first says it; 28 differ, then they repeat."""
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
        case Bars():
            return [bar.name for _, bars in section.groups for bar in bars]
    return []


def last_value(series: Series, percent: bool = False) -> str:
    """The last finite y in three significant digits or as a whole number, – where there is none."""
    finite = [y for y in series.y if math.isfinite(y)]
    if not finite:
        return "–"
    if percent:
        return signed_percent(finite[-1])
    return (f"{finite[-1]:,.0f}" if 1e3 <= abs(finite[-1]) < 1e9 else f"{finite[-1]:.3g}").replace("-", "−")


def svg(plot: Curves | Points, styles: Mapping[str, LineStyle], prefix: str) -> Markup:
    """The plot, without its names. The same plot gives the same text on any day.

    Args:
        styles: from :func:`line_styles`; holds every name of ``plot``.
        prefix: starts every id, so that several drawings share a page.
    """
    with _axes() as (axes, file):
        if isinstance(plot, Curves):
            _draw_curves(axes, plot, styles)
        else:
            _draw_points(axes, plot, styles)
    root = ElementTree.fromstring(file.getvalue())
    for parent in root.iter():
        for child in [child for child in parent if not child.tag.startswith(_SVG) or child.tag.endswith("}metadata")]:
            parent.remove(child)
        for child in [child for child in parent if child.tag == _SVG + "style"]:
            parent.remove(child)
    for element in root.iter():
        element.attrib.update(_attributes(element, prefix))
        element.tag = element.tag.removeprefix(_SVG)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.set("stroke-linejoin", "round")
    root.set("role", "img")
    root.set("aria-label", _summary(plot))
    # Safe: numbers and our own words, set by matplotlib and escaped again by ElementTree.
    return Markup(ElementTree.tostring(root, encoding="unicode"))


@contextlib.contextmanager
def _axes() -> Iterator[tuple[Any, io.StringIO]]:
    """Axes in the page's manner, drawn as SVG into the file at the end."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.ticker import MaxNLocator

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_RC)
        figure = Figure(figsize=_SIZE_INCHES, layout=ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02))
        axes, file = figure.add_subplot(), io.StringIO()
        axes.yaxis.set_major_locator(MaxNLocator(5))
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.spines["bottom"].set_color(_INK)
        axes.grid(axis="y", color=_RULE, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(length=0, pad=5, labelcolor=_INK)
        yield axes, file
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})


def _mark(style: LineStyle) -> str:
    return next(mark for mark, name in _MARK_COLOURS.items() if name == f"series-{style.colour}")


def _draw_curves(axes: Any, curves: Curves, styles: Mapping[str, LineStyle]) -> None:
    from matplotlib.ticker import MaxNLocator

    for series in curves.series:
        style = styles[series.name]
        x, y = _finite(series)
        points = sum(not math.isnan(value) for value in y)
        (line,) = axes.plot(x, y, color=_mark(style), linewidth=LINE_WIDTH)
        if style.dashes:
            line.set_dashes(style.dashes)
        if points == 1:
            line.set_marker("o")
        if series.band is not None:
            axes.fill_between(series.x, *series.band, color=_mark(style), alpha=0.11, linewidth=0)
    every_x = [x for series in curves.series for x in series.x]
    whole = not curves.percent and all(float(x).is_integer() for x in every_x)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=whole))
    if not whole and 1 < len(set(every_x)) <= _FEW:
        axes.set_xticks(sorted(set(every_x)), [f"{x:g}" for x in sorted(set(every_x))])
    axes.margins(x=0.01, y=0.06)
    if curves.percent:
        axes.axhline(0, color=_INK, linewidth=1.0)
        as_percent(axes.yaxis)


def _draw_points(axes: Any, plot: Points, styles: Mapping[str, LineStyle]) -> None:
    from matplotlib.ticker import MaxNLocator

    for line in (axes.axhline, axes.axvline):
        line(0, color=_INK, linewidth=1.0)
    axes.plot(*plot.front_line, color=_INK, linewidth=1.2)
    for point in filter(lambda one: one.known, plot.points):
        style = styles[point.name]
        axes.errorbar(
            point.x.value,
            point.y.value,
            xerr=ends(point.x),
            yerr=ends(point.y),
            color=_mark(style),
            marker=style.marker,
            markersize=8,
            linewidth=1.4,
        )
    axes.grid(axis="x", color=_RULE, linewidth=0.8)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    if plot.percent:
        as_percent(axes.xaxis, axes.yaxis)
    axes.margins(0.08)


def as_percent(*several: Any) -> None:
    """Axes of matplotlib in signed percent."""
    from matplotlib.ticker import FuncFormatter

    for axis in several:
        axis.set_major_formatter(FuncFormatter(lambda value, _: signed_percent(value)))


def signed_percent(value: float) -> str:
    """A share on an axis: +20%, 0%, −7.5%."""
    text = f"{100 * value:+.3g}%"
    return text.replace("-", "−") if any(digit in text for digit in "123456789") else "0%"


def ends(value: Estimate) -> list[list[float]] | None:
    """What matplotlib draws an interval from: distances down and up."""
    if not (math.isfinite(value.low) and math.isfinite(value.high)):
        return None
    return [[max(0.0, value.value - value.low)], [max(0.0, value.high - value.value)]]


def _finite(series: Series) -> tuple[list[float], list[float]]:
    """The points with a finite x; a y that is not finite is NaN, which is drawn as a gap."""
    points = [(float(x), float(y)) for x, y in zip(series.x, series.y, strict=True) if math.isfinite(x)]
    return [x for x, _ in points], [y if math.isfinite(y) else math.nan for _, y in points]


def _summary(plot: Curves | Points) -> str:
    if isinstance(plot, Curves):
        said = [f"{series.name}: last {last_value(series, plot.percent)}" for series in plot.series]
    else:
        said = [f"{point.name}: {point.x.value:.3g}, {point.y.value:.3g}" for point in plot.points]
    return f"{plot.y_label} against {plot.x_label}. {'; '.join(said)}".strip()


def _attributes(element: ElementTree.Element, prefix: str) -> dict[str, str]:
    """The element's attributes with marks turned into classes and ids made unique; takes away what it replaces."""
    classes: list[str] = []
    attributes: dict[str, str] = {}
    for name, value in _declarations(element.attrib.pop("style", "")):
        if value.lower() in _MARK_COLOURS and name in ("fill", "stroke"):
            classes.append(f"{name}-{_MARK_COLOURS[value.lower()]}")
        elif name != "font-family" and not name.startswith("-"):
            attributes[name] = value.removesuffix("px") if name == "font-size" else value
    if classes:
        attributes["class"] = " ".join(classes)
    if "id" in element.attrib:
        attributes["id"] = prefix + element.attrib["id"]
    if _HREF in element.attrib:
        attributes["href"] = "#" + prefix + element.attrib.pop(_HREF).removeprefix("#")
    if "clip-path" in element.attrib:
        attributes["clip-path"] = element.attrib["clip-path"].replace("url(#", f"url(#{prefix}")
    if "d" in element.attrib:
        rounded = re.sub(r"\d+\.\d+", lambda number: f"{float(number[0]):.2f}", element.attrib["d"])
        attributes["d"] = " ".join(rounded.split())
    return attributes


def _declarations(style: str) -> list[tuple[str, str]]:
    pairs = (declaration.partition(":") for declaration in style.split(";") if ":" in declaration)
    return [(name.strip(), value.strip()) for name, _, value in pairs]
