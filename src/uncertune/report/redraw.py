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


def parser() -> argparse.ArgumentParser:
    """The parser of ``uncertune report``."""
    return options.parser(
        ReportOptions,
        "uncertune report",
        "Make the pages of folders anew from what they hold: of a sweep sweep.html, sweep.md and the figures, of a "
        "comparison comparison.html, .md and .json, of a training run report.html and tokens.html.",
        {"folders": "folders of sweeps, comparisons and training runs"},
        positional="folders",
    )


def parse(arguments: list[str]) -> ReportOptions:
    """Options from flags. Raises UserError where no folder is given."""
    out = options.parse(ReportOptions, parser(), arguments)
    if not out.folders:
        raise UserError(
            "folders is missing: give the folder of a sweep, a comparison or a run, for example sweeps/mine"
        )
    return out


def redraw(folder: Path) -> Path:
    """Write the page of a folder; return its path. Raises UserError where the folder holds none of the three."""
    if (folder / "sweep.json").is_file():
        from uncertune.report.sweep import write_sweep

        return write_sweep(folder)
    if (folder / "comparison.json").is_file():
        from uncertune.report.comparison import rewrite_comparison

        return rewrite_comparison(folder)

    from uncertune.report.training import write_run_page
    from uncertune.training.folder import read

    if read(folder) and (folder / "config.yaml").is_file():
        return write_run_page(folder)
    raise UserError(
        f"folders: {str(folder)!r} holds no sweep (sweep.json), no comparison (comparison.json) and no run (run.json): "
        "name another"
    )
