"""Known data formats, and one way to read a row of each: as a conversation, a prompt and a completion, or text.

A row becomes ``messages`` (with its ``tools``, if any), ``prompt`` and ``completion``, ``text``, or ``input_ids``, as
``rows.tokenise`` takes them; a row with nothing to learn from becomes None. A mistake in a row is a ``UserError`` that
begins with the row's index, counted from 0. Whatever is left out of a row is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from uncertune.data.turns import ASSISTANT, Messages, check_text, kind_of, read_tools, read_turns, speaks
from uncertune.data.turns import without_blank_answers as _without_blank_answers
from uncertune.errors import UserError

Record = Mapping[str, Any]
"""A row of the data: columns and values."""

SIDE_COLUMNS = ("advantages", "advantages_ids", "old_log_probs", "oracle", "oracle_ids", "token_weight", "answer")
"""Columns that pass through a conversion (``answer`` unless the format reads it)."""
_TOKENISED = ("labels", "completion_mask", "assistant_masks", "attention_mask", "position_ids", "seq_lengths")
_PASSED = (*SIDE_COLUMNS, "chat_template_kwargs")
_CONVERSATIONS = ("messages", "conversations")

SILENT_ROWS = "rows in which the assistant says nothing"
BLANK_TURNS = "blank assistant turns with what they answer"
CUT_ANSWERS = "generated answers that were cut at max_new_tokens"
HEADINGS = "rows that are headings or blank"


@dataclass(frozen=True)
class Format:
    """The columns that a format needs and reads, and its conversion: a question and an answer, or a ``whole`` row."""

    needs: frozenset[str]
    reads: frozenset[str]
    question: Callable[[Record, int], str] | None = None
    answer: Callable[[Record, int], str] | None = None
    whole: Callable[[Record, int], Messages | str | None] | None = None


def detect_format(column_names: Iterable[str], first_row: Record, text_field: str | None = None) -> str:
    """Name the format of a data set: ``"trl"``, or one of ``CONVERTERS``.

    ``first_row`` distinguishes ShareGPT's ``conversations`` (``from``, ``value``) from chat messages of the same name.
    Alpaca's three columns win over a ``text`` column, which repeats them as one string, unless ``text_field`` names a
    column of plain text.

    Raises ``UserError`` with the columns found and the known formats.
    """
    columns = set(column_names)
    if text_field in columns or {"messages", "input_ids"} & columns or {"prompt", "completion"} <= columns:
        return "trl"
    if "conversations" in columns:
        turns = first_row.get("conversations")
        first = turns[0] if isinstance(turns, list) and turns else {}
        return "trl" if isinstance(first, Mapping) and "role" in first else "sharegpt"
    for name, one in CONVERTERS.items():
        if one.whole is None and one.needs <= columns:
            return name
    if "text" in columns:
        return "trl"
    known = [f"{', '.join(sorted(one.needs))} ({name})" for name, one in CONVERTERS.items() if one.needs != {"text"}]
    raise UserError(
        f"format: no known one fits the columns {', '.join(sorted(columns)) or '(none)'}; known are messages; "
        f"prompt, completion; text; input_ids; {'; '.join(known)}; columns of other names are given by dataset_columns"
    )


def convert(
    row: Record, format: str, index: int = 0, text_field: str | None = None, left: Counter[str] | None = None
) -> dict[str, Any] | None:
    """One row of a format as ``messages``, ``prompt`` and ``completion``, ``text`` or ``input_ids``, with side columns.

    None for a row with nothing to learn from (its answer is blank, or it has no assistant turn). ``left`` counts such
    rows, blank assistant turns, and unused columns. Raises ``UserError`` for a missing column, a value that is not
    text, an unknown speaker, and an unknown format.
    """
    left = Counter() if left is None else left
    if format == "trl":
        content, used = _as_it_is(row, index, text_field, left)
    elif format in CONVERTERS:
        content, used = _converted(row, format, index, left)
    else:
        raise UserError(f"format: {format!r} is not known; choose auto, trl, {', '.join(CONVERTERS)}")
    kept = [name for name in _PASSED if name in row and name not in used]
    for name, value in row.items():
        if name not in used and name not in kept and not (value is None or value == "" or value == []):
            left[f"column {name!r}"] += 1
    if content is None:
        left[_why(row, format, used)] += 1
        return None
    return {**content, **{name: row[name] for name in kept}}


def _why(row: Record, format: str, used: set[str]) -> str:
    """Why a row has nothing to learn from."""
    if format == "wikitext":
        return HEADINGS
    return CUT_ANSWERS if "ended" in used and not row["ended"] else SILENT_ROWS


def kind(row: Record) -> str:
    """The form of a converted row: ``messages``, ``prompt and completion``, ``text`` or ``input_ids``."""
    if "completion" in row:
        return "prompt and completion"
    return next((name for name in ("messages", "input_ids") if name in row), "text")


# ---- rows that need no conversion


def _as_it_is(
    row: Record, index: int, text_field: str | None, left: Counter[str]
) -> tuple[dict[str, Any] | None, set[str]]:
    """The content of a row in a form that TRL reads, and the columns that it used."""
    if "input_ids" in row:
        if not isinstance(row["input_ids"], list):
            raise UserError(f"row {index}: 'input_ids' is {kind_of(row['input_ids'])}, not a list of token ids")
        used = {"input_ids", *(name for name in _TOKENISED if name in row)}
        return {name: row[name] for name in row if name in used}, used
    if "completion" in row:
        return _prompt_completion(row, index, left)
    name = next((name for name in _CONVERSATIONS if name in row), None)
    if name is not None and (text_field is None or text_field not in row):
        turns = beside(read_turns(row[name], name, index), row, index)
        if turns[-1]["role"] != ASSISTANT and set(row) >= _ANSWERED:
            return _answered(turns, row, index, left), {name, *_BESIDE, *_GENERATED}
        if all(turn["role"] != ASSISTANT for turn in turns):
            raise UserError(f"row {index}: no assistant turn, so there is nothing to learn from it")
        used = {name, *_BESIDE}
        if "prompt" in row and any(turn["content"] == row["prompt"] for turn in turns):
            used.add("prompt")  # UltraChat repeats the first question there
        return _conversation(turns, row, index, left), used
    field = text_field if text_field is not None and text_field in row else "text"
    if field not in row:
        lacking = "'prompt' without 'completion'" if "prompt" in row else f"no column '{field}'"
        raise UserError(f"row {index}: {lacking}, so there is nothing to learn from it")
    if not isinstance(row[field], str):
        raise UserError(f"row {index}: '{field}' is {kind_of(row[field])}, not text")
    text = _text(row, field, index)
    return ({field: text} if text.strip() else None), {field}


def _answered(asked: Messages, row: Record, index: int, left: Counter[str]) -> dict[str, Any] | None:
    """The conversation that a line of ``uncertune generate`` and its answer make; None if the answer was cut."""
    turns = [*asked, {"role": ASSISTANT, "content": _text(row, "answer", index)}]
    return _conversation(turns, row, index, left) if row["ended"] else None


_ANSWERED = {"answer", "ended"}
_GENERATED = ("id", "answer", "model", "tokens", "ended")
"""Columns of ``uncertune generate`` beside the conversation."""


def _prompt_completion(row: Record, index: int, left: Counter[str]) -> tuple[dict[str, Any] | None, set[str]]:
    completion, prompt = row["completion"], row.get("prompt")
    if "prompt" not in row:
        raise UserError(f"row {index}: 'completion' without 'prompt'")
    if completion is None and isinstance(prompt, str | list):  # CSV and Parquet write a blank text as null
        return None, {"prompt", "completion", *_BESIDE}
    if isinstance(completion, str) or completion is None:
        if not isinstance(prompt, str):
            raise UserError(f"row {index}: 'prompt' is {kind_of(prompt)}, not text as 'completion' is")
        texts = {name: _text(row, name, index) for name in ("prompt", "completion")}
        return (texts if texts["completion"].strip() else None), {"prompt", "completion"}
    if not isinstance(completion, list):
        raise UserError(f"row {index}: 'completion' is {kind_of(completion)}, not text or a list of turns")
    if not isinstance(prompt, list):
        raise UserError(f"row {index}: 'prompt' is {kind_of(prompt)}, not a list of turns as 'completion' is")
    asked = beside(read_turns(prompt, "prompt", index), row, index)
    answered = read_turns(completion, "completion", index)
    if all(turn["role"] != ASSISTANT for turn in answered):
        raise UserError(f"row {index}: no assistant turn in 'completion', so there is nothing to learn from it")
    content = _conversation(answered, row, index, left)
    used = {"prompt", "completion", *_BESIDE}
    return content and {"prompt": asked, "completion": content.pop("messages"), **content}, used


# ---- rows that are converted


def _converted(row: Record, format: str, index: int, left: Counter[str]) -> tuple[dict[str, Any] | None, set[str]]:
    known = CONVERTERS[format]
    if known.whole is not None:
        content = known.whole(row, index)
        if content is None or isinstance(content, str):
            return (None if content is None else {"text": content}), set(known.reads)
        return _conversation(beside(content, row, index), row, index, left), {*known.reads, *_BESIDE}
    assert known.question is not None
    assert known.answer is not None
    question, answer = known.question(row, index), known.answer(row, index)
    turns = [{"role": "user", "content": question}, {"role": ASSISTANT, "content": answer}]
    turns = beside([*history(row, index), *turns], row, index)
    used = {*known.reads, *_BESIDE, "history"}
    return (_conversation(turns, row, index, left) if answer.strip() else None), used


_BESIDE = ("system", "tools")
"""Columns that belong to a conversation in another column."""


def _conversation(turns: Messages, row: Record, index: int, left: Counter[str]) -> dict[str, Any] | None:
    """Messages and tools, without blank assistant turns; None if no assistant turn is left."""
    blank = sum(turn["role"] == ASSISTANT and not speaks(turn) for turn in turns)
    kept = _without_blank_answers(turns) if blank else turns
    if all(turn["role"] != ASSISTANT for turn in kept):
        return None
    left[BLANK_TURNS] += blank
    tools = read_tools(row.get("tools"), index)
    return {"messages": kept, **({"tools": tools} if tools else {})}


def beside(turns: Messages, row: Record, index: int) -> Messages:
    """The turns after the system prompt of the column ``system``."""
    system = _text(row, "system", index, needed=False)
    if not system.strip():
        return turns
    if turns and turns[0]["role"] == "system":
        if turns[0]["content"].strip() == system.strip():
            return turns
        raise UserError(f"row {index}: the column 'system' and the conversation's own system turn differ: keep one")
    return [{"role": "system", "content": system}, *turns]


def history(row: Record, index: int) -> Messages:
    """LLaMA-Factory's ``history``: pairs of a question and an answer, in their order."""
    history = row.get("history") or []
    pairs = history if isinstance(history, list) else [history]
    turns: Messages = []
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(one, str) for one in pair):
            raise UserError(f"row {index}: 'history' must be a list of pairs, a question and its answer")
        turns += [{"role": "user", "content": pair[0]}, {"role": ASSISTANT, "content": pair[1]}]
    check_text([turn["content"] for turn in turns], "'history'", index)
    return turns


