"""Saving: the student's adapter alone, no secrets, and the progress of a run's summaries."""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from uncertune.errors import UserError
from uncertune.models import shared_name
from uncertune.runs.files import write_atomically
from uncertune.runs.secrets import without_secrets


@contextlib.contextmanager
def student_adapter_only(model: Any) -> Iterator[None]:
    """Inside the block, saving a model with several adapters writes only the active one, the student's."""
    if len(getattr(model, "peft_config", {})) < 2:
        yield
        return
    chosen: Any = functools.partial(type(model).save_pretrained, model, selected_adapters=[model.active_adapter])
    model.__dict__["save_pretrained"] = chosen
    try:
        yield
    finally:
        del model.__dict__["save_pretrained"]


def name_base(folder: str | Path) -> None:
    """In a saved adapter's configuration, name a base that is a copy in this machine's cache by its hub id."""
    file = Path(folder) / "adapter_config.json"
    if not file.is_file():
        return
    settings = json.loads(file.read_text(encoding="utf-8"))
    named = settings.get("base_model_name_or_path")
    if isinstance(named, str) and shared_name(named) != named:
        settings["base_model_name_or_path"] = shared_name(named)
        write_atomically(file, json.dumps(settings, indent=2, sort_keys=True))


@contextlib.contextmanager
def arguments_without_secrets(trainer: Any) -> Iterator[None]:
    """Remove tokens, keys and passwords from the arguments while ``Trainer`` pickles them (``training_args.bin``)."""
    args = trainer.args
    public = copy.copy(args)
    for name, value in vars(args).items():
        if isinstance(value, str | dict | list | tuple) and type(value) in (str, dict, list, tuple):
            vars(public)[name] = without_secrets({name: value}).get(name)
    trainer.args = public
    try:
        yield
    finally:
        trainer.args = args


# ---- progress


class Progress:
    """Sums of ``Trainer`` that it loses when it resumes: losses since the last log and in all, means of metrics since
    the last log, tokens, and seconds. With these the summaries equal those of an uninterrupted run.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._checkpoint: Path | None = None
        self.started = time.time()
        """When training would have started had it run without interruption."""

    def save(self, checkpoint: Path) -> None:
        """Write the progress of this rank to a checkpoint."""
        trainer = self._trainer
        state = {
            "loss_since_log": trainer._tr_loss.item(),
            "loss": trainer._total_loss_scalar,
            "last_log": trainer._globalstep_last_logged,
            "metrics": {name: list(values) for name, values in trainer._metrics["train"].items()},
            "tokens": trainer._total_train_tokens,
            "seconds": time.time() - self.started,
        }
        checkpoint.mkdir(parents=True, exist_ok=True)
        write_atomically(self._file(checkpoint), json.dumps(state))

    def resume_from(self, checkpoint: str | Path) -> None:
        """Restore the progress of this checkpoint when training starts. Raises UserError for an incomplete one."""
        self._checkpoint = Path(checkpoint)
        names = {path.name for path in self._checkpoint.iterdir()}
        for what in ("optimizer", "scheduler"):
            if not any(name.startswith(what) for name in names):
                raise UserError(
                    f"checkpoint {str(checkpoint)!r} has no state of the {what}: resume from another checkpoint"
                )

    def begin(self) -> None:
        """At the start of training: restore the progress of the checkpoint to resume from."""
        checkpoint, self._checkpoint = self._checkpoint, None
        self.started = time.time()
        if checkpoint is None or not self._file(checkpoint).is_file():
            return
        trainer, state = self._trainer, json.loads(self._file(checkpoint).read_text(encoding="utf-8"))
        trainer._tr_loss = torch.tensor(state["loss_since_log"], device=trainer._tr_loss.device)
        trainer._total_loss_scalar = state["loss"]
        trainer._globalstep_last_logged = state["last_log"]
        trainer._metrics["train"].update(state["metrics"])
        trainer._total_train_tokens = state["tokens"]
        self.started -= state["seconds"]

    def _file(self, checkpoint: Path) -> Path:
        return checkpoint / f"progress_{self._trainer.args.process_index}.json"
