"""What came back from a GPU as tables: ``python -m tools.gpu.tables gpu-results/results.zip``.

Writes ``docs/results/gpu.md`` and copies sweeps to ``results/gpu-DATA``. Where no GPU was used, the page says so.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import tables

KEPT = ("sweep.json", "sweep.csv", "sweep.md")


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
        if path.name not in KEPT:
            lines += ["", tables.markdown(path)]
    if (launch := folder / "launch.json").is_file():
        lines += ["", "| Run | Losses of the steps | Largest difference |", "|:--|:--|--:|"]
        for name, one in json.loads(launch.read_text()).items():
            losses = ", ".join(f"{loss:.4f}" for loss in one["losses"]) or "failed"
            lines.append(f"| {name} | {losses} | {one['difference']:.1e} |")
    for path in sorted(folder.rglob("sweep.md")):
        lines += ["", f"### {path.parent.name}", "", f"`results/gpu-{path.parent.name}`"]
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.gpu.tables", description=__doc__.split("\n")[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--docs", type=Path, default=Path("docs/results"))
    parser.add_argument("--keep", type=Path, default=Path("results"))
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        with zipfile.ZipFile(args.results) as archive:
            archive.extractall(folder)
        args.docs.mkdir(parents=True, exist_ok=True)
        (args.docs / "gpu.md").write_text(page(folder), encoding="utf-8")
        print(args.docs / "gpu.md")
        for sweep in sorted(folder.rglob("sweep.json")):
            target = args.keep / f"gpu-{sweep.parent.name}"
            target.mkdir(parents=True, exist_ok=True)
            for name in KEPT:
                if (sweep.parent / name).is_file():
                    (target / name).write_bytes((sweep.parent / name).read_bytes())
            print(target)


if __name__ == "__main__":
    main()
