"""The files of a study: figures, all numbers, the findings as JSON and Markdown, and a page."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from uncertune.report import Column, Curves, Facts, Page, Section, Series, Table, Value, write_page, write_whole
from uncertune.report.tables import findings_table, shown
from uncertune.statistics.intervals import Estimate
from uncertune.studies.drawing import draw
from uncertune.studies.study import Drawing, Grid, Panel, Plane, Study

NUMBERS, FINDINGS, PAGE = "numbers.csv", "findings.json", "report.html"


def write(study: Study, folder: Path, command: str) -> None:
    """Write ``numbers.csv``, ``findings.json``, ``findings.md``, each drawing as PNG and SVG, and ``report.html``."""
    folder.mkdir(parents=True, exist_ok=True)
    for drawing in study.answer.drawings:
        draw(folder / drawing.name, drawing)
    buffer = io.StringIO()
    names = list(dict.fromkeys(name for row in study.answer.rows for name in row))
    writer = csv.DictWriter(buffer, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(study.answer.rows)
    write_whole(folder / NUMBERS, buffer.getvalue().encode())
    found = summary(study, command)
    write_whole(folder / FINDINGS, (json.dumps(found, indent=1) + "\n").encode())
    write_whole(folder / "findings.md", markdown(found).encode())
    write_page(folder / PAGE, _page(study, command))


def summary(study: Study, command: str) -> dict[str, Any]:
    """Findings and tables as plain values, a NaN as None."""
    found = [asdict(finding) | {"outcome": finding.outcome} for finding in study.answer.findings]
    plain = {
        "study": study.name,
        "command": command,
        "setting": dict(study.setting),
        "findings": found,
        "tables": [asdict(table) for table in study.answer.tables],
    }
    out: dict[str, Any] = _plain(plain)
    return out


def markdown(found: Mapping[str, Any]) -> str:
    """The findings and the tables of ``summary`` as Markdown."""
    lines = ["| claim | outcome | test | effect [95 %] | claimed |", "|---|---|---|--:|--:|"]
    for one in found["findings"]:
        border = f"{'>' if one['side'] == 'above' else '<'} {one['level']:g}"
        lines.append(
            f"| {one['claim']}: {one['says']} | {one['outcome']} | {one['test']} | {_cell(one['effect'])} | {border} |"
        )
    for table in found["tables"]:
        lines += ["", f"**{table['title']}**", "", f"| {' | '.join([table['label'], *table['columns']])} |"]
        lines.append("|---|" + "--:|" * len(table["columns"]))
        lines += [f"| {' | '.join([name, *map(_cell, cells)])} |" for name, cells in table["rows"]]
    return "\n".join(lines) + "\n"


def _cell(estimate: Mapping[str, float | None]) -> str:
    numbers = [float("nan") if estimate[name] is None else float(estimate[name]) for name in ("value", "low", "high")]  # type: ignore[arg-type]
    return shown(Estimate(*numbers))


def _plain(value: Any) -> Any:
    """None for NaN, which JSON lacks."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def _page(study: Study, command: str) -> Page:
    sections: list[Section] = [
        findings_table(study.answer.findings),
        *map(_table, study.answer.tables),
        *(curves for drawing in study.answer.drawings for curves in _curves(drawing)),
        Facts("Setting", (("command", command), *study.setting.items())),
    ]
    return Page(study.title, study.lead, tuple(sections))


def _table(grid: Grid) -> Table:
    columns = tuple(Column(name, name, None, 0) for name in grid.columns)
    rows: tuple[Mapping[str, Value], ...] = tuple(
        {grid.label: name, **dict(zip(grid.columns, map(shown, cells), strict=True))} for name, cells in grid.rows
    )
    return Table(grid.title, "Means with 95 % intervals over seeds.", columns, rows, grid.label, None)


def _curves(drawing: Drawing) -> list[Curves]:
    """The panels for the page, with means only; the separate files have the intervals."""
    caption = f"{drawing.title} With intervals: {drawing.name}.svg"
    out = []
    for panel in drawing.panels:
        series = _trails(panel) if isinstance(panel, Plane) else _lines(panel)
        logs = (False, False) if isinstance(panel, Plane) else (panel.log_x, panel.log_y)
        labels = ["log10 of " * log + label for log, label in zip(logs, (panel.x_label, panel.y_label), strict=True)]
        out.append(Curves(panel.title, caption, labels[0], labels[1], series))
    return out


def _lines(panel: Panel) -> tuple[Series, ...]:
    out = []
    for line in panel.lines:
        x = np.log10(line.x) if panel.log_x else np.asarray(line.x, dtype=float)
        y = [one.value for one in line.estimates()]
        y = [math.log10(one) if one > 0 else float("nan") for one in y] if panel.log_y else y
        out.append(Series(line.name, tuple(map(float, x)), tuple(y)))
    return tuple(out)


def _trails(plane: Plane) -> tuple[Series, ...]:
    out = []
    for trail in plane.trails:
        x, y = trail.estimates()
        out.append(Series(trail.name, tuple(one.value for one in x), tuple(one.value for one in y)))
    return tuple(out)
