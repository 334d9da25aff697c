"""Early ends of a training run: a signal, a failed write, a non-finite loss.

After SIGINT or SIGTERM the current step is finished and saved before the run ends; a second signal ends it at once.
Every other interruption is a ``UserError`` of one line with the checkpoint that is kept.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from uncertune.errors import InterruptedRun, NotFiniteError, UserError
from uncertune.runs.checkpoints import folder_of, latest_complete
from uncertune.training.devices import sum_over_ranks

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop(TrainerCallback):
    """Ends training after the step in which a signal came to any rank, with a checkpoint."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._training = False
        self._process = os.getpid()

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Install the signal handlers, in the main thread; ignored signals (nohup) stay ignored."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in SIGNALS}
        before = {number: there for number, there in before.items() if there not in (signal.SIG_IGN, None)}
        for number in before:
            signal.signal(number, self._receive)
        try:
            yield
        finally:
            for number, there in before.items():
                signal.signal(number, there)

    def _receive(self, number: int, frame: Any) -> None:
        if os.getpid() != self._process:  # a worker of the data loader, which its parent still needs
            return
        name = signal.Signals(number).name
        if self.signal is not None or not self._training:
            raise InterruptedRun(f"ended at once by {name}", number)
        self.signal = number
        # not print: the handler may run during one
        os.write(2, f"\n{name}: finishing this step, then saving; once more to end at once\n".encode())

    # ---- within training

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._training = True

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        number = int(sum_over_ranks({"signal": self.signal or 0})["signal"])
        if not number:
            return
        self.signal = self.signal or signal.SIGTERM  # another rank's
        control.should_training_stop = control.should_save = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._training = False

    def check(self, trainer: Any) -> None:
        """After training: raise InterruptedRun if a signal ended it early."""
        step, steps = trainer.state.global_step, trainer.state.max_steps
        if self.signal is not None and step < steps:
            folder = folder_of(trainer.args.output_dir, step)
            self._end(f"after step {step} of {steps}, saved in {folder}")

    def check_between(self, stage: str) -> None:
        """After a complete stage: raise InterruptedRun if a signal came."""
        if self.signal is not None:
            self._end(f"after {stage}")

    def _end(self, when: str) -> None:
        assert self.signal is not None
        raise InterruptedRun(f"stopped by {signal.Signals(self.signal).name} {when}", self.signal)


# ---- failures

_FIXES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space, or raise the quota",
    errno.EFBIG: "raise the limit on the size of files",
    errno.EROFS: "make the folder writable",
    errno.EACCES: "make the folder writable",
    errno.EPERM: "make the folder writable",
    errno.EIO: "check the disk and the space on it",
}


_ZIP_WRITER = ("PytorchStreamWriter failed writing", "inline_container.cc")
"""Words in the errors of torch's zip writer, when a write fails and when it then closes the file."""


@contextlib.contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Inside the block, non-finite numbers and failed writes raise a UserError of one line."""
    try:
        yield
    except NotFiniteError as error:
        raise NotFiniteError(
            f"{error}; {kept(folder)}: lower learning_rate or max_grad_norm, or fix the documents, and start again "
            "(--overwrite)"
        ) from error
    except Exception as error:
        cause = disk_error(error)
        if cause is None:
            raise
        where = cause.filename or folder
        raise UserError(
            f"output_dir: {str(where)!r} cannot be written: {os.strerror(cause.errno or 0)}; {kept(folder)}: "
            f"{_FIXES[cause.errno or 0]} and run the same command again"
        ) from error


def kept(folder: Path) -> str:
    """The checkpoint to resume from, in words."""
    last = latest_complete(folder)
    return "no checkpoint was saved yet" if last is None else f"the last good checkpoint, {str(last)!r}, is kept"


def disk_error(error: BaseException) -> OSError | None:
    """The OSError behind an exception of another library, or None.

    torch and safetensors repeat the system's error only as text.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in _FIXES:
            return seen
        seen = seen.__cause__ or seen.__context__
    said = str(error)
    for number in _FIXES:
        if os.strerror(number) in said or f"os error {number}" in said:
            return OSError(number, os.strerror(number))
    if isinstance(error, RuntimeError) and any(part in said for part in _ZIP_WRITER):  # without a reason
        return OSError(errno.EIO, os.strerror(errno.EIO))
    return None
