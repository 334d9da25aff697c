"""One text, token by token, for a notebook: ``score_text(model, tokenizer, "…")`` shows itself."""

from __future__ import annotations

import html
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from uncertune.data.chat import encode
from uncertune.data.templates import assistant_marks
from uncertune.data.turns import read_turns
from uncertune.errors import UserError
from uncertune.report import Moment, ScoredDocument, TokenPage, draw_tokens, render_token_page, write_token_page
from uncertune.selection import select
from uncertune.uncertainty import TokenUncertainty, token_uncertainty

QUANTITIES = ("epistemic", "aleatoric", "total", "loss", "entropy")
SUFFIXES = (".html", ".png", ".svg", ".pdf")
_HEIGHT = 560  # pixels of the frame in a notebook


@dataclass(frozen=True)
class ScoredText:
    """A text and the uncertainty of its tokens; in a notebook the last line of a cell shows it as a page.

    ``tokens`` are all tokens as decoded; the first has no numbers, as nothing predicts it. Marked are the response
    tokens of highest loss, ``selection_fraction`` of them.
    """

    tokens: tuple[str, ...]
    response: tuple[bool, ...]
    uncertainty: TokenUncertainty
    selection_fraction: float = 0.25

    def page(self) -> TokenPage:
        """As a token page of one document."""
        return TokenPage("Token uncertainty", "", (self._document(),))

    def save(self, path: str | os.PathLike[str], quantity: str = "epistemic") -> None:
        """Write the page (.html), or for a paper the text coloured by ``quantity`` (.png, .svg, .pdf)."""
        suffix = Path(path).suffix.lower()
        if suffix not in SUFFIXES:
            raise UserError(f"path: {str(path)!r} must end in one of {', '.join(SUFFIXES)}")
        if quantity not in QUANTITIES:
            raise UserError(f"quantity: {quantity!r} must be one of {', '.join(QUANTITIES)}")
        if suffix == ".html":
            write_token_page(path, self.page())
        else:
            draw_tokens(path, self._document(), quantity)

    def _repr_html_(self) -> str:
        content = html.escape(render_token_page(self.page()))
        style = f"width:100%;height:{_HEIGHT}px;border:0"
        return f'<iframe srcdoc="{content}" style="{style}" sandbox="allow-scripts"></iframe>'

    def _document(self) -> ScoredDocument:
        length = len(self.tokens)
        values: dict[str, list[float | None]] = {name: [None] * length for name in QUANTITIES}
        selected = [False] * length
        places = self.uncertainty.position[:, 1].tolist()
        counted = torch.tensor([self.response[place] for place in places], dtype=torch.bool)
        chosen = torch.zeros_like(counted)
        chosen[counted] = select(self.uncertainty.loss.cpu()[counted], self.selection_fraction)
        for index, place in enumerate(places):
            selected[place] = bool(chosen[index])
            for name in QUANTITIES:
                values[name][place] = float(getattr(self.uncertainty, name)[index])
        return ScoredDocument("text", self.tokens, self.response, (Moment("", values, selected),))


def score_text(
    model: Any,
    tokenizer: Any,
    text: str | Sequence[dict[str, str]],
    *,
    selection_fraction: float = 0.25,
    **options: Any,
) -> ScoredText:
    """Score every token of a text, or of a conversation (a list of messages), that something predicts.

    ``options`` are those of ``token_uncertainty``: samples, rate, seed, places, ensemble, … Of a conversation all
    tokens are scored, prompts too, and those of the assistant's turns count as response where the chat template marks
    them.
    """
    if isinstance(text, str):
        ids = tokenizer(text)["input_ids"]
        response = [True] * len(ids)
    else:
        ids, said = encode(tokenizer, read_turns(list(text), "text", 0), "text", marks=assistant_marks(tokenizer))
        response = [bool(one) for one in said or ()]
    if len(ids) < 2:
        raise UserError(f"text: {len(ids)} token(s): nothing is predicted in a text of fewer than two")
    row = torch.tensor([ids])
    found = token_uncertainty(model, row, row, **options)
    tokens = tuple(tokenizer.decode([token]) for token in ids)
    return ScoredText(tokens, tuple(response), found, selection_fraction)
