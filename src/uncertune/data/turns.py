"""Turns of a conversation, converted from the usual notations to one form.

A turn is a mapping with ``role`` (text) and ``content`` (text), and whatever else a chat template may read: ``name``,
``tool_calls``, ``tool_call_id``, ``reasoning_content``. Keys whose value is null are left out, since tables add them to
rows that never had them. Every mistake is a ``UserError`` that begins with the row's index, counted from 0.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from uncertune.errors import UserError

Turn = dict[str, Any]
Messages = list[Turn]

ASSISTANT, TOOL = "assistant", "tool"
FUNCTION_CALL = "function_call"
ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard", "model"), ASSISTANT),
    **dict.fromkeys(("observation", "tool", "function"), TOOL),
    "system": "system",
    FUNCTION_CALL: ASSISTANT,
}
"""Role in chat templates by speaker (lower case) in ShareGPT's or LLaMA-Factory's data."""

_SPOKEN = ("tool_calls", "reasoning_content", "reasoning", "thinking")
"""Keys that make a turn count although its content is blank."""


def read_turns(turns: Any, column: str, index: int) -> Messages:
    """A non-empty list of turns of ``role`` and ``content``, or of ``from`` and ``value``.

    Content that is a list of text parts is joined. The turn ``function_call`` of LLaMA-Factory, a JSON object with name
    and arguments, becomes an assistant's turn with ``tool_calls``. Raises ``UserError``.
    """
    if not isinstance(turns, list):
        raise UserError(f"row {index}: '{column}' is {kind_of(turns)}, not a list of turns with 'role' and 'content'")
    if not turns:
        raise UserError(f"row {index}: '{column}' is empty; every row needs an assistant turn")
    return [_read_turn(turn, place, index) for place, turn in enumerate(turns)]


def speaks(turn: Turn) -> bool:
    """Whether a turn says anything: text that is not blank, a call of a tool, or reasoning."""
    return bool(turn["content"].strip()) or any(turn.get(name) for name in _SPOKEN)


def without_blank_answers(messages: Messages) -> Messages:
    """The conversation without blank assistant turns and the turns that each of them answers."""
    out: Messages = []
    asked: Messages = []
    for turn in messages:
        if turn["role"] != ASSISTANT:
            asked.append(turn)
        elif speaks(turn):
            out += [*asked, turn]
            asked = []
        else:
            asked = [one for one in asked if one["role"] == "system"]
    return out + asked


def read_tools(value: Any, index: int) -> list[Any] | None:
    """The ``tools`` of a row: a list of descriptions, or that list as JSON; None without tools."""
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else None
        except (ValueError, RecursionError) as error:
            raise UserError(f"row {index}: 'tools' is not JSON ({error})") from error
    if value is None or value == []:
        return None
    if not isinstance(value, list) or not all(isinstance(tool, Mapping) for tool in value):
        raise UserError(f"row {index}: 'tools' is {kind_of(value)}, not a list of tool descriptions")
    check_text(value, "'tools'", index)
    return value


def kind_of(value: Any) -> str:
    """A value's type in an error message."""
    return "nothing" if value is None else type(value).__name__


def check_text(value: Any, where: str, index: int) -> None:
    """Raise ``UserError`` for text that cannot be written as UTF-8 (half of a surrogate pair), at any depth."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"row {index}: {where} holds half of a surrogate pair (U+{ord(value[error.start]):04X}) at character "
                f"{error.start}, which is not text: remove it"
            ) from error
    elif isinstance(value, Mapping):
        for key, one in value.items():
            check_text(key, where, index)
            check_text(one, where, index)
    elif isinstance(value, Sequence):
        for one in value:
            check_text(one, where, index)


def _read_turn(turn: Any, place: int, index: int) -> Turn:
    if not isinstance(turn, Mapping):
        raise UserError(f"row {index}: turn {place} is {kind_of(turn)}, not a mapping with 'role' and 'content'")
    speaker = turn.get("role", turn.get("from"))
    if not isinstance(speaker, str) or not speaker:
        raise UserError(f"row {index}: turn {place} has no 'role' or 'from' (system, user, assistant)")
    role = ROLES.get(speaker.lower())
    if role is None and "role" not in turn:
        raise UserError(f"row {index}: turn {place} is from {speaker!r}; known are {', '.join(ROLES)}")
    rest = {key: value for key, value in turn.items() if key not in _NAMES and value is not None}
    if not rest.get("tool_calls", True):
        del rest["tool_calls"]
    key = "content" if "content" in turn else "value" if "value" in turn else "content"
    content = turn.get(key)
    if speaker.lower() == FUNCTION_CALL:
        rest, content = {**rest, "tool_calls": _calls(content, place, index)}, ""
    where = f"turn {place} ({speaker})"
    out = {"role": role or speaker, "content": _content(content, rest, key, where, index), **rest}
    if "tool_calls" in rest:
        _check_calls(rest["tool_calls"], where, index)
    check_text(out if rest else out["content"], where, index)
    return out


_NAMES = ("role", "from", "content", "value")


def _content(content: Any, rest: Turn, key: str, where: str, index: int) -> str:
    """The text of a turn; text parts are joined, and a tool call may have no text."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(_part(part, where, index) for part in content)
    if content is None and any(rest.get(name) for name in _SPOKEN):
        return ""
    if content is None:
        raise UserError(f"row {index}: {where} has no '{key}' (text)")
    raise UserError(f"row {index}: {where}: '{key}' is {kind_of(content)}, not text")


def _part(part: Any, where: str, index: int) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and isinstance(part.get("text"), str) and part.get("type", "text") == "text":
        return part["text"]
    found = repr(part["type"]) if isinstance(part, Mapping) and "type" in part else kind_of(part)
    raise UserError(f"row {index}: {where} has a part of type {found}; only text parts can be used")


def _calls(content: Any, place: int, index: int) -> list[Turn]:
    """LLaMA-Factory's call: an object with ``name`` and ``arguments``, or a list of them, as JSON text or parsed."""
    try:
        found = json.loads(content) if isinstance(content, str) else content
    except (ValueError, RecursionError) as error:
        raise UserError(f"row {index}: turn {place} ({FUNCTION_CALL}) is not JSON ({error})") from error
    calls = found if isinstance(found, list) else [found]
    if not calls or not all(isinstance(call, Mapping) and isinstance(call.get("name"), str) for call in calls):
        raise UserError(
            f"row {index}: turn {place} ({FUNCTION_CALL}) must be a JSON object with 'name' and 'arguments'"
        )
    functions = [{"name": call["name"], "arguments": call.get("arguments", {})} for call in calls]
    return [{"type": "function", "function": function} for function in functions]


def _check_calls(calls: Any, where: str, index: int) -> None:
    for call in calls if isinstance(calls, list) else [calls]:
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise UserError(
                f"row {index}: {where}: 'tool_calls' must be a list of calls, each with a function's 'name'"
            )
    if not isinstance(calls, list):
        raise UserError(f"row {index}: {where}: 'tool_calls' is {kind_of(calls)}, not a list of calls")
