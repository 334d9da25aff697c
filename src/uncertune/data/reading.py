"""All rows of a source in one form, as one table in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from uncertune.data import files, formats
from uncertune.errors import UserError
from uncertune.runs.notes import note

if TYPE_CHECKING:
    from datasets import Dataset

_ROWS_A_CHUNK = 20_000  # of a table in memory: far below Arrow's limit of 2 GiB of text per chunk


def readable(
    source: Iterable[formats.Record],
    where: str,
    format: str = "auto",
    text_field: str | None = None,
    limit: int | None = None,
    *,
    named: bool = True,
) -> Dataset:
    """All rows of a source, converted; a data set that needs no conversion is returned unchanged.

    ``where`` begins every error; with ``named``, unused columns are printed to stderr. Raises ``UserError``.
    """
    from datasets import Dataset

    reading = Reading(detected(source, where, format, text_field), text_field, limit, where, named)
    if isinstance(source, Dataset) and "input_ids" in source.column_names:
        return source if limit is None else source.select(range(min(limit, len(source))))
    rows = list(converted_rows(source, reading))
    if not rows:
        raise UserError(f"{where}: no row is left: the assistant says nothing in any of them, or was cut")
    if isinstance(source, Dataset) and _holds(source, rows):
        return source.select_columns(list(dict.fromkeys(name for row in rows for name in row)))
    return in_memory(rows, where)


def _holds(source: Dataset, rows: Sequence[formats.Record]) -> bool:
    """Whether a data set has these rows, perhaps with other columns."""
    if len(rows) != len(source) or not set(rows[0]) <= set(source.column_names):
        return False
    return all(
        all(before.get(name) == value for name, value in after.items())
        for before, after in zip(source, rows, strict=True)
    )


def detected(source: Iterable[formats.Record], where: str, format: str, text_field: str | None) -> str:
    first = next(iter(source), None)
    if first is None:
        raise UserError(f"{where}: it has no rows")
    if format != "auto":
        return format
    try:
        return formats.detect_format(list(first), first, text_field)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


@dataclass(frozen=True)
class Reading:
    """How the rows of a source are converted; ``named``: whether unused columns are printed."""

    format: str
    text_field: str | None
    limit: int | None
    where: str
    named: bool


def converted_rows(source: Iterable[formats.Record], reading: Reading) -> Iterator[dict[str, Any]]:
    """At most ``limit`` rows of the source, checked and converted; prints at the end what was left out."""
    given = seen = 0
    kind = None
    left: Counter[str] = Counter()
    for index, row in enumerate(source):
        try:
            converted = formats.convert(row, reading.format, index, reading.text_field, left)
            kind = kind or (converted and formats.kind(converted))
            if converted and formats.kind(converted) != kind:
                raise UserError(
                    f"row {index}: it holds {formats.kind(converted)}, the rows before it {kind}: give every row the "
                    "same columns"
                )
        except UserError as error:
            raise UserError(f"{reading.where}: {error}") from error
        seen += 1
        if converted is None:
            continue
        yield converted
        given += 1
        if given == reading.limit:
            break
    _tell(left, seen, reading)


def _tell(left: Counter[str], seen: int, reading: Reading) -> None:
    """Print what was left out of ``seen`` rows."""
    reasons = (formats.SILENT_ROWS, formats.CUT_ANSWERS, formats.HEADINGS)
    rows = [f"{left[what]} of {seen} {what}" for what in reasons if left[what]]
    turns = [f"{left[formats.BLANK_TURNS]} {formats.BLANK_TURNS}"] if left[formats.BLANK_TURNS] else []
    columns = [f"{what} ({count} rows)" for what, count in sorted(left.items()) if what.startswith("column ")]
    if parts := [*rows, *turns, *(columns if reading.named else [])]:
        note(f"{reading.where}: left out {'; '.join(parts)}")


def in_memory(rows: Sequence[dict[str, Any]], where: str) -> Dataset:
    """One table of rows; a column that a row lacks is null there, and each turn keeps its keys.

    Raises ``UserError`` with the first row whose type differs from that of the rows before it.
    """
    from datasets import Dataset, Features, Json, List, concatenate_datasets

    names = list(dict.fromkeys(name for row in rows for name in row))
    free = [name for name in names if name in _OF_ANY_FORM and not all(_plain(row.get(name)) for row in rows)]
    try:
        parts = []
        for start in range(0, len(rows), _ROWS_A_CHUNK):
            some = rows[start : start + _ROWS_A_CHUNK]
            columns = {name: [row.get(name) for row in some] for name in names}
            form = Features({name: Json() if name == "chat_template_kwargs" else List(Json()) for name in free})
            tables = [Dataset.from_dict({name: columns[name] for name in names if name not in free})] * (free != names)
            tables += [Dataset.from_dict({name: columns[name] for name in free}, features=form)] * bool(free)
            parts.append(concatenate_datasets(tables, axis=1).select_columns(names))
        return concatenate_datasets(parts) if len(parts) > 1 else parts[0]
    except _NOT_A_TABLE as error:
        place = _first_of_another_type(rows, [name for name in names if name not in free])
        raise UserError(f"{where}: {place}its rows do not agree in type ({files.first_line(error)})") from error


_OF_ANY_FORM = ("messages", "prompt", "completion", "tools", "chat_template_kwargs")
_NOT_A_TABLE = (ValueError, TypeError, OverflowError)  # base classes of pyarrow's errors


def _plain(value: Any) -> bool:
    """Whether a table can hold the value unchanged: text, or turns of role and content alone."""
    return isinstance(value, str) or (isinstance(value, list) and all(turn.keys() == _PLAIN_TURN for turn in value))


_PLAIN_TURN = {"role", "content"}


def _first_of_another_type(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    """``row N, column 'x': ``, the first row at which a column has two types; empty if none is found."""
    import pyarrow

    for name in names:
        low, high = 0, len(rows)
        values = [row.get(name) for row in rows]
        while low < high:  # bisect for the fewest rows that do not form a column
            middle = (low + high) // 2
            try:
                pyarrow.array(values[: middle + 1])
                low = middle + 1
            except _NOT_A_TABLE:
                high = middle
        if low < len(rows):
            return f"row {low}, column {name!r}: "
    return ""
