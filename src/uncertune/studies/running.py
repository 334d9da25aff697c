"""Run a study by name, write its page, and print its findings."""

from __future__ import annotations

import os
import time
from pathlib import Path

from uncertune.errors import UserError
from uncertune.report.tables import shown
from uncertune.runs.notes import Progress, progress
from uncertune.studies import mnist, polynomial, subset
from uncertune.studies.language import study as language
from uncertune.studies.study import Runner, Study
from uncertune.studies.writing import PAGE, write

STUDIES: dict[str, Runner] = {
    "polynomial": polynomial.run,
    "subset": subset.run,
    "mnist": mnist.run,
    "language": language.run,
}


class _Bar:
    """The progress of each part of a study."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._what = ""

    def __call__(self, what: str, done: int, total: int) -> None:
        if self._bar is None or self._what != what:
            self.close()
            self._bar, self._what = progress(total, what), what
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def study(
    name: str,
    output_dir: Path,
    *,
    seeds: int,
    seed: int = 0,
    small: bool = False,
    source: str | None = None,
    command: str = "",
) -> Study:
    """Run the study ``name`` with ``seeds`` seeds from ``seed`` on, and write its page to ``output_dir``.

    ``source`` is where the digits of mnist come from, as ``digits.load`` takes it; ``command`` is quoted on the page.
    Raises UserError where ``output_dir`` cannot be written.
    """
    _check_writable(output_dir)
    bar = _Bar()
    start = time.monotonic()
    try:
        done = STUDIES[name](seeds, seed, small, source, bar)
    finally:
        bar.close()
    write(done, output_dir, command)
    for finding in done.answer.findings:
        print(f"{finding.outcome:>9}  {finding.claim}: {finding.says}: {shown(finding.effect)}")
    print(f"page: {output_dir / PAGE} ({time.monotonic() - start:.0f} s)")
    return done


def _check_writable(folder: Path) -> None:
    """Raise UserError before minutes of work if the folder cannot be written. Nothing is created."""
    there = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        what = "is not a folder" if not there.is_dir() else "cannot be written to"
        raise UserError(f"output_dir: {there} {what}: name another, for example --output_dir studies/NAME")
