"""Arguments of a sweep besides the settings of its runs, checked without a heavy import."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uncertune.errors import UserError
from uncertune.settings import convert, shown
from uncertune.training import fields

Grids = list[dict[str, list[Any]]]
END, EPOCH = "end", "epoch"
"""Values of ``measure_every``, besides a number of steps."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Arguments of ``sweep`` on seeds, processes and measures. Raises UserError for unusable values."""

    seeds: tuple[int, ...]
    jobs: int | None
    fresh_rows: bool
    held_out: int
    out: tuple[str, ...]
    documents: int
    measure_every: str
    tasks: tuple[str, ...]
    limit: int | None
    batch_size: int
    measure_dtype: str
    paper: bool

    def __post_init__(self) -> None:
        _check_unique("seeds", self.seeds, "keep one")
        _check_unique("out", [Path(name).name for name in self.out], "keep one, or rename a file")
        if not self.seeds:
            raise UserError("seeds is empty: give at least one, for example --seeds 0,1,2")
        every = self.measure_every
        if every not in (EPOCH, END) and not (every.isdecimal() and 0 < int(every) < 10**9):
            raise UserError(f"measure_every must be epoch, end or a number of steps from 1, got {shown(every)}")


def _check_unique(name: str, values: Iterable[Any], fix: str) -> None:
    values = list(values)
    twice = [one for one in values if values.count(one) > 1]
    if twice:
        raise UserError(f"{name} names {shown(twice[0])} twice: {fix}")


def grids(arms: Any) -> Grids:
    """``arms``, a mapping or a list of mappings of fields to one value or several, with every value as its field's.

    Raises UserError for anything else, and for a mapping without an objective.
    """
    given = list(arms) if isinstance(arms, list | tuple) else [arms]
    if not all(isinstance(one, Mapping) and one.get("objective") for one in given):
        raise UserError("sweep.arms must be a mapping, or a list of mappings, each with an objective")
    return [{name: _values(name, value) for name, value in one.items()} for one in given]


def _values(name: Any, value: Any) -> list[Any]:
    known = fields.specs()
    values = list(value) if isinstance(value, list | tuple) else [value]
    return [convert(known[name], one, f"sweep.arms.{name}") for one in values] if name in known else values
