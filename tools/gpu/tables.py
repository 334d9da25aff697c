"""What came back from a GPU as tables: ``python -m tools.gpu.tables gpu-results/results.zip``.

Writes ``docs/results/gpu.md``, and sweeps, their seeds joined, to ``results/gpu-NAME``. Where no GPU was used, the page
says so.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import tables
from tools.gpu import answers
from uncertune.sweep import table
from uncertune.sweep.page import write_sweep


def page(folder: Path) -> str:
    """The page (Markdown) of the results of a run of ``python -m tools.gpu``."""
    summary = json.loads((folder / "summary.json").read_text())
    machine = ", ".join(f"{name} {value}" for name, value in summary["machine"].items())
    lines = ["# On a GPU", "", f"Made by `python -m tools.gpu{' --small' if summary['small'] else ''}` and", ""]
    lines += ["    python -m tools.gpu.tables results.zip", "", f"{machine}.", ""]
    if summary["small"]:
        lines += ["**No GPU was used: tiny sizes on a CPU, to try the commands. The numbers mean nothing.**", ""]
    lines += ["| Stage | Outcome | Seconds | |", "|:--|:--|--:|:--|"]
    lines += [
        f"| {one['about']} | {one['outcome']} | {one['seconds']:.0f} | {one['why']} |" for one in summary["stages"]
    ]
    for stage in summary["stages"]:
        lines += _stage(folder / stage["stage"], stage)
    return "\n".join([*lines, ""])


def _stage(folder: Path, stage: dict) -> list[str]:
    lines = ["", f"## {stage['about'][:1].upper()}{stage['about'][1:]}", ""]
    lines += [f"    {command}" for command in stage["commands"]]
    for path in sorted(folder.rglob("*.csv")):
        if path.name != table.CSV:
            lines += ["", _plain(path) if path.name == answers.CSV else tables.markdown(path)]
    if (launch := folder / "launch.json").is_file():
        lines += ["", "| Run | Losses of the steps | Largest difference |", "|:--|:--|--:|"]
        for name, one in json.loads(launch.read_text()).items():
            losses = ", ".join(f"{loss:.4f}" for loss in one["losses"]) or "failed"
            lines.append(f"| {name} | {losses} | {one['difference']:.1e} |")
    for name in sweeps(folder):
        lines += ["", f"### {name}", "", f"`results/gpu-{name}`"]
    return lines


def _plain(path: Path) -> str:
    """A CSV as a table, the folder it lies in above it."""
    rows = [line.split(",") for line in path.read_text().splitlines()]
    rows.insert(1, [":--", *["--:"] * (len(rows[0]) - 1)])
    return "\n".join([f"{path.parent.name}:", "", *("| " + " | ".join(row) + " |" for row in rows)])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.gpu.tables", description=__doc__.split("\n")[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--docs", type=Path, default=Path("docs/results"))
    parser.add_argument("--data_dir", help="folder of the prompts' data; without it from $UNCERTUNE_DATA, or the hub")
    parser.add_argument("--keep", type=Path, default=Path("results"))
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        with zipfile.ZipFile(args.results) as archive:
            archive.extractall(folder)
        for place in (one for one in folder.glob("answers/*") if one.is_dir()):
            answers.write(place, args.data_dir)
        args.docs.mkdir(parents=True, exist_ok=True)
        (args.docs / "gpu.md").write_text(page(folder), encoding="utf-8")
        print(args.docs / "gpu.md")
        for name, content in sweeps(folder).items():
            print(keep(content, args.keep / f"gpu-{name}"))


def sweeps(folder: Path) -> dict[str, dict[str, Any]]:
    """The sweeps of a folder, those of one name and several seeds (``NAME-s0``, ``NAME-s1``, …) as one."""
    out: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.rglob(table.JSON)):
        content, name = json.loads(path.read_text()), path.parent.name.rpartition("-s")[0]
        if name in out:
            out[name]["runs"] += content["runs"]
        else:
            out[name] = content
    return out


def keep(content: dict[str, Any], folder: Path) -> Path:
    """Write a sweep's table, and its page and figures; return the page."""
    folder.mkdir(parents=True, exist_ok=True)
    table.write_files(content, folder)
    return write_sweep(folder)


if __name__ == "__main__":
    main()
