"""The results of a sweep, one row per run: ``sweep.json``, from which the page is made, and ``sweep.csv``."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uncertune.evaluation.checks import short_name
from uncertune.runs.files import write_atomically
from uncertune.sweep.measuring import BASE, curve_of, measures_of
from uncertune.sweep.plan import Plan
from uncertune.sweep.points import points_of
from uncertune.sweep.rows import HELD_OUT, in_data
from uncertune.sweep.runs import outcome_of

JSON, CSV = "sweep.json", "sweep.csv"


def write(plan: Plan) -> None:
    """Write both files with the results so far."""
    write_files(collect(plan), plan.folder)


def write_files(found: Mapping[str, Any], folder: Path) -> None:
    """Write a sweep's content, as ``collect`` returns it, as both files."""
    write_atomically(folder / JSON, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    write_atomically(folder / CSV, _csv(found))


def collect(plan: Plan) -> dict[str, Any]:
    """Arms, tried runs with their measures, and the base's measures."""
    runs = []
    for run in sorted([*plan.first(), *plan.rest()], key=lambda run: run.seed):
        known = outcome_of(plan, run)
        if run.arm is None or known is None:
            continue
        measures = measures_of(plan, run.label)
        if known.error is None and measures is None:
            continue
        runs.append(
            {
                "arm": run.arm.name,
                "seed": run.seed,
                "status": "failed" if known.error else "done",
                "error": known.error,
                **(measures if measures and not known.error else {"in": {}, "out": {}}),
                "minutes": known.minutes,
                "measuring_minutes": 0.0 if known.error else points_of(plan, run).minutes,
                "curve": [] if known.error else curve_of(plan, run),
            }
        )
    base = measures_of(plan, BASE) or {"in": {}, "out": {}}
    name, inside = short_name(str(plan.common.data.dataset_name)), in_data(plan)
    return {
        "model": short_name(str(plan.common.model.model_name_or_path)),
        "data": name,
        "in_data": f"{name}, held out" if inside.endswith(HELD_OUT) else inside,
        "documents": plan.options.documents,
        "paper": plan.options.paper,
        "arms": [{"name": arm.name, **arm.axes} for arm in plan.arms],
        "base": base,
        "runs": runs,
    }


def _csv(found: Mapping[str, Any]) -> str:
    axes = {arm["name"]: arm for arm in found["arms"]}
    rows = []
    for run in [{"arm": BASE, "seed": "", "status": "", **found["base"]}, *found["runs"]]:
        row = {**axes.get(run["arm"], {}), "arm": run["arm"], "seed": run["seed"], "status": run["status"]}
        row.pop("name", None)
        row |= {f"in {name}": value for name, value in run["in"].items()}
        row |= {f"{data} {name}": value for data, named in run["out"].items() for name, value in named.items()}
        rows.append(row | {name: run[name] for name in ("minutes", "measuring_minutes", "error") if name in run})
    first = ("arm", "seed", "status")
    names = [*first, *(name for name in dict.fromkeys(name for row in rows for name in row) if name not in first)]
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
