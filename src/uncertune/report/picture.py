"""One text's tokens as a picture, for trackers: coloured by loss, the selected ones underlined."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

_CHARACTERS = 100
"""Characters of a line."""
_LINES = 8
"""Lines of a text that are shown."""
_MARKS = {"\n": "⏎", "\t": "→", "\r": "⏎"}


def selection_picture(title: str, moments: Sequence[tuple[str, dict[str, Any]]]) -> np.ndarray:
    """A picture (height, width, 3), uint8, of the same text at several moments of training.

    ``moments`` are names and documents as a line of ``probe.jsonl`` holds them: ``text``, ``loss``, ``selected`` and
    ``response``, one entry per token.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    placed = [_placed(document) for _, document in moments]
    rows = max((row for one in placed for row, *_ in one), default=0) + 1
    figure = Figure(figsize=(10, 0.5 + len(moments) * (0.26 * rows + 0.4)), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10)
    most = max((loss for one in placed for *_, loss, _ in one), default=0.0) or 1.0
    for axes, (name, _), tokens in zip(
        figure.subplots(len(moments), squeeze=False)[:, 0], moments, placed, strict=True
    ):
        axes.set(xlim=(0, _CHARACTERS), ylim=(rows, 0))
        axes.set_axis_off()
        axes.set_title(name, loc="left", fontsize=9)
        for row, column, text, loss, selected in tokens:
            axes.fill_between(
                [column, column + len(text)], row, row + 0.8, color="#c64f00", alpha=0.7 * loss / most, linewidth=0
            )
            axes.text(column, row + 0.58, text, family="monospace", fontsize=11.5, parse_math=False)
            if selected:
                axes.plot([column, column + len(text)], [row + 0.85] * 2, color="#0068a8", linewidth=2)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph .* missing from", UserWarning)
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _placed(document: dict[str, Any]) -> list[tuple[int, int, str, float, bool]]:
    """Row, column, text, loss and mark of the response tokens that are shown."""
    out: list[tuple[int, int, str, float, bool]] = []
    row = column = 0
    columns = (document[name] for name in ("text", "loss", "selected", "response"))
    for text, loss, selected, response in zip(*columns, strict=True):
        if not response:
            continue
        shown = "".join(_MARKS.get(one, one if one.isprintable() else "·") for one in text)[:_CHARACTERS] or "·"
        if column + len(shown) > _CHARACTERS:
            row, column = row + 1, 0
        if row == _LINES:
            break
        out.append((row, column, shown, max(float(loss or 0.0), 0.0), bool(selected)))
        column += len(shown)
    return out
