"""The command line of training: TRL's fields and ours, from a YAML file and flags over it, with one-line errors."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, TrlParser

from uncertune.data.sources import FORMATS, masks_prompts
from uncertune.errors import UserError
from uncertune.training.config import UncertuneConfig
from uncertune.training.folder import plain


@dataclass
class DataArguments(ScriptArguments):
    """TRL's script arguments, and where built-in data is found, how it is read and how much of it is taken."""

    data_dir: str | None = field(
        default=None, metadata={"help": "Folder with the built-in data sets' files; default: $UNCERTUNE_DATA."}
    )
    dataset_format: str = field(
        default="auto", metadata={"help": "How rows become messages; auto: by their columns.", "choices": list(FORMATS)}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on the first so many rows."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate on the first so many rows."})
    overwrite: bool = field(
        default=False, metadata={"help": "Start anew in output_dir, deleting the run it holds, instead of resuming."}
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
        hidden = {"hub_token", "push_to_hub_token", "overwrite"}
        return {name: plain(value) for name, value in out.items() if name not in hidden and name in FIELDS}


GROUPS = (DataArguments, UncertuneConfig, ModelConfig, DatasetMixtureConfig)
FIELDS = frozenset(one.name for group in GROUPS for one in dataclasses.fields(group) if one.init)


class _Parser(TrlParser):
    """Errors are raised, not printed above a page of usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message.removeprefix("argument --"))


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    """The parser of ``uncertune train``, for its help text."""
    return _Parser(GROUPS, prog=prog, allow_abbrev=False)


def parse(arguments: list[str]) -> Arguments:
    """Fields from ``--config FILE`` and flags over it. Raises UserError, one line, naming the field and the mend."""
    arguments = list(arguments)
    settings = _read_config(arguments)
    given = frozenset(settings) | _flags(arguments)
    _check_known(given)
    defaults: dict[str, Any] = {}
    if not given & {"save_strategy", "save_steps"}:
        defaults |= {"save_strategy": "steps", "save_steps": 0.1}
        if "save_total_limit" not in given:
            defaults["save_total_limit"] = 2
    if "use_cpu" not in given and not torch.accelerator.is_available():
        print("no accelerator found: training on the CPU (use_cpu=True)", file=sys.stderr)
        defaults["use_cpu"] = True
    for name, value in settings.items():
        if name == "datasets" and value is not None and not isinstance(value, list):
            raise UserError(f"datasets must be a list of data sets, got {value!r}")
    command = _Parser(GROUPS, allow_abbrev=False)
    environment = settings.pop("env", None)
    _set_environment(environment)
    command.set_defaults_with_config(**{**defaults, **settings})
    try:
        data, training, model, mixture = command.parse_args_into_dataclasses(args=arguments, look_for_args_file=False)
    except UserError:
        raise
    except (ValueError, TypeError, ImportError) as error:
        raise UserError(_one_line(error)) from error
    if training.assistant_only_loss is None and data.dataset_name and masks_prompts(data.dataset_name):
        training.assistant_only_loss = True
    return Arguments(data, training, model, mixture, given)


def _read_config(arguments: list[str]) -> dict[str, Any]:
    """Take ``--config FILE`` out of the arguments and read it."""
    path = None
    for position, argument in enumerate(arguments):
        if argument == "--config":
            if position + 1 == len(arguments):
                raise UserError("--config needs the path of a YAML file")
            path = arguments[position + 1]
            del arguments[position : position + 2]
            break
        if argument.startswith("--config="):
            path = argument.split("=", 1)[1]
            del arguments[position]
            break
    if path is None:
        return {}
    try:
        settings = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path!r} cannot be read: {_one_line(error)}") from error
    except yaml.YAMLError as error:
        raise UserError(f"--config {path!r} is not valid YAML: {' '.join(str(error).split())}") from error
    if settings is None:
        return {}
    if not isinstance(settings, dict) or not all(isinstance(name, str) for name in settings):
        raise UserError(f"--config {path!r} must be a YAML mapping of field names to values")
    return settings


def _flags(arguments: Iterable[str]) -> frozenset[str]:
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
