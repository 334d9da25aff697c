"""Descriptions of fields: ``option`` stores one in a dataclass, ``specs_of`` reads it as a ``Spec``."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

REQUIRED: Any = MISSING
NAMES = {"bool": "true or false", "int": "a whole number", "float": "a number", "str": "text"}
NAMES |= {"list": "a list", "dict": "a mapping", "null": "null"}
"""Types in words."""


@dataclass(frozen=True)
class Spec:
    """One field: the values that it accepts, and its description."""

    name: str
    types: tuple[str, ...] = ("str",)
    """Of bool, int, float, str, list, dict, null and any."""
    item: str = "str"
    """Type of a list's elements."""
    default: Any = None
    help: str = ""
    unit: str = ""
    """Placeholder for the value in the help text, such as N, FILE or GB."""
    unset: str = ""
    """The meaning of a default of None."""
    choices: tuple[Any, ...] = ()
    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    group: str = ""
    example: str = ""
    """An example of a required field."""
    positional: bool = False

    @property
    def required(self) -> bool:
        return self.default is REQUIRED

    @property
    def range(self) -> str:
        """The range in words, such as ``at least 1`` or ``in (0, 1]``; empty without a range."""
        low = self.least if self.above is None else self.above
        high = self.most if self.below is None else self.below
        if low is not None and high is not None:
            left, right = "[" if self.above is None else "(", "]" if self.below is None else ")"
            return f"in {left}{_plain(low)}, {_plain(high)}{right}"
        if low is not None:
            return f"{'at least' if self.above is None else 'above'} {_plain(low)}"
        return "" if high is None else f"{'at most' if self.below is None else 'below'} {_plain(high)}"


def _plain(number: float) -> str:
    return str(int(number)) if number == int(number) else f"{number:g}"


def option(default: Any = REQUIRED, help: str = "", **described: Any) -> Any:
    """A dataclass field with its description: the other attributes of ``Spec`` by keyword.

    Without ``default`` the field is required, and ``example`` shows how to give it.
    """
    metadata = {"help": help, **described}
    if default is REQUIRED:
        return field(metadata=metadata)
    return field(default=default, metadata=metadata)


def specs_of(kind: type) -> dict[str, Spec]:
    """The fields of a dataclass of this package, in order; the field ``for_`` is the option ``for``."""
    described = set(Spec.__dataclass_fields__) - {"name", "types", "item", "default"}
    out = {}
    for one in fields(kind):
        types, item = types_in(one.type if isinstance(one.type, str) else one.type.__name__)
        known = {key: value for key, value in one.metadata.items() if key in described}
        known["choices"] = tuple(known.get("choices", ()))
        name = one.name.removesuffix("_")  # added where the option is a keyword of Python
        out[name] = Spec(name, types, item, one.default, **known)
    return out


def types_in(annotation: str) -> tuple[tuple[str, ...], str]:
    """The types of ``Spec`` in an annotation, and the type of its list's elements; an unknown class counts as text."""
    types: list[str] = []
    item = "str"
    for part in _parts(ast.parse(annotation, mode="eval").body):
        base = part.value if isinstance(part, ast.Subscript) else part
        name = base.id if isinstance(base, ast.Name) else getattr(base, "attr", getattr(base, "value", "Any"))
        name = {None: "null", "tuple": "list", "Sequence": "list", "Mapping": "dict", "Any": "any"}.get(name, name)
        if name == "list" and isinstance(part, ast.Subscript):
            inner = part.slice.elts[0] if isinstance(part.slice, ast.Tuple) else part.slice
            element = inner.id if isinstance(inner, ast.Name) else "any"
            item = element if element in (*NAMES, "Any") else "any"
            item = "any" if item == "Any" else item
        types.append(name if name in (*NAMES, "any") else "str")
    return tuple(dict.fromkeys(types)), item


def _parts(annotation: ast.expr) -> Iterable[ast.expr]:
    if isinstance(annotation, ast.BinOp):
        yield from _parts(annotation.left)
        yield from _parts(annotation.right)
    elif isinstance(annotation, ast.Subscript) and getattr(annotation.value, "id", "") in ("Optional", "Union"):
        inner = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
        for one in inner:
            yield from _parts(one)
        if getattr(annotation.value, "id", "") == "Optional":
            yield ast.Constant(None)
    else:
        yield annotation
