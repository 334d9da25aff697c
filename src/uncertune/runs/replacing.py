"""Replace a run: the old one is moved aside, restored if the new one fails early, and deleted otherwise."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from uncertune.runs.checkpoints import latest_complete
from uncertune.runs.folder import RHO, STAGE_1, is_complete, left_by_a_run

ASIDE = ".previous"
_WHOLE = ".whole"
"""Marker in ``ASIDE`` while it has the whole old run and the run folder has nothing of it."""


@contextlib.contextmanager
def replacing(folder: Path, overwrite: bool) -> Iterator[None]:
    """With ``overwrite``, move the run in ``folder`` aside; restore it if the block fails.

    It is not restored once the new run has something to resume from; ``release`` deletes it.
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
    """Move the files of a run to ``ASIDE``; a folder without a run is unchanged.

    If ``ASIDE`` already has an older run, the files of the interrupted replacement are deleted instead.
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
    """Restore a run that was moved aside, unless its replacement has something to resume from."""
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
