"""``uncertune sweep``: train and measure every run, and keep the table up to date."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from uncertune.errors import UserError
from uncertune.evaluation import harness
from uncertune.report import to_text
from uncertune.runs.files import write_atomically
from uncertune.runs.folder import lock_folder
from uncertune.sweep import table
from uncertune.sweep.measures import read_sweep
from uncertune.sweep.measuring import measure_base, measure_runs
from uncertune.sweep.page import gains_table, write_sweep
from uncertune.sweep.plan import RUNS, Plan, Run, check_same, plan, resolved
from uncertune.sweep.request import Request
from uncertune.sweep.rows import write_rows
from uncertune.sweep.runs import is_done, processes, train_all

CONFIG = "config.yaml"


def sweep(request: Request) -> bool:
    """Do what is not done yet, write table and page, print the gains; return whether every run succeeded."""
    found = plan(request)
    if request.options.tasks:
        harness.require()
    check_same(found, found.folder / CONFIG)
    try:
        (found.folder / RUNS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output_dir {str(found.folder)!r} cannot be made: {error.strerror}") from error
    with lock_folder(found.folder):
        write_atomically(found.folder / CONFIG, yaml.safe_dump(resolved(found), sort_keys=True, allow_unicode=True))
        write_rows(found)
        measure_base(found)
        jobs = processes(request.options.jobs)
        for group in _groups(found, jobs):
            page = _do(found, group, jobs)
    runs = [*found.first(), *found.rest()]
    failed = [run.label for run in runs if not is_done(found, run)]
    print(f"{to_text(gains_table(read_sweep(found.folder)))}\n\ntable: {found.folder / table.CSV}\npage:  {page}")
    if failed:
        print(f"failed: {', '.join(failed)}; the same command tries them again", file=sys.stderr)
    return not failed


def _groups(found: Plan, jobs: int) -> list[list[Run]]:
    """In one process seed by seed, so that what is there is always comparable; else all that others need first."""
    first, rest = found.first(), found.rest()
    if jobs > 1:
        return [first, rest]
    seeds = found.request.options.seeds
    return [[run for run in [*first, *rest] if run.seed == seed] for seed in seeds]


def _do(found: Plan, runs: Sequence[Run], jobs: int) -> Path:
    """Train and measure runs, and bring table and page up to date; return the page's path.

    In one process each run is measured as soon as it is trained, so that an arm may start from MLE's best point.
    """
    for run in train_all(found, runs, jobs):
        print(f"{run.label} is {'done' if is_done(found, run) else 'failed'}", file=sys.stderr, flush=True)
        if jobs == 1 and found.measures_often and is_done(found, run):
            measure_runs(found, [run])
            table.write(found)
            write_sweep(found.folder)
    measure_runs(found, [run for run in runs if is_done(found, run)])
    table.write(found)
    return write_sweep(found.folder)
