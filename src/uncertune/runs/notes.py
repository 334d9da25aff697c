"""Notes to the user on stderr, beside results on stdout, the progress of long work, and the width of the terminal."""

from __future__ import annotations

import shutil
import sys
import textwrap
from time import monotonic
from typing import Any, Protocol

NO_BARS = ("TQDM_DISABLE", "HF_DATASETS_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_PROGRESS_BARS")
"""Environment variables that turn off the progress bars of tqdm, datasets and huggingface_hub."""

SHARED = False
"""True in a process that shares its stderr with others of the same command: it shows no progress."""

NOTE_SECONDS = 60.0
"""Seconds between two notes on progress, and before the first, where stderr is no terminal."""


def columns() -> int | None:
    """The width of the terminal that stderr writes to; None if it is no terminal."""
    return shutil.get_terminal_size((80, 24)).columns if sys.stderr.isatty() else None


def note(text: str) -> None:
    """Print a line to stderr; a terminal gets it broken between words, with the following lines indented."""
    if (width := columns()) is not None:
        text = textwrap.fill(text, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    print(text, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """``m:ss``, or ``h:mm:ss`` from one hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Progress(Protocol):
    """The part of a tqdm bar that ``progress`` returns everywhere; ``n`` counts what is done."""

    n: Any

    def update(self, n: int = 1) -> Any: ...

    def close(self) -> None: ...

    def __enter__(self) -> Progress: ...

    def __exit__(self, *error: Any) -> Any: ...


def progress(
    total: int, what: str, unit: str = "", *, initial: int = 0, leave: bool | None = None, disable: bool = False
) -> Progress:
    """The progress of ``what`` from ``initial`` to ``total``, counted in ``unit`` (a plural).

    On a terminal a bar of tqdm, which follows tqdm's environment variables where ``leave`` and ``disable`` say nothing.
    Elsewhere a note every ``NOTE_SECONDS``: ``hidden cache: 234,000 of 938,148 tokens, 1:48 left``. Nothing is shown
    with ``disable``, nor in a process that is ``SHARED``.
    """
    disable = disable or SHARED
    if not disable and columns() is None:
        return _Notes(total, what, unit, initial)
    from tqdm import tqdm  # it reads its environment variables when imported, and commands set them first

    asked = {"leave": leave, "disable": disable or None, "unit": f" {unit}" if unit else None}
    options: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    bar: Progress = tqdm(total=total, initial=initial, desc=what, dynamic_ncols=True, **options)
    return bar


class _Notes:
    """Progress as notes."""

    def __init__(self, total: int, what: str, unit: str, initial: int) -> None:
        self.n = self._initial = initial
        self._total, self._what, self._unit = total, what, unit
        self._start = self._last = monotonic()

    def update(self, n: int = 1) -> None:
        self.n += n
        now = monotonic()
        if now - self._last < NOTE_SECONDS or not self._initial < self.n < self._total:
            return
        self._last = now
        left = (now - self._start) / (self.n - self._initial) * (self._total - self.n)
        count = f"{self.n:,} of {self._total:,} {self._unit}".rstrip()
        note(f"{self._what}: {count}, {duration(left)} left")

    def close(self) -> None:
        """Nothing is open."""

    def __enter__(self) -> _Notes:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()
