"""Checkpoints that are complete or do not count, and files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MARKER = "uncertune.json"


def write_atomically(path: str | Path, text: str) -> None:
    """Write a text file under another name, flush it to the disk, and rename it into place."""
    path = Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def folder_of(output_dir: str | Path, step: int) -> Path:
    """Where the checkpoint of ``step`` lies."""
    return Path(output_dir) / f"checkpoint-{step}"


def mark_complete(output_dir: str | Path, step: int) -> None:
    """Rename the last file of checkpoint ``step`` into place."""
    folder = folder_of(output_dir, step)
    for path in folder.rglob("*"):
        _to_disk(path)
    write_atomically(folder / MARKER, json.dumps({"step": step}))
    _to_disk(folder)


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


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def student_adapter_only(model: Any) -> Iterator[None]:
    """While a model with several adapters is saved, only its active one is: the student's."""
    if len(getattr(model, "peft_config", {})) < 2:
        yield
        return
    chosen: Any = functools.partial(type(model).save_pretrained, model, selected_adapters=[model.active_adapter])
    model.__dict__["save_pretrained"] = chosen
    try:
        yield
    finally:
        del model.__dict__["save_pretrained"]
