"""The page of a sweep: the paper's figures from its runs, differences to MLE over seeds, and the effect of q."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from uncertune.report.drawing import draw_sections
from uncertune.report.html import render, write_whole
from uncertune.report.page import Column, Facts, FormattedValue, Page, Section, Table, Value
from uncertune.report.tables import counted, findings_table, format_estimate, markdown_text, to_markdown
from uncertune.statistics.intervals import Estimate, over_seeds
from uncertune.sweep.claims import claims
from uncertune.sweep.curves import curve_tables
from uncertune.sweep.figures import figures
from uncertune.sweep.gains import gains_table
from uncertune.sweep.measures import MLE, Sweep, column, difference, mean, read_sweep

FEW = 30
_MINUTES = ("minutes", "measuring_minutes")
PAGE, MARKDOWN = "sweep.html", "sweep.md"


def write_sweep(folder: Path, into: Path | None = None) -> Path:
    """Write ``sweep.html``, ``sweep.md`` and the figures as PNG and SVG from ``sweep.json``; return the page's path.

    Args:
        into: another folder to write to.

    Raises:
        UserError: the folder has no sweep, or its file cannot be read.
    """
    sweep = read_sweep(folder)
    output_dir = into or folder
    output_dir.mkdir(parents=True, exist_ok=True)
    drawings = dict(figures(sweep))
    found = tuple(claims(sweep)) if sweep.paper else ()
    numbers = [*([findings_table(found)] if found else []), gains_table(sweep), *curve_tables(sweep), *_measures(sweep)]
    failed = _failed(sweep)
    seeds = sorted({run["seed"] for run in sweep.content["runs"]})
    lead = (
        f"{sweep.content['model']} trained on {sweep.content['data']}: {counted(len(sweep.arms), 'arm')}, "
        f"{counted(len(seeds), 'seed')}, measured on {counted(len(sweep.sets), 'data set')}{_documents(sweep)}."
    )
    drawn = [section for sections in drawings.values() for section in sections]
    sections: list[Section] = [*drawn, *numbers, *failed, _facts(sweep, seeds)]
    html = render(Page("Sweep", lead, tuple(sections)))
    write_whole(output_dir / MARKDOWN, _markdown(lead, numbers, failed).encode())
    for stem, panels in drawings.items():
        draw_sections(output_dir / stem, panels)
    write_whole(output_dir / PAGE, html.encode())
    return output_dir / PAGE


# ---- tables


def _measures(sweep: Sweep) -> Iterator[Table]:
    """One table per measure: means over seeds, with differences to MLE."""
    for measure in dict.fromkeys(one for measures in sweep.sets.values() for one in measures):
        columns = [column(measure, name) for name, measures in sweep.sets.items() if measure in measures]
        base = {one.key: None if math.isnan(v := sweep.base(one.key, measure)) else v for one in columns}
        rows: list[dict[str, Value]] = [{"arm": f"{sweep.content['model']} (untrained)", **base}]
        for arm in sweep.arms:
            cells = {one.key: _cell(sweep, arm["name"], one, measure) for one in columns}
            rows.append({"arm": arm["name"], **cells})
        unit = {"loss": " in nats per response token", "kl": " from the base in nats per response token"}
        points = " in points" if columns[0].percent else ""
        caption = (
            f"Means over seeds{unit.get(measure, '')}; Δ is the difference to MLE with the same seed{points} and its "
            "95 % interval, with * if that excludes 0."
        )
        yield Table(f"Measured: {measure}", caption, tuple(columns), tuple(rows), "arm", None)


def _cell(sweep: Sweep, arm: str, shown: Column, measure: str) -> FormattedValue:
    values = mean(sweep.values(arm, shown.key, measure))
    text = format_estimate(Estimate(values.value, math.nan, math.nan), shown).text
    if arm == MLE:
        return format_estimate(values, shown)
    found = difference(sweep, arm, shown.key, measure)
    if math.isnan(found.value):
        return FormattedValue(text)
    fine = Column("", "", None, shown.digits + 1, shown.percent, sign=True)
    part = format_estimate(found, fine)
    star = " *" if found.low > 0 or found.high < 0 else ""
    return FormattedValue(text, f"Δ {part.text} {part.interval}{star}".strip())


# ---- the rest


def _documents(sweep: Sweep) -> str:
    """The number of measured documents, with a warning if they are few."""
    count = sweep.content.get("documents")
    if count is None:
        return ""
    few = f"; fewer than {FEW} say little about other documents" if count < FEW else ""
    return f", at most {counted(count, 'document')} each{few}"


def _failed(sweep: Sweep) -> list[Facts]:
    if not sweep.failed:
        return []
    items = tuple((f"{run['arm']}, seed {run['seed']}", str(run.get("error"))) for run in sweep.failed)
    return [Facts("Failed runs", items)]


def _facts(sweep: Sweep, seeds: list[int]) -> Facts:
    minutes = over_seeds([run["minutes"] for run in sweep.content["runs"] if run.get("minutes") is not None])
    items = [
        ("model", str(sweep.content["model"])),
        ("data", str(sweep.content["data"])),
        ("in distribution", sweep.inside),
        ("out of distribution", ", ".join(name for name in sweep.sets if name != sweep.inside) or "none"),
        ("seeds", ", ".join(map(str, seeds))),
        ("runs", f"{len(sweep.content['runs'])}, {len(sweep.failed)} failed"),
    ]
    if not math.isnan(minutes.value):
        items.append(("minutes a run", f"{minutes.value:.1f}"))
    trained, measured = (math.fsum(run.get(name) or 0 for run in sweep.content["runs"]) for name in _MINUTES)
    if trained and measured:
        items.append(("measuring", f"{measured:.1f} minutes in all, {measured / trained:.0%} of the training"))
    return Facts("What was run", tuple(items))


def _markdown(lead: str, numbers: list[Table], failed: list[Facts]) -> str:
    parts = [f"# Sweep\n\n{markdown_text(lead)}"]
    for table in numbers:
        parts.append(f"## {markdown_text(table.title)}\n\n{markdown_text(table.caption)}\n\n{to_markdown(table)}")
    for facts in failed:
        lines = (f"- {markdown_text(name)}: {markdown_text(value)}" for name, value in facts.items)
        parts.append(f"## {facts.title}\n\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"
