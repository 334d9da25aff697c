"""From checked settings to the configuration objects of a run: ours, TRL's, and the data's."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments

from uncertune.data.sources import masks_prompts
from uncertune.errors import UserError
from uncertune.models import fast_dtype
from uncertune.runs.files import plain
from uncertune.runs.notes import note
from uncertune.settings import TRUST, shown
from uncertune.training.config import UncertuneConfig
from uncertune.training.fields import DataFields, checked


@dataclass
class DataArguments(DataFields, ScriptArguments):
    """TRL's script arguments, and the fields of ``DataFields``."""


@dataclass
class Arguments:
    """The arguments of a training command, by group."""

    data: DataArguments
    training: UncertuneConfig
    model: ModelConfig
    mixture: DatasetMixtureConfig
    given: frozenset[str]
    """Names of the fields that were set."""

    def resolved(self) -> dict[str, Any]:
        """Every field and its value, for a YAML file that ``--config`` can read."""
        out: dict[str, Any] = {}
        for group in (self.data, self.model, self.mixture):
            out |= dataclasses.asdict(group)
        out |= self.training.to_dict()
        hidden = {"hub_token", "push_to_hub_token", "overwrite", "fill_teacher_cache_only", *TRUST}
        return {name: plain(value) for name, value in out.items() if name not in hidden and name in FIELDS}


GROUPS = (DataArguments, UncertuneConfig, ModelConfig, DatasetMixtureConfig)
_NAMES = {group: {one.name for one in dataclasses.fields(group) if one.init} for group in GROUPS}
FIELDS = frozenset().union(*_NAMES.values())
_PACKAGES = {
    "use_liger_kernel": (("liger_kernel",), "liger-kernel"),
    "trackio": (("trackio",), "trackio"),
    "wandb": (("wandb",), "wandb"),
    "tensorboard": (("tensorboard", "tensorboardX"), "tensorboard"),
    "mlflow": (("mlflow",), "mlflow"),
    "flash_attention_2": (("flash_attn",), "flash-attn"),
    "deepspeed": (("deepspeed",), "deepspeed"),
}
"""Values that need a package: its modules, any of which is enough, and its name for pip."""


def arguments_of(settings: Mapping[str, Any], over: Mapping[str, Any] | None = None) -> Arguments:
    """The configuration objects of these settings, with the defaults of ``uncertune train``.

    ``over`` (the flags of a command) wins; a setting of ours that has no effect beside it is left out, with a line on
    stderr. Raises UserError with the field and the fix.
    """
    over = checked(over or {})
    values = {**checked(settings), **over}
    os.environ.update(values.pop("env", {}))
    _check_packages(values)
    defaults: dict[str, Any] = {}
    if not values.keys() & {"save_strategy", "save_steps", "load_best_model_at_end"}:  # the best needs eval_steps
        defaults |= {"save_strategy": "steps", "save_steps": 0.1}
        if "save_total_limit" not in values:
            defaults["save_total_limit"] = 2
    found = torch.accelerator.is_available()
    if "use_cpu" not in values and not found:
        _say("no accelerator found: training on the CPU (use_cpu=True)")
        defaults["use_cpu"] = True
    on_cpu = values.get("use_cpu", not found)
    if on_cpu and not values.keys() & {"bf16", "fp16", "dtype"} and fast_dtype() == "float32":
        _say("bf16: false, as bfloat16 takes many times as long as float32 on this processor; set it to keep it")
        defaults["bf16"] = False
    data, training, model, mixture = _built(defaults, values, over)
    if training.max_steps <= 0 and training.num_train_epochs <= 0:
        raise UserError(f"num_train_epochs must be above 0, got {training.num_train_epochs}; or set max_steps")
    if training.assistant_only_loss is None and data.dataset_name and masks_prompts(data.dataset_name):
        training.assistant_only_loss = True
    return Arguments(data, training, model, mixture, frozenset(values))


@functools.cache
def _say(line: str) -> None:
    """Once in a process, which may train many runs."""
    note(line)


def _built(defaults: dict[str, Any], values: dict[str, Any], over: Mapping[str, Any]) -> list[Any]:
    """One object of each group; ``values`` loses what has no effect beside ``over``."""
    while True:
        try:
            return [_object(group, {**defaults, **values}) for group in GROUPS]
        except UserError as error:
            moot = re.match(r"(\w+)\b.* has no effect ", str(error))
            name = moot.group(1) if moot else ""
            flags = ", ".join(f"--{flag} {over[flag]}" for flag in over if flag in _DECIDING)
            if not flags or name in over or name not in values:
                raise
            note(f"{name}: {shown(values[name])} has no effect with {flags}: left out")
            del values[name]


_DECIDING = ("objective", "selection_metric", "teacher_cache", "anchor", "token_weighting")
"""Fields that decide whether others have an effect: only a flag for one of them can leave out a setting of a file."""


def _object(group: Callable[..., Any], values: Mapping[str, Any]) -> Any:
    try:
        return group(**{name: value for name, value in values.items() if name in _NAMES[group]})
    except UserError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, ImportError, OSError, RuntimeError) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        named = any(re.search(rf"\b{name}\b", text) for name in values)
        raise UserError(text if named else f"{_suspects(values, error, text)}{text}") from error


def _suspects(values: Mapping[str, Any], error: Exception, text: str) -> str:
    """The fields whose value the message quotes, or the files that may have caused it."""
    quoted = [name for name, value in values.items() if isinstance(value, str) and f"'{value}'".lower() in text.lower()]
    if quoted or not isinstance(error, KeyError | OSError):
        return "".join(f"{name}={values[name]!r}: " for name in quoted[:1])
    files = [name for name in ("accelerator_config", "fsdp_config", "deepspeed") if values.get(name)]
    return f"{' or '.join(files)}: " if files else ""


def _check_packages(values: Mapping[str, Any]) -> None:
    """Raise UserError if a setting needs a package that is not installed."""
    reports = values.get("report_to") or ()
    wanted = {"report_to": [reports] if isinstance(reports, str) else list(reports)}
    wanted["attn_implementation"] = [values.get("attn_implementation")]
    wanted["use_liger_kernel"] = ["use_liger_kernel"] if values.get("use_liger_kernel") else []
    wanted["deepspeed"] = ["deepspeed"] if values.get("deepspeed") else []
    for name, asked in wanted.items():
        for value in asked:
            modules, package = _PACKAGES.get(str(value), ((), ""))
            if modules and not any(map(importlib.util.find_spec, modules)):
                other = ", or leave it out" if name != "report_to" else ", or set report_to: none"
                raise UserError(f"{name}: {value!r} needs the package {package}; run: pip install {package}{other}")
