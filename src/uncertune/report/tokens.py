"""Documents token by token: the text and the colour level of each token, without markup.

Token text is untrusted and may be part of a character: invisible characters, and those that would change how their
neighbours are displayed, are spelled out.
"""

import io
import math
import os
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from uncertune.report.page import Frame, Token, TokenDocument, Tokens
from uncertune.runs.files import write_atomically

LEVELS = 8  # the page's style sheet defines .s0 … .s7
_STEPS = (1, 2, 2.5, 5)
_COVERED = 0.97  # share of the scores that the scale covers
CHARACTERS = 92
"""Characters a line."""

_CHARACTER, _LINE = 0.068, 0.19  # inches, of 8-point DejaVu Sans Mono
_HEAT = (0.925, 0.58, 0.0)  # as on the page
_DEEPEST = 0.74
_JOINERS = "\u200c\u200d"  # needed inside emoji and Indic text


@dataclass(frozen=True)
class Quantity:
    """One quantity of tokens: its ``key`` in the moments' ``values``, and its name and unit for readers."""

    key: str
    label: str
    unit: str = "nats"
    meaning: str = ""
    """One sentence for readers who do not know the word."""


_MEANINGS = {
    "epistemic": "what the model does not know: how much its dropout samples disagree (mutual information)",
    "aleatoric": "ambiguity of the text itself: entropy that remains in each dropout sample",
    "total": "epistemic + aleatoric: entropy of the mean prediction of all dropout samples",
    "loss": "−log p of this token, given the text before it",
    "entropy": "how spread out the model's prediction is, whichever token follows",
}
QUANTITIES = tuple(Quantity(key, key, meaning=meaning) for key, meaning in _MEANINGS.items())


@dataclass(frozen=True)
class Moment:
    """The numbers of one document at one moment of training: ``values[key]`` and ``selected``, one per token.

    The value of a token that was not scored is None.

    Raises:
        ValueError: the lengths differ.
    """

    label: str
    values: Mapping[str, Sequence[float | None]]
    selected: Sequence[bool]

    def __post_init__(self) -> None:
        lengths = {len(self.selected), *(len(column) for column in self.values.values())}
        if len(lengths) > 1:
            raise ValueError(f"moment {self.label!r}: columns of different lengths {sorted(lengths)}")


@dataclass(frozen=True)
class ScoredDocument:
    """One document: its decoded tokens, which of them are response, and its moments in order.

    Raises:
        ValueError: a moment has another number of tokens.
    """

    title: str
    text: Sequence[str]
    response: Sequence[bool]
    moments: Sequence[Moment]

    def __post_init__(self) -> None:
        for moment in self.moments:
            if not len(self.text) == len(self.response) == len(moment.selected):
                raise ValueError(f"document {self.title!r}: {len(self.text)} tokens, moment {moment.label!r} differs")


@dataclass(frozen=True)
class TokenPage:
    """The content of the token page. Quantities that no token has are left out."""

    title: str
    lead: str
    documents: Sequence[ScoredDocument]
    quantities: Sequence[Quantity] = QUANTITIES


@dataclass(frozen=True)
class Scale:
    """A scale of ``LEVELS`` equal steps from ``low``; scores outside take the first or the last level."""

    low: float
    step: float

    def level(self, score: float) -> int:
        """The level of a score; −1 for NaN."""
        if math.isnan(score):
            return -1
        if math.isinf(score):
            return LEVELS - 1 if score > 0 else 0
        return min(max(math.floor((score - self.low) / self.step), 0), LEVELS - 1)

    @property
    def ticks(self) -> list[str]:
        """The lower edge of each level."""
        decimals = max(0, -math.floor(math.log10(self.step)) + (1 if _mantissa(self.step) == 2.5 else 0))
        return [f"{self.low + level * self.step:.{decimals}f}".replace("-", "−") for level in range(LEVELS)]


@dataclass(frozen=True)
class ShownToken:
    """One token, ready for the page: ``note`` is its tooltip."""

    text: str
    classes: str
    note: str


@dataclass(frozen=True)
class ShownFrame:
    """One moment: its name, a line of counts, its tokens."""

    label: str
    summary: str
    tokens: list[ShownToken]


