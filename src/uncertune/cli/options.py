"""Commands and their options: flags over a YAML file, both checked in one place, and the help text.

An option is a dataclass field made by ``uncertune.settings.option``; ``Command`` joins a dataclass of options, a
function that checks their combinations, and the call. Nothing heavy is imported.
"""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from uncertune.errors import UserError
from uncertune.settings import Spec, check_trust, convert, converted, near, option, read_mapping, shown, specs_of, typed

T = TypeVar("T")

DTYPES = ("auto", "float32", "bfloat16", "float16")
UNITS = {"int": "N", "float": "X", "str": "TEXT", "list": "A,B", "dict": "JSON", "any": "VALUE", "bool": "true|false"}


def dtype(default: str = "auto", help: str = "number format of the model's weights; auto: as stored") -> Any:
    return option(default, help, choices=DTYPES)


def attn_implementation() -> Any:
    return option(None, "eager, sdpa or flash_attention_2", unit="NAME", unset="the model's own choice")


def allow_pickle() -> Any:
    return option(False, "load weights stored as a pickle (.bin), which can run code; only as a flag")


def chat_template_path() -> Any:
    return option(None, "a .jinja file, or a model, whose chat template to use", unit="PATH", unset="the model's own")


def data_dir() -> Any:
    return option(None, "folder with the files of the built-in data sets", unit="DIR", unset="$UNCERTUNE_DATA")


def dataset_config() -> Any:
    return option(None, "configuration of a data set from the hub", unit="NAME", unset="the only one")


def dataset_columns() -> Any:
    text = 'columns of other names, known name first: {"instruction": "query", "output": "response"}'
    return option(None, f"{text}; of data that is not built in", unset="none")


@dataclass(frozen=True)
class Command(Generic[T]):
    """One command: ``call`` receives an instance of ``kind`` and returns the exit status, or None for 0."""

    name: str
    summary: str
    """One line for the list of commands."""
    kind: type[T]
    call: Callable[[T], int | None]
    description: str = ""
    check: Callable[[T], None] | None = None
    """Raises UserError for values that do not go together."""

    @property
    def specs(self) -> dict[str, Spec]:
        return specs_of(self.kind)

    def help(self, width: int = 0) -> str:
        return help_text(f"uncertune {self.name}", self.description or self.summary, self.specs, width=width)

    def parse(self, arguments: Sequence[str]) -> T:
        """An instance of ``kind`` from flags, over those of ``--config``. Raises UserError for an unusable value."""
        given = values(self.specs, arguments, f"uncertune {self.name}")
        return self.build(given)

    def build(self, given: Mapping[str, Any]) -> T:
        """An instance of ``kind`` from checked values. Raises UserError if a required one is missing."""
        for spec in self.specs.values():
            if spec.required and given.get(spec.name) in (None, "", []):
                raise UserError(f"{spec.name} is missing: give it, for example {spec.example}")
        out = self.kind(**typed(self.kind, given))
        if self.check is not None:
            self.check(out)
        return out

    def run(self, arguments: Sequence[str]) -> int:
        """Print the help text, or parse and call."""
        if asks_help(arguments):
            print(self.help())
            return 0
        return self.call(self.parse(arguments)) or 0


def asks_help(arguments: Sequence[str]) -> bool:
    return bool({"-h", "--help"} & set(arguments))


def values(specs: Mapping[str, Spec], arguments: Sequence[str], program: str) -> dict[str, Any]:
    """Checked values of the given fields: those of the file, overridden by those of the flags."""
    path, flags = split(specs, arguments, program)
    from_file = {} if path is None else converted(specs, read_mapping(path), shown(path, 200))
    check_trust(from_file)
    return from_file | {name: convert(specs[name], value) for name, value in flags.items()}


def split(specs: Mapping[str, Spec], arguments: Sequence[str], program: str) -> tuple[str | None, dict[str, Any]]:
    """The file of ``--config``, and the text of every flag.

    ``--name value`` and ``--name=value``, with ``-`` or ``_`` within the name; ``--name`` alone and ``--no_name`` for
    a field that is true or false. A list takes several values after one flag where the command has no positional
    argument. The last of two equal flags wins.
    """
    rest = list(arguments)
    out: dict[str, Any] = {}
    positional = next((spec for spec in specs.values() if spec.positional), None)
    paths: list[str] = []
    while rest:
        word = rest.pop(0)
        if not _is_flag(word):
            _add_positional(positional, word, out)
            continue
        name, has_value, value = word.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        negated = name.removeprefix("no_")
        if name == "config":
            paths.append(value if has_value else _next(rest, name))
        elif name in specs:
            out[name] = value if has_value else _values_after(specs[name], rest, positional is None)
        elif negated in specs and "bool" in specs[negated].types:
            out[negated] = False
        else:
            hint = near(name, specs) or f"`{program} --help` lists all fields"
            raise UserError(f"unknown field {shown(name)}: {hint}")
    if len(paths) > 1:
        raise UserError(f"--config is given {len(paths)} times: keep one file, and set the rest by flags")
    return (paths[0] if paths else None), out


