"""``uncertune report``: the pages of sweeps, comparisons and runs, made anew from what their folders hold."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from uncertune import options
from uncertune.errors import UserError


@dataclass(frozen=True)
class ReportOptions:
    """What ``uncertune report`` can be told."""

    folders: tuple[str, ...] = ()
    output_dir: str | None = None


def parser() -> argparse.ArgumentParser:
    """The parser of ``uncertune report``."""
    return options.parser(
        ReportOptions,
        "uncertune report",
        "Make the pages of folders anew from what they hold: of a sweep sweep.html, sweep.md and the figures, of a "
        "comparison comparison.html, .md and .json, of a training run report.html and tokens.html.",
        {
            "folders": "folders of sweeps, comparisons and training runs",
            "output_dir": "where to write the page of one folder; into the folder itself",
        },
        positional="folders",
    )


def parse(arguments: list[str]) -> ReportOptions:
    """Options from flags. Raises UserError where no folder is given."""
    out = options.parse(ReportOptions, parser(), arguments)
    if not out.folders:
        raise UserError(
            "folders is missing: give the folder of a sweep, a comparison or a run, for example sweeps/mine"
        )
    if out.output_dir and len(out.folders) > 1:
        raise UserError(f"output_dir {out.output_dir!r} is for one folder, got {len(out.folders)}: leave it out")
    return out


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
