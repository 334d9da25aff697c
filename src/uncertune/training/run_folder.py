"""What ``UncertuneTrainer`` leaves in its folder when it is used from Python, and references that it trains first: the
same as ``uncertune train``."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import nn
from transformers import TrainerCallback

from uncertune.runs.environment import environment
from uncertune.runs.files import plain, write_atomically
from uncertune.runs.records import CONFIG
from uncertune.runs.secrets import without_secrets
from uncertune.training.config import UncertuneConfig
from uncertune.training.page import write_run_page
from uncertune.training.probe import Probe
from uncertune.training.trackers import SelectionPicture

ENVIRONMENT = "environment.json"


class RunFolder(TrainerCallback):
    """Writes ``config.yaml`` and ``environment.json`` when training begins, ``report.html`` and ``tokens.html`` when it
    ends."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            named = {name: value for name, value in self._trainer.card_settings.items() if value}
            write_settings(Path(args.output_dir), {**args.to_dict(), **named})

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            write_run_page(Path(args.output_dir))


def keep_records(trainer: Any) -> None:
    """Have ``trainer`` leave a run's folder, unless ``save_report`` is false."""
    if not trainer.args.save_report:
        return
    if trainer.args.probe_steps != 0 and trainer.train_dataset is not None:
        trainer.add_callback(probe := Probe(trainer))
        trainer.add_callback(SelectionPicture(trainer, probe.path))
    trainer.add_callback(RunFolder(trainer))


def write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write ``config.yaml``, without secrets, and ``environment.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(plain(without_secrets(settings)), sort_keys=True, allow_unicode=True)
    write_atomically(folder / CONFIG, text)
    write_atomically(folder / ENVIRONMENT, json.dumps(environment(), indent=1))


def with_references(
    model: Any, args: UncertuneConfig, teacher: Any, rows: Any, evaluation: Any, options: Mapping[str, Any]
) -> tuple[UncertuneConfig, Any, Any]:
    """Configuration, teacher and training rows, with references that are ``auto`` trained first and named by folder.

    ``options`` are further arguments of the trainer; ``model`` is left as it is.
    """
    if isinstance(teacher, str) and teacher == "auto":
        args, teacher = _with_teacher(args, "auto"), None
    elif teacher is not None and args.teacher == "auto":  # the argument stands for the field
        args = _with_teacher(args, None)
    if "auto" not in (args.teacher, args.rho_reference):
        return args, teacher, rows
    from uncertune.training.pipeline import Job, train_references

    taken: dict[str, Any] = {
        name: options.get(name) for name in ("peft_config", "quantization_config", "processing_class")
    }
    job = train_references(Job(model, args, rows, evaluation, **taken))
    return job.config, teacher, job.train_dataset


def _with_teacher(args: UncertuneConfig, teacher: str | None) -> UncertuneConfig:
    args = copy.copy(args)
    args.teacher = teacher
    return args


def untouched(model: Any) -> Any:
    """A name, or a copy of a model, which training would change."""
    return copy.deepcopy(model) if isinstance(model, nn.Module) else model
