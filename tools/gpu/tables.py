"""What came back from a GPU as tables: ``python -m tools.gpu.tables gpu-results/results.zip``.

Several files, of commands that ran some of the stages each, become one page. Writes the tables of every stage to
``results/gpu``, the sweeps, their seeds joined, to ``results/gpu-NAME``, and the page ``docs/results/gpu.md`` from
both. Where no GPU was used, the page says so.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import tables
from tools.gpu import answers
from uncertune.sweep import table
from uncertune.sweep.page import write_sweep

SUMMARY = "summary.json"
PLAIN = (answers.CSV, answers.DIFFERENCES)
SWEEPS = ("evidence", "arms", "student", "student-pass")
"""Stages whose results are sweeps."""
ANSWERS = ("answers", "student-answers", "student-following")
"""Stages whose results are answers, a folder a data set."""


def page(folder: Path) -> str:
    """The page (Markdown) of ``results/gpu``, with the names of the sweeps beside it."""
    summary = json.loads((folder / SUMMARY).read_text())
    machine = ", ".join(f"{name} {value}" for name, value in summary["machine"].items() if name != "device")
    lines = ["# On a GPU", "", f"Made by `python -m tools.gpu{' --small' if summary['small'] else ''}` and", ""]
    lines += ["    python -m tools.gpu.tables gpu-results/results.zip", "", f"{machine}.", ""]
    if summary["small"]:
        lines += ["**No GPU was used: tiny sizes on a CPU, to try the commands. The numbers mean nothing.**", ""]
    lines += ["| Stage | Device | Outcome | Seconds | |", "|:--|:--|:--|--:|:--|"]
    for one in summary["stages"]:
        cells = [one["about"], one["device"], one["outcome"], f"{one['seconds']:.0f}", one["why"]]
        lines.append(f"| {' | '.join(cells)} |")
    for stage in summary["stages"]:
        lines += _stage(folder / stage["stage"], stage)
    return "\n".join([*lines, ""])


def _stage(folder: Path, stage: dict) -> list[str]:
    lines = ["", f"## {stage['about'][:1].upper()}{stage['about'][1:]}"]
    found = [path for path in sorted(folder.rglob("*.csv")) if path.name != table.CSV]
    if all(path.name in PLAIN for path in found):  # the table of a benchmark has its command
        lines += ["", *(f"    {command}" for command in stage["commands"])]
    for path in found:
        lines += ["", _plain(path) if path.name in PLAIN else tables.markdown(path)]
    if (launch := folder / "launch.json").is_file():
        lines += ["", "| Run | Losses of the steps | Largest difference |", "|:--|:--|--:|"]
        for name, one in json.loads(launch.read_text()).items():
            losses = ", ".join(f"{loss:.4f}" for loss in one["losses"]) or "failed"
            lines.append(f"| {name} | {losses} | {one['difference']:.1e} |")
    if stage["stage"] in SWEEPS:
        found = sorted(path.parent.name for path in folder.parent.parent.glob("gpu-*/sweep.json"))
        lines += ["", "Measured at each epoch: " + ", ".join(f"`results/{name}`" for name in found) + "."]
    return lines


def _plain(path: Path) -> str:
    """A CSV as a table, the folder it lies in above it."""
    rows = [line.split(",") for line in path.read_text().splitlines()]
    rows.insert(1, [":--", *["--:"] * (len(rows[0]) - 1)])
    name = path.parent.name + (", differences in points" if path.name == answers.DIFFERENCES else "")
    return "\n".join([f"{name}:", "", *("| " + " | ".join(row) + " |" for row in rows)])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.gpu.tables", description=__doc__.split("\n")[0])
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--docs", type=Path, default=Path("docs/results"))
    parser.add_argument("--data_dir", help="folder of the prompts' data; without it from $UNCERTUNE_DATA, or the hub")
    parser.add_argument("--keep", type=Path, default=Path("results"))
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        unpack(args.results, folder)
        for path in folder.glob("*/*"):
            if path.is_dir() and path.parent.name in ANSWERS and path.name not in answers.UNSCORED:
                answers.write(path, args.data_dir)
        for name, content in sweeps(folder).items():
            print(keep(content, args.keep / f"gpu-{name}"))
        keep_tables(folder, args.keep / "gpu")
    args.docs.mkdir(parents=True, exist_ok=True)
    (args.docs / "gpu.md").write_text(page(args.keep / "gpu"), encoding="utf-8")
    print(args.docs / "gpu.md")


def unpack(results: Sequence[Path], folder: Path) -> None:
    """Lay several results into one folder, the stages of their summaries one after the other."""
    stages: list[dict[str, Any]] = []
    for path in results:
        with zipfile.ZipFile(path) as archive:
            archive.extractall(folder)
        summary = json.loads((folder / SUMMARY).read_text())
        stages += [stage | {"device": summary["machine"]["device"]} for stage in summary["stages"]]
    (folder / SUMMARY).write_text(json.dumps(summary | {"stages": stages}))


def sweeps(folder: Path) -> dict[str, dict[str, Any]]:
    """The sweeps of a folder by name, the seeds (``NAME-s0``, ``NAME-s1``, …) and arms of several stages as one.

    Of a run that several stages have, MLE in every one, the first stage's counts.
    """
    out: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.rglob(table.JSON), key=lambda path: (_order(path.relative_to(folder)), path)):
        content, name = json.loads(path.read_text()), path.parent.name.rpartition("-s")[0]
        if name not in out:
            out[name] = content
            continue
        for what, key in (("arms", ("name",)), ("runs", ("arm", "seed"))):
            known = {tuple(one[part] for part in key) for one in out[name][what]}
            out[name][what] += [one for one in content[what] if tuple(one[part] for part in key) not in known]
    return out


def _order(path: Path) -> int:
    return SWEEPS.index(path.parts[0]) if path.parts[0] in SWEEPS else len(SWEEPS)


def keep_tables(folder: Path, out: Path) -> None:
    """Copy the summary, the tables of all stages but those of sweeps, and the figures of answers."""
    shutil.rmtree(out, ignore_errors=True)
    figures = folder.rglob(f"{answers.FIGURE}.png")
    for path in [folder / SUMMARY, *folder.glob("*/launch.json"), *folder.rglob("*.csv"), *figures]:
        if path.name != table.CSV:
            target = out / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


def keep(content: dict[str, Any], folder: Path) -> Path:
    """Write a sweep's runs, tables and figures, as ``results`` has them of every sweep; return the tables' page."""
    folder.mkdir(parents=True, exist_ok=True)
    table.write_files(content, folder)
    write_sweep(folder).unlink()
    for path in folder.glob("*.svg"):
        path.unlink()
    return folder / "sweep.md"


if __name__ == "__main__":
    main()
