"""Tables of numbers with differences from a baseline: the cells, and the table for a terminal and for Markdown.

An arrow points in the direction of the change. Filled is better, hollow is worse, so that colour is not needed.
"""

import math
import re
import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from uncertune.report.page import Column, FormattedValue, Measured, Table, Value
from uncertune.statistics.findings import Finding
from uncertune.statistics.intervals import Estimate

MISSING = "–"
_ARROWS = {("better", True): "▲", ("better", False): "▼", ("worse", True): "△", ("worse", False): "▽"}
# Characters that would move a cursor, reverse a line or fail to encode; line ends are ours.
_UNPRINTABLE = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_LABEL_WIDTH = 28
_HEADER_WIDTH = 12
_SHARES = ("acc", "exact_match", "accuracy", "ece", "f1", "em")  # shown as percentages, also as parts of a name
_DIGITS = {"kl": 4}
_NAMES = {  # shorter names of lm-eval's metrics
    "exact_match,strict-match": "strict",
    "exact_match,flexible-extract": "flexible",
    "prompt_level_strict_acc": "prompt, strict",
    "prompt_level_loose_acc": "prompt, loose",
    "inst_level_strict_acc": "instruction, strict",
    "inst_level_loose_acc": "instruction, loose",
    "kl": "KL from base",
    "ece": "ECE",
}

Tone = Literal["better", "worse", "same", "plain"]


@dataclass(frozen=True)
class Cell:
    """A value as shown, its interval, and its difference from the baseline ("" if it has none)."""

    text: str
    interval: str = ""
    difference: str = ""
    arrow: str = ""
    tone: Tone = "plain"

    @property
    def whole(self) -> str:
        """Value and interval."""
        return f"{self.text} {self.interval}".rstrip()

    @property
    def change(self) -> str:
        """Difference and arrow together."""
        return self.difference + self.arrow


def counted(number: int, what: str) -> str:
    """“1 seed”, “2 seeds”."""
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def format_value(value: float | str | None, column: Column) -> str:
    """A value with the column's digits; None becomes –, a string is put on one line."""
    if value is None:
        return MISSING
    if isinstance(value, str):
        return " ".join(value.split())
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    shown = 100 * value if column.percent else value
    text = f"{shown:{'+' if column.sign else ''},.{column.digits}f}"
    if not any(digit in text for digit in "123456789"):
        text = text.removeprefix("-").removeprefix("+")
    return text.replace("-", "−") + ("%" if column.percent else "")


def format_estimate(estimate: Estimate, column: Column) -> FormattedValue:
    """A value with the column's digits, and its interval in brackets if known."""
    if math.isnan(estimate.value):
        return FormattedValue(MISSING)
    known = math.isfinite(estimate.low) and math.isfinite(estimate.high)
    ends = ", ".join(format_value(end, column).removesuffix("%") for end in (estimate.low, estimate.high))
    return FormattedValue(format_value(estimate.value, column), f"[{ends}]" if known else "")


def signed_percent(value: float) -> str:
    """A share on an axis: +20%, 0%, −7.5%."""
    text = f"{100 * value:+.3g}%"
    return text.replace("-", "−") if any(digit in text for digit in "123456789") else "0%"


def cell(value: Value, baseline: Value, column: Column) -> Cell:
    """The cell of ``value``; no difference unless both are finite numbers.

    A difference that is zero at the column's digits is shown as ±0 and counts as neither better nor worse.
    """
    if isinstance(value, FormattedValue):
        return Cell(value.text, value.interval)
    if isinstance(baseline, Measured):
        baseline = baseline.value
    if isinstance(value, Measured):
        half = "" if value.half is None else f"±{format_value(value.half, column).removesuffix('%')}"
        return replace(cell(value.value, baseline, column), interval=half)
    text = format_value(value, column)
    if not _finite(value) or not _finite(baseline):
        return Cell(text)
    difference = float(value) - float(baseline)  # type: ignore[arg-type]
    shown = f"{(100 if column.percent else 1) * difference:+,.{column.digits}f}"
    if not any(digit in shown for digit in "123456789"):
        return Cell(text, difference="±" + shown[1:], tone="same")
    shown = shown.replace("-", "−")
    if column.better is None:
        return Cell(text, difference=shown)
    tone: Tone = "better" if (difference > 0) == (column.better == "higher") else "worse"
    return Cell(text, "", shown, _ARROWS[tone, difference > 0], tone)


