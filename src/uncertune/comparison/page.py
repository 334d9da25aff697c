"""The page of a comparison: every model × every task, gains, and the answers with the judge's verdicts."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from uncertune.comparison.answers import answer_sections
from uncertune.comparison.data import Comparison, read_comparison, read_object
from uncertune.comparison.measures import (
    HEAD_TO_HEAD,
    Gain,
    Measured,
    choose_baseline,
    estimate,
    gains,
    mean_gain,
    measure,
    tasks_of,
)
from uncertune.errors import UserError
from uncertune.evaluation.results import FEW_DOCUMENTS
from uncertune.report.html import render, write_whole
from uncertune.report.page import Bar, Bars, Column, Facts, Page, Point, Points, Section, Table, Value
from uncertune.report.tables import MISSING, counted, format_estimate, format_value, markdown_text, to_markdown
from uncertune.statistics.intervals import Estimate

PAGE = "comparison.html"


def write_comparison(
    folder: Path,
    into: Path | None = None,
    *,
    baseline: str | None = None,
    in_distribution: Sequence[str] | None = None,
) -> Path:
    """Write ``comparison.html``, ``.md`` and ``.json`` from the files in the folder; return the page's path.

    The pages of compared runs get a link to it.

    Args:
        into: another folder to write to.
        baseline: a label; else that of the verdicts, else ``mle``, else the first model.
        in_distribution: names of tasks (the judged answers are "head to head"); else those named in ``verdicts.json``.

    Raises:
        UserError: nothing to compare, an unreadable file, or an unknown name.
    """
    found = read_comparison(folder)
    output_dir = into or folder
    output_dir.mkdir(parents=True, exist_ok=True)
    baseline = choose_baseline(found, baseline)
    tasks = list(tasks_of(found))
    inside = list(found.verdicts.get("in_distribution", []) if in_distribution is None else in_distribution)
    for task in inside:
        if task not in tasks:
            raise UserError(f"in_distribution: there is no task {task!r}; choose from {', '.join(tasks)}")
    measured = measure(found, baseline)
    gained = gains(measured, found.verdicts)
    numbers = [*_tables(found, measured, baseline)]
    figures = _figures(gained, tasks, inside, baseline)
    facts = _facts(found, tasks, inside, baseline)
    lead = f"{counted(len(found.models), 'model')} on {counted(len(tasks), 'task')}, each against {baseline}."
    sections: list[Section] = [*numbers[:1], *figures, *numbers[1:], *answer_sections(found, baseline), facts]
    files = {
        "comparison.md": _markdown(lead, numbers),
        "comparison.json": json.dumps(_numbers(found, measured, gained, inside, baseline), indent=1),
        PAGE: render(Page("Comparison", lead, tuple(sections))),
    }
    for name, content in files.items():
        write_whole(output_dir / name, content.encode())
    _link(found, output_dir / PAGE)
    return output_dir / PAGE


def rewrite_comparison(folder: Path, into: Path | None = None) -> Path:
    """``write_comparison`` with the baseline and the tasks in distribution of ``comparison.json``."""
    before = read_object(folder / "comparison.json")
    named = {"baseline": before.get("baseline"), "in_distribution": before.get("in_distribution")}
    return write_comparison(folder, into, **named)


def _link(found: Comparison, page: Path) -> None:
    """Add a link to the comparison to the pages of its runs."""
    results = [one for by_model in found.results.values() for one in by_model.values()]
    lines = [line for given in found.answers.values() for line in given[:1]]
    sources = dict.fromkeys(str(one["model"]) for one in [*results, *lines] if one.get("model"))
    for source in sources:
        # os.path, since a name from a file may not be a path
        if any(os.path.isfile(os.path.join(source, up, "run.json")) for up in (".", "..")):
            from uncertune.training.page import link_comparison

            link_comparison(source, page)


def _facts(found: Comparison, tasks: Sequence[str], inside: Sequence[str], baseline: str) -> Facts:
    items = [("baseline", baseline), ("models", ", ".join(found.models)), ("tasks", ", ".join(tasks))]
    items.append(("in distribution", ", ".join(inside) or "not named"))
    if found.verdicts.get("judge"):
        items.append(("judge", str(found.verdicts["judge"])))
    return Facts("What was compared", tuple(items))


# ---- figures


def _figures(gained: Sequence[Gain], tasks: Sequence[str], inside: Sequence[str], baseline: str) -> Iterator[Section]:
    if not gained:
        return
    outside = [task for task in tasks if task not in inside]
    how = (
        f"(model − {baseline}) / {baseline} on each task's first measure, signed so that higher is better; of judged "
        f"answers (w − ½) / ½ of the adjusted win rate w. Lines are 95 % intervals."
    )
    if zero := [task for task in tasks if any(one.task == task and math.isnan(one.value.value) for one in gained)]:
        how += f" The gain on {', '.join(zero)} is undefined, since {baseline} has 0."
    axis = f"gain over {baseline}"
    if inside:
        caption = f"{how} The paper's Fig. 3."
        yield Bars("Gain in distribution", caption, axis, _groups(gained, inside))
        yield Bars("Gain out of distribution", f"{how} The paper's Fig. 5.", axis, _groups(gained, outside))
        points = [_point(model, gained, inside, outside) for model in _models(gained)]
        caption = "Means over tasks with 95 % intervals; up and to the right is better. The paper's Fig. 6 (A)."
        if any(one.known for one in points):
            yield Points(
                "In against out of distribution",
                caption,
                f"gain over {baseline} in distribution",
                f"gain over {baseline} out of distribution",
                tuple(points),
            )
    else:
        yield Bars("Gain on each task", f"{how} The paper's Fig. 3 and 5.", axis, _groups(gained, tasks))
    bars = []
    for model in _models(gained):
        own = [one for one in gained if one.model == model]
        better = sum(one.ahead.value > 0 for one in own)
        sure = sum(one.ahead.low > 0 for one in own)
        note = f"{better} of {len(own)}, {sure} with an interval above 0"
        bars.append(Bar(model, Estimate(better / len(own), math.nan, math.nan), note))
    caption = f"Share of tasks on which a model is better than {baseline}. The paper's Fig. 6 (B)."
    yield Bars("Tasks won", caption, "share of tasks", (("", tuple(bars)),), end=1.0)


def _models(gained: Sequence[Gain]) -> list[str]:
    return list(dict.fromkeys(one.model for one in gained))


def _groups(gained: Sequence[Gain], tasks: Sequence[str]) -> tuple[tuple[str, tuple[Bar, ...]], ...]:
    groups = ((task, tuple(Bar(one.model, one.value) for one in gained if one.task == task)) for task in tasks)
    return tuple((task, bars) for task, bars in groups if bars)


def _point(model: str, gained: Sequence[Gain], inside: Sequence[str], outside: Sequence[str]) -> Point:
    x, y = (mean_gain([one for one in gained if one.model == model and one.task in side]) for side in (inside, outside))
    return Point(model, x, y)


# ---- tables


def _tables(found: Comparison, measured: Sequence[Measured], baseline: str) -> Iterator[Table]:
    yield _overview(found, measured, baseline)
    if found.verdicts.get("models"):
        yield _head_to_head(found, baseline)
        if any(verdict.get("decided") for verdict in found.verdicts["models"].values()):
            yield _decided(found, baseline)
        yield _outcomes(found)
    for task in found.results:
        yield _task_table(task, [one for one in measured if one.task == task], baseline)


def _overview(found: Comparison, measured: Sequence[Measured], baseline: str) -> Table:
    columns = {one.column.key: one.column for one in measured}
    rows: dict[str, dict[str, Value]] = {label: {"model": label} for label in found.models}
    rows.setdefault(baseline, {"model": baseline})
    for one in measured:
        rows[one.model][one.column.key] = one.value.value
    for label, verdict in found.verdicts.get("models", {}).items():
        columns[HEAD_TO_HEAD] = Column(HEAD_TO_HEAD, "Win rate, adjusted", "higher", 1, percent=True)
        value = estimate(verdict.get("adjusted")).value
        rows[label][HEAD_TO_HEAD] = None if math.isnan(value) else value
    counts = {task: one.get("documents") for task, by_model in found.results.items() for one in by_model.values()}
    documents = ", ".join(f"{task} {count}" for task, count in counts.items())
    return Table(
        "Every model on every task",
        f"Documents: {documents}." if documents else "",
        tuple(columns.values()),
        tuple(rows.values()),
        "model",
        baseline if measured else None,
    )


_SOFT = {
    "raw": "Raw win rate",
    "order_averaged": "Averaged over both orders",
    "adjusted": "Adjusted for length and presentation order",
}
_DECIDED = {"share": "Share won", "adjusted": "At equal length", "like_length": "Share won, answers of like length"}


def _head_to_head(found: Comparison, baseline: str) -> Table:
    columns = (
        Column("pairs", "Pairs", None, 0),
        *(Column(key, label, None, 1, percent=True) for key, label in _SOFT.items()),
        Column("position_bias", "Position bias", None, 2),
        Column("length_effect", "Length effect", None, 2),
    )
    rows, warnings = [], []
    for label, verdict in found.verdicts["models"].items():
        rates = {column.key: format_estimate(estimate(verdict.get(column.key)), column) for column in columns[1:]}
        rows.append({"model": label, "pairs": verdict.get("pairs"), **rates})
        if verdict.get("warning"):
            warnings.append(f"{label}: {verdict['warning']}.")
    caption = (
        f"The judge {found.verdicts.get('judge')} saw each pair of answers in both orders; 50 % is a draw with "
        f"{baseline}. In brackets 95 % intervals over prompts. Position bias and length effect are in log-odds: above "
        "0 the judge prefers the answer shown first, or the longer one."
    )
    return Table("Head to head", "\n".join([caption, *warnings]), columns, tuple(rows), "model", None)


def _decided(found: Comparison, baseline: str) -> Table:
    """The table of decided prompts; ``verdicts.json`` of earlier versions has no such numbers."""
    columns = (
        Column("won", "Won", None, 0),
        Column("lost", "Lost", None, 0),
        Column("tied", "Tied", None, 0),
        *(Column(key, label, None, 1, percent=True) for key, label in _DECIDED.items()),
    )
    rows = []
    for label, verdict in found.verdicts["models"].items():
        if not (counts := verdict.get("decided")):
            continue
        shares = {**counts, "like_length": (counts.get("like_length") or {}).get("share")}
        row = {"model": label, **{name: counts.get(name) for name in ("won", "lost", "tied")}}
        rows.append(row | {c.key: format_estimate(estimate(shares.get(c.key)), c) for c in columns[3:]})
    caption = (
        f"Each prompt counts once, for the side that the judge takes over both orders together, against {baseline}. In "
        "brackets exact 95 % intervals (Clopper and Pearson). This reading shows which answer a judge prefers even "
        "where its probabilities stay near one half; it says nothing about by how much."
    )
    return Table("Decided prompts", caption, columns, tuple(rows), "model", None)


def _outcomes(found: Comparison) -> Table:
    models = found.verdicts["models"]
    names = list(dict.fromkeys(name for verdict in models.values() for name in verdict.get("outcomes", {})))
    columns = tuple(Column(name, name.replace("_", " "), None, 0) for name in names)
    rows = tuple({"model": label, **{n: v.get("outcomes", {}).get(n, 0) for n in names}} for label, v in models.items())
    return Table("Outcome of each question to the judge", "Only “judged” counts.", columns, rows, "model", None)


def _task_table(task: str, measured: Sequence[Measured], baseline: str) -> Table:
    tests = sorted({one.against.test for one in measured if one.against is not None})
    counts = sorted({one.against.documents for one in measured if one.against is not None})
    number = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1])))) if counts else ""
    paired = f"{' and '.join(tests)} on {number} documents" if counts else "none, since no samples are common"
    caption = f"95 % intervals in brackets. Paired tests against {baseline}: {paired}."
    if counts and counts[0] < FEW_DOCUMENTS:
        caption += f" Fewer than {FEW_DOCUMENTS} documents: the intervals are rough."
    if any(not math.isnan(one.adjusted_p) for one in measured):
        caption += " Holm's p allows for the tests of every model on every task's first measure."
    relative = Column("relative", f"Relative to {baseline}", None, 1, percent=True, sign=True)
    columns = (
        Column("measure", "Measure", None, 0),
        Column("value", "Value", None, 0),
        Column("difference", "Difference", None, 0),
        relative,
        Column("counts", "Higher / lower", None, 0),
        Column("p", "p (Holm's)", None, 0),
    )
    rows = tuple(_task_row(one, relative) for one in measured)
    return Table(f"{task}: paired with {baseline}", caption, columns, rows, "model", None)


def _task_row(one: Measured, relative: Column) -> dict[str, Value]:
    row: dict[str, Value] = {"model": one.model, "measure": one.name, "value": format_estimate(one.value, one.column)}
    if one.against is not None:
        row |= {
            "difference": format_estimate(one.against.difference, dataclasses.replace(one.column, sign=True)),
            "relative": format_estimate(one.against.relative, relative) if one.column.better else None,
            "counts": f"{one.against.won} / {one.against.lost}",
            "p": _p(one.against.p) + ("" if math.isnan(one.adjusted_p) else f" ({_p(one.adjusted_p)})"),
        }
    elif not math.isnan(one.relative):
        row["relative"] = one.relative
    return row


def _p(value: float) -> str:
    if math.isnan(value):
        return MISSING
    return "< 0.001" if value < 0.001 else format_value(value, Column("", "", None, 3))


# ---- the other files


def _markdown(lead: str, numbers: Sequence[Table]) -> str:
    parts = [f"# Comparison\n\n{markdown_text(lead)}"]
    for table in numbers:
        caption = "\n\n".join(map(markdown_text, table.caption.split("\n")))
        parts.append(f"## {markdown_text(table.title)}\n\n{caption}\n\n{to_markdown(table)}")
    return "\n\n".join(parts) + "\n"


def _numbers(
    found: Comparison, measured: Sequence[Measured], gained: Sequence[Gain], inside: Sequence[str], baseline: str
) -> Any:
    rows = []
    for one in measured:
        row: dict[str, Any] = {"task": one.task, "measure": one.metric, "better": one.column.better, "main": one.main}
        row |= {"model": one.model, "value": dataclasses.asdict(one.value), "relative": one.relative}
        against = None if one.against is None else dataclasses.asdict(one.against) | {"adjusted_p": one.adjusted_p}
        rows.append({**row, "against_baseline": against})
    return _known(
        {
            "baseline": baseline,
            "in_distribution": list(inside),
            "models": found.models,
            "measures": rows,
            "gains": [dataclasses.asdict(one) for one in gained],
            "head_to_head": found.verdicts.get("models", {}),
            "judge": found.verdicts.get("judge"),
        }
    )


def _known(value: Any) -> Any:
    """The same with null for non-finite numbers, which JSON lacks."""
    if isinstance(value, dict):
        return {name: _known(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_known(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