def _instruction(row: Record, index: int) -> str:
    question, context = _text(row, "instruction", index), _text(row, "input", index, needed=False)
    return f"{question}\n\n{context}" if context.strip() else question


def _column(name: str) -> Callable[[Record, int], str]:
    return lambda row, index: _text(row, name, index)


def _answer(name: str) -> Callable[[Record, int], str]:
    """The answer may be null: CSV and Parquet write a blank text so."""
    return lambda row, index: "" if name in row and row[name] is None else _text(row, name, index)


def _choices(row: Record, index: int) -> str:
    """The question and its choices by letter."""
    question, choices, answer = _text(row, "question", index), row.get("choices"), row.get("answer")
    if not isinstance(choices, list) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise UserError(f"row {index}: 'choices' must be a list and 'answer' the place of one of them, from 0")
    options = [f"{_letter(place)}. {choice}" for place, choice in enumerate(choices)]
    return "\n".join([question.strip(), *options, "Answer:"])


def _letter(place: int) -> str:
    return chr(ord("A") + place)


def _wikitext(row: Record, index: int) -> str | None:
    """A paragraph; headings and blank lines are left out."""
    text = _text(row, "text", index).strip()
    return None if not text or (text.startswith("=") and text.endswith("=")) else text


def _sharegpt(row: Record, index: int) -> Messages:
    turns = row.get("conversations")
    return read_turns(turns, "conversations", index) if turns != [] else []


