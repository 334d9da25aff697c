"""What a command prints when it fails: one line, last and alone, and the traceback in a file."""

from __future__ import annotations

import errno
import os
import re
import sys
import tempfile
import traceback
from pathlib import Path

from uncertune.errors import UserError

PACKAGE = Path(__file__).parent.parent
_FIXES = {
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "close other programs, which have too many files open",
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space, or raise the quota",
    errno.EROFS: "choose a folder that can be written",
    errno.EACCES: "make the file or folder accessible",
}


def report_failure(error: Exception, command: str, debug: bool = False) -> int:
    """Print the failure on stderr; return the exit status, 2 for a user's mistake and 1 for an unexpected error.

    An error of the operating system with a file's name (no permission, no space, a name too long) is the user's to
    fix. ``debug`` prints the traceback above the line.
    """
    close_bars()
    sys.stdout.flush()
    if debug:
        traceback.print_exception(error)
    if isinstance(error, UserError):
        line, status = str(error), 2
    elif isinstance(error, OSError) and error.errno and (error.filename or error.strerror):
        where = f"{error.filename}: " if error.filename else ""
        line, status = f"{where}{error.strerror or error}", 2
    elif (fix := _fix_of_the_system(error)) is not None:
        line, status = f"{error}: {fix}", 2
    else:
        line, status = _unforeseen(error, command, debug), 1
    print(f"uncertune: error: {printable(line)}", file=sys.stderr, flush=True)
    return status


def _fix_of_the_system(error: Exception) -> str | None:
    """What to do where another library repeats, in an error of its own, what the operating system refused."""
    said = str(error)
    return next((fix for number, fix in _FIXES.items() if os.strerror(number) in said), None)


def _unforeseen(error: Exception, command: str, debug: bool) -> str:
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).is_relative_to(PACKAGE)]
    place = f" in {Path(own[-1].filename).relative_to(PACKAGE)} ({own[-1].name})" if own else ""
    line = f"`uncertune {command}` failed{place}: {type(error).__name__}: {error}"
    if debug:
        return line
    try:
        handle, name = tempfile.mkstemp(prefix="uncertune-traceback-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            traceback.print_exception(error, file=file)
    except OSError:
        return f"{line}; --debug shows the traceback"
    return f"{line}; the traceback is in {name}"


def printable(text: str) -> str:
    """Text on one line, with control characters and lone surrogates escaped."""
    line = re.sub(r"\s+", " ", text).strip()
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in line)


def close_bars() -> None:
    """Close every progress bar, so that the next output starts on a new line."""
    tqdm = sys.modules.get("tqdm.std")
    for bar in list(getattr(getattr(tqdm, "tqdm", None), "_instances", ())):
        bar.close()
