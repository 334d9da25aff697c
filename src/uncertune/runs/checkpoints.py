"""Checkpoints of a run, of which only complete, undamaged ones count.

The last file of a checkpoint, ``uncertune.json``, is its completeness marker. It holds the size and checksum of every
other file of the checkpoint, and how much of the run's records (``metrics.jsonl``, ``probe.jsonl``, masks) existed.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from uncertune.errors import UserError
from uncertune.runs.files import UNFINISHED, checksum, file_entry, intact, to_disk, write_atomically
from uncertune.runs.notes import note
from uncertune.runs.records import PARTS, selection_table

MARKER = "uncertune.json"
STATE = "trainer_state.json"


def folder_of(output_dir: str | Path, step: int) -> Path:
    """The folder of the checkpoint of ``step``."""
    return Path(output_dir) / f"checkpoint-{step}"


def mark_complete(output_dir: str | Path, step: int, records: Mapping[str, Any] | None = None) -> None:
    """Write the completeness marker of checkpoint ``step``, after all its files have reached the disk.

    ``records``: entries by the name of a record file in ``output_dir``, see ``record_entry``; under the name of the
    masks' folder, the number of rows.
    """
    folder = folder_of(output_dir, step)
    files = {}
    for path in sorted(folder.rglob("*")):
        to_disk(path)
        if path.is_file():
            files[path.relative_to(folder).as_posix()] = file_entry(path)
    marker = {"step": step, "files": files, "records": dict(records or {})}
    write_atomically(folder / MARKER, json.dumps(marker, indent=1))
    to_disk(folder)


def record_entry(path: Path) -> dict[str, Any]:
    """Size and checksum of a growing file so far, after it has been flushed to disk."""
    to_disk(path)
    return file_entry(path)


def recorded(output_dir: str | Path, step: int) -> dict[str, Any]:
    """The records in the marker of checkpoint ``step``; empty without a marker."""
    return _marker(folder_of(output_dir, step)).get("records", {})


def cut_to_checkpoint(path: Path, step: int) -> bool:
    """Truncate a record file to its length in the marker of checkpoint ``step``; returns whether the marker has it."""
    entry = recorded(path.parent, step).get(path.name)
    if entry is None or not path.is_file():
        return False
    os.truncate(path, entry["bytes"])
    return True


@contextlib.contextmanager
def nothing_half_written(output_dir: str | Path, step: int) -> Iterator[None]:
    """Delete checkpoint ``step`` when writing it fails: the others may need its disk space."""
    try:
        yield
    except Exception:
        folder = folder_of(output_dir, step)
        if not (folder / MARKER).is_file():
            shutil.rmtree(folder, ignore_errors=True)
        raise


# ---- choosing the checkpoint to resume from


def latest_complete(output_dir: str | Path) -> Path | None:
    """The checkpoint with a marker of the highest step; its files are not read."""
    return max((folder for folder in checkpoints(output_dir) if (folder / MARKER).is_file()), key=step_of, default=None)


def latest_intact(output_dir: str | Path, *, quiet: bool = False) -> Path | None:
    """The undamaged checkpoint of the highest step; None if no checkpoint was completed.

    Prints a line for every damaged checkpoint that it skips. Raises UserError if all of them are damaged.
    """
    complete = sorted((folder for folder in checkpoints(output_dir) if (folder / MARKER).is_file()), key=step_of)
    first = None
    for folder in reversed(complete):
        found = damage(folder)
        if found is None:
            return folder
        first = first or f"{folder.name}: {found}"
        if not quiet:
            note(f"skipping {folder}: {found}")
    if first is not None:
        raise UserError(
            f"output_dir {str(output_dir)!r} has no undamaged checkpoint to resume from ({first}): restore its files, "
            "or start again with --overwrite"
        )
    return None


def check_intact(checkpoint: str | Path) -> None:
    """Raise UserError for a checkpoint whose files do not match its marker; one without a marker passes."""
    checkpoint = Path(checkpoint)
    if (checkpoint / MARKER).is_file() and (found := damage(checkpoint)) is not None:
        raise UserError(f"checkpoint {str(checkpoint)!r} is damaged: {found}")


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, its best checkpoint, or the run's records up to it; None if nothing is."""
    files = tuple(sorted((str(path), *_stamp(path)) for path in _everything(checkpoint)))
    return _damage(checkpoint, files)


