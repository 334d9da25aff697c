"""Sections of a page as figures for papers: panels side by side, PNG and SVG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from uncertune.report.figure import paper_figure
from uncertune.report.page import Bars, Curves, Points
from uncertune.report.plots import LineStyle, as_percent, ends, line_styles

_COLOURS = ("#0068a8", "#c64f00", "#00795a", "#9c3f79", "#55595f", "#8a6d00", "#3b8fc6")  # as the page's, on light
_INK = "#595e66"
_PANEL = 4.2  # inches
_ROW = 0.2

Drawn = Bars | Curves | Points


def draw_sections(stem: Path, sections: Sequence[Drawn]) -> None:
    """Write ``stem``.png and ``stem``.svg with one panel a section; a name has one colour over all panels."""
    styles = line_styles(sections)
    rows = [sum(1 + len(bars) for _, bars in one.groups) for one in sections if isinstance(one, Bars)]
    height = max([3.2 if len(rows) < len(sections) else 1.2, *(0.9 + _ROW * count for count in rows)])
    width = sum(_PANEL * (1.5 if isinstance(one, Points) else 1.0) for one in sections)
    with paper_figure(stem, len(sections), (width, height)) as (_, panels):
        for axes, section in zip(panels, sections, strict=True):
            axes.set_title(section.title, loc="left")
            match section:
                case Bars():
                    _bars(axes, section, styles)
                case Curves():
                    _curves(axes, section, styles)
                case Points():
                    _points(axes, section, styles)


def _bars(axes: Any, section: Bars, styles: dict[str, LineStyle]) -> None:
    place, places, labels = 0.0, [], []
    for heading, bars in section.groups:
        if heading:
            places.append(place)
            labels.append(heading)
            place += 1
        for bar in bars:
            axes.barh(place, bar.value.value, height=0.7, color=_COLOURS[styles[bar.name].colour])
            if (whiskers := ends(bar.value)) is not None:
                axes.errorbar(bar.value.value, place, xerr=whiskers, color="black", linewidth=0.8, capsize=2)
            places.append(place)
            labels.append(f"{bar.name}  ")
            place += 1
    axes.set_yticks(places, labels)
    headings = {heading for heading, _ in section.groups}
    for label in axes.get_yticklabels():
        label.set_fontweight("bold" if label.get_text() in headings else "normal")
    axes.tick_params(axis="y", length=0)
    axes.axvline(0, color=_INK, linewidth=0.8)
    axes.set_ylim(place - 0.4, -0.6)
    axes.set_xlabel(section.axis)
    if section.end:
        axes.set_xlim(0, section.end)
    if section.percent:
        as_percent(axes.xaxis)


def _curves(axes: Any, section: Curves, styles: dict[str, LineStyle]) -> None:
    for series in section.series:
        style = styles[series.name]
        colour = _COLOURS[style.colour]
        axes.plot(series.x, series.y, color=colour, marker=style.marker, markersize=4, label=series.name)
        if series.band is not None:
            axes.fill_between(series.x, *series.band, color=colour, alpha=0.15, linewidth=0)
    axes.axhline(0, color=_INK, linewidth=0.8)
    axes.set_xlabel(section.x_label)
    axes.set_ylabel(section.y_label)
    axes.legend(frameon=False, fontsize=7)
    if section.percent:
        as_percent(axes.yaxis)


def _points(axes: Any, section: Points, styles: dict[str, LineStyle]) -> None:
    axes.plot(*section.front_line, color=_INK, linewidth=1.0, zorder=1)
    for one in filter(lambda point: point.known, section.points):
        style = styles[one.name]
        axes.errorbar(
            one.x.value,
            one.y.value,
            xerr=ends(one.x),
            yerr=ends(one.y),
            color=_COLOURS[style.colour],
            marker=style.marker,
            markersize=5,
            linewidth=1.0,
            linestyle="none",
            label=one.name,
        )
    axes.axhline(0, color=_INK, linewidth=0.8)
    axes.axvline(0, color=_INK, linewidth=0.8)
    axes.set_xlabel(section.x_label)
    axes.set_ylabel(section.y_label)
    axes.locator_params(nbins=6)
    axes.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    if section.percent:
        as_percent(axes.xaxis, axes.yaxis)
