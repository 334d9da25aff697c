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
        None, "where to write the page; several runs share one there", unit="DIR", unset="the folder itself"
    )


def call(given: ReportOptions) -> None:
    """Write the page of every folder."""
    from uncertune.runs.folder import check_writable

    folders = [Path(one).expanduser() for one in given.folders]
    several = bool(given.output_dir) and len(folders) > 1
    if several:
        folders = [_run(one) for one in folders]
    if given.output_dir:
        check_writable(Path(given.output_dir).expanduser())
    if several:
        from uncertune.training.page import write_runs_page

        print(f"page: {write_runs_page(folders, Path(str(given.output_dir)).expanduser())}")
        return
    for folder in given.folders:
        print(f"page: {redraw(Path(folder).expanduser(), Path(given.output_dir or folder).expanduser())}")


def _run(folder: Path) -> Path:
    """The folder, or UserError if it is not a run's."""
    from uncertune.runs.folder import read

    if read(folder) and (folder / "config.yaml").is_file():
        return folder
    raise UserError(f"folders: {str(folder)!r} is not a run's folder: with output_dir, several runs share one page")


def redraw(folder: Path, into: Path) -> Path:
    """Write the page of a folder ``into`` it or another; return its path. Raises UserError for any other folder."""
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
    "comparison comparison.html, .md and .json, for a training run report.html and tokens.html. "
    "Several runs with --output_dir share one page, runs.html.",
)
