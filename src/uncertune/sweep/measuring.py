"""Measures of a sweep's runs in and out of distribution, by ``measure``, with one base in memory for all adapters."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from uncertune.evaluation.checks import TOKENS, short_name
from uncertune.evaluation.evaluate import measure
from uncertune.evaluation.results import Place, read
from uncertune.sweep.plan import Plan, Run
from uncertune.sweep.points import EVALUATION, Point, Points, folder_of, keep_points, points_of, prune
from uncertune.sweep.rows import in_data

BASE = "base"
TOKEN_MEASURES = ("loss", "accuracy", "ece", "kl")


def measure_base(plan: Plan) -> None:
    """Measure the model that every run starts from."""
    _measure(plan, {BASE: str(plan.common.model.model_name_or_path)}, [BASE])


def measure_runs(plan: Plan, runs: Sequence[Run]) -> None:
    """Measure finished runs at every unmeasured point, and delete the checkpoints that are no longer needed.

    Adapters that are measured at their end alone share one base in memory, whose outputs are computed once; a run with
    checkpoints is measured alone, so that few adapters are in memory.
    """
    todo = [(run, points_of(plan, run)) for run in runs if run.arm is not None]
    todo = [(run, found) for run, found in todo if _missing(plan, run, found)]
    whole = not plan.common.model.use_peft
    alone = [one for one in todo if whole or len(one[1].points) > 1]
    together = [one for one in todo if one not in alone]
    for group in [[one] for one in alone] + ([together] if together else []):
        start = time.monotonic()
        for run, found in group:
            keep_points(plan, run, found)
        missing = [(run, point) for run, found in group for point in _missing(plan, run, found)]
        for batch in [[one] for one in missing] if whole else [missing]:
            ends = [point.label for run, point in batch if point.label == run.label]
            _measure(plan, {point.label: str(folder_of(plan, run, point)) for run, point in batch}, ends)
        minutes = (time.monotonic() - start) / 60 / len(group)
        for run, found in group:
            keep_points(plan, run, Points(found.points, found.minutes + minutes))
    for run in runs:
        if run.arm is not None:
            prune(plan, run, best_point(plan, run))


def curve_of(plan: Plan, run: Run) -> list[dict[str, Any]]:
    """``step``, ``epoch``, ``in`` and ``out`` of every measured point of a run; empty for a run with a single point."""
    points = points_of(plan, run).points
    if len(points) < 2:
        return []
    found = [(point, _measures(plan, run, point)) for point in points]
    return [{"step": point.step, "epoch": point.epoch, **one} for point, one in found if one is not None]


def best_point(plan: Plan, run: Run) -> Point:
    """The point of the lowest loss in distribution, the first of equals, which early stopping would keep."""
    points = points_of(plan, run).points
    found = [_measures(plan, run, one) for one in points]
    losses = [math.inf if one is None else float(one["in"]["loss"]) for one in found]
    return points[losses.index(min(losses))]


def _missing(plan: Plan, run: Run, found: Points) -> list[Point]:
    """The unmeasured points whose models still exist."""
    return [one for one in found.points if _measures(plan, run, one) is None and folder_of(plan, run, one).is_dir()]


def _measures(plan: Plan, run: Run, point: Point) -> dict[str, dict[str, Any]] | None:
    return measures_of(plan, point.label, answers=point.label == run.label)


def _measure(plan: Plan, models: dict[str, str], ends: Sequence[str]) -> None:
    """Measure models by label; tasks of lm-eval only for those at the ``ends`` of runs."""
    options = plan.options
    common: dict[str, Any] = {
        "output_dir": plan.folder / EVALUATION,
        "batch_size": options.batch_size,
        "dtype": options.measure_dtype,
        "data_dir": plan.common.data.data_dir,
        "attn_implementation": plan.common.model.attn_implementation,
        "allow_pickle": plan.common.training.allow_pickle,
        "chat_template_path": plan.common.training.chat_template_path,
    }
    length = plan.common.training.max_length
    tokens = [TOKENS + name for name in (in_data(plan), *options.out)]
    cut = {"max_length": length} if length else {}
    measure(list(models.values()), labels=list(models), **common, **cut, tasks=tokens, limit=options.documents)
    if options.tasks and ends:
        trained = [models[one] for one in ends]
        measure(trained, labels=ends, **common, tasks=options.tasks, limit=options.limit)


def measures_of(plan: Plan, label: str, *, answers: bool = True) -> dict[str, dict[str, Any]] | None:
    """``in``: measure → value, ``out``: data set → measure → value; None if some are missing.

    A task of lm-eval counts as in distribution if it has the name of the training data. Without ``answers``, tasks are
    ignored.
    """
    own = str(plan.common.data.dataset_name)
    inside = _result(plan, label, TOKENS + in_data(plan))
    if inside is None:
        return None
    out: dict[str, dict[str, Any]] = {"in": _tokens(inside), "out": {}}
    for name in plan.options.out:
        found = _result(plan, label, TOKENS + name)
        if found is None:
            return None
        out["out"][short_name(name)] = _tokens(found)
    for task in plan.options.tasks if answers else ():
        found = _result(plan, label, task)
        if found is None:
            return None
        (out["in"] if task == own else out["out"].setdefault(task, {})).update(found)
    return out


def _tokens(found: dict[str, float]) -> dict[str, float]:
    return {name: found[name] for name in TOKEN_MEASURES if name in found}


def _result(plan: Plan, label: str, task: str) -> dict[str, float] | None:
    found = read(Place(Path(plan.folder) / EVALUATION, label, task).result)
    return None if found is None else dict(found["metrics"])
