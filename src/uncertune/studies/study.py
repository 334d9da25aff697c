"""What a study leaves: findings about claims, figures, and every number; and how they are written."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from uncertune.intervals import Estimate, over_seeds
from uncertune.report import (
    Column,
    Curves,
    Facts,
    Page,
    Section,
    Series,
    Table,
    Value,
    paper_figure,
    write_page,
    write_whole,
)

Array = NDArray[np.float64]
Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""

# Apart for colour-blind readers (Okabe and Ito); with the dashes 24 lines differ.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
DASHES = ("-", "--", ":")


@dataclass(frozen=True)
class Line:
    """One line of a plot, a mean with its interval at each x; ``y`` is (seeds, points)."""

    name: str
    x: Sequence[float]
    y: Array

    def estimates(self) -> list[Estimate]:
        return [over_seeds(column) for column in np.asarray(self.y).T]


@dataclass(frozen=True)
class Panel:
    """One pair of axes."""

    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    log_x: bool = False
    log_y: bool = False
    ramp: bool = False
    """The lines are an ordered family: colours run from dark to light."""


@dataclass(frozen=True)
class Spot:
    """One point of a plot, with intervals both ways: (seeds,) each."""

    name: str
    x: Array
    y: Array


@dataclass(frozen=True)
class Scatter:
    """One pair of axes with points: what is gained against what is lost."""

    title: str
    x_label: str
    y_label: str
    spots: tuple[Spot, ...]


@dataclass(frozen=True)
class Drawing:
    """A figure: its file's name, its title, and its panels side by side."""

    name: str
    title: str
    panels: tuple[Panel | Scatter, ...]


@dataclass(frozen=True)
class Finding:
    """A claim, how it was tested, and what came out: an effect that the claim says is above (or below) 0.

    ``level`` moves the border from 0, for a claim like "within 0.05 of".
    """

    claim: str
    says: str
    test: str
    effect: Estimate
    side: Literal["above", "below"]
    level: float = 0.0

    @property
    def outcome(self) -> Literal["held", "not held", "undecided"]:
        """Held where the whole interval is on the claimed side, not held where it is on the other."""
        low, high = self.effect.low - self.level, self.effect.high - self.level
        if math.isnan(low) or math.isnan(high) or low <= 0 <= high:
            return "undecided"
        return "held" if (low > 0) == (self.side == "above") else "not held"


@dataclass(frozen=True)
class Study:
    """The outcome of a study. ``rows`` is every number behind it, one mapping a row."""

    name: str
    title: str
    lead: str
    setting: Mapping[str, str]
    findings: tuple[Finding, ...]
    drawings: tuple[Drawing, ...]
    rows: tuple[Mapping[str, float | str], ...]


class Runner(Protocol):
    """What a study's module offers."""

    def __call__(self, seeds: int, seed: int, small: bool, data: str | None, progress: Progress) -> Study: ...


