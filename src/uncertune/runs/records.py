"""Read the records of a run: its settings, its metrics, and which tokens it selected.

    from uncertune.runs import read_metrics, read_selection

    for mask in read_selection("runs/mine"):
        print(mask.step, mask.document, mask.selected.mean())

Every reader raises ``UserError`` with the path of a file that is missing or damaged.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uncertune.errors import UserError

if TYPE_CHECKING:
    import numpy as np

CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
SELECTION = "selection.parquet"
PROBE = "probe.jsonl"
PARTS = "selection"
"""Folder of the masks of an unfinished run: one Parquet file per checkpoint and rank."""


def read_json(path: str | Path) -> dict[str, Any]:
    """The JSON object in a file."""
    text = _text(Path(path))
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, error) from error
    if not isinstance(content, dict):
        raise _damaged(path, f"it holds {type(content).__name__}, not an object")
    return content


def read_settings(run: str | Path) -> dict[str, Any]:
    """The resolved fields of a run, from ``config.yaml``; empty if the folder has none."""
    import yaml

    path = Path(run) / CONFIG
    if not path.exists():
        return {}
    text = _text(path)
    try:
        settings = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _damaged(path, error) from error
    if not isinstance(settings, dict) or not all(isinstance(name, str) for name in settings):
        raise _damaged(path, "it is not a mapping of field names to values")
    return settings


def read_lines(path: str | Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file."""
    rows = []
    for number, line in enumerate(_text(Path(path)).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _damaged(path, f"line {number}: {_first_line(error)}") from error
        if not isinstance(row, dict):
            raise _damaged(path, f"line {number} is not an object")
        rows.append(row)
    return rows


def read_metrics(path: str | Path, kind: str | None = None) -> list[dict[str, Any]]:
    """The records of ``metrics.jsonl`` (or of the run in a folder): ``step``, ``log`` and ``eval``, or one kind."""
    path = Path(path)
    path = path / METRICS if path.is_dir() else path
    rows = read_lines(path)
    for number, row in enumerate(rows, start=1):
        if not isinstance(row.get("kind"), str) or not isinstance(row.get("step"), int):
            raise _damaged(path, f"record {number} has no kind and step")
    return [row for row in rows if kind is None or row["kind"] == kind]


@dataclass(frozen=True)
class DocumentMask:
    """Which response tokens of a document were selected in one optimizer step."""

    step: int
    document: str
    """Hash of the document's token ids and labels."""
    selected: np.ndarray
    """(T,) bool, one entry per response token, in order."""


def read_selection(run: str | Path, step: int | None = None) -> Iterator[DocumentMask]:
    """The recorded masks of a run in the order of its steps; only those of ``step`` if given.

    ``run`` is a run folder, finished or not, that trained with ``save_selection``.
    """
    import numpy as np

    table = selection_table(run)
    if table is None:
        raise UserError(f"{str(run)!r} holds no {SELECTION}: the run selects no tokens, or save_selection was false")
    for row in table.to_pylist():
        if step is None or row["step"] == step:
            bits = np.unpackbits(np.frombuffer(row["selected"], dtype=np.uint8), count=row["tokens"])
            yield DocumentMask(row["step"], row["document"], bits.astype(bool))


def selection_table(run: str | Path) -> Any:
    """The recorded masks as a pyarrow Table sorted by step, packed as on disk; None if there are none.

    Page checksums are verified, so a changed byte is detected.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = Path(run)
    whole = folder / SELECTION
    files = [whole] if whole.is_file() else sorted((folder / PARTS).glob("*.parquet"))
    tables = []
    for file in files:
        try:
            tables.append(pq.read_table(file, schema=selection_schema(), page_checksum_verification=True))
        except (pa.ArrowException, OSError, ValueError) as error:
            raise _damaged(file, error) from error
    if not tables:
        return None
    table = pa.concat_tables(tables)
    order = np.argsort(table["step"].to_numpy(), kind="stable")  # independent of where the parts end
    return table.take(pa.array(order)).combine_chunks()


def selection_schema() -> Any:
    """Columns of ``selection.parquet``: step, document, number of response tokens, and their mask packed by
    ``numpy.packbits`` (first token in the highest bit)."""
    import pyarrow as pa

    return pa.schema(
        [("step", pa.int32()), ("document", pa.string()), ("tokens", pa.int32()), ("selected", pa.binary())]
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{str(path)!r} is missing") from None
    except (OSError, UnicodeDecodeError) as error:
        raise _damaged(path, error) from error


def _damaged(path: str | Path, reason: BaseException | str) -> UserError:
    return UserError(f"{str(path)!r} is damaged: {reason if isinstance(reason, str) else _first_line(reason)}")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