def _text(row: Record, column: str, index: int, needed: bool = True) -> str:
    """The text of a column; an optional one that is missing or null is blank."""
    if needed and column not in row:
        raise UserError(f"row {index}: the column '{column}' is missing; found {', '.join(sorted(row)) or '(none)'}")
    value = row.get(column)
    if value is None and not needed:
        return ""
    if not isinstance(value, str):
        raise UserError(f"row {index}: '{column}' is {kind_of(value)}, not text")
    check_text(value, f"'{column}'", index)
    return value


def _single(question: Callable[[Record, int], str], answer: str, *reads: str) -> Format:
    columns = frozenset({answer, *reads})
    return Format(columns - {"input"}, columns, question, _answer(answer))


CONVERTERS: dict[str, Format] = {
    "alpaca": _single(_instruction, "output", "instruction", "input"),
    "responses": _single(_column("prompt"), "response", "prompt"),
    "mmlu": Format(
        frozenset({"question", "choices", "answer"}),
        frozenset({"question", "choices", "answer"}),
        _choices,
        lambda row, index: _letter(row["answer"]),
    ),
    "gsm8k": _single(_column("question"), "answer", "question"),
    "sharegpt": Format(frozenset({"conversations"}), frozenset({"conversations"}), whole=_sharegpt),
    "wikitext": Format(frozenset({"text"}), frozenset({"text"}), whole=_wikitext),
}
"""The formats that are converted, by name. ``detect_format`` takes the first whose columns are present."""
