"""Run a function in two processes that talk over gloo on the CPU, as `accelerate launch --cpu --num_processes 2` does.

    left, right = two_processes(function, argument, folder)      # what each rank returned

``function(argument)`` must be importable (a function of a test module) and return what ``torch.save`` can write.
Both start from the same port and join, so let one call run all the cases of a module: return a list.
"""

from __future__ import annotations

import gc
import os
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tools.fork import CONTEXT

RANKS = 2
SECONDS = 300


def two_processes(function: Callable[[Any], Any], argument: Any, folder: Path, *, ranks: int = RANKS) -> list[Any]:
    """``function(argument)`` on every rank; a rank that fails, or hangs, fails the test with its traceback."""
    folder.mkdir(parents=True, exist_ok=True)
    port = _free_port()
    processes = [
        CONTEXT.Process(target=_rank, args=(rank, ranks, port, function, argument, folder)) for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    try:
        _wait(processes)
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
            process.join()
    failures = [(folder / f"failure-{rank}.txt") for rank in range(ranks)]
    said = [path.read_text(encoding="utf-8") for path in failures if path.is_file()]
    assert not said, "\n".join(said)
    assert [process.exitcode for process in processes] == [0] * ranks
    return [torch.load(folder / f"result-{rank}.pt", weights_only=False) for rank in range(ranks)]


def _wait(processes: list[Any]) -> None:
    """Until all are done, one has failed (the others would wait for it for ever), or the time is over."""
    for _ in range(SECONDS * 10):
        codes = [process.exitcode for process in processes]
        if None not in codes or any(code not in (None, 0) for code in codes):
            return
        next(process for process in processes if process.exitcode is None).join(0.1)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def _rank(rank: int, ranks: int, port: int, function: Callable[[Any], Any], argument: Any, folder: Path) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(ranks),
        LOCAL_WORLD_SIZE=str(ranks),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        ACCELERATE_USE_CPU="true",
        OMP_NUM_THREADS="1",
    )
    gc.freeze()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    try:
        torch.save(function(argument), folder / f"result-{rank}.pt")
    except BaseException:
        (folder / f"failure-{rank}.txt").write_text(f"rank {rank}:\n{traceback.format_exc()}", encoding="utf-8")
        raise
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
