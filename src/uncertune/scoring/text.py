"""Uncertainty of one text, token by token: ``score_text(model, tokenizer, "…")`` displays itself in a notebook."""

from __future__ import annotations

import contextlib
import html
import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from uncertune.data.chat import encode
from uncertune.data.templates import assistant_marks
from uncertune.data.turns import read_turns
from uncertune.errors import UserError
from uncertune.report import (
    Moment,
    ScoredDocument,
    Table,
    TokenPage,
    draw_tokens,
    render_token_page,
    terminal_width,
    to_text,
    write_token_page,
)
from uncertune.runs.folder import output_folder
from uncertune.scoring.rows import load_model
from uncertune.scoring.uncertain import uncertain_table
from uncertune.selection import select
from uncertune.uncertainty import TokenUncertainty, token_uncertainty

QUANTITIES = ("epistemic", "aleatoric", "total", "loss", "entropy")
SUFFIXES = (".html", ".png", ".svg", ".pdf")
_HEIGHT = 560  # pixels of the frame in a notebook


@dataclass(frozen=True)
class ScoredText:
    """A text and the uncertainty of its tokens; a notebook displays it as a page.

    ``tokens`` are all decoded tokens; the first has no numbers, since nothing predicts it. The page marks the fraction
    ``selection_fraction`` of response tokens with the highest loss.
    """

    tokens: tuple[str, ...]
    ids: list[int]
    tokenizer: Any
    response: tuple[bool, ...]
    uncertainty: TokenUncertainty
    selection_fraction: float = 0.25

    def page(self) -> TokenPage:
        """The token page of this document."""
        return TokenPage("Token uncertainty", "", (self._document(),))

    def table(self) -> Table:
        """The ten most uncertain response tokens."""
        places = self.uncertainty.position[:, 1].tolist()
        counted = [index for index, place in enumerate(places) if self.response[place]]
        names = ("epistemic", "aleatoric", "loss")
        quantities = {name: getattr(self.uncertainty, name)[counted].tolist() for name in names}
        return uncertain_table(quantities, [(0, places[index]) for index in counted], {0: self.ids}, self.tokenizer)

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
    """Score every token but the first of a text, or of a conversation (a list of messages).

    ``options`` are those of ``token_uncertainty``: samples, rate, seed, places, ensemble, … All tokens of a
    conversation are scored, also those of prompts; the assistant's turns count as response if the chat template marks
    them.
    """
    if isinstance(text, str):
        ids = tokenizer(text)["input_ids"]
        response = [True] * len(ids)
    else:
        ids, said = encode(tokenizer, read_turns(list(text), "text", 0), "text", marks=assistant_marks(tokenizer))
        response = [bool(one) for one in said or ()]
    if len(ids) < 2:
        raise UserError(f"text: {len(ids)} token(s): give a text of at least two, since the first is not predicted")
    row = torch.tensor([ids])
    found = token_uncertainty(model, row, row, **options)
    tokens = tuple(tokenizer.decode([token]) for token in ids)
    return ScoredText(tokens, list(ids), tokenizer, tuple(response), found, selection_fraction)


def score_given_text(
    text: str,
    model: str,
    *,
    adapter: str | None = None,
    samples: int = 100,
    rate: Sequence[float] = (0.1,),
    places: Sequence[str] | None = None,
    seed: int = 0,
    chat_template_path: str | None = None,
    dtype: str = "float32",
    attn_implementation: str | None = None,
    allow_pickle: bool = False,
    selection_fraction: float = 0.25,
    memory_mib: int = 1024,
    pass_tokens: int = 4096,
    output_dir: str | os.PathLike[str] | None = None,
) -> ScoredText:
    """Score a text with a model by name, print its ten most uncertain tokens, and write ``OUT/tokens.html``.

    The arguments are those of ``Settings``; without ``output_dir`` nothing is written. Raises UserError.
    """
    folder = None if output_dir is None else Path(output_dir).expanduser()
    with output_folder(folder) if folder is not None else contextlib.nullcontext():
        lm, tokenizer = load_model(
            model,
            adapter=adapter,
            chat_template_path=chat_template_path,
            dtype=dtype,
            attn_implementation=attn_implementation,
            allow_pickle=allow_pickle,
        )
        found = score_text(
            lm,
            tokenizer,
            text,
            selection_fraction=selection_fraction,
            samples=samples,
            rate=rate[0],
            seed=seed,
            places=places,
            memory=memory_mib * 2**20,
            pass_tokens=pass_tokens,
        )
    table = found.table()
    print(f"{to_text(table)}\n{textwrap.fill(table.caption, terminal_width())}")
    if folder is not None:
        found.save(folder / "tokens.html")
        print(f"\npage: {folder / 'tokens.html'}")
    return found
