"""Replace a run: the old one is moved aside, comes back if the new one fails early, and is deleted after that."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from uncertune.runs.checkpoints import latest_complete
from uncertune.runs.folder import RHO, STAGE_1, is_complete, left_by_a_run

ASIDE = ".previous"
_WHOLE = ".whole"
"""In ``ASIDE`` while all of the old run is there, and nothing of it in the run folder."""


@contextlib.contextmanager
def replacing(folder: Path, overwrite: bool) -> Iterator[None]:
    """With ``overwrite``, move the run in ``folder`` aside; when the block fails, put it back.

    It is not put back once the new run has something to resume from; ``release`` deletes it.
    """
    if overwrite:
        set_aside(folder)
    else:
        recover(folder)
    try:
        yield
    except BaseException:
        recover(folder)
        raise


def set_aside(folder: Path) -> None:
    """Move what a run left in its folder to ``ASIDE``; a folder without a run stays as it is.

    Where an older run is there already, what an interrupted replacement left is deleted instead.
    """
    aside = folder / ASIDE
    found = left_by_a_run(folder)
    if (aside / _WHOLE).is_file():
        for path in found:
            _delete(path)
        return
    if not found and not aside.is_dir():
        return
    aside.mkdir(exist_ok=True)
    for path in found:
        path.rename(aside / path.name)
    (aside / _WHOLE).touch()


def recover(folder: Path) -> None:
    """Put a run that was moved aside back, unless its replacement has something to resume from."""
    aside = folder / ASIDE
    if not aside.is_dir():
        return
    if (aside / _WHOLE).is_file():
        runs = (folder, folder / STAGE_1, *folder.glob(f"{STAGE_1}-*"), folder / RHO)
        if any(is_complete(one) or latest_complete(one) for one in runs):
            return
        for path in left_by_a_run(folder):
            _delete(path)
        (aside / _WHOLE).unlink()
    for path in list(aside.iterdir()):
        path.rename(folder / path.name)
    aside.rmdir()


def release(folder: Path) -> None:
    """Delete a run that was moved aside: its replacement no longer depends on it."""
    shutil.rmtree(folder / ASIDE, ignore_errors=True)


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
