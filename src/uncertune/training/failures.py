"""What can go wrong while a run writes or computes, said in one line that names what is kept."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from uncertune.errors import NotFiniteError, UserError
from uncertune.runs.checkpoints import latest_complete

_MENDS = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space, or raise the quota",
    errno.EFBIG: "raise the limit on the size of files",
    errno.EROFS: "make the folder writable",
    errno.EACCES: "make the folder writable",
    errno.EPERM: "make the folder writable",
    errno.EIO: "check the disk and the space on it",
}


@contextlib.contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Within it, numbers that are none and a disk that takes no more raise a UserError of one line."""
    try:
        yield
    except NotFiniteError as error:
        raise NotFiniteError(
            f"{error}; {kept(folder)}: lower learning_rate or max_grad_norm, or mend the documents, and start anew "
            "(--overwrite)"
        ) from error
    except Exception as error:
        cause = disk_error(error)
        if cause is None:
            raise
        where = cause.filename or folder
        raise UserError(
            f"output_dir: {str(where)!r} cannot be written: {os.strerror(cause.errno or 0)}; {kept(folder)}: "
            f"{_MENDS[cause.errno or 0]} and give the same command again"
        ) from error


def kept(folder: Path) -> str:
    """What there is to go on from."""
    last = latest_complete(folder)
    return "no checkpoint was saved yet" if last is None else f"the last good checkpoint, {str(last)!r}, is kept"


def disk_error(error: BaseException) -> OSError | None:
    """The refusal of the disk behind an exception of another library, or None.

    torch and safetensors say in words alone what the system told them.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in _MENDS:
            return seen
        seen = seen.__cause__ or seen.__context__
    said = str(error)
    for number in _MENDS:
        if os.strerror(number) in said or f"os error {number}" in said:
            return OSError(number, os.strerror(number))
    if isinstance(error, RuntimeError) and "PytorchStreamWriter failed writing" in said:  # it does not say why
        return OSError(errno.EIO, os.strerror(errno.EIO))
    return None