def write(study: Study, folder: Path, command: str) -> None:
    """``numbers.csv``, ``findings.json``, ``findings.md``, a PNG and an SVG of each drawing, and ``report.html``."""
    folder.mkdir(parents=True, exist_ok=True)
    for drawing in study.drawings:
        _draw(folder / drawing.name, drawing)
    buffer = io.StringIO()
    names = list(dict.fromkeys(name for row in study.rows for name in row))
    writer = csv.DictWriter(buffer, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(study.rows)
    write_whole(folder / "numbers.csv", buffer.getvalue().encode())
    found = [asdict(finding) | {"outcome": finding.outcome} for finding in study.findings]
    summary = {"study": study.name, "command": command, "setting": dict(study.setting), "findings": found}
    write_whole(folder / "findings.json", json.dumps(_finite(summary), indent=1).encode())
    write_whole(folder / "findings.md", markdown(study).encode())
    write_page(folder / "report.html", _page(study, command))


def markdown(study: Study) -> str:
    """The findings as a Markdown table."""
    lines = ["| claim | test | effect, 95 % | outcome |", "|---|---|--:|---|"]
    lines += [f"| {f.claim}: {f.says} | {f.test} | {f.effect} | {f.outcome} |" for f in study.findings]
    return "\n".join(lines) + "\n"


def _finite(value: object) -> object:
    """JSON has no NaN."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, list) else value


def _page(study: Study, command: str) -> Page:
    rows: tuple[Mapping[str, Value], ...] = tuple(
        {
            "claim": f"{f.claim}: {f.says}",
            "test": f.test,
            "effect": f.effect.value,
            "interval": f"{f.effect.low:.3g} to {f.effect.high:.3g}",
            "outcome": f.outcome,
        }
        for f in study.findings
    )
    columns = (
        Column("outcome", "outcome", None, 0),
        Column("effect", "effect", None, 3),
        Column("interval", "95 %", None, 0),
        Column("test", "test", None, 0),
    )
    caption = "Intervals are over seeds; a claim is held where all of its interval is on the claimed side."
    sections: list[Section] = [
        Table("What came out", caption, columns, rows, "claim", None),
        *(curves for drawing in study.drawings for curves in _curves(drawing)),
        Facts("Setting", (("command", command), *study.setting.items())),
    ]
    return Page(study.title, study.lead, tuple(sections))


def _curves(drawing: Drawing) -> list[Curves]:
    """The lines of a drawing for the page: means; the files beside it have the intervals."""
    out = []
    for panel in drawing.panels:
        if isinstance(panel, Panel):
            series = []
            for line in panel.lines:
                x = np.log10(line.x) if panel.log_x else np.asarray(line.x, dtype=float)
                y = [one.value for one in line.estimates()]
                y = [math.log10(one) if one > 0 else float("nan") for one in y] if panel.log_y else y
                series.append(Series(line.name, tuple(map(float, x)), tuple(y)))
            labels = [("log10 of " if log else "") + label for log, label in _axes(panel)]
            caption = f"{drawing.title} With intervals: {drawing.name}.svg"
            out.append(Curves(panel.title, caption, labels[0], labels[1], tuple(series)))
    return out


def _axes(panel: Panel) -> tuple[tuple[bool, str], tuple[bool, str]]:
    return (panel.log_x, panel.x_label), (panel.log_y, panel.y_label)


def _draw(stem: Path, drawing: Drawing) -> None:
    panels = len(drawing.panels)
    with paper_figure(stem, panels, (1.2 + 3.6 * panels, 3.4)) as (figure, all_axes):
        for axes, panel in zip(all_axes, drawing.panels, strict=True):
            _draw_lines(axes, panel) if isinstance(panel, Panel) else _draw_spots(axes, panel)
            axes.set_title(panel.title, fontsize=9, loc="left")
            axes.set_xlabel(panel.x_label)
            axes.set_ylabel(panel.y_label)
        figure.suptitle(drawing.title, fontsize=9)


def _draw_lines(axes: Any, panel: Panel) -> None:
    import matplotlib as mpl

    ramp = mpl.colormaps["viridis"]
    for index, line in enumerate(panel.lines):
        estimates = line.estimates()
        step = 0.9 * index / max(1, len(panel.lines) - 1)
        colour = ramp(step) if panel.ramp else COLOURS[index % len(COLOURS)]
        dash = "-" if panel.ramp else DASHES[index // len(COLOURS) % len(DASHES)]
        low, high = [one.low for one in estimates], [one.high for one in estimates]
        axes.plot(line.x, [one.value for one in estimates], dash, color=colour, label=line.name, linewidth=1.4)
        axes.fill_between(line.x, low, high, color=colour, alpha=0.18, linewidth=0)
    if panel.log_x:
        axes.set_xscale("log")
    if panel.log_y:
        axes.set_yscale("log")
    elif any((line.y < 0).any() for line in panel.lines):
        axes.axhline(0, color="black", linewidth=0.6)
    axes.legend(frameon=False, fontsize=7)


def _draw_spots(axes: Any, panel: Scatter) -> None:
    for index, spot in enumerate(panel.spots):
        x, y = over_seeds(spot.x), over_seeds(spot.y)
        axes.errorbar(
            x.value,
            y.value,
            xerr=[[x.value - x.low], [x.high - x.value]],
            yerr=[[y.value - y.low], [y.high - y.value]],
            fmt="osD^v"[index // len(COLOURS) % 5],
            color=COLOURS[index % len(COLOURS)],
            markersize=4,
            linewidth=0.8,
            label=spot.name,
        )
    axes.legend(frameon=False, fontsize=6, bbox_to_anchor=(1.02, 1), loc="upper left")
