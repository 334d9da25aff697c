"""Measures of a sweep's runs, in and out of distribution, by ``uncertune evaluate``: one base in memory for all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from uncertune.evaluation.checks import TOKENS
from uncertune.evaluation.evaluate import measure
from uncertune.evaluation.results import Place, read
from uncertune.sweep.plan import Plan, Run
from uncertune.sweep.rows import in_data, shown

EVALUATION = "evaluation"
BASE = "base"
TOKEN_MEASURES = ("loss", "accuracy", "ece", "kl")


def measure_base(plan: Plan) -> None:
    """Measure the model that every run starts from."""
    _measure(plan, [str(plan.common.model.model_name_or_path)], [BASE])


def measure_runs(plan: Plan, runs: Sequence[Run]) -> None:
    """Measure finished runs; what is there already is not measured again."""
    todo = [run for run in runs if run.arm is not None and measures_of(plan, run.label) is None]
    if not todo:
        return
    if plan.common.model.use_peft:
        _measure(plan, [str(plan.run_folder(run)) for run in todo], [run.label for run in todo])
        return
    for run in todo:  # whole models: one at a time, and without KL from the base
        _measure(plan, [str(plan.run_folder(run))], [run.label])


def _measure(plan: Plan, models: list[str], labels: list[str]) -> None:
    options = plan.request.options
    common: dict[str, Any] = {
        "labels": labels,
        "output_dir": plan.folder / EVALUATION,
        "batch_size": options.batch_size,
        "dtype": options.measure_dtype,
        "data_dir": plan.common.data.data_dir,
        "attn_implementation": plan.common.model.attn_implementation,
        "chat_template_path": plan.common.training.chat_template_path,
    }
    length = plan.common.training.max_length
    tokens = [TOKENS + name for name in (in_data(plan), *options.out_sets)]
    cut = {"max_length": length} if length else {}
    measure(models, **common, **cut, tasks=tokens, limit=options.documents)
    if options.harness_tasks:
        measure(models, **common, tasks=options.harness_tasks, limit=options.limit)


def measures_of(plan: Plan, label: str) -> dict[str, dict[str, Any]] | None:
    """``in``: measure → value, ``out``: data set → measure → value; None where some are not there yet.

    A task of lm-eval counts as in distribution where it is named as the training data.
    """
    own = str(plan.common.data.dataset_name)
    inside = _result(plan, label, TOKENS + in_data(plan))
    if inside is None:
        return None
    out: dict[str, dict[str, Any]] = {"in": _tokens(inside), "out": {}}
    for name in plan.request.options.out_sets:
        found = _result(plan, label, TOKENS + name)
        if found is None:
            return None
        out["out"][shown(name)] = _tokens(found)
    for task in plan.request.options.harness_tasks:
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
