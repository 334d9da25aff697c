"""``sweep``: train and measure every run, and keep the table up to date."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from uncertune.evaluation import harness
from uncertune.report import to_text
from uncertune.runs.files import write_atomically
from uncertune.runs.folder import check_writable, lock_folder, output_folder
from uncertune.runs.notes import note
from uncertune.sweep import table
from uncertune.sweep.measures import read_sweep
from uncertune.sweep.measuring import measure_base, measure_runs
from uncertune.sweep.page import gains_table, write_sweep
from uncertune.sweep.plan import RUNS, Plan, Run, check_same, plan, resolved
from uncertune.sweep.rows import write_rows
from uncertune.sweep.runs import is_done, processes, train_all

CONFIG = "config.yaml"


@dataclass(frozen=True)
class Swept:
    """The result of a sweep: its page, its table for a terminal, and the labels of failed runs."""

    page: Path
    text: str
    failed: tuple[str, ...]


def sweep(
    settings: Mapping[str, Any],
    arms: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    output_dir: str | Path,
    *,
    overrides: Mapping[str, Any] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    jobs: int | None = None,
    fresh_rows: bool = False,
    held_out: int = 64,
    out: Sequence[str] = (),
    documents: int = 64,
    measure_every: str | int = "epoch",
    tasks: Sequence[str] = (),
    limit: int | None = None,
    batch_size: int = 16,
    measure_dtype: str = "auto",
    paper: bool = False,
) -> Swept:
    """Train every arm with every seed, measure each run in and out of distribution, and write one table and its page.

    Finished runs and measures are kept, and failed runs are tried again.

    Args:
        settings: fields of ``uncertune train`` for every run: model_name_or_path, dataset_name, learning_rate, …
        arms: a mapping, or several, of ``objective``, ``selection_*`` and other fields to one value or a list of
            values. Each combination is an arm; MLE is always one.
        output_dir: folder of the runs, the measures and the table.
        overrides: fields that win over ``settings``; a setting that has no effect beside them is left out.
        seeds: one run of every arm for each.
        jobs: processes that train at the same time; None: one for each GPU, else one.
        fresh_rows: with ``max_train_samples``, each seed trains on rows drawn with it instead of the first ones.
        held_out: training rows kept apart to measure on, where the data has no test split.
        out: data sets out of distribution, as ``DATA`` or ``DATA@SPLIT``.
        documents: documents measured of each data set, the first ones.
        measure_every: ``epoch``, ``end``, or a number of optimizer steps.
        tasks: tasks of lm-eval to measure too, on ``limit`` documents each (None: all).
        batch_size: documents measured together.
        measure_dtype: number format of the model while it is measured; ``auto``: as stored.
        paper: also test the paper's claims C3 and C5, and number the figures as the paper does.

    Raises:
        UserError: for a field or value that cannot be used, and for a folder that holds another sweep.
    """
    found = plan(
        settings,
        arms,
        output_dir,
        overrides=overrides,
        seeds=tuple(seeds),
        jobs=jobs,
        fresh_rows=fresh_rows,
        held_out=held_out,
        out=tuple(out),
        documents=documents,
        measure_every=str(measure_every),
        tasks=tuple(tasks),
        limit=limit,
        batch_size=batch_size,
        measure_dtype=measure_dtype,
        paper=paper,
    )
    if tasks:
        harness.require()
    check_same(found, found.folder / CONFIG)
    with output_folder(found.folder, check=check_writable), lock_folder(found.folder):
        (found.folder / RUNS).mkdir(exist_ok=True)
        write_rows(found)
        text = yaml.safe_dump(resolved(found), sort_keys=True, allow_unicode=True)
        write_atomically(found.folder / CONFIG, text)
        measure_base(found)
        count = processes(jobs)
        for group in _groups(found, count):
            page = _do(found, group, count)
    runs = [*found.first(), *found.rest()]
    failed = tuple(run.label for run in runs if not is_done(found, run))
    return Swept(page, to_text(gains_table(read_sweep(found.folder))), failed)


def _groups(found: Plan, jobs: int) -> list[list[Run]]:
    """Runs to train together: in one process seed by seed, so that results are always comparable; otherwise first all
    runs that others need."""
    first, rest = found.first(), found.rest()
    if jobs > 1:
        return [first, rest]
    seeds = found.options.seeds
    return [[run for run in [*first, *rest] if run.seed == seed] for seed in seeds]


def _do(found: Plan, runs: Sequence[Run], jobs: int) -> Path:
    """Train and measure runs, and update table and page; return the page's path.

    In one process each run is measured as soon as it is trained, so that an arm may start from MLE's best point.
    """
    everything = [*found.first(), *found.rest()]
    for run in train_all(found, runs, jobs):
        done = f"{sum(is_done(found, one) for one in everything)} of {len(everything)} runs done"
        note(f"{run.label} {'is done' if is_done(found, run) else 'failed'}: {done}")
        if jobs == 1 and found.measures_often and is_done(found, run):
            measure_runs(found, [run])
            table.write(found)
            write_sweep(found.folder)
    measure_runs(found, [run for run in runs if is_done(found, run)])
    table.write(found)
    return write_sweep(found.folder)
