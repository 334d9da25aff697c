"""Training the runs of a sweep, one after the other in this process, or in several processes.

The outcome of a run is in ``runs/LABEL.json``: ``error`` (None if it succeeded) and ``minutes``.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache

from uncertune.data.files import first_line
from uncertune.errors import InterruptedRun, UserError
from uncertune.runs import notes
from uncertune.runs.files import write_atomically
from uncertune.runs.folder import is_complete
from uncertune.runs.notes import NO_BARS, note
from uncertune.sweep.plan import DATA, RUNS, Plan, Run
from uncertune.training.arguments import arguments_of
from uncertune.training.jobs import job_of
from uncertune.training.page import write_run_page
from uncertune.training.pipeline import run as run_training


@dataclass(frozen=True)
class Outcome:
    """The outcome of a run; ``error`` is None if it succeeded."""

    error: str | None
    minutes: float


def outcome_of(plan: Plan, run: Run) -> Outcome | None:
    """The outcome of a run, or None if it has not been tried."""
    try:
        return Outcome(**json.loads(_record(plan, run).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def is_done(plan: Plan, run: Run) -> bool:
    known = outcome_of(plan, run)
    return known is not None and known.error is None and is_complete(plan.run_folder(run))


def train_all(plan: Plan, runs: Sequence[Run], jobs: int) -> Iterator[Run]:
    """Train the unfinished runs, and yield each one when it is done or has failed."""
    todo = [run for run in runs if not is_done(plan, run)]
    if jobs == 1 or len(todo) < 2:
        for run in todo:
            train_one(plan, run)
            yield run
        return
    how = jobs, torch.cuda.device_count(), tuple(warnings.filters), getattr(sys.stderr, "name", "") == os.devnull
    context = multiprocessing.get_context("forkserver")  # it imports once for all processes, and never touches a GPU
    context.set_forkserver_preload([__name__])
    devices = context.Queue()
    for number in range(jobs):
        devices.put(number)
    with _without_bars(), ProcessPoolExecutor(jobs, context, _start, (devices, *how)) as pool, _stopping(pool):
        futures = {pool.submit(train_one, plan, run): run for run in todo}
        for future in as_completed(futures):
            try:
                stopped = future.result()
            except BrokenProcessPool:
                raise UserError(
                    f"jobs: one of {jobs} processes died, perhaps out of memory: run the same command again to resume, "
                    "with fewer jobs if so"
                ) from None
            if stopped:
                raise InterruptedRun(*stopped)
            yield futures[future]


def train_one(plan: Plan, run: Run) -> tuple[str, int] | None:
    """Train one run and record its outcome; returns what stopped it if a signal did and this is a worker."""
    note(f"== {run.label}")
    start, error = time.monotonic(), None
    try:
        for other in plan.needed(run):
            if not is_done(plan, other):
                raise UserError(f"it needs {other.label}, which has failed")
        job = job_of(arguments_of(_settings(plan, run)))
        write_run_page(run_training(job))
    except InterruptedRun as stopped:
        if multiprocessing.parent_process() is None:
            raise
        return str(stopped), stopped.signal
    except UserError as refused:
        error = str(refused)
    except Exception as failed:  # an error of a library ends this run, not the others
        error = f"{type(failed).__name__}: {first_line(failed)}"
    if error:
        clear_device_cache(garbage_collection=True)  # the failed run's model, before the next one is loaded
    before = outcome_of(plan, run)
    minutes = (time.monotonic() - start) / 60 + (before.minutes if before and before.error else 0)
    write_atomically(_record(plan, run), json.dumps({"error": error, "minutes": round(minutes, 3)}))
    if error:
        note(f"{run.label}: {error}")
    return None


def _settings(plan: Plan, run: Run) -> dict[str, Any]:
    """The run's fields, with the file of its seed as data."""
    name = f"{'train' if run.arm else 'rho_reference'}-s{run.seed}.jsonl"
    settings = plan.settings(run)
    for field in ("dataset_config", "dataset_train_split", "dataset_format", "max_train_samples", "data_dir"):
        settings.pop(field, None)
    masked = plan.common.training.assistant_only_loss
    return {**settings, "dataset_name": str(plan.folder / DATA / name), "assistant_only_loss": masked}


def _record(plan: Plan, run: Run) -> Path:
    return plan.folder / RUNS / f"{run.label}.json"


# ---- several processes


def processes(asked: int | None) -> int:
    """The number of processes: as given, else one per GPU, else one."""
    return asked or max(1, torch.cuda.device_count())


def _start(devices: Any, jobs: int, count: int, filters: Sequence[Any], quiet: bool) -> None:
    """Give a new worker one of ``count`` GPUs, or without GPUs its share of the processors, and its parent's output
    settings. GPUs are not counted here: where NVML is missing that starts CUDA, which then ignores the choice."""
    notes.SHARED = True  # the tables of several runs at once would be mixed line by line
    warnings.filters[:] = filters  # type: ignore[index]
    if quiet:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    number = devices.get()
    if count:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [str(one) for one in range(count)]
        os.environ["CUDA_VISIBLE_DEVICES"] = names[number % len(names)]
    else:
        torch.set_num_threads(max(1, torch.get_num_threads() // jobs))


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    """Processes that start inside draw no progress bars: several would overwrite one another."""
    added = {name: "1" for name in NO_BARS if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextlib.contextmanager
def _stopping(pool: ProcessPoolExecutor) -> Iterator[None]:
    """Forward SIGTERM to the workers, which save and exit; a terminal sends SIGINT to them directly."""

    def forward(number: int, frame: Any) -> None:
        raise InterruptedRun(f"ended by {signal.Signals(number).name}", number)

    before = signal.signal(signal.SIGTERM, forward)
    try:
        yield
    except KeyboardInterrupt as stopped:
        if getattr(stopped, "signal", None) == signal.SIGTERM:
            for worker in multiprocessing.active_children():
                os.kill(worker.pid or 0, signal.SIGTERM)
        pool.shutdown(wait=True, cancel_futures=True)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
