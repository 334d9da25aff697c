"""Values as a user writes them, checked against the type and range of the field they are for.

Every command line and every YAML file goes through ``convert``; a UserError names the field, the value and the fix.
Nothing heavy is imported.
"""

from __future__ import annotations

import math
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from uncertune.errors import UserError
from uncertune.settings.spec import NAMES, REQUIRED, Spec

LONGEST_LIST = 100_000
DEEPEST = 20
_NUMBERS = ("int", "float")
_TRUE, _FALSE = ("true", "yes", "on", "1", "t", "y"), ("false", "no", "off", "0", "f", "n")


def shown(value: Any, longest: int = 60) -> str:
    """A value in an error message: quoted, on one line, and cut when long."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 200:
        return f"an integer of about {int(value.bit_length() * 0.30103) + 1} digits"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | dict) and _is_deep(value):
        return f"a deeply nested {type(value).__name__}"
    try:
        text = ascii(value) if _odd_character(str(value)) else repr(value)
    except ValueError:  # an integer of thousands of digits inside
        text = f"a {type(value).__name__} with a huge integer"
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def convert(spec: Spec, value: Any, name: str | None = None) -> Any:
    """``value``, from a YAML file or as the text of a flag, as the field holds it. Raises UserError otherwise.

    Text is read as the field's type; ``none`` and ``null`` clear a field that may be unset. ``name`` replaces the
    field's name in the message.
    """
    name = name or spec.name
    if isinstance(value, str):
        check_text(name, value)
        value = _from_text(spec, value.strip() if "str" not in spec.types else value)
    if value is None:
        if "null" in spec.types or spec.default is None:
            return None
        raise _refused(name, spec, value)
    if value is False and "no" in spec.choices:  # YAML reads an unquoted no as false
        value = "no"
    if spec.choices and "list" not in spec.types:
        if not any(type(value) is type(choice) and value == choice for choice in spec.choices):
            raise UserError(f"{name} must be one of {', '.join(map(_word, spec.choices))}; got {shown(value)}")
        return value
    checker = next((check for kind, check in _CHECKERS.items() if isinstance(value, kind)), None)
    if checker is None:
        raise UserError(f"{name} must be {_wanted(spec)}, got {shown(value)}: put it in quotes if it is text")
    return checker(name, spec, value)


def _word(choice: Any) -> str:
    return str(choice).lower() if isinstance(choice, bool) else str(choice)


def check_text(name: str, value: str) -> None:
    """Raise UserError for text with a NUL or a lone surrogate, which no file or model can hold."""
    odd = _odd_character(value)
    if odd:
        what = "a NUL character" if odd == "\0" else f"an invalid character (U+{ord(odd):04X}, half of a pair)"
        raise UserError(f"{name} holds {what}, got {shown(value)}: remove it")


def _odd_character(text: str) -> str:
    found = re.search("[\0\ud800-\udfff]", text)
    return found.group() if found else ""


def _wanted(spec: Spec) -> str:
    kinds = [one for one in spec.types if one != "null"]
    if "float" in kinds and "int" in kinds:
        kinds.remove("int")
    words = [NAMES.get(one, "a value") for one in kinds]
    if kinds == ["list"]:
        inner = {"str": "names", "int": "whole numbers", "float": "numbers"}.get(spec.item, "values")
        words = [f"{inner} with commas between them, or a list"]
    return " or ".join(words)


def _refused(name: str, spec: Spec, value: Any) -> UserError:
    within = f" ({spec.range})" if spec.range else ""
    return UserError(f"{name} must be {_wanted(spec)}{within}, got {shown(value)}")


def _from_text(spec: Spec, text: str) -> Any:
    """A text as the field's type; the text itself if no type fits."""
    lowered = text.strip().lower()
    if lowered in ("none", "null") and lowered not in (*spec.choices, spec.default) and "null" in spec.types:
        return None
    if spec.choices:
        return next((choice for choice in spec.choices if _word(choice) == text), text)
    if "bool" in spec.types and lowered in (*_TRUE, *_FALSE) and not ("str" in spec.types and lowered in "10"):
        return lowered in _TRUE
    if "int" in spec.types and re.fullmatch(r"[+-]?\d{1,1000}", lowered):
        return int(lowered)
    if set(spec.types) & set(_NUMBERS) and (number := _number(lowered)) is not None:
        return number
    if {"dict", "list"} & set(spec.types) and text.lstrip()[:1] in ("{", "["):
        return _from_json(spec, text)
    if "list" in spec.types and "str" not in spec.types:
        return [part.strip() for part in text.split(",") if part.strip()]
    return text


def _from_json(spec: Spec, text: str) -> Any:
    import json

    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "it is nested too deeply"
        raise UserError(f"{spec.name}: {shown(text)} is not JSON: {reason}") from None


def _number(text: str) -> float | None:
    try:
        return float(text) if len(text) < 1000 and "_" not in text else None
    except ValueError:
        return None


def _check_bool(name: str, spec: Spec, value: bool) -> Any:
    if "bool" in spec.types or "any" in spec.types:
        return value
    raise _refused(name, spec, value)


