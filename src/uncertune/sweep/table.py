"""What a sweep leaves: ``sweep.json`` and ``sweep.csv`` (a row a run), ``sweep.md``, and the figure of its front."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from uncertune.intervals import front, over_seeds, paired, seeds_needed
from uncertune.report import Column, Table, Value, to_markdown
from uncertune.studies.drawing import draw
from uncertune.studies.study import Drawing, Plane, Trail
from uncertune.sweep.measuring import BASE, measures_of
from uncertune.sweep.plan import MLE, Plan
from uncertune.sweep.rows import HELD_OUT, in_data
from uncertune.sweep.runs import outcome_of
from uncertune.training.checkpoints import write_atomically

JSON, CSV, MARKDOWN, FIGURE = "sweep.json", "sweep.csv", "sweep.md", "front"


def write(plan: Plan) -> Table:
    """Write everything from what is known now; return the table of arms."""
    found = collect(plan)
    write_atomically(plan.folder / JSON, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    write_atomically(plan.folder / CSV, _csv(found))
    table = table_of(found)
    failed = [one for one in found["runs"] if one["status"] == "failed"]
    lines = [f"- {one['arm']}, seed {one['seed']}: {one['error']}" for one in failed]
    text = f"{table.caption}\n\n{to_markdown(table)}\n" + ("\nFailed:\n\n" + "\n".join(lines) + "\n" if lines else "")
    write_atomically(plan.folder / MARKDOWN, text)
    if trails := _trails(found):
        draw(plan.folder / FIGURE, _drawing(found, trails))
    return table


def collect(plan: Plan) -> dict[str, Any]:
    """Arms, runs with their measures, and the base's; runs that were not tried yet are not in it."""
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
            }
        )
    base = measures_of(plan, BASE) or {"in": {}, "out": {}}
    name, inside = str(plan.common.data.dataset_name), in_data(plan)
    return {
        "model": str(plan.common.model.model_name_or_path),
        "data": name,
        "in_data": f"{name}, held out" if inside.endswith(HELD_OUT) else inside,
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
        rows.append(row | {name: run[name] for name in ("minutes", "error") if name in run})
    first = ("arm", "seed", "status")
    names = [*first, *(name for name in dict.fromkeys(name for row in rows for name in row) if name not in first)]
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


# ---- arms over seeds


def losses(found: Mapping[str, Any], arm: str) -> dict[int, tuple[float, float]]:
    """Loss in distribution, and the mean of the losses out of it, of an arm's finished runs by seed."""
    out = {}
    for run in found["runs"]:
        if run["arm"] == arm and run["status"] == "done":
            outside = [one["loss"] for one in run["out"].values() if "loss" in one]
            out[run["seed"]] = (run["in"]["loss"], float(np.mean(outside)) if outside else float("nan"))
    return out


def table_of(found: Mapping[str, Any]) -> Table:
    """Every arm: its two losses, their paired differences to MLE, and whether it is on the front."""
    baseline = losses(found, MLE)
    rows: list[dict[str, Value]] = []
    points: dict[str, tuple[float, float]] = {}
    for arm in found["arms"]:
        mine = losses(found, arm["name"])
        if not mine:
            continue
        inside, outside = (over_seeds([one[side] for one in mine.values()]) for side in (0, 1))
        points[arm["name"]] = (inside.value, outside.value)
        row: dict[str, Value] = {"arm": arm["name"], "seeds": len(mine), "in": str(inside), "out": str(outside)}
        if arm["name"] != MLE:
            for side, key in enumerate(("in", "out")):
                pairs = [(mine[seed][side], baseline[seed][side]) for seed in mine if seed in baseline]
                row[f"{key}_difference"] = _difference(pairs)
        rows.append(row)
    best = front(list(points.values()))
    for row, on_front in zip(rows, best, strict=True):
        row["front"] = "yes" if on_front else ""
    base = _base_row(found)
    columns = (
        Column("seeds", "seeds", None, 0),
        Column("in", f"loss on {found['in_data']}", None, 3),
        Column("in_difference", "less MLE's", None, 4),
        Column("out", "loss out of distribution", None, 3),
        Column("out_difference", "less MLE's", None, 4),
        Column("front", "Pareto front", None, 0),
    )
    return Table("Arms", _caption(found), columns, (*base, *rows), "arm", None)


def _base_row(found: Mapping[str, Any]) -> tuple[dict[str, Value], ...]:
    if not found["base"]["in"]:
        return ()
    outside = [one["loss"] for one in found["base"]["out"].values() if "loss" in one]
    mean = f"{np.mean(outside):.3g}" if outside else None
    return ({"arm": BASE, "in": f"{found['base']['in']['loss']:.3g}", "out": mean},)


def _difference(pairs: Sequence[tuple[float, float]]) -> str:
    """The mean difference with its interval, a star where that is clear of 0, else how many seeds more would do."""
    found = paired([mine for mine, _ in pairs], [theirs for _, theirs in pairs])
    if not np.isfinite(found.low):
        return f"{found.value:+.4f}"
    text = f"{found.value:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"
    if found.low > 0 or found.high < 0:
        return f"{text} *"
    more = seeds_needed([mine - theirs for mine, theirs in pairs])
    return text if more is None else f"{text} ({more - len(pairs)} seeds more)"


def _caption(found: Mapping[str, Any]) -> str:
    sets = ", ".join(found["base"]["out"]) or "none"
    return (
        f"{found['model']} trained on {found['data']}. Losses in nats per response token, means over seeds with 95 % "
        f"intervals; out of distribution is the mean over {sets}. Differences are to MLE with the same seed; * marks "
        "those whose interval is clear of 0, and in brackets stands how many seeds more the others would need. On the "
        "front no other arm's means are better on both sides."
    )


def _trails(found: Mapping[str, Any]) -> tuple[Trail, ...]:
    """Differences to MLE, one trail a family of arms that differ in q alone."""
    baseline = losses(found, MLE)
    families: dict[str, list[tuple[float, str, list[tuple[float, float]]]]] = {}
    for arm in found["arms"]:
        mine = losses(found, arm["name"])
        both = [(np.subtract(mine[seed], baseline[seed])) for seed in sorted(mine) if seed in baseline]
        if arm["name"] == MLE or not both or not np.isfinite(both).all():
            continue
        q = arm["q"]
        name = arm["name"] if q is None else arm["name"].replace(f"-{q:g}", "", 1)
        families.setdefault(name, []).append((q or 0, "" if q is None else f"{q:g}", [tuple(one) for one in both]))
    trails = []
    for name, members in families.items():
        members.sort(key=lambda one: one[0])
        seeds = min(len(points) for _, _, points in members)
        values = np.array([points[:seeds] for _, _, points in members])  # (members, seeds, 2)
        trails.append(Trail(name, values[:, :, 0].T, values[:, :, 1].T, tuple(label for _, label, _ in members)))
    return tuple(trails)


def _drawing(found: Mapping[str, Any], trails: tuple[Trail, ...]) -> Drawing:
    plane = Plane(
        f"{found['model']}, {found['data']}",
        f"loss on {found['in_data']}, less MLE's (nats)",
        "loss out of distribution, less MLE's (nats)",
        trails,
    )
    title = "What each arm gains and loses against MLE (lower left is better); 95 % intervals over seeds, q beside"
    return Drawing(FIGURE, title, (plane,))
