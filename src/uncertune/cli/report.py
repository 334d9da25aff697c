"""``uncertune report``: options, and the call."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from uncertune.cli.options import Command
from uncertune.errors import UserError
from uncertune.settings import option


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Options of ``uncertune report``."""

    folders: tuple[str, ...] = option(
        help="folders of sweeps, comparisons and training runs", positional=True, example="sweeps/mine"
    )
    output_dir: str | None = option(
        None, "where to write the page of one folder", unit="DIR", unset="the folder itself"
    )


def check(given: ReportOptions) -> None:
    """Raise UserError for several folders with one output folder."""
    if given.output_dir and len(given.folders) > 1:
        raise UserError(f"output_dir {given.output_dir!r} is for one folder, got {len(given.folders)}: leave it out")


def call(given: ReportOptions) -> None:
    """Write the page of every folder."""
    for folder in given.folders:
        print(f"page: {redraw(Path(folder).expanduser(), Path(given.output_dir or folder).expanduser())}")


def redraw(folder: Path, into: Path) -> Path:
    """Write the page of a folder ``into`` it or another; return its path. Raises UserError where it has none."""
    if (folder / "sweep.json").is_file():
        from uncertune.sweep.page import write_sweep

        return write_sweep(folder, into)
    if (folder / "comparison.json").is_file():
        from uncertune.comparison.page import rewrite_comparison

        return rewrite_comparison(folder, into)

    from uncertune.runs.folder import read
    from uncertune.training.page import write_run_page

    if read(folder) and (folder / "config.yaml").is_file():
        into.mkdir(parents=True, exist_ok=True)
        return write_run_page(folder, into)
    raise UserError(
        f"folders: {str(folder)!r} holds no sweep (sweep.json), no comparison (comparison.json) and no run (run.json): "
        "name another"
    )


COMMAND = Command(
    "report",
    "write the pages of sweeps, comparisons and runs again",
    ReportOptions,
    call,
    "Write the pages of folders again from the files in them: for a sweep sweep.html, sweep.md and the figures, for a "
    "comparison comparison.html, .md and .json, for a training run report.html and tokens.html.",
    check,
)
