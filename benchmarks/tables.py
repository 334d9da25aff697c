"""What measurements become: an aligned table, a CSV with versions and command, and a plot."""

from __future__ import annotations

import csv
import datetime
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


def plot(rows: list[dict], stem: Path, about: str) -> None:
    """Bars of time and peak memory, one pair of panels a group of rows that share all but contestant and figures."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    fixed = [key for key in ("shape", "T", "race", "accumulation", "samples") if key in rows[0]]
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in fixed), []).append(row)
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
        pair[0].set_title(
            "  ".join(f"{key} {value}" for key, value in zip(fixed, group, strict=True)), fontsize=9, loc="left"
        )
    figure.supxlabel(about, fontsize=7)
    for suffix in ("png", "svg"):
        figure.savefig(f"{stem}.{suffix}", dpi=130)
    plt.close(figure)
