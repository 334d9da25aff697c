"""``uncertune study``: run one, write what it leaves, print what came out."""

from __future__ import annotations

import time
from pathlib import Path

from tqdm import tqdm

from uncertune.studies import mnist, polynomial, post_training, subset
from uncertune.studies.options import StudyOptions
from uncertune.studies.study import Runner, Study, write

STUDIES: dict[str, Runner] = {
    "polynomial": polynomial.run,
    "subset": subset.run,
    "mnist": mnist.run,
    "language": post_training.run,
}


class _Bar:
    """One progress bar for each part of a study."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None

    def __call__(self, what: str, done: int, total: int) -> None:
        if self._bar is None or self._bar.desc != f"{what}: ":
            self.close()
            self._bar = tqdm(total=total, desc=what, dynamic_ncols=True)
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def study(options: StudyOptions) -> Study:
    """Run the study of that name and write it to ``output_dir``."""
    bar = _Bar()
    start = time.monotonic()
    try:
        done = STUDIES[str(options.name)](options.count, options.seed, options.small, options.data, bar)
    finally:
        bar.close()
    folder = Path(str(options.output_dir))
    write(done, folder, options.command)
    for finding in done.findings:
        print(f"{finding.outcome:>9}  {finding.claim}: {finding.says}: {finding.effect}")
    print(f"page: {folder / 'report.html'} ({time.monotonic() - start:.0f} s)")
    return done
