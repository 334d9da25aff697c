"""The rows of a sweep as files: training rows of each seed, and held-out rows in distribution.

data/train-s0.jsonl           rows of the runs of seed 0
data/rho_reference-s0.jsonl   a tenth of them, which only the reference of rho trains on (if the sweep has one)
data/held_out.jsonl           rows that nothing trains on, if the data has no test split
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from uncertune.data.sources import BUILTIN, column_names, evaluation_split, load
from uncertune.errors import UserError
from uncertune.runs.files import write_atomically
from uncertune.sweep.plan import DATA, Plan
from uncertune.training.holdout import held_out

HELD_OUT = "held_out.jsonl"


def write_rows(plan: Plan) -> None:
    """Write the missing files. Raises UserError if the data is too small."""
    folder = plan.folder / DATA
    folder.mkdir(parents=True, exist_ok=True)
    files = {seed: folder / f"train-s{seed}.jsonl" for seed in plan.options.seeds}
    apart = in_data(plan) == str(folder / HELD_OUT)
    references = [folder / f"rho_reference-s{seed}.jsonl" for seed in files] if plan.own_rho else []
    wanted = [*files.values(), *references, *([folder / HELD_OUT] if apart else [])]
    if all(path.is_file() for path in wanted):
        return
    rows, held = _split(plan, apart)
    if apart:
        _write(folder / HELD_OUT, held)
    for seed, path in files.items():
        chosen = _chosen(rows, plan, seed)
        if plan.own_rho:
            chosen, reference = held_out(chosen, seed)
            _write(folder / f"rho_reference-s{seed}.jsonl", reference)
        _write(path, chosen)


def in_data(plan: Plan) -> str:
    """The data in distribution: the test split of the training data, or the rows held out of it."""
    name = str(plan.common.data.dataset_name)
    split = plan.common.data.dataset_train_split
    if name == "word_problems" or (name in BUILTIN and "test" in BUILTIN[name].files):
        return f"{name}@{evaluation_split(name)}" if split != "test" else str(plan.folder / DATA / HELD_OUT)
    return str(plan.folder / DATA / HELD_OUT)


def _split(plan: Plan, apart: bool) -> tuple[Any, Any]:
    """Training rows, and the last rows of the data if they are held out, else None."""
    options, given = plan.options, plan.common
    count = options.held_out if apart else 0
    most, field = given.data.max_train_samples, given.training.dataset_text_field
    rows = load(
        str(given.data.dataset_name),
        config=given.data.dataset_config,
        split=given.data.dataset_train_split,
        data_dir=given.data.data_dir,
        format=given.data.dataset_format,
        text_field=field if field != "text" else None,
        columns=column_names(given.data.dataset_columns),
        max_samples=None if most is None or options.fresh_rows else most + count,
        seed=0,
    )
    if len(rows) <= count:
        raise UserError(f"held_out: {count} rows are as many as the data has ({len(rows)}): give a smaller number")
    if not count:
        return rows, None
    return rows.select(range(len(rows) - count)), rows.select(range(len(rows) - count, len(rows)))


def _chosen(rows: Any, plan: Plan, seed: int) -> Any:
    count = min(plan.common.data.max_train_samples or len(rows), len(rows))
    if not plan.options.fresh_rows:
        return rows.select(range(count))
    return rows.select(sorted(random.Random(seed).sample(range(len(rows)), count)))


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
