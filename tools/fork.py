"""Commands ``python -m MODULE …`` in processes that fork from one which has imported the libraries.

For ``python -m tools.gpu --small`` and tests, whose commands would take longer to import than to run.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from unittest import mock

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["uncertune.sweep.runs", "uncertune.evaluation.evaluate", "benchmarks.tables"])


class Fork:
    """A command in a session of its own, which writes to a file; waited for as a ``subprocess.Popen``."""

    def __init__(self, words: list[str], log: Path, cwd: Path, environment: Mapping[str, str]) -> None:
        self._process = CONTEXT.Process(target=_run, args=(words, str(log), str(cwd), dict(environment)))
        with mock.patch.dict(os.environ, environment):  # the first start is also that of the server
            self._process.start()
        self.pid: int = self._process.pid or 0

    def wait(self, timeout: float | None = None) -> int:
        """The exit status. Raises ``subprocess.TimeoutExpired`` where the command takes longer."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
        return self._process.exitcode


def _run(words: list[str], log: str, cwd: str, environment: dict[str, str]) -> None:
    """The command; ``words`` are those of ``python``."""
    os.setsid()
    os.chdir(cwd)
    os.environ.update(environment)
    with open(log, "a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.path[:0] = environment.get("PYTHONPATH", "").split(os.pathsep)
    gc.freeze()  # benchmarks collect before every call, which need not pass over the imports
    _, module, *sys.argv[1:] = words
    runpy.run_module(module, run_name="__main__", alter_sys=True)
