"""Tensors of many documents on disk: checked when opened, written atomically, shared by concurrent runs.

A folder contains memory-mapped safetensors files (shards) and ``manifest.json``: the kind of numbers (``about``), the
models and tokenizers that they come from (``fingerprints``), and each file's size and checksum. A file counts once the
manifest names it.

Shape legend: ``N`` documents of a shard, ``T`` response tokens.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from uncertune.errors import UserError
from uncertune.runs.files import atomic_file, file_entry, intact, write_atomically

MANIFEST = "manifest.json"
FORMAT = 1
HEAD = "head.safetensors"


@dataclass(frozen=True)
class Place:
    """The place of a document's rows: the shard's columns, and the rows [start, end) in them."""

    columns: dict[str, Tensor]
    start: int
    end: int


class Shards:
    """A folder of shards. Opening it reads and checks the files, and writes nothing.

    ``about`` and ``fingerprints`` must equal those of an existing manifest; UserError names what differs. Files that
    are missing, cut short or changed are ``damaged``: their documents are not in the index, and ``begin`` removes them,
    so that they are written again.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any], fingerprints: Mapping[str, str]) -> None:
        self.folder = folder
        self.about = dict(about)
        self.fingerprints = dict(fingerprints)
        self.damaged: dict[str, Any] = {}
        self._index: dict[str, Place] = {}
        self._known: set[str] = set()
        self._files: dict[str, Any] = {}
        self.refresh(check=True)

    def __contains__(self, key: str) -> bool:
        return key in self._index

    def __len__(self) -> int:
        return len(self._index)

    # ---- reading

    def refresh(self, *, check: bool = False) -> None:
        """Add files that the manifest has gained; with ``check``, verify all their bytes."""
        manifest = _manifest(self.folder)
        if manifest is None:
            return
        self._same(manifest)
        self._files = manifest["files"]
        for name, entry in sorted(self._files.items()):
            if name in self._known or self.damaged.get(name) == entry:
                continue
            if (check and not intact(self.folder / name, entry)) or not self._take_in(name):
                self.damaged[name] = entry
                continue
            self._known.add(name)

    def has(self, name: str) -> bool:
        """Whether a file exists, is named by the manifest, and is not damaged."""
        return name in self._known

    def entry(self, name: str) -> dict[str, Any]:
        """The manifest's entry of a file."""
        return self._files[name]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """All tensors of one file, memory-mapped."""
        with safe_open(self.folder / name, framework="pt") as file:
            return {column: file.get_tensor(column) for column in file.keys()}  # noqa: SIM118

    def read(self, keys: Sequence[str]) -> dict[str, Tensor]:
        """The rows of these documents, one after the other: each column (T, …). KeyError for an unknown document."""
        places = [self._index[key] for key in keys]
        return {name: torch.cat([at.columns[name][at.start : at.end] for at in places]) for name in places[0].columns}

    def sample(self) -> dict[str, Tensor]:
        """The columns of any one shard. Raises StopIteration without shards."""
        return next(iter(self._index.values())).columns

    def _take_in(self, name: str) -> bool:
        """Add a file's documents to the index; False if it cannot be read."""
        try:
            columns = self.tensors(name)
        except (OSError, SafetensorError):
            return False
        if name == HEAD:
            return True
        keys, ends = columns.pop("keys").numpy().view(np.uint64), columns.pop("ends").tolist()
        for key, start, end in zip(keys.tolist(), [0, *ends], ends, strict=False):
            self._index.setdefault(f"{key:016x}", Place(columns, start, end))
        return True

    def _same(self, manifest: Mapping[str, Any]) -> None:
        there = {"format": manifest["format"], **manifest["about"], **manifest["fingerprints"]}
        here = {"format": FORMAT, **self.about, **self.fingerprints}
        names = [name for name in here if there.get(name) != here[name]]
        if names:
            shown = ", ".join(f"{name} ({there.get(name)} there, {here[name]} here)" for name in names)
            raise UserError(
                f"teacher_cache_dir: {str(self.folder)!r} was made with another {shown}: choose another "
                "teacher_cache_dir, or delete that folder"
            )

    # ---- writing

    def begin(self) -> None:
        """Create the folder and its manifest, and remove damaged files from it."""
        with _refusals(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._locked():
                manifest = _manifest(self.folder)
                if manifest is None:
                    manifest = {"format": FORMAT, "about": self.about, "fingerprints": self.fingerprints, "files": {}}
                self._same(manifest)
                for name, entry in self.damaged.items():
                    if manifest["files"].get(name) == entry and not intact(self.folder / name, entry):
                        del manifest["files"][name]
                        (self.folder / name).unlink(missing_ok=True)
                self.damaged = {}
                self._write_manifest(manifest)

    def write(self, keys: Sequence[str], counts: Sequence[int], columns: Mapping[str, Tensor]) -> None:
        """Add documents, whose rows follow one another in each column, ``counts`` rows each."""
        numbers = np.array([int(key, 16) for key in keys], dtype=np.uint64)
        ends = torch.tensor(counts, dtype=torch.int64).cumsum(0)
        if any(len(column) != int(ends[-1]) for column in columns.values()):
            raise ValueError(f"columns of {[len(c) for c in columns.values()]} rows for {int(ends[-1])} tokens")
        self.write_file(shard_name(keys), {**columns, "keys": torch.from_numpy(numbers.view(np.int64)), "ends": ends})

    def write_file(self, name: str, tensors: Mapping[str, Tensor], **about: Any) -> None:
        """Write a file atomically and add it to the manifest, with ``about``."""
        path = self.folder / name
        whole = {column: tensor.detach().cpu().contiguous() for column, tensor in tensors.items()}
        with _refusals(self.folder):
            with atomic_file(path) as temporary:
                save_file(whole, temporary)
            written = file_entry(path)
            entry = {**about, **written}
            with self._locked():
                manifest = _manifest(self.folder)
                assert manifest is not None, "begin() comes first"
                manifest["files"][name] = entry
                self._write_manifest(manifest)
            self._files = manifest["files"]
            if name not in self._known and self._take_in(name):
                self._known.add(name)

    @contextlib.contextmanager
    def claim(self, name: str) -> Iterator[bool]:
        """Whether this process alone may write that file; the claim ends with the process."""
        lock = FileLock(self.folder / f".{name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            if name in self._known:
                Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()

    def _locked(self) -> contextlib.AbstractContextManager[Any]:
        return FileLock(self.folder / ".lock")

    def _write_manifest(self, manifest: Mapping[str, Any]) -> None:
        text = json.dumps(manifest, indent=1)
        write_atomically(self.folder / MANIFEST, text)


def described(folder: Path) -> dict[str, Any]:
    """``about`` of a folder's manifest; empty without a manifest."""
    manifest = _manifest(folder)
    return {} if manifest is None else manifest["about"]


def shard_name(keys: Sequence[str]) -> str:
    """The name of the shard of these documents, in this order."""
    return f"shard-{xxhash.xxh3_64_hexdigest(''.join(keys).encode())}.safetensors"


@contextlib.contextmanager
def _refusals(folder: Path) -> Iterator[None]:
    """Raise a UserError if the disk cannot be written."""
    try:
        yield
    except (OSError, SafetensorError, NotImplementedError) as error:  # the last: a file system without locks
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"teacher_cache_dir: {str(folder)!r} cannot be written ({reason}): choose another") from error


def _manifest(folder: Path) -> dict[str, Any] | None:
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError):
        manifest = {}
    if not isinstance(manifest, dict) or not {"format", "about", "fingerprints", "files"} <= set(manifest):
        raise UserError(f"teacher_cache_dir: {str(path)!r} is not the manifest of a cache: delete its folder")
    return manifest
