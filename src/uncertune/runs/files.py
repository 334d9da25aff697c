"""Atomic writes of files and folders, and values in the form of YAML and JSON."""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import xxhash

UNFINISHED = ".unfinished"


def write_atomically(path: str | Path, content: str | bytes) -> None:
    """Write a file atomically; text as UTF-8."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """A temporary file next to ``path``; after the block it is flushed to disk and renamed into place.

    When the block or the renaming fails, the temporary file is deleted and an older ``path`` stays as it was. After a
    kill the temporary file stays; its name ends in ``UNFINISHED``, so that no reader uses it.
    """
    path = Path(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=UNFINISHED)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        to_disk(temporary)
        temporary.chmod(0o644)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """A temporary folder next to ``path``; after the block it is renamed into place.

    ``path`` may be an empty folder. When the block or the renaming fails, the temporary folder is deleted.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=".unfinished."))
    try:
        yield temporary
        temporary.chmod(0o755)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def to_disk(path: Path) -> None:
    """Flush a file or a folder to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_entry(path: Path) -> dict[str, Any]:
    """A file's size and checksum, as ``intact`` compares them."""
    return {"bytes": path.stat().st_size, "checksum": checksum(path)}


def intact(path: Path, entry: Mapping[str, Any]) -> bool:
    """Whether a file has the size and checksum that ``file_entry`` gave for it."""
    try:
        return path.stat().st_size == entry["bytes"] and checksum(path) == entry["checksum"]
    except (OSError, KeyError):
        return False


def checksum(path: Path, size: int | None = None) -> str:
    """XXH3 of a file or of its first ``size`` bytes, 32 hex digits: it detects accidental damage, not tampering."""
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size if size is None else size:
            with mmap.mmap(file.fileno(), size or 0, access=mmap.ACCESS_READ) as content:
                digest.update(content)
    return digest.hexdigest()


def plain(value: Any) -> Any:
    """A value for YAML and JSON: enumerations and other objects become text, sets become sorted lists."""
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in (sorted(value, key=str) if isinstance(value, set | frozenset) else value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(getattr(value, "value", value))
