"""What the operating system refuses: rights that bind root too, and few open files."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
from collections.abc import Iterator
from pathlib import Path

_VERSION = 0x20080522  # of capget(2) and capset(2): two words of 32 capabilities
_OVERRIDE = 0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, for which no folder is read-only


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Words(ctypes.Structure):
    _fields_ = [(f"{name}{word}", ctypes.c_uint32) for word in (0, 1) for name in ("effective", "permitted", "inherit")]


@contextlib.contextmanager
def rights_bind() -> Iterator[None]:
    """Within it the mode of files and folders binds this thread, also where it runs as root."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, words = _Header(_VERSION, 0), _Words()
    if libc.capget(ctypes.byref(header), ctypes.byref(words)) != 0:
        raise OSError(ctypes.get_errno(), "capget")
    before = words.effective0
    words.effective0 = before & ~_OVERRIDE
    libc.capset(ctypes.byref(header), ctypes.byref(words))
    try:
        yield
    finally:
        words.effective0 = before
        libc.capset(ctypes.byref(header), ctypes.byref(words))


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Within it nothing can be created, changed or deleted in the folder and those below."""
    paths = [folder, *folder.rglob("*")]
    modes = {path: path.stat().st_mode for path in paths}
    for path in reversed(paths):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        with rights_bind():
            yield
    finally:
        for path in paths:
            path.chmod(modes[path])


@contextlib.contextmanager
def few_files(more: int) -> Iterator[None]:
    """Within it only ``more`` files can be opened beside those that are open."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open("/dev/null", os.O_RDONLY)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
