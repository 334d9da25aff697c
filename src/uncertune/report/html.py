"""A page as one HTML file without network requests.

The file contains its style, script and drawings. Its content security policy admits only this style and this script,
by their hashes; all other text is escaped by Jinja.
"""

import base64
import hashlib
import json
import math
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass
from itertools import chain, groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from uncertune.report import tables, tokens
from uncertune.report.drawing import COLOURS, LineStyle, last_value, line_styles
from uncertune.report.page import Answers, Bars, Column, Curves, Facts, Page, Points, Section, Table, Tokens, Trails
from uncertune.report.svg import svg
from uncertune.report.tables import format_estimate, signed_percent
from uncertune.report.tokens import Quantity, ScoredDocument, TokenPage
from uncertune.runs.files import write_atomically

_TEMPLATES = Path(__file__).parent / "templates"
# Characters that HTML does not allow in text (controls, lone surrogates, noncharacters), and those that would reverse
# the rest of a sentence (bidirectional overrides and isolates).
_NOT_TEXT = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]"
)
LEAF = 10  # rows of answers on a page
_LONGEST = 4  # an interval longer than this many times the longest bar is clipped
_CONTENTS_FROM = 4  # a page with this many sections or more has a table of contents


def write_page(path: str | os.PathLike[str], page: Page) -> None:
    """Write ``page`` to ``path`` as one self-contained HTML file. The same page gives the same bytes.

    The file is written atomically: an older one stays until the new one is complete. Missing folders are created.
    """
    write_whole(path, render(page).encode())


def write_whole(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file atomically; missing folders are created."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)


def render(page: Page) -> str:
    """The text of that file."""
    templates = page_templates()
    moments = [len(document.frames) for s in page.sections if isinstance(s, Tokens) for document in s.documents]
    style = templates.get_template("page.css").render(
        colours=COLOURS, moments=max(moments, default=0), levels=tokens.LEVELS
    )
    blocks = list(_blocks(page))
    paged = any(len(view.get("leaves", ())) > 1 for block in blocks for view in block)
    script = templates.get_template("page.js").render() if any(moments) or paged or page.command else ""
    return templates.get_template("page.html").render(
        page=page,
        blocks=blocks,
        contents=[view for block in blocks for view in block] if len(page.sections) >= _CONTENTS_FROM else [],
        style=Markup(style),  # safe, since both files are ours: page.css …
        script=Markup(script),  # … and page.js
        policy=policy(style, script),
    )


def page_templates() -> Environment:
    """The templates' environment, which escapes all output."""
    return Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_clean,
    )


def policy(style: str, script: str) -> str:
    """A content security policy that admits this style and script by their hashes, and nothing else."""
    rules = ["default-src 'none'", f"style-src '{_hash(style)}'", "img-src data:", "base-uri 'none'"]
    return "; ".join([*rules, "form-action 'none'", *([f"script-src '{_hash(script)}'"] if script else [])])


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _clean(value: object) -> object:
    """Text without characters that HTML forbids; applied to all output of the templates before escaping."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return _NOT_TEXT.sub("\ufffd", value)
    return value


def _blocks(page: Page) -> Iterator[list[Mapping[str, Any]]]:
    """The sections' views, with adjacent plots grouped."""
    styles = line_styles(page.sections)
    names: set[str] = set()
    views = [_view(section, _name(section.title, index, names), styles) for index, section in enumerate(page.sections)]
    for is_figure, block in groupby(views, key=lambda view: view["figure"]):
        if is_figure:
            yield list(block)
        else:
            yield from ([view] for view in block)


