"""What measurements become: an aligned table, a CSV with versions and command, and a plot.

``python -m benchmarks.tables CSV …`` prints the tables of ``docs/results/performance.md``.
"""

from __future__ import annotations

import csv
import datetime
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks import measure

COLOURS = {True: "#D55E00", False: "#0072B2"}  # ours, peers: apart for colour-blind readers too


def aligned(rows: Sequence[dict]) -> str:
    """A table for the terminal, and for Markdown as it is."""
    if not rows:
        return "nothing ran"
    header = list(rows[0])
    cells = [header, *([str(row[name]) for name in header] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def versions() -> str:
    """Of everything that took part."""
    found = []
    for package in ("torch", "transformers", "trl", "peft", "cut-cross-entropy", "liger-kernel", "triton"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def save(rows: list[dict], folder: str, name: str, command: str, device: str) -> None:
    """``NAME.csv``, ``NAME.png`` and ``NAME.svg``."""
    if not rows:
        print("nothing ran, nothing is written")
        return
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    about = {
        "device": measure.device_name(device),
        "versions": versions(),
        "date": datetime.date.today().isoformat(),
        "command": command,
    }
    with (path / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=[*rows[0], *about])
        writer.writeheader()
        writer.writerows(row | about for row in rows)
    plot(rows, path / name, f"{about['device']}\n{about['versions']}")
    print(f"Written: {path / name}.csv, .png, .svg")


FIXED = ("shape", "T", "race", "accumulation", "samples")
ABOUT = ("device", "versions", "date", "command")


def markdown(path: Path) -> str:
    """The tables of one CSV, one a group of rows that share all but contestant and figures, ours in bold; the command,
    machine, versions and date first."""
    rows = list(csv.DictReader(path.read_text().splitlines()))
    about = rows[0]
    parts = [f"    {about['command']}\n\n{about['device']}; {about['versions']}; {about['date']}."]
    names = [name for name in rows[0] if name not in (*FIXED, *ABOUT, "D", "V", "model")]
    for group, members in _groups(rows).items():
        title = ", ".join(f"{name} {value}" for name, value in group)
        lines = [f"| {title} | " + " | ".join(names[1:]) + " |", "|---|" + "--:|" * (len(names) - 1)]
        for row in members:
            ours = row["contestant"].startswith("uncertune")
            cells = [row[name] for name in names]
            lines.append("| " + " | ".join(f"**{cell}**" if ours and cell else cell for cell in cells) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _groups(rows: Sequence[dict]) -> dict[tuple[tuple[str, str], ...], list[dict]]:
    fixed = [key for key in FIXED if key in rows[0]]
    groups: dict[tuple[tuple[str, str], ...], list[dict]] = {}
    for row in rows:
        groups.setdefault(tuple((key, row[key]) for key in fixed), []).append(row)
    return groups


def plot(rows: list[dict], stem: Path, about: str) -> None:
    """Bars of time and peak memory, one pair of panels a group of rows that share all but contestant and figures."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    groups = _groups(rows)
    heights = [len(group) + 1.5 for group in groups.values()]
    figure, axes = plt.subplots(
        len(groups),
        2,
        figsize=(11, 0.34 * sum(heights) + 1),
        squeeze=False,
        height_ratios=heights,
        layout="constrained",
    )
    for pair, (group, members) in zip(axes, groups.items(), strict=True):
        names = [row["contestant"] for row in members]
        colours = [COLOURS[name.startswith("uncertune")] for name in names]
        for axis, key, unit in zip(pair, ("ms", "peak_MiB"), ("ms", "MiB, peak"), strict=True):
            values = [float(row[key]) for row in members]
            bars = axis.barh(names, values, color=colours)
            axis.bar_label(bars, [f"{value:,.0f}" for value in values], padding=3, fontsize=8)
            axis.invert_yaxis()
            axis.margins(x=0.15)
            axis.set_xlabel(unit, fontsize=8)
            axis.tick_params(labelsize=8)
            axis.spines[["top", "right"]].set_visible(False)
        pair[1].set_yticklabels([])
        pair[0].set_title("  ".join(f"{key} {value}" for key, value in group), fontsize=9, loc="left")
    figure.supxlabel(about, fontsize=7)
    for suffix in ("png", "svg"):
        figure.savefig(f"{stem}.{suffix}", dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    print("\n\n".join(markdown(Path(name)) for name in sys.argv[1:]))
