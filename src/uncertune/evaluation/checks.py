"""Checks of the arguments of an evaluation, before anything heavy is imported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from uncertune.data.files import check_there
from uncertune.errors import UserError

TOKENS = "tokens:"
BACKENDS = ("hf", "vllm")


def check_tasks(
    tasks: Sequence[str],
    limits: Mapping[str, int],
    *,
    max_length: int = 1024,
    num_fewshot: int | None = None,
    backend: str = "hf",
    limited: Iterable[str] = (),
) -> None:
    """Raise UserError for tasks and numbers that cannot be measured; ``limited`` names other things with a limit."""
    if not tasks:
        raise UserError("tasks is missing: give it, for example --tasks gsm8k,ifeval,tokens:wikitext2")
    check_unique("tasks", tasks)
    if TOKENS in tasks:
        raise UserError(f"tasks: {TOKENS!r} needs a data set, for example tokens:wikitext2")
    check_there(*(task.removeprefix(TOKENS).partition("@")[0] for task in tasks if task.startswith(TOKENS)))
    check_limits(limits, [*tasks, *limited])
    if num_fewshot is not None and num_fewshot < 0:
        raise UserError(f"num_fewshot must be 0 or more, got {num_fewshot}")
    if max_length < 2:
        raise UserError(f"max_length must be at least 2, got {max_length}")
    if backend not in BACKENDS:
        raise UserError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if backend == "vllm" and any(task.startswith(TOKENS) for task in tasks):
        raise UserError(f"backend: {TOKENS}… needs the logits of transformers: leave those tasks to --backend hf")


def check_columns(columns: Mapping[str, str] | None, tasks: Iterable[str], prompts: str | None = None) -> None:
    """Raise UserError where ``dataset_columns`` is given and neither tasks nor prompts are data of the user's own."""
    if not columns:
        return
    from uncertune.data.sources import own_columns

    names = [task.removeprefix(TOKENS).partition("@")[0] for task in tasks if task.startswith(TOKENS)]
    if not any(own_columns(name, columns) for name in (*names, *([prompts] if prompts else []))):
        raise UserError(
            "dataset_columns has no effect: lm-eval's tasks and built-in data have fixed columns: leave it out"
        )


def short_name(name: str) -> str:
    """A task, data set or model as terminals and tables name it: of an existing path, the last part."""
    path = name.removeprefix(TOKENS)
    return name.removesuffix(path) + (Path(path).name if Path(path.partition("@")[0]).exists() else path)


def check_unique(name: str, values: Sequence[str]) -> None:
    """Raise UserError for a value that is given twice."""
    twice = [value for value, count in Counter(values).items() if count > 1]
    if twice:
        raise UserError(f"{name} names {twice[0]!r} twice: keep one")


def check_limits(limits: Mapping[str, int], names: Sequence[str]) -> None:
    """Raise UserError for a limit of an unknown task, and for a limit below 1."""
    for name, count in limits.items():
        if name not in names:
            raise UserError(f"limits: {name!r} is not among {', '.join(names) or 'the tasks'}")
        if count < 1:
            raise UserError(f"limits: {name} must be at least 1, got {count}")


def read_limits(text: str | None) -> dict[str, int]:
    """Read comma-separated ``NAME=COUNT``. Raises UserError for anything else."""
    out = {}
    for part in filter(None, (part.strip() for part in (text or "").split(","))):
        name, _, count = part.rpartition("=")
        if not name or not count.isdecimal() or len(count) > 18 or int(count) < 1:
            raise UserError(f"limits: {part!r} must be a task and a number from 1 on, like gsm8k=32")
        out[name] = int(count)
    return out


def check_sampling(temperature: float, top_p: float) -> None:
    """Raise UserError for an invalid temperature or top_p."""
    if not 0 <= temperature < float("inf"):
        raise UserError(f"temperature must be 0 (greedy) or more, got {temperature}")
    if not 0 < top_p <= 1:
        raise UserError(f"top_p must be in (0, 1], got {top_p}")
    if top_p < 1 and temperature == 0:
        raise UserError(f"top_p: {top_p} is for sampling, and temperature 0 does not sample: give both, or neither")
