"""Prompts for a model: a conversation up to its last answer, with the tools that it may call."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from uncertune.data import formats
from uncertune.data.formats import Record
from uncertune.data.turns import ASSISTANT, Messages, read_tools, read_turns, without_blank_answers
from uncertune.errors import UserError


@dataclass(frozen=True)
class Prompt:
    """A conversation whose next turn is the assistant's, and the descriptions of its tools."""

    messages: Messages
    tools: list[Any] | None = None

    @property
    def id(self) -> str:
        """Hash of the conversation and the tools, 16 hex digits; every key of a turn counts."""
        plain = [[turn["role"], turn["content"], *_extras(turn)] for turn in self.messages]
        text = json.dumps([*plain, {"tools": self.tools}] if self.tools else plain, ensure_ascii=False)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _extras(turn: dict[str, Any]) -> list[dict[str, Any]]:
    rest = {key: turn[key] for key in sorted(turn) if key not in ("role", "content")}
    return [rest] if rest else []


def read_prompt(row: Record, index: int = 0) -> Prompt:
    """The conversation of a row without its last answer, if it has one.

    The row has ``messages`` or ``conversations``, a ``prompt`` (text or turns), or one of the known formats. Raises
    ``UserError`` if nothing is left to answer.
    """
    turns = formats.beside(_turns(row, index), row, index)
    if not turns:
        found = ", ".join(sorted(row))
        raise UserError(f"row {index}: the columns {found} hold no messages, prompt, instruction or question")
    asked = without_blank_answers(turns[:-1] if turns[-1]["role"] == ASSISTANT else turns)
    if not asked or asked[-1]["role"] == ASSISTANT:
        raise UserError(f"row {index}: the conversation asks nothing before its last answer")
    return Prompt(asked, read_tools(row.get("tools"), index))


def _turns(row: Record, index: int) -> Messages:
    for column in ("messages", "conversations", "prompt"):
        if isinstance(row.get(column), list) and row[column]:
            return read_turns(row[column], column, index)
    for name in ("instruction", "prompt", "question"):
        if name in row:
            known = next(one for one in formats.CONVERTERS.values() if name in one.needs and _fits(one, row))
            assert known.question is not None
            return [*formats.history(row, index), {"role": "user", "content": known.question(row, index)}]
    return []


def _fits(known: formats.Format, row: Record) -> bool:
    return known.question is not None and ("choices" in known.needs) == ("choices" in row)
