"""Trackers: a picture of the selection besides the metrics, and a separate run for each stage.

transformers' callbacks send the metrics of ``metrics.jsonl`` to the trackers in ``report_to``.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerCallback

from uncertune.report.tokens import Moment, ScoredDocument, token_image
from uncertune.runs.notes import note
from uncertune.runs.records import read_lines

NAME = "selection"


class SelectionPicture(TrainerCallback):
    """After the last step, sends the first probed text at its first and last moment to every tracker with images:
    TensorBoard, Weights & Biases, Trackio."""

    def __init__(self, trainer: Any, probe: Path) -> None:
        self._trainer, self._probe = trainer, probe

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step != state.max_steps or not state.is_world_process_zero or not args.uses_selection:
            return
        takers = [one for one in self._trainer.callback_handler.callbacks if _takes_images(one)]
        if not takers or not self._probe.is_file():
            return
        picture = selection_picture(read_lines(self._probe))
        for taker in takers:
            try:
                _send(taker, picture, state.global_step)
            except Exception as error:  # a tracker that fails costs its picture, not the run
                note(f"report_to: the picture of the selection was not sent: {error}")


def selection_picture(moments: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """The first text of ``probe.jsonl`` at its first moment, and below at its last: pixels (height, width, 3)."""
    shown = [moments[0], *([moments[-1]] if len(moments) > 1 else [])]
    scored = [
        Moment(f"step {one['step']}", {"loss": one["documents"][0]["loss"]}, one["documents"][0]["selected"])
        for one in shown
    ]
    first = shown[0]["documents"][0]
    document = ScoredDocument("", first["text"], first["response"], scored)
    return np.concatenate([token_image(document, "loss", number) for number in range(len(shown))])


def _takes_images(callback: Any) -> bool:
    return any(getattr(callback, name, None) is not None for name in ("tb_writer", "_wandb", "_trackio"))


def _send(callback: Any, picture: np.ndarray, step: int) -> None:
    if getattr(callback, "tb_writer", None) is not None:
        callback.tb_writer.add_image(NAME, picture, step, dataformats="HWC")
        return
    tracker = getattr(callback, "_wandb", None) or callback._trackio
    tracker.log({NAME: tracker.Image(picture), "train/global_step": step})


@contextlib.contextmanager
def own_run() -> Iterator[None]:
    """Close the run of Weights & Biases that training opens, so that the next stage does not write into it."""
    before = _open_wandb()
    try:
        yield
    finally:
        if before is None and _open_wandb() is not None:
            sys.modules["wandb"].finish()


def _open_wandb() -> Any:
    return getattr(sys.modules.get("wandb"), "run", None)
