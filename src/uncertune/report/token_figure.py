"""A text coloured token by token, as a figure for a paper: Fig. 2A, 7 and 8 as PNG, SVG or PDF."""

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from uncertune.report import tokens
from uncertune.report.run import write_whole
from uncertune.report.token_page import QUANTITIES, ScoredDocument

COLUMNS = 92
"""Characters a line."""

_CHARACTER, _LINE = 0.068, 0.19  # inches, of 8-point DejaVu Sans Mono
_HEAT = (0.925, 0.58, 0.0)  # as on the page
_DEEPEST = 0.74


def draw_tokens(path: str | os.PathLike[str], document: ScoredDocument, quantity: str, moment: int = 0) -> None:
    """Draw one moment of ``document`` by ``quantity``; selected tokens are underlined, prompts are grey."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    shown = document.moments[moment]
    scores = shown.values[quantity]
    scale = tokens.scale_of_scores(s for s in scores if s is not None)
    boxes, lines = _laid_out([tokens.visible(text) for text in document.text])
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "uncertune", "text.parse_math": False}):
        width, height = COLUMNS * _CHARACTER + 0.2, (lines + 2.2) * _LINE
        figure = Figure(figsize=(width, height))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_xlim(-1, COLUMNS + 1)
        axes.set_ylim(lines + 2, -0.2)
        axes.axis("off")
        for place, column, line, piece in boxes:
            level = -1 if scores[place] is None else scale.level(float(scores[place] or 0.0))
            _box(axes, column, line, len(piece), max(level, 0), shown.selected[place])
            ink = "black" if document.response[place] else "0.45"
            axes.text(column, line + 0.5, piece.replace("\n", ""), family="monospace", size=8, va="center", color=ink)
        _key(axes, lines + 1, scale, quantity)
        file = io.BytesIO()
        suffix = Path(path).suffix[1:].lower()
        extra: dict[str, Any] = {"dpi": 200} if suffix == "png" else {"metadata": {"Date": None}}
        if suffix == "pdf":
            extra = {"metadata": {"CreationDate": None}}
        figure.savefig(file, format=suffix, **extra)
    write_whole(path, file.getvalue())


def _laid_out(texts: Sequence[str]) -> tuple[list[tuple[int, int, int, str]], int]:
    """(token, column, line, text) of every piece: tokens wrap at the edge and at line ends; and the number of lines."""
    boxes: list[tuple[int, int, int, str]] = []
    column = line = 0
    for place, text in enumerate(texts):
        for part in text.expandtabs(4).splitlines(keepends=True):
            rest = part.rstrip("\n")
            while rest:
                if column >= COLUMNS:
                    column, line = 0, line + 1
                piece = rest[: COLUMNS - column]
                boxes.append((place, column, line, piece))
                column, rest = column + len(piece), rest[len(piece) :]
            if part.endswith("\n"):
                column, line = 0, line + 1
    return boxes, line + (column > 0)


def _box(axes: Any, column: int, line: int, length: int, level: int, selected: bool) -> None:
    from matplotlib.patches import Rectangle

    depth = _DEEPEST * level / (tokens.LEVELS - 1)
    axes.add_patch(Rectangle((column, line + 0.08), length, 0.84, facecolor=(*_HEAT, depth), edgecolor="none"))
    if selected:
        axes.add_patch(Rectangle((column, line + 0.88), length, 0.08, facecolor="black", edgecolor="none"))


def _key(axes: Any, line: int, scale: tokens.Scale, quantity: str) -> None:
    label = next((f"{one.label} ({one.unit})" for one in QUANTITIES if one.key == quantity), quantity)
    axes.text(0, line + 0.5, label, size=8, va="center")
    for level, tick in enumerate(scale.ticks):
        column = 24 + 7 * level
        _box(axes, column, line, 7, level, False)
        axes.text(column + 0.3, line + 0.5, tick, size=7, va="center")
