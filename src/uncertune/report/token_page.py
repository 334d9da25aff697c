"""The token page: documents coloured token by token by any of several quantities, at several moments, in one file.

The numbers travel as JSON, which the page's own script draws one document at a time: two hundred documents of five
hundred tokens open at once. Text from strangers becomes text nodes, never markup; see ``run`` for the page's policy.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from markupsafe import Markup

from uncertune.report import plots, tokens
from uncertune.report.run import page_templates, policy, write_whole


@dataclass(frozen=True)
class Quantity:
    """One number that every token may have: ``key`` in the moments' ``values``, its name and unit for readers."""

    key: str
    label: str
    unit: str = "nats"


QUANTITIES = tuple(Quantity(key, key) for key in ("epistemic", "aleatoric", "total", "loss", "entropy"))


@dataclass(frozen=True)
class Moment:
    """The numbers of one document at one moment of training: ``values[key]`` and ``selected``, one a token.

    A value is None where the token was not scored.

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
    """One document: its tokens as decoded, which of them are response, and its moments in order.

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
    """What the page shows. Quantities that no token has are left out."""

    title: str
    lead: str
    documents: Sequence[ScoredDocument]
    quantities: Sequence[Quantity] = QUANTITIES


def write_token_page(path: str | os.PathLike[str], page: TokenPage) -> None:
    """Write ``page`` as one self-contained HTML file, whole or not at all."""
    write_whole(Path(path), render_token_page(page).encode())


def render_token_page(page: TokenPage) -> str:
    """The text of that file. The same page gives the same text."""
    templates = page_templates()
    style = templates.get_template("page.css").render(colours=plots.COLOURS, moments=0, levels=tokens.LEVELS)
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
    """What the script reads: scales of the quantities over the whole page, and the documents."""
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
    """Four significant digits; JSON knows neither NaN nor infinity, which are shown as not scored."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.4g}")


def _json(value: Any) -> str:
    """JSON that may stand in a script element: no ``<``, ``>`` or ``&``, nothing HTML does not allow."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
