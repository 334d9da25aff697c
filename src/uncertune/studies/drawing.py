"""Drawings as PNG and SVG with intervals: bands around lines, crosses at points."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from uncertune.report import paper_figure
from uncertune.studies.study import Drawing, Panel, Plane

# Distinct for colour-blind readers (Okabe and Ito); with dashes, 24 lines differ.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
DASHES = ("-", "--", ":")
MARKERS = "osD^v"
_CHARACTERS = 13  # of a title, per inch
_CROSSES = 10  # most points of a trail with crosses


def draw(stem: Path, drawing: Drawing) -> None:
    """``stem``.png and .svg. Panels with the same names share one legend at the right."""
    panels = drawing.panels
    width = 1.4 + 3.4 * len(panels)
    names = [_names(panel) for panel in panels]
    shared = len(panels) > 1 and all(one == names[0] for one in names)
    with paper_figure(stem, len(panels), (width + 1.4 * shared, 3.3)) as (figure, all_axes):
        for axes, panel in zip(all_axes, panels, strict=True):
            _lines(axes, panel) if isinstance(panel, Panel) else _trails(axes, panel)
            axes.set_title(panel.title, fontsize=9, loc="left")
            axes.set_xlabel(panel.x_label)
            axes.set_ylabel(panel.y_label)
            if not shared:
                _legend(axes, panel)
        if shared:
            handles, labels = all_axes[0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=7.5)
        title = textwrap.fill(drawing.title, int(_CHARACTERS * width))
        figure.suptitle(title, fontsize=9, x=0.01, ha="left")


def _names(panel: Panel | Plane) -> list[str]:
    return [one.name for one in (panel.lines if isinstance(panel, Panel) else panel.trails)]


def _legend(axes: Any, panel: Panel | Plane) -> None:
    """Put a short legend inside the axes, others next to them."""
    if len(_names(panel)) > 4:
        axes.legend(frameon=False, fontsize=7.5, bbox_to_anchor=(1.01, 1.02), loc="upper left", borderaxespad=0)
    else:
        axes.legend(frameon=False, fontsize=7.5)


def _lines(axes: Any, panel: Panel) -> None:
    import matplotlib as mpl

    ramp = mpl.colormaps["viridis"]
    for index, line in enumerate(panel.lines):
        estimates = line.estimates()
        step = 0.9 * index / max(1, len(panel.lines) - 1)
        colour = ramp(step) if panel.ramp else COLOURS[index % len(COLOURS)]
        dash = "-" if panel.ramp else DASHES[index // len(COLOURS) % len(DASHES)]
        marker = "o" if len(line.x) < 8 else ""
        axes.plot(
            line.x,
            [one.value for one in estimates],
            dash,
            color=colour,
            label=line.name,
            linewidth=1.4,
            marker=marker,
            markersize=3,
        )
        low, high = [one.low for one in estimates], [one.high for one in estimates]
        axes.fill_between(line.x, low, high, color=colour, alpha=0.18, linewidth=0)
    if panel.log_y:
        _log_axis(axes, "y")
    elif any((line.y < 0).any() for line in panel.lines):
        axes.axhline(0, color="black", linewidth=0.6)
    if panel.log_x:
        _log_axis(axes, "x")


def _log_axis(axes: Any, which: str) -> None:
    """A logarithmic axis with plain numbers; below two decades also with ticks at 2 and 5."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 100 * low else (1.0,), numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _trails(axes: Any, plane: Plane) -> None:
    """A cross of intervals at each point; for a long trail only a line and its end."""
    for index, trail in enumerate(plane.trails):
        x, y = trail.estimates()
        colour = COLOURS[index % len(COLOURS)]
        at = [one.value for one in x], [one.value for one in y]
        long = len(trail.labels) > _CROSSES
        crosses = {
            f"{name}err": [[one.value - one.low for one in values], [one.high - one.value for one in values]]
            for name, values in (("x", x), ("y", y))
        }
        axes.errorbar(
            *at,
            **({} if long else crosses),
            fmt="-" + MARKERS[index // len(COLOURS) % len(MARKERS)],
            markevery=[-1] if long else None,
            color=colour,
            markersize=4,
            linewidth=1.2,
            elinewidth=0.6,
            label=trail.name,
        )
        for place_x, place_y, label in zip(*at, trail.labels, strict=True):
            axes.annotate(label, (place_x, place_y), (4, 3), textcoords="offset points", fontsize=6.5, color=colour)
    if axes.get_xlim()[0] < 0 < axes.get_xlim()[1]:
        axes.axvline(0, color="black", linewidth=0.6)
    if axes.get_ylim()[0] < 0 < axes.get_ylim()[1]:
        axes.axhline(0, color="black", linewidth=0.6)