@functools.lru_cache(maxsize=64)
def _damage(checkpoint: Path, files: tuple[Any, ...]) -> str | None:
    """Cached by ``files``, names with sizes and times, so that unchanged files are read once."""
    marker = _marker(checkpoint)
    if not isinstance(marker.get("files"), dict) or not isinstance(marker.get("records"), dict):
        return f"{MARKER} is damaged, or was written by another version"
    for name, entry in marker["files"].items():
        if not (checkpoint / name).is_file():
            return f"{name} is missing"
        if not intact(checkpoint / name, entry):
            return f"{name} was changed or cut short after it was written"
    for name, entry in marker["records"].items():
        if found := _lost(checkpoint.parent, name, entry, int(marker["step"])):
            return found
    best = _best(checkpoint)
    if best is not None and best != checkpoint:
        if not best.is_dir():
            return f"the best checkpoint so far, {best.name}, is missing"
        if found := damage(best):
            return f"the best checkpoint so far, {best.name}, is damaged: {found}"
    return None


def _lost(folder: Path, name: str, entry: Any, step: int) -> str | None:
    """What a record file has lost since the checkpoint was written, or None."""
    if name == PARTS:
        try:
            table = selection_table(folder)
        except UserError as error:
            return str(error)
        rows = 0 if table is None else sum(1 for one in table["step"].to_pylist() if one <= step)
        return None if rows == entry else f"the recorded masks hold {rows} of {entry} documents"
    try:
        whole = (folder / name).stat().st_size >= entry["bytes"]
        whole = whole and checksum(folder / name, entry["bytes"]) == entry["checksum"]
    except (OSError, KeyError, TypeError):
        whole = False
    return None if whole else f"{name} has lost records"


def _best(checkpoint: Path) -> Path | None:
    """The best checkpoint that a checkpoint's state names, in its current folder."""
    try:
        named = json.loads((checkpoint / STATE).read_text(encoding="utf-8")).get("best_model_checkpoint")
    except (OSError, ValueError, AttributeError):
        return None
    return checkpoint.parent / Path(named).name if isinstance(named, str) and named else None


def best_of(checkpoint: str | Path) -> str | None:
    """The best checkpoint up to ``checkpoint``, in its current run folder; None if there is none."""
    best = _best(Path(checkpoint))
    return str(best) if best is not None and best.is_dir() else None


def _everything(checkpoint: Path) -> list[Path]:
    """The files that ``damage`` depends on."""
    folder = checkpoint.parent
    found = [path for path in checkpoint.rglob("*") if path.is_file()]
    found += [path for path in folder.glob("*") if path.is_file()]
    found += list((folder / PARTS).glob("*"))
    best = _best(checkpoint)
    if best is not None and best != checkpoint:
        found += [path for path in best.rglob("*") if path.is_file()]
    return found


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


def _marker(checkpoint: Path) -> dict[str, Any]:
    try:
        marker = json.loads((checkpoint / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return marker if isinstance(marker, dict) and isinstance(marker.get("step"), int) else {}


# ---- the folders


def remove_unusable(output_dir: str | Path, keep: Path | None) -> None:
    """Delete checkpoints without a marker, those after ``keep``, from which the run goes on, and unfinished files."""
    for place in (Path(output_dir), Path(output_dir) / PARTS):
        for file in place.glob(f"*{UNFINISHED}"):
            file.unlink()
    for folder in checkpoints(output_dir):
        if not (folder / MARKER).is_file() or (keep is not None and step_of(folder) > step_of(keep)):
            shutil.rmtree(folder)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rsplit("-", 1)[1])


def checkpoints(output_dir: str | Path) -> list[Path]:
    """The checkpoint folders of a run, whole or not."""
    folder = Path(output_dir)
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if path.is_dir() and re.fullmatch(r"checkpoint-\d+", path.name)]