def _view(section: Section, name: str, styles: Mapping[str, LineStyle]) -> Mapping[str, Any]:
    """The variables of a section's template."""
    view: dict[str, Any] = {"kind": type(section).__name__.lower(), "name": name, "section": section}
    view["figure"] = isinstance(section, Curves | Points | Trails)
    match section:
        case Facts():
            pass
        case Table():
            view |= {
                "rows": tables.cells(section),
                "label_heading": tables.label_heading(section),
                "directions": [tables.direction(column) for column in section.columns],
                "legend": tables.legend(section),
            }
        case Curves():
            view["svg"] = svg(section, styles, name + "-")
            view["window"] = max((one.window for one in section.series), default=0)
            view["lines"] = [(one.name, styles[one.name], last_value(one, section.percent)) for one in section.series]
        case Points():
            view["svg"] = svg(section, styles, name + "-")
            view["named"] = [(point, styles[point.name]) for point in section.points]
        case Trails():
            view["svg"] = svg(section, styles, name + "-")
            view["named"] = [(trail, styles[trail.name]) for trail in section.trails]
        case Bars():
            view["drawing"] = bar_drawing(section, styles)
        case Tokens():
            scale = tokens.scale_of(section)
            view["ticks"] = scale.ticks
            view["documents"] = [tokens.shown(document, section, scale) for document in section.documents]
        case Answers():
            view["tally"] = [(answerer, *_tally(section, answerer)) for answerer in section.names]
            starts = range(0, max(len(section.rows), 1), LEAF)
            view["leaves"] = [{"first": 1 + at, "rows": section.rows[at : at + LEAF]} for at in starts]
    return view


def _tally(answers: Answers, name: str) -> tuple[int, int]:
    """The number of right and of checked answers of ``name``."""
    marks = [row.correct[name] for row in answers.rows if row.correct is not None and name in row.correct]
    return sum(marks), len(marks)


def _name(title: str, index: int, taken: set[str]) -> str:
    """An id for a section: its title in lower case, or its number if that is empty or taken."""
    plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower()
    name = re.sub("[^a-z0-9]+", "-", plain).strip("-")[:40].rstrip("-")
    if not name:
        name = f"section-{index + 1}"
    while name in taken:
        name += f"-{index + 1}"
    taken.add(name)
    return name


# ---- bars


@dataclass(frozen=True)
class BarRow:
    """One bar: its ``left`` and ``width``, ``low`` and ``high`` of its interval (None: unknown or clipped)."""

    name: str
    style: LineStyle
    left: float
    width: float
    line: tuple[float, float] | None
    caps: tuple[float, ...]
    text: str
    note: str


@dataclass(frozen=True)
class BarDrawing:
    """Groups of rows on one axis; ``ticks`` are places and labels."""

    groups: tuple[tuple[str, tuple[BarRow, ...]], ...]
    zero: float
    ticks: tuple[tuple[float, str], ...]


def bar_drawing(bars: Bars, styles: Mapping[str, LineStyle]) -> BarDrawing:
    """The layout of the bars. ``styles`` are from :func:`uncertune.report.drawing.line_styles`."""
    low, high = _range(bars)
    signed = low < 0
    column = Column("", "", None, 1 if bars.percent else 3, bars.percent, signed)

    def place(value: float) -> float:
        return round(100 * (min(max(value, low), high) - low) / (high - low), 2)

    def row_of(name: str, value: float, ends: tuple[float, float], text: str, note: str) -> BarRow:
        known = all(math.isfinite(end) for end in ends)
        left, right = sorted((place(0.0), place(value if math.isfinite(value) else 0.0)))
        caps = tuple(place(end) for end in ends if known and low <= end <= high)
        line = (place(ends[0]), place(ends[1])) if known else None
        return BarRow(name, styles[name], left, round(right - left, 2), line, caps, text, note)

    groups = tuple(
        (
            heading,
            tuple(
                row_of(
                    bar.name,
                    bar.value.value,
                    (bar.value.low, bar.value.high),
                    " ".join(astuple(format_estimate(bar.value, column))),
                    bar.note,
                )
                for bar in group
            ),
        )
        for heading, group in bars.groups
    )
    ticks = tuple((place(tick), _tick(tick, signed, bars.percent)) for tick in _ticks(low, high))
    return BarDrawing(groups, place(0.0), ticks)


