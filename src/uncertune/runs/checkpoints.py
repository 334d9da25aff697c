"""Checkpoints of a run: only complete ones count."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from uncertune.runs.files import to_disk, write_atomically

MARKER = "uncertune.json"


def folder_of(output_dir: str | Path, step: int) -> Path:
    """Where the checkpoint of ``step`` lies."""
    return Path(output_dir) / f"checkpoint-{step}"


def mark_complete(output_dir: str | Path, step: int) -> None:
    """Rename the last file of checkpoint ``step`` into place."""
    folder = folder_of(output_dir, step)
    for path in folder.rglob("*"):
        to_disk(path)
    write_atomically(folder / MARKER, json.dumps({"step": step}))
    to_disk(folder)


@contextlib.contextmanager
def nothing_half_written(output_dir: str | Path, step: int) -> Iterator[None]:
    """Delete checkpoint ``step`` where writing it fails, whose disk space the others may need."""
    try:
        yield
    except Exception:
        folder = folder_of(output_dir, step)
        if not (folder / MARKER).is_file():
            shutil.rmtree(folder, ignore_errors=True)
        raise


def latest_complete(output_dir: str | Path) -> Path | None:
    """The complete checkpoint of the highest step; unfinished ones do not count."""
    return max((folder for folder in checkpoints(output_dir) if (folder / MARKER).is_file()), key=step_of, default=None)


def remove_unfinished(output_dir: str | Path) -> None:
    """Delete checkpoints that a crash left without their last file."""
    for folder in checkpoints(output_dir):
        if not (folder / MARKER).is_file():
            shutil.rmtree(folder)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rsplit("-", 1)[1])


def checkpoints(output_dir: str | Path) -> list[Path]:
    """The checkpoint folders of a run, whole or not."""
    folder = Path(output_dir)
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if path.is_dir() and re.fullmatch(r"checkpoint-\d+", path.name)]
