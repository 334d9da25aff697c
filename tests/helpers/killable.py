"""Training runs in processes that cost no imports, forked from a server that has made them: to kill, or as ranks."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tools.fork import CONTEXT
from uncertune.training.runlog import read_metrics

SHARD_TOKENS = 600


def arguments(model: Path, out: Path, **more: Any) -> list[str]:
    """A command line that trains ``model`` in two stages, 12 steps each; a field that is None is left out."""
    fields = {
        "model_name_or_path": model,
        "dataset_name": "word_problems",
        "max_train_samples": 48,
        "output_dir": out,
        "objective": "masked_mle_distill",
        "teacher": "auto",
        "use_peft": True,
        "lora_target_modules": "all-linear",
        "lora_dropout": 0.1,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-3,
        "use_cpu": True,
        "bf16": False,  # which takes a CPU twice as long
        "disable_tqdm": True,
        **more,
    }
    given = {name: str(value) for name, value in fields.items() if value is not None}
    return ["train", *(word for name, value in given.items() for word in (f"--{name}", value))]


def steps(folder: Path) -> list[dict[str, Any]]:
    """The records of a run's steps."""
    return [{k: v for k, v in row.items() if k != "kind"} for row in read_metrics(folder / "metrics.jsonl", "step")]


def summaries(folder: Path) -> list[dict[str, Any]]:
    """Every record of a run, without times and rates."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timed = ("runtime", "per_second")
    return [{name: value for name, value in row.items() if not name.endswith(timed)} for row in rows]


def lines(path: Path) -> int:
    """How many steps a file of metrics has, as it is now."""
    return path.read_text(encoding="utf-8").count('"kind": "step"') if path.is_file() else 0


def _train(words: Sequence[str], log: str, pause: float, environment: Mapping[str, str]) -> None:
    os.environ.update(environment)
    with open(log, "a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    import torch

    from uncertune.cli.train import parse
    from uncertune.teachers import cache
    from uncertune.training.arguments import arguments_of
    from uncertune.training.jobs import job_of
    from uncertune.training.pipeline import fill_caches, run

    gc.freeze()
    torch.set_num_threads(1)
    cache.SHARD_TOKENS = SHARD_TOKENS  # several shards also of a tiny data set
    compute = cache.columns_of

    def slowly(*args):  # or the filling would be over before anyone could kill it
        time.sleep(pause)
        return compute(*args)

    cache.columns_of = slowly
    given = arguments_of(*parse(words))
    (fill_caches if given.data.fill_teacher_cache_only else run)(job_of(given))
    sys.stdout.flush()
    os._exit(0)  # spares the shutdown of the interpreter


def start(words: Sequence[str], log: str, pause: float = 0.0, **environment: str) -> multiprocessing.Process:
    """``uncertune train`` with these words, without the page; ``pause`` seconds between batches of the filling."""
    process = CONTEXT.Process(target=_train, args=(list(words), log, pause, environment))
    process.start()
    return process


def kill_when(process: multiprocessing.Process, due: Callable[[], bool], after: float = 0.0) -> bool:
    """SIGKILL the process ``after`` seconds from when it is ``due``; whether it was still running."""
    while process.is_alive() and not due():
        time.sleep(0.002)
    process.join(after)
    process.kill()
    process.join()
    return process.exitcode == -9


def kill_at(words: Sequence[str], metrics: Path, step: int, log: Path, pause: float = 0.0) -> None:
    """SIGKILL the command once ``metrics`` has a line of ``step`` steps."""
    assert kill_when(start(words[1:], str(log), pause), lambda: lines(metrics) >= step), log.read_text()[-3000:]


def finish(words: Sequence[str], log: Path, pause: float = 0.0) -> str:
    """Run the command to its end; what it printed."""
    log.write_text("")
    process = start(words[1:], str(log), pause)
    process.join()
    assert process.exitcode == 0, log.read_text()[-3000:]
    return log.read_text()
