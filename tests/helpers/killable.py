"""Training runs in processes that cost no imports, forked from a server that has made them: to kill, or as ranks."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["uncertune.training.arguments", "uncertune.training.command", "uncertune.training.pipeline"]
)
SHARD_TOKENS = 600


def _train(words: Sequence[str], log: str, pause: float, environment: Mapping[str, str]) -> None:
    os.environ.update(environment)
    with open(log, "a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    import torch

    from uncertune.cli.train import parse
    from uncertune.teachers import cache
    from uncertune.training.arguments import arguments_of
    from uncertune.training.command import job_of
    from uncertune.training.pipeline import fill_caches, run

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


def kill_when(process: multiprocessing.Process, due: Callable[[], bool]) -> bool:
    """SIGKILL the process once ``due``; whether it was still running."""
    while process.is_alive():
        if due():
            process.kill()
            break
        time.sleep(0.002)
    process.join()
    return process.exitcode == -9