@dataclass(frozen=True)
class ShownDocument:
    """One document; ``direction`` is ltr or rtl, by most of its letters."""

    title: str
    direction: str
    frames: list[ShownFrame]


def scale_of(tokens: Tokens) -> Scale:
    """A scale with round steps for the whole section, so that its moments and documents can be compared."""
    frames = (frame for document in tokens.documents for frame in document.frames)
    return scale_of_scores(
        token.score for frame in frames for token in frame.tokens if token.response and token.score is not None
    )


def scale_of_scores(values: Iterable[float]) -> Scale:
    """A scale with round steps that covers nearly all of the finite values."""
    scores = sorted(value for value in values if math.isfinite(value))
    if not scores:
        return Scale(0.0, 1.0)
    top = scores[math.ceil(_COVERED * len(scores)) - 1]
    low = min(0.0, scores[0])
    step = _round_up((top - low) / (LEVELS - 1))
    return Scale(math.floor(low / step) * step, step)


def shown(document: TokenDocument, tokens: Tokens, scale: Scale) -> ShownDocument:
    """A document as the page shows it."""
    frames = [
        ShownFrame(
            frame.label,
            _summary(frame, tokens),
            [ShownToken(visible(token.text), _classes(token, scale), _note(token, tokens)) for token in frame.tokens],
        )
        for frame in document.frames
    ]
    text = (token.text for frame in document.frames[:1] for token in frame.tokens)
    return ShownDocument(document.title, direction(chain.from_iterable(text)), frames)


def visible(text: str) -> str:
    """Text with line ends marked (↵ and a break) and every control or format character spelled out."""
    if not text:
        return "∅"
    return "".join(map(_visible_character, text.replace("\r\n", "\n")))


def direction(characters: Iterable[str]) -> str:
    """ltr or rtl, by the majority of characters with a direction: roles and tags around a Hebrew text are Latin."""
    kinds = Counter(map(unicodedata.bidirectional, characters))
    return "rtl" if kinds["R"] + kinds["AL"] > kinds["L"] else "ltr"


def _visible_character(character: str) -> str:
    if character == "\n":
        return "↵\n"
    if character == "\t" or character in _JOINERS:
        return character
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Cn", "Zl", "Zp"):
        return f"⟨U+{ord(character):04X}⟩"
    return character


def _classes(token: Token, scale: Scale) -> str:
    classes = [] if token.response else ["p"]
    if token.score is not None and scale.level(token.score) >= 0:
        classes.append(f"s{scale.level(token.score)}")
    if token.selected:
        classes.append("on")
    return " ".join(classes)


def _note(token: Token, tokens: Tokens) -> str:
    score = "not scored" if token.score is None else f"{_number(token.score)} {tokens.unit}".strip()
    if token.score is not None and tokens.measure == "loss" and math.isfinite(token.score):
        score += f", p = {_percent(math.exp(-token.score))}"
    return " · ".join([score, *(["selected"] if token.selected else []), *([] if token.response else ["prompt"])])


def _summary(frame: Frame, tokens: Tokens) -> str:
    response = [token for token in frame.tokens if token.response]
    chosen = sum(token.selected for token in response)
    share = f" ({100 * chosen / len(response):.0f}%)" if response else ""
    parts = [f"{chosen} of {len(response)} response tokens selected{share}"]
    scores = [token.score for token in response if token.score is not None and math.isfinite(token.score)]
    if scores:
        parts.append(f"mean {tokens.measure} {_number(math.fsum(scores) / len(scores))} {tokens.unit}".strip())
    return ", ".join(parts)


def _percent(share: float) -> str:
    """Two significant digits, four above 99 %, or a bound for what is nearly 0 or 1."""
    if share < 1e-4:
        return "<0.01%"
    if share > 0.9999:
        return ">99.99%"
    return f"{float(f'{100 * share:.{4 if share > 0.99 else 2}g}'):g}%"


def _number(score: float) -> str:
    """Two decimals, or three significant digits of a small number."""
    if math.isnan(score):
        return "NaN"
    if math.isinf(score):
        return "∞" if score > 0 else "−∞"
    text = f"{score:.2f}" if abs(score) >= 0.1 or score == 0 else f"{score:.2g}"
    return text.replace("-", "−")


def _mantissa(value: float) -> float:
    return round(value / 10 ** math.floor(math.log10(value)), 6)


