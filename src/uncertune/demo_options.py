"""The options of ``uncertune demo``, without a heavy import."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields
from typing import NoReturn

from uncertune.errors import UserError


@dataclass(frozen=True)
class DemoOptions:
    """What ``uncertune demo`` can be told. The defaults take about eight minutes on two processor cores."""

    output_dir: str = "demo"
    model: str = "smollm2-135m"
    train_problems: int = 200
    batch_size: int = 8
    learning_rate: float = 1e-4
    selection_fraction: float = 0.25
    test_problems: int = 32
    general_prompts: int = 16
    max_new_tokens: int = 80
    seed: int = 0
    overwrite: bool = False


HELP = {
    "output_dir": "folder of the runs, the table and the page",
    "model": "hub id, folder, .gguf file, or smollm2-135m",
    "train_problems": "word problems to train on",
    "batch_size": "problems in an optimizer step",
    "learning_rate": "peak of the cosine schedule",
    "selection_fraction": "fraction of tokens trained on with cross-entropy",
    "test_problems": "held-out problems to answer",
    "general_prompts": "general prompts on which the divergence from the base is measured",
    "max_new_tokens": "longest answer, in tokens",
    "seed": "of data, training and order",
    "overwrite": "start anew, deleting the runs in output_dir, instead of going on",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.removeprefix('argument --')}; `uncertune demo --help` lists all options")


def parser() -> argparse.ArgumentParser:
    """The parser of ``uncertune demo``."""
    out = _Parser(
        prog="uncertune demo",
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        description="Fine-tune a small language model three ways on arithmetic word problems, from the same start and "
        "on the same data: MLE, masked MLE, and masked MLE + distillation. Then measure what each learned (held-out "
        "problems) and what each forgot (the base model's other abilities), print a table and write report.html. "
        "Started again, it goes on where it stopped.",
    )
    out.add_argument("--config", metavar="FILE", help="YAML file with any of these options; flags win")
    for one in fields(DemoOptions):
        if isinstance(one.default, bool):
            out.add_argument(f"--{one.name}", action="store_true", help=HELP[one.name])
        else:
            out.add_argument(f"--{one.name}", type=type(one.default), default=one.default, help=HELP[one.name])
    return out


def parse(arguments: list[str]) -> DemoOptions:
    """Options from flags, over those of ``--config``. Raises UserError, one line, for what cannot be used."""
    command = parser()
    path = command.parse_known_args(arguments)[0].config
    if path is not None:
        command.set_defaults(**_read(path))
    values = vars(command.parse_args(arguments))
    values.pop("config")
    options = DemoOptions(**values)
    if not 0 < options.selection_fraction <= 1:
        raise UserError(f"selection_fraction must be in (0, 1], got {options.selection_fraction}")
    if not options.learning_rate > 0:
        raise UserError(f"learning_rate must be above 0, got {options.learning_rate}")
    for name in ("train_problems", "batch_size", "test_problems", "general_prompts", "max_new_tokens"):
        if getattr(options, name) < 1:
            raise UserError(f"{name} must be at least 1, got {getattr(options, name)}")
    return options


def _read(path: str) -> dict[str, object]:
    import yaml

    try:
        with open(path, encoding="utf-8") as file:
            values = yaml.safe_load(file) or {}
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"--config {path!r} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"--config {path!r} must be a YAML mapping of option names to values")
    kinds: dict[str, type] = {one.name: type(one.default) for one in fields(DemoOptions)}
    for name, value in values.items():
        if name not in kinds:
            raise UserError(f"unknown option {name!r} in {path!r}: choose from {', '.join(kinds)}")
        try:
            values[name] = value if kinds[name] is bool else kinds[name](value)
        except (TypeError, ValueError):
            raise UserError(f"{name} must be {kinds[name].__name__}, got {value!r}") from None
    return values
