"""SIGINT and SIGTERM: the step under way is finished and saved before the run ends; a second signal ends it at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

from transformers import TrainerCallback

from uncertune.errors import InterruptedRun
from uncertune.runs.checkpoints import folder_of
from uncertune.training.step import sum_over_ranks

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop(TrainerCallback):
    """Ends training after the step in which a signal came to any rank, with a checkpoint."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._training = False
        self._process = os.getpid()

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals over, in the main thread; those that are ignored (nohup) stay so."""
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
        # not print: the handler may run in the middle of one
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
        """After training: raise InterruptedRun where a signal cut it short."""
        step, steps = trainer.state.global_step, trainer.state.max_steps
        if self.signal is not None and step < steps:
            folder = folder_of(trainer.args.output_dir, step)
            self._end(f"after step {step} of {steps}, saved in {folder}")

    def check_between(self, stage: str) -> None:
        """After a stage that is complete: raise InterruptedRun where a signal came."""
        if self.signal is not None:
            self._end(f"after {stage}")

    def _end(self, when: str) -> None:
        assert self.signal is not None
        raise InterruptedRun(f"stopped by {signal.Signals(self.signal).name} {when}", self.signal)
