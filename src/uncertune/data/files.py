"""Data files, row by row: JSON, JSON lines, CSV, Parquet and plain text, all but Parquet also gzipped.

This module replaces ``datasets`` for files: an error names the number of the broken line, text that looks like a date
stays text, and nothing is written to a cache.
"""

import csv
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from uncertune.errors import UserError

EXTENSIONS = (".jsonl", ".json", ".csv", ".parquet", ".txt", ".jsonl.gz", ".json.gz", ".csv.gz", ".txt.gz")

_LONGEST_CSV_FIELD = 2**31 - 1


def extension(path: Path) -> str | None:
    """The data extension of a file's name (one of ``EXTENSIONS``), or None."""
    return next((ending for ending in EXTENSIONS if path.name.lower().endswith(ending)), None)


def check_there(*names: str | None) -> None:
    """Raise UserError for the first name of a data set that is a file's, if there is no such file."""
    for name in names:
        path = Path(name or "").expanduser()
        if name and extension(path) is not None and not path.exists():
            raise UserError(f"data {name!r}: no such file")


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of one file, in order, lazily.

    A ``.json`` file is an array of objects or JSON lines. CSV values are text. Every non-blank line of a ``.txt`` file
    is a row of ``text``. Raises ``UserError`` with the path for a missing or unreadable file, an unknown extension,
    invalid JSON (with the line), and a row that is not an object.
    """
    ending = extension(path)
    if ending is None:
        raise UserError(f"data {str(path)!r}: unknown file extension; use one of {', '.join(EXTENSIONS)}")
    if not path.is_file():
        raise UserError(f"data {str(path)!r}: no such file")
    reader = _READERS[ending.removesuffix(".gz")]
    try:
        yield from reader(path)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"data {str(path)!r}: cannot be read ({first_line(error)})") from error


def first_line(error: BaseException) -> str:
    """An exception in one line: the first line of its message, or its type."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _open(path: Path, newline: str | None = None) -> IO[str]:
    if path.name.lower().endswith(".gz"):
        return gzip.open(path, "rt", encoding="utf-8-sig", newline=newline)
    return path.open(encoding="utf-8-sig", newline=newline)


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    with _open(path) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            yield _object(_parsed(line, f"line {number}", path), f"line {number}", path)


def _json(path: Path) -> Iterator[dict[str, Any]]:
    with _open(path) as file:
        head = file.read(1)
        while head.isspace():
            head = file.read(1)
        if head != "[":
            yield from _json_lines(path)
            return
        rows = _parsed(head + file.read(), "", path)
    for number, row in enumerate(rows):
        yield _object(row, f"row {number}", path)


def _parsed(text: str, place: str, path: Path) -> Any:
    """A JSON value. Raises ``UserError`` for invalid or too deeply nested JSON and for numbers that are too long."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = place or f"line {error.lineno}"
        raise UserError(f"data {str(path)!r}: {line} is not JSON ({error.msg})") from error
    except RecursionError as error:
        raise UserError(f"data {str(path)!r}: {place or 'the array'} is nested too deep to be read") from error
    except ValueError as error:
        raise UserError(f"data {str(path)!r}: {place or 'the array'} holds a number too long to be read") from error


def _object(row: Any, place: str, path: Path) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise UserError(f"data {str(path)!r}: {place} is {type(row).__name__}, not an object of columns")
    return row


def _csv(path: Path) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(_LONGEST_CSV_FIELD)  # the module's 128 KiB is shorter than some conversations
    with _open(path, newline="") as file:
        reader = csv.DictReader(file, strict=True)  # otherwise an unclosed quote swallows the rows after it
        number = 0
        while True:
            try:
                row = next(reader, None)
            except csv.Error as error:
                raise UserError(f"data {str(path)!r}: row {number} is not CSV ({error}): check its quotes") from error
            if row is None:
                return
            if None in row:
                raise UserError(f"data {str(path)!r}: row {number} has more values than the header has columns")
            yield row
            number += 1


def _text(path: Path) -> Iterator[dict[str, Any]]:
    with _open(path) as lines:
        for line in lines:
            if line.strip():
                yield {"text": line.rstrip("\n")}


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise UserError(f"data {str(path)!r}: cannot be read ({first_line(error)})") from error


_READERS = {".jsonl": _json_lines, ".json": _json, ".csv": _csv, ".txt": _text, ".parquet": _parquet}
