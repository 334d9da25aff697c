"""The command line of training: TRL's fields and ours, from a YAML file and flags over it, with one-line errors."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import enum
import json
import os
import re
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, TrlParser

from uncertune.data.sources import FORMATS, masks_prompts
from uncertune.errors import UserError
from uncertune.runs.files import plain
from uncertune.settings import TRUST, check_trust
from uncertune.training.config import UncertuneConfig


@dataclass
class DataArguments(ScriptArguments):
    """TRL's script arguments, and where built-in data is found, how it is read and how much of it is taken."""

    data_dir: str | None = field(
        default=None, metadata={"help": "Folder with the built-in data sets' files; default: $UNCERTUNE_DATA."}
    )
    dataset_format: str = field(
        default="auto", metadata={"help": "How rows become messages; auto: by their columns.", "choices": list(FORMATS)}
    )
    dataset_columns: dict | str | None = field(
        default=None,
        metadata={"help": 'Columns of other names: {"instruction": "query", "output": "response"}, known name first.'},
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on the first so many rows."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate on the first so many rows."})
    overwrite: bool = field(
        default=False, metadata={"help": "Start anew in output_dir, deleting the run it holds, instead of resuming."}
    )
    fill_teacher_cache_only: bool = field(
        default=False, metadata={"help": "Train the references where they are auto, fill the caches, and stop there."}
    )


@dataclass
class Arguments:
    """Everything a training command was told, by group."""

    data: DataArguments
    training: UncertuneConfig
    model: ModelConfig
    mixture: DatasetMixtureConfig
    given: frozenset[str]
    """Names of the fields that were set in the file or by a flag."""

    def resolved(self) -> dict[str, Any]:
        """Every field and its value, ready to be written as YAML and read again with ``--config``."""
        out: dict[str, Any] = {}
        for group in (self.data, self.model, self.mixture):
            out |= dataclasses.asdict(group)
        out |= self.training.to_dict()
        hidden = {"hub_token", "push_to_hub_token", "overwrite", "fill_teacher_cache_only", *TRUST}
        return {name: plain(value) for name, value in out.items() if name not in hidden and name in FIELDS}


GROUPS = (DataArguments, UncertuneConfig, ModelConfig, DatasetMixtureConfig)
_FIELDS = {one.name: one for group in GROUPS for one in dataclasses.fields(group) if one.init}
FIELDS = frozenset(_FIELDS)
_HINTS: dict[str, Any] = {name: hint for group in GROUPS for name, hint in typing.get_type_hints(group).items()}
_SCALARS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", type(None): "null"}
_COUNTS = (
    *("max_train_samples", "max_eval_samples", "max_length", "per_device_train_batch_size"),
    *("per_device_eval_batch_size", "gradient_accumulation_steps", "lora_r"),
)