def _range(bars: Bars) -> tuple[float, float]:
    """The range of the axis: all drawn values and zero, with a margin."""
    every = [bar.value for _, group in bars.groups for bar in group]
    values = [one.value for one in every if math.isfinite(one.value)]
    ends = [end for one in every for end in (one.low, one.high) if math.isfinite(end)]
    longest = max((abs(value) for value in values), default=0.0) or max((abs(end) for end in ends), default=1.0) or 1.0
    edge = _LONGEST * longest
    low = min([0.0, *(max(end, -edge) for end in [*values, *ends])])
    high = max([bars.end, *(min(end, edge) for end in [*values, *ends])])
    room = 0.04 * (high - low) or 1.0
    return low - room if low < 0 else low, high + room if high > 0 else 0.0 if low < 0 else 1.0


def _ticks(low: float, high: float) -> list[float]:
    from matplotlib.ticker import MaxNLocator

    return [float(tick) for tick in MaxNLocator(4).tick_values(low, high) if low <= tick <= high]


def _tick(value: float, signed: bool, percent: bool) -> str:
    if signed and percent:
        return signed_percent(value)
    return f"{100 * value:.3g}%" if percent else f"{value:.3g}".replace("-", "−")


# ---- the token page


def write_token_page(path: str | os.PathLike[str], page: TokenPage) -> None:
    """Write ``page`` atomically as one self-contained HTML file."""
    write_whole(Path(path), render_token_page(page).encode())


def render_token_page(page: TokenPage) -> str:
    """The text of that file. The same page gives the same text."""
    templates = page_templates()
    style = templates.get_template("page.css").render(colours=COLOURS, moments=0, levels=tokens.LEVELS)
    style += templates.get_template("token_page.css").render()
    script = templates.get_template("token_page.js").render()
    return templates.get_template("token_page.html").render(
        page=page,
        style=Markup(style),  # our own files …
        script=Markup(script),
        data=Markup(_json(payload(page))),  # … and JSON without a single "<"
        policy=policy(style, script),
    )


def payload(page: TokenPage) -> dict[str, Any]:
    """The data of the script: scales of the quantities over the whole page, and the documents."""
    return {
        "levels": tokens.LEVELS,
        "quantities": [_quantity(one, page) for one in page.quantities if _has(page, one.key)],
        "documents": [_document(document) for document in page.documents],
    }


def _has(page: TokenPage, key: str) -> bool:
    return any(value is not None for value in _scores(page, key))


def _scores(page: TokenPage, key: str) -> Iterable[float | None]:
    return chain.from_iterable(m.values.get(key, ()) for document in page.documents for m in document.moments)


def _quantity(quantity: Quantity, page: TokenPage) -> dict[str, Any]:
    response = (
        value
        for document in page.documents
        for moment in document.moments
        for value, answers in zip(moment.values.get(quantity.key, ()), document.response, strict=False)
        if answers and value is not None
    )
    scale = tokens.scale_of_scores(response)
    return {
        "key": quantity.key,
        "label": quantity.label,
        "unit": quantity.unit,
        "meaning": quantity.meaning,
        "probability": quantity.key == "loss",
        "low": scale.low,
        "step": scale.step,
        "ticks": scale.ticks,
    }


def _document(document: ScoredDocument) -> dict[str, Any]:
    return {
        "title": document.title,
        "dir": tokens.direction(chain.from_iterable(document.text)),
        "text": [tokens.visible(text) for text in document.text],
        "prompt": [place for place, answers in enumerate(document.response) if not answers],
        "moments": [
            {
                "label": moment.label,
                "selected": [place for place, chosen in enumerate(moment.selected) if chosen],
                "values": {key: [_rounded(value) for value in column] for key, column in moment.values.items()},
            }
            for moment in document.moments
        ],
    }


def _rounded(value: float | None) -> float | None:
    """Four significant digits; None for NaN and infinity, which JSON lacks and the page shows as not scored."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.4g}")


def _json(value: Any) -> str:
    """JSON that is safe inside a script element: without ``<``, ``>``, ``&`` and characters that HTML forbids."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