def cells(table: Table) -> list[tuple[str, bool, list[Cell]]]:
    """Each row as (name, whether it is the baseline, cells)."""
    baseline = table.baseline_row
    rows = []
    for row in table.rows:
        is_baseline = row is baseline
        against = {} if baseline is None or is_baseline else baseline
        shown = [cell(row.get(column.key), against.get(column.key), column) for column in table.columns]
        name = row.get(table.label_key)
        rows.append((MISSING if name is None else str(name), is_baseline, shown))
    return rows


def label_heading(table: Table) -> str:
    """The heading of the column of names, from its key."""
    return table.label_key.replace("_", " ").capitalize()


def direction(column: Column) -> str:
    """↑ if higher is better, ↓ if lower is better."""
    return {"higher": "↑", "lower": "↓", None: ""}[column.better]


def legend(table: Table) -> str:
    """One sentence on how to read the differences; "" if the table has none."""
    if table.baseline is None:
        return ""
    parts = [f"Differences are to {table.baseline}"]
    if any(column.better for column in table.columns):
        parts.append("filled arrows ▲▼ are better, hollow △▽ worse")
    if any(column.percent for column in table.columns):
        parts.append("those of percentages are in points")
    return "; ".join(parts) + "."


# ---- columns of measures, and tables of claims


def headline(result: Mapping[str, Any]) -> list[str]:
    """The metrics of a result that a table shows: those of the group if it has some, and never counts."""
    names = [name for name in result["metrics"] if name != "tokens"]
    return [name for name in names if "/" not in name] or names


def metric_column(result: Mapping[str, Any], metric: str) -> Column:
    """The column of one metric of a result, named by task and metric."""
    better = (result.get("higher_is_better") or {}).get(metric)
    direction = None if better is None else "higher" if better else "lower"
    words = re.split(r"[,_/]", metric)
    percent = any(word in _SHARES for word in words) or metric.startswith("exact_match")
    digits = 1 if percent else _DIGITS.get(metric, 3)
    key, label = f"{result['task']} {metric}", f"{result['task']} {metric_name(metric)}"
    return Column(key, label, direction, digits, percent=percent)  # type: ignore[arg-type]


def metric_name(metric: str) -> str:
    """A metric's short name."""
    return _NAMES.get(metric, metric)


def findings_table(findings: Iterable[Finding]) -> Table:
    """One row per claim: the outcome, the effect with its interval, the claimed range, and the test in words."""
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
        "The effect is a mean with its 95 % interval over seeds. A claim holds if the whole interval is on the claimed "
        "side, does not hold if it is on the other side, and is undecided otherwise."
    )
    return Table("What came out", caption, columns, rows, "claim", None)


def shown(estimate: Estimate) -> str:
    """Three digits, or – for a missing value; with the interval if it is known."""
    if math.isnan(estimate.value):
        return "–"
    return f"{estimate.value:.3g}" if math.isnan(estimate.low) else str(estimate)


# ---- as plain text and Markdown


WIDEST = 100
"""Characters of a line of text, where the terminal has as many."""


def terminal_width() -> int:
    """Characters of a line on stdout: the terminal's, at most ``WIDEST``."""
    return min(shutil.get_terminal_size((WIDEST, 24)).columns, WIDEST) if sys.stdout.isatty() else WIDEST


def to_text(table: Table, width: int = 0) -> str:
    """The table for a terminal: plain characters, aligned, at most ``width`` columns wide (0: those of the terminal).

    Differences are next to the values, or below them if that is too wide; if that is still too wide, the columns are
    split into blocks below one another.
    """
    width = width or terminal_width()
    rows = cells(table)
    heading = label_heading(table)
    labels = [heading, *(name for name, _, _ in rows)]
    label_width = min(max(map(_width, labels)), _LABEL_WIDTH)
    columns = [_text_column(table, index, rows, beside=True) for index in range(len(table.columns))]
    if label_width + sum(2 + column.width for column in columns) > width:
        columns = [_text_column(table, index, rows, beside=False) for index in range(len(table.columns))]
    label_blocks = [textwrap.wrap(label, label_width) or [""] for label in labels]
    blocks = [_text_block(label_blocks, label_width, block) for block in _blocks(columns, width - label_width) or [[]]]
    notes = [line for note in (legend(table),) if note for line in textwrap.wrap(note, width)]
    text = "\n".join([*textwrap.wrap(table.title, width), "", "\n\n".join(blocks), *([""] if notes else []), *notes])
    return _UNPRINTABLE.sub("\ufffd", text)