class _Parser(TrlParser):
    """Errors are raised, not printed above a page of usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(re.sub(r"^argument --(\w+)(/--[\w-]+)*", r"\1", message))


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    """The parser of ``uncertune train``, for its help text."""
    return _Parser(GROUPS, prog=prog, allow_abbrev=False)


def parse(arguments: list[str], settings: Mapping[str, Any] | None = None) -> Arguments:
    """Fields from ``--config FILE`` and flags over it. Raises UserError, one line, naming the field and the mend.

    ``settings``: the fields of a file that was read already.
    """
    arguments = list(arguments)
    settings = dict(settings) if settings is not None else _read_config(arguments)
    given = frozenset(settings) | flag_names(arguments)
    _check_known(given)
    check_trust(settings)
    defaults: dict[str, Any] = {}
    if not given & {"save_strategy", "save_steps", "load_best_model_at_end"}:  # the best wants a multiple of eval_steps
        defaults |= {"save_strategy": "steps", "save_steps": 0.1}
        if "save_total_limit" not in given:
            defaults["save_total_limit"] = 2
    if "use_cpu" not in given and not torch.accelerator.is_available():
        print("no accelerator found: training on the CPU (use_cpu=True)", file=sys.stderr)
        defaults["use_cpu"] = True
    command = _Parser(GROUPS, allow_abbrev=False)
    _set_environment(settings.pop("env", None))
    settings = {name: _checked(name, value) for name, value in settings.items()}
    command.set_defaults_with_config(**{**defaults, **settings})
    try:
        data, training, model, mixture, rest = command.parse_args_into_dataclasses(
            args=arguments, look_for_args_file=False, return_remaining_strings=True
        )
    except UserError:
        raise
    except json.JSONDecodeError as error:
        raise UserError(
            f"{error.doc!r} is not JSON ({error.msg}), which a field of several values is given as"
        ) from error
    except (ValueError, TypeError, ImportError) as error:
        raise UserError(_one_line(error)) from error
    if rest:
        raise UserError(f"{rest[0]!r} belongs to no field: every value follows its --field")
    _check_ranges((data, training, model))
    if training.assistant_only_loss is None and data.dataset_name and masks_prompts(data.dataset_name):
        training.assistant_only_loss = True
    return Arguments(data, training, model, mixture, given)


def _checked(name: str, value: Any) -> Any:
    """A value of the file as its field can hold it; argparse looks only at flags and at values that are text."""
    hint = _HINTS[name]
    members = set(typing.get_args(hint)) if typing.get_origin(hint) in (types.UnionType, typing.Union) else {hint}
    if value is None and (type(None) in members or _FIELDS[name].default is None):
        return value
    enums = [one for one in members if isinstance(one, type) and issubclass(one, enum.Enum)]
    choices = [one.value for kind in enums for one in kind] or list(_FIELDS[name].metadata.get("choices", ()))
    if choices and value not in choices:
        raise UserError(f"{name} must be one of {', '.join(map(str, choices))}; got {value!r}")
    if name == "datasets" and not (isinstance(value, list) and all(isinstance(one, dict) for one in value)):
        raise UserError(f"datasets must be a list of mappings, each with a path; got {value!r}")
    if name == "resume_from_checkpoint" and isinstance(value, bool):  # as Trainer.train takes it
        return str(value)
    if choices or isinstance(value, str) or not members <= set(_SCALARS):
        return value
    if type(value) in members or (type(value) is int and members & {float, bool}):
        return value
    if type(value) in (int, float) and str in members:
        return str(value)
    wanted = " or ".join(_SCALARS[member] for member in sorted(members - {type(None)}, key=str))
    raise UserError(f"{name} must be {wanted}, got {value!r}")


def _check_ranges(groups: Iterable[Any]) -> None:
    """Refuse sizes that would fail only after everything is loaded, or train nothing."""
    values = {name: value for group in groups for name, value in vars(group).items()}
    for name in _COUNTS:
        if values[name] is not None and values[name] < 1:
            raise UserError(f"{name} must be at least 1, got {values[name]}")
    if values["max_steps"] <= 0 and values["num_train_epochs"] <= 0:
        raise UserError(f"num_train_epochs must be above 0, got {values['num_train_epochs']}; or set max_steps")


def _read_config(arguments: list[str]) -> dict[str, Any]:
    """Take ``--config FILE`` out of the arguments and read it."""
    finder = _Parser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config", action="append", default=[])
    known, arguments[:] = finder.parse_known_args(arguments)
    if not known.config:
        return {}
    if len(known.config) > 1:
        raise UserError(f"--config is given {len(known.config)} times: keep one file, and set the rest by flags")
    path = known.config[0]
    try:
        settings = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"--config {path!r} cannot be read: {reason}") from error
    except yaml.YAMLError as error:
        raise UserError(f"--config {path!r} is not valid YAML: {' '.join(str(error).split())}") from error
    if settings is None:
        return {}
    if not isinstance(settings, dict) or not all(isinstance(name, str) for name in settings):
        raise UserError(f"--config {path!r} must be a YAML mapping of field names to values")
    return settings


def flag_names(arguments: Iterable[str]) -> frozenset[str]:
    """The names of the flags among the arguments; ``--no_x`` sets ``x``."""
    names = set()
    for argument in arguments:
        if argument.startswith("--") and len(argument) > 2:
            name = argument[2:].split("=", 1)[0].replace("-", "_")
            negated = name.removeprefix("no_")
            names.add(negated if name not in FIELDS and negated in FIELDS else name)
    return frozenset(names)


def _check_known(given: Iterable[str]) -> None:
    for name in sorted(given):
        if name not in FIELDS and name != "env":
            near = difflib.get_close_matches(name, FIELDS, n=1, cutoff=0.6)
            hint = f"did you mean {near[0]!r}?" if near else "`uncertune train --help` lists all fields"
            raise UserError(f"unknown field {name!r}: {hint}")


def _set_environment(values: Any) -> None:
    if values is None:
        return
    if not isinstance(values, dict):
        raise UserError(f"env must be a mapping of environment variables to values, got {values!r}")
    os.environ.update({str(name): str(value) for name, value in values.items()})


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