def _round_up(value: float) -> float:
    """The smallest of 1, 2, 2.5 or 5 times a power of ten that is at least ``value``."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next((step * power for step in _STEPS if step * power >= value * (1 - 1e-9)), 10 * power)


# ---- as a figure


def draw_tokens(path: str | os.PathLike[str], document: ScoredDocument, quantity: str, moment: int = 0) -> None:
    """Draw one moment of ``document`` by ``quantity``; selected tokens are underlined, prompts are grey."""
    suffix = Path(path).suffix[1:].lower()
    extra: dict[str, Any] = {"dpi": 200} if suffix == "png" else {"metadata": {"Date": None}}
    if suffix == "pdf":
        extra = {"metadata": {"CreationDate": None}}
    write_atomically(Path(path), _drawn(document, quantity, moment, format=suffix, **extra))


def token_image(document: ScoredDocument, quantity: str, moment: int = 0) -> np.ndarray:
    """The same drawing as pixels (height, width, 3), uint8."""
    from matplotlib.image import imread

    pixels = imread(io.BytesIO(_drawn(document, quantity, moment, format="png", dpi=120)))
    return (pixels[..., :3] * 255).round().astype(np.uint8)


def _drawn(document: ScoredDocument, quantity: str, moment: int, **options: Any) -> bytes:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    shown = document.moments[moment]
    scores = shown.values[quantity]
    scale = scale_of_scores(s for s in scores if s is not None)
    boxes, lines = _laid_out([visible(text) for text in document.text])
    rc: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "uncertune", "text.parse_math": False}
    with mpl.rc_context(rc), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph .* missing from", UserWarning)  # a script that the font lacks
        width, height = CHARACTERS * _CHARACTER + 0.2, (lines + 2.2) * _LINE
        figure = Figure(figsize=(width, height))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_xlim(-1, CHARACTERS + 1)
        axes.set_ylim(lines + 2, -0.2)
        axes.axis("off")
        for place, column, line, piece in boxes:
            level = -1 if scores[place] is None else scale.level(float(scores[place] or 0.0))
            _box(axes, column, line, len(piece), max(level, 0), shown.selected[place])
            ink = "black" if document.response[place] else "0.45"
            axes.text(column, line + 0.5, piece.replace("\n", ""), family="monospace", size=8, va="center", color=ink)
        _key(axes, lines + 1, scale, quantity, shown.label)
        file = io.BytesIO()
        figure.savefig(file, **options)
    return file.getvalue()


def _laid_out(texts: Sequence[str]) -> tuple[list[tuple[int, int, int, str]], int]:
    """(token, column, line, text) of every piece: tokens wrap at the edge and at line ends; and the number of lines."""
    boxes: list[tuple[int, int, int, str]] = []
    column = line = 0
    for place, text in enumerate(texts):
        for part in text.expandtabs(4).splitlines(keepends=True):
            rest = part.rstrip("\n")
            while rest:
                if column >= CHARACTERS:
                    column, line = 0, line + 1
                piece = rest[: CHARACTERS - column]
                boxes.append((place, column, line, piece))
                column, rest = column + len(piece), rest[len(piece) :]
            if part.endswith("\n"):
                column, line = 0, line + 1
    return boxes, line + (column > 0)


def _box(axes: Any, column: int, line: int, length: int, level: int, selected: bool) -> None:
    from matplotlib.patches import Rectangle

    depth = _DEEPEST * level / (LEVELS - 1)
    axes.add_patch(Rectangle((column, line + 0.08), length, 0.84, facecolor=(*_HEAT, depth), edgecolor="none"))
    if selected:
        axes.add_patch(Rectangle((column, line + 0.88), length, 0.08, facecolor="black", edgecolor="none"))


def _key(axes: Any, line: int, scale: Scale, quantity: str, moment: str) -> None:
    label = next((f"{one.label} ({one.unit})" for one in QUANTITIES if one.key == quantity), quantity)
    label = f"{moment}: {label}" if moment else label
    axes.text(0, line + 0.5, label, size=8, va="center")
    for level, tick in enumerate(scale.ticks):
        column = 30 + 7 * level
        _box(axes, column, line, 7, level, False)
        axes.text(column + 0.3, line + 0.5, tick, size=7, va="center")
