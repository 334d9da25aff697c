"""Options of a command from one frozen dataclass: flags, a YAML file under them, mistakes in one line.

Without a heavy import: ``--help`` answers at once. A field's type is bool (a flag without a value), int, float or str,
or one of these and None (not given); the one given without a flag may be a tuple of str.
"""

from __future__ import annotations

import argparse
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any, NoReturn, TypeVar

from uncertune.errors import UserError

T = TypeVar("T")

DTYPES = ("auto", "float32", "bfloat16", "float16")
HELP = {
    "attn_implementation": "eager, sdpa or flash_attention_2; the model's own choice",
    "chat_template_path": "a .jinja file, or a model, whose chat template to use",
    "data_dir": "folder with the built-in data sets' files, else $UNCERTUNE_DATA",
    "dataset_config": "configuration of a hub data set",
    "dtype": "of the model: auto (as stored), float32, bfloat16 or float16",
}
"""Texts of options that several commands have."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.removeprefix('argument --')}; `{self.prog} --help` lists all options")


def parser(
    kind: type, prog: str, description: str, help: Mapping[str, str], positional: str | None = None
) -> argparse.ArgumentParser:
    """A parser of the fields of ``kind``; ``positional`` is the one that is given without a flag."""
    out = _Parser(
        prog=prog,
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        description=description,
    )
    out.add_argument("--config", metavar="FILE", help="YAML file with any of these options; flags win")
    types_of = _types(kind)
    for one in fields(kind):
        default = None if one.default is MISSING else one.default
        if one.name == positional and types_of[one.name] is tuple:
            out.add_argument(one.name, nargs="*", default=default, help=help[one.name])
        elif one.name == positional:
            out.add_argument(one.name, nargs="?", default=default, help=help[one.name])
        elif types_of[one.name] is bool:
            out.add_argument(f"--{one.name}", action="store_true", help=help[one.name])
        else:
            hint = help[one.name] if default is not None else f"{help[one.name]} (default: none)"
            out.add_argument(
                f"--{one.name}",
                type=types_of[one.name],
                default=default if default is not None else argparse.SUPPRESS,
                help=hint,
            )
    return out


def parse(kind: type[T], command: argparse.ArgumentParser, arguments: list[str]) -> T:
    """An instance of ``kind`` from flags, over those of ``--config``. Raises UserError for what cannot be used."""
    path = command.parse_known_args(arguments)[0].config
    known = {one.name for one in fields(kind)}  # type: ignore[arg-type]
    values: dict[str, Any] = _read(path, kind) if path is not None else {}
    command.set_defaults(**values)
    parsed = {name: value for name, value in vars(command.parse_intermixed_args(arguments)).items() if name in known}
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in parsed.items()})


def numbers(name: str, text: str) -> tuple[float, ...]:
    """Numbers with commas between them. Raises UserError for anything else."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"{name}: {text!r} must be numbers with commas between them, like 0.1 or 0.05,0.1") from None


def split(text: str | None) -> tuple[str, ...]:
    """Names with commas between them."""
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


def check_counts(given: object, *names: str) -> None:
    """Raise UserError for an option below 1; None is fine."""
    for name in names:
        value = getattr(given, name)
        if value is not None and value < 1:
            raise UserError(f"{name} must be at least 1, got {value}")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise UserError for a value that is none of ``choices``."""
    if value not in choices:
        raise UserError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def _types(kind: type) -> dict[str, type]:
    """The type of each field, without None."""
    out = {}
    for name, hint in typing.get_type_hints(kind).items():
        inner = [one for one in typing.get_args(hint) if one is not types.NoneType]
        out[name] = inner[0] if isinstance(hint, types.UnionType) and inner else typing.get_origin(hint) or hint
    return out


def _read(path: str, kind: type) -> dict[str, Any]:
    import yaml

    try:
        with open(path, encoding="utf-8") as file:
            values = yaml.safe_load(file) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"--config {path!r} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"--config {path!r} must be a YAML mapping of option names to values")
    return checked(values, kind, path)


def checked(values: Mapping[str, Any], kind: type, path: str) -> dict[str, Any]:
    """Values of a file as the fields of ``kind`` hold them. Raises UserError for an unknown name or a wrong value."""
    types_of = _types(kind)
    out = {}
    for name, value in values.items():
        if name not in types_of:
            raise UserError(f"unknown option {name!r} in {path!r}: choose from {', '.join(types_of)}")
        out[name] = _converted(name, value, types_of[name])
    return out


def _converted(name: str, value: Any, wanted: type) -> Any:
    if value is None or (wanted is bool and isinstance(value, bool)):
        return value
    if wanted is tuple:
        return tuple(str(one) for one in (value if isinstance(value, list) else [value]))
    if wanted is str and isinstance(value, list):
        return ",".join(str(one) for one in value)
    try:
        if wanted is bool or isinstance(value, bool | dict | list) or (wanted is int and value != int(value)):
            raise ValueError
        return wanted(value)
    except (TypeError, ValueError):
        raise UserError(f"{name} must be {wanted.__name__}, got {value!r}") from None
