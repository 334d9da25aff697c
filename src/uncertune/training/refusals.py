"""Refusals of unusable arguments of the trainer, before anything is loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch import nn

from uncertune.errors import UserError
from uncertune.objectives import OBJECTIVES
from uncertune.training.config import UncertuneConfig


def check_arguments(model: Any, arguments: Mapping[str, Any]) -> None:
    """Raise UserError for arguments of TRL's trainer that are incompatible with our loss."""
    if arguments.get("compute_loss_func") is not None:
        raise UserError("compute_loss_func is not supported: the loss is set by the objective")
    for peft_config in (arguments.get("peft_config"), *getattr(model, "peft_config", {}).values()):
        if getattr(peft_config, "is_prompt_learning", False):
            name = type(peft_config).__name__
            raise UserError(f"peft_config: {name} is prompt learning, which is not supported: use LoraConfig")


def check_model(trainer: Any) -> None:
    """Raise UserError for a vision-language model or its processor, and for modules to save that it lacks."""
    if trainer._is_vlm or getattr(trainer.model.config, "vision_config", None) is not None:
        name = f"model: {trainer.model.config.model_type}"
        name = f"processing_class: {type(trainer.processing_class).__name__}" if trainer._is_vlm else name
        raise UserError(f"{name} is vision-language, which is not supported: give a text model and its tokenizer")
    _check_saved_modules(trainer.model)


def _check_saved_modules(model: Any) -> None:
    """PEFT would train nothing for a name that no module has."""
    for config in getattr(model, "peft_config", {}).values():
        for name in getattr(config, "modules_to_save", None) or ():
            if not any(one == name or one.endswith(f".{name}") for one, _ in model.named_modules()):
                raise UserError(
                    f"lora_modules_to_save: the model has no module {name!r}: give names of its modules, for example "
                    "lm_head"
                )


def teachers_of(args: UncertuneConfig, teacher: Any) -> list[str | nn.Module]:
    """The members of the teacher, from the argument or the configuration; empty without one.

    Raises UserError if it is missing or has no effect.
    """
    if teacher is not None and args.teacher not in (None, "auto"):
        raise UserError(f"teacher is given twice, to the trainer and as args.teacher={args.teacher!r}: keep one")
    given = args.teacher if teacher is None else teacher
    members = [] if given is None else list(given) if isinstance(given, list | tuple) else [given]
    found = [os.fspath(one) if isinstance(one, os.PathLike) else one for one in members]
    if "auto" in found:
        raise UserError("teacher: 'auto' stands alone: give 'auto', or paths and models")
    if args.uses_teacher and not found:
        asks = f"objective={args.objective!r}" if args.distils else "bald_members='teacher'"
        raise UserError(f"{asks} needs a teacher: set teacher to 'auto', a folder or a hub id")
    if found and not args.uses_teacher and args.rho_reference != "teacher":
        raise UserError(f"teacher has no effect with objective={args.objective!r}: remove it")
    if args.rho_reference == "teacher" and len(found) != 1:
        raise UserError("rho_reference='teacher' needs one teacher: set teacher to a folder or a hub id")
    if args.scores_by_members and len(found) < 2:
        raise UserError("bald_members='teacher' needs a teacher of at least two members: one has no variance")
    if len(found) > 1 and "top_k" in OBJECTIVES[args.objective].uses:
        raise UserError(f"objective={args.objective!r} takes one teacher: the top-k of several is not supported")
    return found