def _check_number(name: str, spec: Spec, value: float) -> Any:
    if "any" in spec.types:
        return value
    if "list" in spec.types and spec.item in _NUMBERS:
        return _check_list(name, spec, [value])
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise UserError(f"{name} must be {_wanted(spec)} of at most 64 bits, got {shown(value)}")
    if not set(spec.types) & set(_NUMBERS):
        if "bool" in spec.types and value in (0, 1):
            return bool(value)
        hint = ": put it in quotes if it is a name" if "str" in spec.types else ""
        raise UserError(f"{name} must be {_wanted(spec)}, got {shown(value)}{hint}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name} must be a finite number, got {value}")
    if "float" not in spec.types and value != int(value):
        raise _refused(name, spec, value)
    if not _within(spec, value):
        raise UserError(f"{name} must be {spec.range}, got {shown(value)}")
    if isinstance(value, float) and "float" not in spec.types:
        return _check_number(name, spec, int(value))
    return value if "int" in spec.types else float(value)


def _within(spec: Spec, value: float) -> bool:
    return (
        (spec.least is None or value >= spec.least)
        and (spec.most is None or value <= spec.most)
        and (spec.above is None or value > spec.above)
        and (spec.below is None or value < spec.below)
    )


def _check_str(name: str, spec: Spec, value: str) -> Any:
    if "str" in spec.types or "any" in spec.types:
        return value
    raise _refused(name, spec, value)


def _check_list(name: str, spec: Spec, value: list[Any]) -> Any:
    if not {"list", "any"} & set(spec.types):
        raise _refused(name, spec, value)
    if len(value) > LONGEST_LIST:
        raise UserError(f"{name} has {len(value)} entries, more than {LONGEST_LIST}: shorten it")
    if spec.item == "any" or "any" in spec.types:
        return _check_plain(name, value)
    inner = Spec(
        name, (spec.item,), choices=spec.choices, least=spec.least, most=spec.most, above=spec.above, below=spec.below,
        default=REQUIRED,
    )  # fmt: skip
    return [convert(inner, one, name) for one in value]


def _check_dict(name: str, spec: Spec, value: dict[Any, Any]) -> Any:
    if not {"dict", "any"} & set(spec.types):
        raise _refused(name, spec, value)
    return _check_plain(name, value)


def _check_plain(name: str, value: Any) -> Any:
    """A list or mapping as JSON could hold it."""
    if _is_deep(value):
        raise UserError(f"{name} is nested more than {DEEPEST} levels deep: flatten it")
    for key, one in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(value, dict) and not isinstance(key, str):
            raise UserError(f"{name}: the key {shown(key)} must be text: put it in quotes")
        where = f"{name}.{key}" if isinstance(value, dict) else f"{name}[{key}]"
        if isinstance(one, str):
            check_text(where, one)
        elif isinstance(one, list | dict):
            _check_plain(where, one)
        elif one is not None:
            convert(Spec(where, ("bool", "int", "float"), default=REQUIRED), one, where)
    return value


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(DEEPEST):
        level = [
            one
            for outer in level
            for one in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(one, list | dict)
        ]
        if not level:
            return False
        if len(level) > LONGEST_LIST:
            return True
    return True


_CHECKERS: dict[type, Callable[[str, Spec, Any], Any]] = {
    bool: _check_bool,
    int: _check_number,
    float: _check_number,
    str: _check_str,
    list: _check_list,
    tuple: lambda name, spec, value: _check_list(name, spec, list(value)),
    dict: _check_dict,
}


_FORMER = {
    "group_by_length": "train_sampling_strategy: group_by_length",
    "no_cuda": "use_cpu: true",
    "torch_dtype": "dtype",
    "warmup_ratio": "warmup_steps, where a number below 1 is a share of the steps",
}
"""Fields of earlier versions of TRL and transformers, and what stands for them."""


def near(name: str, known: Iterable[str]) -> str:
    """A hint at what the name has become or at the most similar known name, or an empty string."""
    import difflib

    known = list(known)
    if name in _FORMER and _FORMER[name].split(":")[0].split(",")[0] in known:
        return f"it is now {_FORMER[name]}"
    found = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {found[0]!r}?" if found else ""


def converted(specs: Mapping[str, Spec], values: Mapping[Any, Any], where: str) -> dict[str, Any]:
    """Every value as its field holds it. Raises UserError for an unknown name; ``where`` names their source."""
    out = {}
    for name, value in values.items():
        if name not in specs:
            hint = near(name, specs) if isinstance(name, str) else ""
            raise UserError(f"unknown field {shown(name)} in {where}: {hint or 'choose from ' + ', '.join(specs)}")
        out[name] = convert(specs[name], value)
    return out


def typed(kind: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Values under the names of a dataclass's fields (``for_`` for ``for``), with lists as the declared tuples."""
    hints = typing.get_type_hints(kind)
    tuples = {name for name, hint in hints.items() if "tuple" in str(hint)}
    named = {name if name in hints else f"{name}_": value for name, value in values.items()}
    return {
        name: tuple(value) if name in tuples and isinstance(value, list) else value for name, value in named.items()
    }


TRUST = {"trust_remote_code": "run code that a model brings", "allow_pickle": "read weights stored as a pickle"}
"""Fields that only a flag may set."""


def check_trust(settings: Mapping[str, Any]) -> None:
    """Raise UserError if a file sets a trust field: the file may come from a stranger, a flag comes from the user."""
    options = settings.get("model_init_kwargs")
    within = options if isinstance(options, dict) else {}
    for name, what in TRUST.items():
        if settings.get(name) not in (None, False) or within.get(name) not in (None, False):
            raise UserError(f"{name}: a file cannot allow a command to {what}: give the flag --{name} instead")
