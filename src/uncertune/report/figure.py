"""Figures for papers: matplotlib, panels side by side, PNG and SVG. The same numbers give the same bytes on any day."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from uncertune.report.run import write_whole

_RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "uncertune",
    "font.size": 9.0,
    "text.parse_math": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


@contextlib.contextmanager
def paper_figure(stem: Path, panels: int, size: tuple[float, float]) -> Iterator[tuple[Any, Any]]:
    """A figure with panels side by side, written as ``stem``.png and .svg at the end."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_RC)
        figure = Figure(figsize=size, layout="constrained")
        yield figure, figure.subplots(1, panels, squeeze=False)[0]
        for suffix, extra in (("png", {"dpi": 160}), ("svg", {"metadata": {"Date": None}})):
            file = io.BytesIO()
            figure.savefig(file, format=suffix, **extra)
            write_whole(stem.with_name(f"{stem.name}.{suffix}"), file.getvalue())