def _add_positional(spec: Spec | None, word: str, out: dict[str, Any]) -> None:
    if spec is None:
        raise UserError(f"{shown(word)} belongs to no field: every value follows its --field")
    if "list" in spec.types:
        out[spec.name] = [*out.get(spec.name, []), word]
    elif spec.name in out:
        raise UserError(f"{spec.name} is given twice, {shown(out[spec.name])} and {shown(word)}: keep one")
    else:
        out[spec.name] = word


def _values_after(spec: Spec, rest: list[str], several: bool) -> Any:
    """What follows a flag, taken from ``rest``; True for a field that is true or false and stands alone."""
    if "bool" in spec.types:
        return rest.pop(0) if rest and _is_switch(rest[0], spec) else True
    taken = [_next(rest, spec.name)]
    if several and "list" in spec.types and "str" not in spec.types:
        while rest and not _is_flag(rest[0]):
            taken.append(rest.pop(0))
    return taken if len(taken) > 1 else taken[0]


def _is_flag(word: str) -> bool:
    return word.startswith("--") and len(word) > 2


def _is_switch(word: str, spec: Spec) -> bool:
    words = ("true", "false", "yes", "no", "on", "off", "1", "0", "none", "null")
    return word.lower() in words or ("str" in spec.types and not _is_flag(word))


def _next(rest: list[str], name: str) -> str:
    if not rest or _is_flag(rest[0]):
        raise UserError(f"{name} has no value: write --{name} VALUE")
    return rest.pop(0)


def no_duplicates(name: str, given: Iterable[Any]) -> None:
    """Raise UserError for a value that a list names twice."""
    given = list(given)
    twice = [one for one in given if given.count(one) > 1]
    if twice:
        raise UserError(f"{name} names {shown(twice[0])} twice: keep one")


# ---- help


def help_text(program: str, description: str, specs: Mapping[str, Spec], more: str = "", width: int = 0) -> str:
    """Usage, description and options by group; each with its default, its unit and a sentence."""
    width = width or min(shutil.get_terminal_size((100, 24)).columns, 100)
    positional = [spec for spec in specs.values() if spec.positional]
    words = " ".join(f"{spec.name.upper()}{' …' if 'list' in spec.types else ''}" for spec in positional)
    lines = [f"usage: {program} {words + ' ' if words else ''}[--config FILE] [options]", ""]
    lines += [*textwrap.wrap(description, width), ""]
    groups: dict[str, list[Spec]] = {}
    for spec in specs.values():
        groups.setdefault("arguments" if spec.positional else spec.group or "options", []).append(spec)
    for group, members in groups.items():
        lines += [f"{group}:"]
        for spec in members:
            head = spec.name.upper() if spec.positional else f"--{spec.name}{_value(spec)}"
            head += f", --no_{spec.name}" if spec.types == ("bool",) and spec.default is True else ""
            lines += _entry(head, described(spec), width)
        lines += [""]
    lines += ["in every command:"]
    lines += _entry("--config FILE", "YAML file with any of these options; flags win over it", width)
    lines += _entry("--quiet", "print results and errors only", width)
    lines += _entry("--log_level LEVEL", "debug, info, warning, error or critical: what libraries log", width)
    lines += _entry("--debug", "show the traceback of an error", width)
    return "\n".join([*lines, *(["", *textwrap.wrap(more, width)] if more else [])])


def described(spec: Spec) -> str:
    """The sentence of an option, with its choices, range and default."""
    parts = [spec.help.rstrip(".")]
    if spec.choices:
        parts.append(f"one of {', '.join(map(str, spec.choices))}")
    elif spec.range:
        parts.append(spec.range)
    if spec.required:
        default = "required"
    elif spec.default is None:
        default = f"default: {spec.unset}" if spec.unset else "default: none"
    elif spec.default in ((), [], ""):
        default = f"default: {spec.unset or 'none'}"
    else:
        default = f"default: {_default(spec.default)}"
    return "; ".join(part for part in parts if part) + f" ({default})"


def _default(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def _value(spec: Spec) -> str:
    if spec.types == ("bool",):
        return ""
    first = next((one for one in spec.types if one != "null"), "str")
    return f" {spec.unit or ('NAME' if spec.choices else UNITS[first])}"


def _entry(head: str, text: str, width: int) -> list[str]:
    column = 30
    wrapped = textwrap.wrap(text, max(30, width - column)) or [""]
    start = f"  {head}"
    if len(start) >= column:
        return [start, *(" " * column + line for line in wrapped)]
    return [start.ljust(column) + wrapped[0], *(" " * column + line for line in wrapped[1:])]
