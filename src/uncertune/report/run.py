"""A page as one HTML file that asks the network for nothing.

The file carries its style, its script and its drawings. Its content security policy admits that one style and that
one script, by their hashes, and nothing else; all other text passes through Jinja's escaping.
"""

import base64
import hashlib
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from uncertune.report import bars, plots, tables, tokens
from uncertune.report.page import Answers, Bars, Curves, Facts, Page, Points, Section, Table, Tokens
from uncertune.runs.files import write_atomically

_TEMPLATES = Path(__file__).parent / "templates"
# What HTML does not allow in text, in any spelling: controls, lone surrogates, noncharacters.
_NOT_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
# What would turn the rest of a sentence of ours around.
_TURNS = re.compile("[\u202a-\u202e\u2066-\u2069]")
LEAF = 10  # rows of answers on a page
_CONTENTS_FROM = 4  # a page of so many sections has a table of contents


def write_page(path: str | os.PathLike[str], page: Page) -> None:
    """Write ``page`` to ``path`` as one self-contained HTML file. The same page gives the same bytes.

    The file appears whole or not at all: an older one stays until the new one is complete. Folders on the way are
    made.
    """
    write_whole(path, render(page).encode())


def write_whole(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file that appears whole or not at all; folders on the way are made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)


def render(page: Page) -> str:
    """The text of that file."""
    templates = page_templates()
    moments = [len(document.frames) for s in page.sections if isinstance(s, Tokens) for document in s.documents]
    style = templates.get_template("page.css").render(
        colours=plots.COLOURS, moments=max(moments, default=0), levels=tokens.LEVELS
    )
    blocks = list(_blocks(page))
    paged = any(len(view.get("leaves", ())) > 1 for block in blocks for view in block)
    script = templates.get_template("page.js").render() if any(moments) or paged else ""
    return templates.get_template("page.html").render(
        page=page,
        blocks=blocks,
        contents=[view for block in blocks for view in block] if len(page.sections) >= _CONTENTS_FROM else [],
        style=Markup(style),  # our own two files: page.css …
        script=Markup(script),  # … and page.js
        policy=policy(style, script),
    )


def page_templates() -> Environment:
    """Our templates, with everything they print escaped."""
    templates = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_clean,
    )
    templates.filters["unturned"] = lambda text: _TURNS.sub("\ufffd", text)
    return templates


def policy(style: str, script: str) -> str:
    """A content security policy that admits these two by their hashes, and nothing else."""
    rules = ["default-src 'none'", f"style-src '{_hash(style)}'", "img-src data:", "base-uri 'none'"]
    return "; ".join([*rules, "form-action 'none'", *([f"script-src '{_hash(script)}'"] if script else [])])


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _clean(value: object) -> object:
    """Text that HTML can hold: everything the templates print passes here, then through escaping."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return _NOT_TEXT.sub("\ufffd", value)
    return value


def _blocks(page: Page) -> Iterator[list[Mapping[str, Any]]]:
    """The sections' views, plots that follow one another together."""
    styles = plots.line_styles(page.sections)
    names: set[str] = set()
    views = [_view(section, _name(section.title, index, names), styles) for index, section in enumerate(page.sections)]
    for is_figure, block in groupby(views, key=lambda view: view["figure"]):
        if is_figure:
            yield list(block)
        else:
            yield from ([view] for view in block)


def _view(section: Section, name: str, styles: Mapping[str, plots.LineStyle]) -> Mapping[str, Any]:
    """What a section's template is given."""
    view: dict[str, Any] = {"kind": type(section).__name__.lower(), "name": name, "section": section}
    view["figure"] = isinstance(section, Curves | Points)
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
            view["svg"] = plots.svg(section, styles, name + "-")
            view["lines"] = [
                (one.name, styles[one.name], plots.last_value(one, section.percent)) for one in section.series
            ]
        case Points():
            view["svg"] = plots.svg(section, styles, name + "-")
            view["named"] = [(point, styles[point.name]) for point in section.points]
        case Bars():
            view["drawing"] = bars.drawing(section, styles)
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
    """How many of the checked answers of ``name`` are right, and how many were checked."""
    marks = [row.correct[name] for row in answers.rows if row.correct is not None and name in row.correct]
    return sum(marks), len(marks)


def _name(title: str, index: int, taken: set[str]) -> str:
    """An id for a section: its title in lower case, or its number where that says nothing or is taken."""
    plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower()
    name = re.sub("[^a-z0-9]+", "-", plain).strip("-")[:40].rstrip("-")
    if not name:
        name = f"section-{index + 1}"
    while name in taken:
        name += f"-{index + 1}"
    taken.add(name)
    return name
