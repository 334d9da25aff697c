"""Data sets as rows for token-level measures: token ids, and labels that are −100 outside what the assistant says."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from uncertune.data.sources import evaluation_split, load
from uncertune.data.templates import training_template
from uncertune.errors import UserError

IGNORED = -100
Row = dict[str, list[int]]


@dataclass(frozen=True)
class Document:
    """One row of a data set: its number there, and its tokens."""

    number: int
    row: Row

    @property
    def responses(self) -> int:
        return sum(label != IGNORED for label in self.row["labels"][1:])


def read_documents(
    name: str, tokenizer: Any, *, limit: int | None, max_length: int, data_dir: str | None = None, seed: int = 0
) -> list[Document]:
    """The documents of ``DATA`` or ``DATA@SPLIT`` that have response tokens, cut to ``max_length`` tokens.

    A conversation is labelled as training labels it (the assistant's turns and their end-of-turn tokens), a completion
    likewise; of plain text every token counts. Raises UserError, one line, for data that cannot be had or read so.
    """
    data, _, split = name.partition("@")
    rows = load(data, split=split or evaluation_split(data), data_dir=data_dir, max_samples=limit, seed=seed)
    found, cut, empty = [], 0, 0
    for number, one in enumerate(rows):
        row = _tokens(one, tokenizer, data, number)
        cut += len(row["input_ids"]) > max_length
        document = Document(number, {key: values[:max_length] for key, values in row.items()})
        if document.responses:
            found.append(document)
        else:
            empty += 1
    if not found:
        raise UserError(
            f"max_length: no document of {data!r} has a response token within {max_length} tokens: raise it"
        )
    if cut or empty:
        print(
            f"{name}: {cut} of {len(rows)} documents cut to {max_length} tokens, {empty} without response left out",
            file=sys.stderr,
        )
    return found


def _tokens(one: Mapping[str, Any], tokenizer: Any, data: str, number: int) -> Row:
    if "input_ids" in one:
        ids = list(one["input_ids"])
        return {"input_ids": ids, "labels": list(one.get("labels") or ids)}
    if "completion" in one and isinstance(one["completion"], str):
        before = tokenizer(one["prompt"])["input_ids"]
        after = tokenizer(one["completion"] + (tokenizer.eos_token or ""), add_special_tokens=False)["input_ids"]
        return {"input_ids": before + after, "labels": [IGNORED] * len(before) + after}
    if "text" in one and "messages" not in one:
        ids = tokenizer(one["text"])["input_ids"]
        return {"input_ids": ids, "labels": list(ids)}
    turns = one.get("messages") or one.get("conversations")
    if turns is None and isinstance(one.get("completion"), list):
        turns = [*one["prompt"], *one["completion"]]
    if turns is None:
        raise UserError(f"dataset {data!r}: row {number}: the columns {', '.join(sorted(one))} hold no text to measure")
    encoded = tokenizer.apply_chat_template(
        turns, chat_template=training_template(tokenizer), return_dict=True, return_assistant_tokens_mask=True
    )
    ids, said = encoded["input_ids"], encoded["assistant_masks"]
    return {"input_ids": ids, "labels": [token if mark else IGNORED for token, mark in zip(ids, said, strict=True)]}
