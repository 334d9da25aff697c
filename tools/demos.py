"""Demos of several seeds as one sweep: ``python -m tools.demos results/word_problems demos/seed-*``.

Writes ``sweep.json``, from which ``uncertune report results/word_problems`` makes the tables and figures: exact match
of generated answers and everything else the demo measures, with intervals over seeds.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import mean
from typing import Any

from uncertune.demo import ARMS, BASE, MLE
from uncertune.sweep.table import JSON

Record = dict[str, Any]


def sweep_of(folders: list[Path]) -> Record:
    """What ``sweep.json`` holds. Raises ValueError for demos that are unfinished or differ in more than their seed."""
    demos = [json.loads((folder / "measures.json").read_text(encoding="utf-8")) for folder in folders]
    for folder, demo in zip(folders, demos, strict=True):
        if not set(demo["measures"]) >= {BASE, MLE}:
            raise ValueError(f"{folder} holds a demo that is not finished: run it again")
    settings = [{name: value for name, value in demo["settings"].items() if name != "seed"} for demo in demos]
    if any(one != settings[0] for one in settings):
        raise ValueError(f"the demos differ in more than their seed: {settings}")
    everywhere = [name for name in ARMS if all(name in demo["measures"] for demo in demos)]
    arms = {name: _arm(name, settings[0]["selection_fraction"]) for name in everywhere}
    return {
        "model": settings[0]["model"],
        "data": "word_problems",
        "in_data": "word_problems@test",
        "arms": list(arms.values()),
        "base": _mean([_by_set(demo["measures"][BASE]) for demo in demos]),
        "runs": [
            {
                "arm": arm["name"],
                "seed": demo["settings"]["seed"],
                "status": "done",
                "error": None,
                **_by_set(demo["measures"][name]),
            }
            for demo in demos
            for name, arm in arms.items()
        ],
    }


def _arm(objective: str, fraction: float) -> Record:
    plain: Record = {"metric": None, "level": None, "q": None}
    if objective == "anchor":
        return {"name": "mle-anchor_base", "objective": MLE, **plain, "anchor": "base"}
    if objective == MLE:
        return {"name": objective, "objective": objective, **plain}
    name = f"{objective}-loss-{fraction:g}"
    return {"name": name, "objective": objective, "metric": "loss", "level": "token", "q": fraction}


def _by_set(measures: Record) -> Record:
    inside = {"loss": measures["loss"], "exact_match": measures["exact_match"]}
    return {"in": inside, "out": {"prose": {"loss": measures["text_loss"]}, "prompts": {"kl": measures["kl"]}}}


def _mean(records: list[Any]) -> Any:
    """Of numbers, or number by number of records of the same shape."""
    if not isinstance(records[0], dict):
        return mean(records)
    return {name: _mean([one[name] for one in records]) for name in records[0]}


def main(output_dir: str, *folders: str) -> None:
    found = json.dumps(sweep_of([Path(folder) for folder in folders]), indent=1)
    Path(output_dir).mkdir(parents=True, exist_ok=True)
    (Path(output_dir) / JSON).write_text(found + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