def to_markdown(table: Table) -> str:
    """The table in GitHub's Markdown, differences in brackets after the values."""
    heads = [label_heading(table), *(f"{column.label} {direction(column)}".strip() for column in table.columns)]
    lines = [
        "| " + " | ".join(map(markdown_text, heads)) + " |",
        "|:--|" + "".join(":--|" if column.words else "--:|" for column in table.columns),
    ]
    for name, _, row in cells(table):
        shown = [f"{entry.whole} ({entry.change})" if entry.difference else entry.whole for entry in row]
        lines.append("| " + " | ".join(map(markdown_text, [name, *shown])) + " |")
    note = legend(table)
    return "\n".join([*lines, *(["", markdown_text(note)] if note else [])])


def _finite(value: Value) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def markdown_text(text: str) -> str:
    """Text on one line, with the special characters of Markdown and HTML escaped."""
    line = _UNPRINTABLE.sub("\ufffd", " ".join(text.split()))
    for mark in "\\`*_[]<>|":
        line = line.replace(mark, "&lt;" if mark == "<" else "&gt;" if mark == ">" else "\\" + mark)
    return line


@dataclass(frozen=True)
class _TextColumn:
    head: list[str]
    body: list[list[str]]
    width: int


def _text_column(table: Table, index: int, rows: Sequence[tuple[str, bool, list[Cell]]], beside: bool) -> _TextColumn:
    column = table.columns[index]
    entries = [row[index] for _, _, row in rows]
    changes = max((_width(entry.change) for entry in entries), default=0)
    if beside and changes:
        # Arrows have a separate column, so that digits stay aligned.
        arrows = max(len(entry.arrow) for entry in entries)
        body = [
            [entry.whole + " " + _right(entry.difference + (entry.arrow or " " * arrows), changes)] for entry in entries
        ]
    else:
        body = [[entry.whole, *([entry.change or ""] if changes else [])] for entry in entries]
    content = max((_width(line) for lines in body for line in lines), default=0)
    label = f"{column.label} {direction(column)}".strip()
    word = min(max(map(len, label.split()), default=0), _LABEL_WIDTH)  # only very long words are broken
    head = textwrap.wrap(label, max(content, _HEADER_WIDTH, word)) or [""]
    return _TextColumn(head, body, max([content, *map(_width, head)]))


def _blocks(columns: Iterable[_TextColumn], room: int) -> list[list[_TextColumn]]:
    """Columns in order, as many per block as fit, at least one."""
    blocks: list[list[_TextColumn]] = []
    left = 0
    for column in columns:
        if not blocks or column.width + 2 > left:
            blocks.append([])
            left = room
        blocks[-1].append(column)
        left -= column.width + 2
    return blocks


def _text_block(labels: list[list[str]], label_width: int, columns: list[_TextColumn]) -> str:
    lines: list[str] = []
    for index, label in enumerate(labels):
        parts = [column.head if index == 0 else column.body[index - 1] for column in columns]
        height = max(len(part) for part in [label, *parts])
        for line in range(height):
            # Headings are aligned at the bottom, values at the top of their row.
            name, *values = (_line(part, line - (height - len(part) if index == 0 else 0)) for part in [label, *parts])
            text = [_right(value, column.width) for column, value in zip(columns, values, strict=True)]
            lines.append("  ".join([_left(name, label_width), *text]).rstrip())
        if index == 0:
            lines.append("─" * (label_width + sum(2 + column.width for column in columns)))
    return "\n".join(lines)


def _line(part: Sequence[str], at: int) -> str:
    return part[at] if 0 <= at < len(part) else ""


def _width(text: str) -> int:
    """Width of ``text`` in columns of a terminal."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(unicodedata.combining(character) > 0 for character in text)


def _left(text: str, width: int) -> str:
    return text + " " * (width - _width(text))


def _right(text: str, width: int) -> str:
    return " " * (width - _width(text)) + text
