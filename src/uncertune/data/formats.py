"""Known data formats, turned into the one TRL trains on: ``{"messages": [{"role", "content"}, ...]}``.

A format is a name and a function from one row to its messages. Columns TRL reads by itself are format ``"trl"``: those
rows are checked and left as they are. Every mistake in a row is a ``UserError`` that begins with the row's index
(counted from 0).
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from uncertune.errors import UserError

Row = Mapping[str, Any]
Messages = list[dict[str, str]]

SIDE_COLUMNS = ("advantages", "advantages_ids", "old_log_probs", "oracle", "oracle_ids", "token_weight", "answer")
"""Columns that pass through a conversion (``answer`` unless it is the format's own source column)."""

ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard", "model"), "assistant"),
    "system": "system",
}
"""ShareGPT's ``from`` (lower case) to the role it means."""


def detect_format(column_names: Iterable[str], first_row: Row, text_field: str | None = None) -> str:
    """Name the format of a data set: ``"trl"``, or one of ``CONVERTERS``.

    ``first_row`` tells ShareGPT's ``conversations`` (``from``, ``value``) from chat messages under the same name.
    Alpaca's own three columns win over a ``text`` column beside them, which repeats them as one string, unless
    ``text_field`` asks for a column of plain text by name.

    Raises ``UserError`` with the columns found and the formats known.
    """
    columns = set(column_names)
    if text_field in columns:
        return "trl"
    if "messages" in columns or "input_ids" in columns or {"prompt", "completion"} <= columns:
        return "trl"
    if "conversations" in columns:
        turns = first_row.get("conversations")
        first = turns[0] if isinstance(turns, list) and turns else {}
        return "trl" if isinstance(first, Mapping) and "role" in first else "sharegpt"
    if {"instruction", "output"} <= columns:
        return "alpaca"
    if {"prompt", "response"} <= columns:
        return "responses"
    if {"question", "choices", "answer"} <= columns:
        return "mmlu"
    if {"question", "answer"} <= columns:
        return "gsm8k"
    if "text" in columns:
        return "trl"
    raise UserError(
        f"format: no known one fits the columns {', '.join(sorted(columns)) or '(none)'}; known are messages; "
        "prompt, completion; text; input_ids; instruction, input, output (alpaca); prompt, response (responses); "
        "question, answer (gsm8k); question, choices, answer (mmlu); conversations (sharegpt)"
    )


def convert(row: Row, format: str, index: int = 0) -> dict[str, Any] | None:
    """One row of a format in ``CONVERTERS`` as a row of ``messages``, or of ``text``, with its side columns.

    None for a row with nothing to learn from (its answer is blank, or no assistant speaks): the caller counts those.
    Raises ``UserError`` for a missing column, a value that is not text, an unknown speaker, an unknown format.
    """
    if format not in CONVERTERS:
        raise UserError(f"format: {format!r} is not known; choose auto, trl, {', '.join(CONVERTERS)}")
    content_of, consumed = CONVERTERS[format]
    content = content_of(row, index)
    if content is None:
        return None
    kept = {name: row[name] for name in SIDE_COLUMNS if name in row and name not in consumed}
    return {"text" if isinstance(content, str) else "messages": content, **kept}


def prompt_of(row: Row, index: int = 0) -> Messages:
    """The conversation up to its last answer, which is left out: what a model is asked.

    Of ``messages`` or ``conversations``, of a ``prompt`` (text or turns), or of a row that a format here reads.
    Raises ``UserError`` where nothing is asked.
    """
    if isinstance(row.get("prompt"), str):
        return [{"role": "user", "content": row["prompt"]}]
    turns = row.get("messages") or row.get("conversations") or row.get("prompt")
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) and "role" in turn for turn in turns):
        turns = _question(row, index)
    if not turns:
        found = ", ".join(sorted(row))
        raise UserError(f"row {index}: the columns {found} hold no messages, prompt, instruction or question")
    asked = [{"role": str(turn["role"]), "content": turn.get("content") or ""} for turn in turns]
    answered = [place for place, turn in enumerate(asked) if turn["role"] == "assistant"]
    asked = asked[: answered[-1]] if answered and answered[-1] == len(asked) - 1 else asked
    if not asked or asked[-1]["role"] == "assistant":
        raise UserError(f"row {index}: the conversation asks nothing before its last answer")
    return asked


def check_row(row: Row, index: int = 0) -> None:
    """Raise ``UserError`` unless TRL can learn something from this row of its own format.

    Messages: a non-empty list of turns with a role and a content, one of them the assistant's. Prompt and completion:
    a completion that is not blank. Text: a string. Rows of ``input_ids`` are not looked into.
    """
    if "messages" in row:
        _check_turns(row["messages"], "messages", index)
    elif "conversations" in row:
        _check_turns(row["conversations"], "conversations", index)
    elif "completion" in row:
        _check_completion(row, index)
    elif "prompt" in row and not {"text", "input_ids"} & set(row):
        raise UserError(f"row {index}: 'prompt' without 'completion', so there is nothing to learn from it")
    elif "text" in row and not isinstance(row["text"], str):
        raise UserError(f"row {index}: 'text' is {_kind(row['text'])}, not text")


def _check_turns(turns: Any, column: str, index: int) -> None:
    if not isinstance(turns, list):
        raise UserError(f"row {index}: '{column}' is {_kind(turns)}, not a list of turns with 'role' and 'content'")
    if not turns:
        raise UserError(f"row {index}: '{column}' is empty; every row needs an assistant turn")
    answered = False
    for place, turn in enumerate(turns):
        if not isinstance(turn, Mapping):
            raise UserError(f"row {index}: turn {place} is {_kind(turn)}, not a mapping with 'role' and 'content'")
        role = turn.get("role")
        if not isinstance(role, str) or not role:
            raise UserError(f"row {index}: turn {place} has no 'role' (system, user, assistant)")
        if not isinstance(turn.get("content"), str | list) and not turn.get("tool_calls"):
            raise UserError(f"row {index}: turn {place} ({role}) has no 'content' (text)")
        answered = answered or role == "assistant"
    if not answered:
        raise UserError(f"row {index}: no assistant turn, so there is nothing to learn from it")


def _check_completion(row: Row, index: int) -> None:
    completion = row["completion"]
    if "prompt" not in row:
        raise UserError(f"row {index}: 'completion' without 'prompt'")
    if isinstance(completion, list):
        _check_turns(completion, "completion", index)
        blank = not any(str(turn.get("content") or "").strip() or turn.get("tool_calls") for turn in completion)
    elif isinstance(completion, str) or completion is None:
        blank = not (completion or "").strip()
    else:
        raise UserError(f"row {index}: 'completion' is {_kind(completion)}, not text or a list of turns")
    if blank:
        raise UserError(f"row {index}: 'completion' is blank, so there is nothing to learn from it")
    if not isinstance(row["prompt"], str | list):
        raise UserError(f"row {index}: 'prompt' is {_kind(row['prompt'])}, not text or a list of turns")


def _question(row: Row, index: int) -> Messages | None:
    """The question of a row whose format has one; its answer may be blank or missing."""
    if "instruction" in row:
        return [{"role": "user", "content": _instruction(row, index)}]
    if "question" in row and "choices" not in row:
        return [{"role": "user", "content": _text(row, "question", index)}]
    format = detect_format(row, row)
    return None if format == "trl" else (convert(row, format, index) or {}).get("messages")


def _alpaca(row: Row, index: int) -> Messages | None:
    return _single_turn(_instruction(row, index), _text(row, "output", index))


def _instruction(row: Row, index: int) -> str:
    question, context = _text(row, "instruction", index), _text(row, "input", index, needed=False)
    return f"{question}\n\n{context}" if context.strip() else question


def _responses(row: Row, index: int) -> Messages | None:
    return _single_turn(_text(row, "prompt", index), _text(row, "response", index))


def _gsm8k(row: Row, index: int) -> Messages | None:
    return _single_turn(_text(row, "question", index), _text(row, "answer", index))


def _mmlu(row: Row, index: int) -> Messages | None:
    """The question and its choices by letter; the answer is a letter."""
    question, choices, answer = _text(row, "question", index), row.get("choices"), row.get("answer")
    if not isinstance(choices, list) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise UserError(f"row {index}: 'choices' must be a list and 'answer' the place of one of them, from 0")
    letters = [chr(ord("A") + place) for place in range(len(choices))]
    options = [f"{letter}. {choice}" for letter, choice in zip(letters, choices, strict=True)]
    return _single_turn("\n".join([question.strip(), *options, "Answer:"]), letters[answer])


def _wikitext(row: Row, index: int) -> str | None:
    """A paragraph; headings and blank lines are left out."""
    text = _text(row, "text", index).strip()
    return None if not text or (text.startswith("=") and text.endswith("=")) else text


def _sharegpt(row: Row, index: int) -> Messages | None:
    turns = row.get("conversations")
    if not isinstance(turns, list):
        raise UserError(f"row {index}: 'conversations' is {_kind(turns)}, not a list of turns with 'from' and 'value'")
    messages = [_sharegpt_turn(turn, place, index) for place, turn in enumerate(turns)]
    answered = any(message["role"] == "assistant" and message["content"].strip() for message in messages)
    return messages if answered else None


def _sharegpt_turn(turn: Any, place: int, index: int) -> dict[str, str]:
    if not isinstance(turn, Mapping) or "from" not in turn:
        raise UserError(f"row {index}: turn {place} has no 'from' (human, gpt, system)")
    role = ROLES.get(str(turn["from"]).lower())
    if role is None:
        raise UserError(f"row {index}: turn {place} is from {turn['from']!r}; known are {', '.join(ROLES)}")
    value = turn.get("value")
    if not isinstance(value, str):
        raise UserError(f"row {index}: turn {place} ({turn['from']}): 'value' is {_kind(value)}, not text")
    return {"role": role, "content": value}


def _single_turn(question: str, answer: str) -> Messages | None:
    if not answer.strip():
        return None
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _text(row: Row, column: str, index: int, needed: bool = True) -> str:
    """The text of a column; nothing (None) is blank text, as CSV and Parquet files write it."""
    if needed and column not in row:
        raise UserError(f"row {index}: the column '{column}' is missing; found {', '.join(sorted(row)) or '(none)'}")
    value = row.get(column)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(f"row {index}: '{column}' is {_kind(value)}, not text")
    return value


def _kind(value: Any) -> str:
    return "nothing" if value is None else type(value).__name__


CONVERTERS: dict[str, tuple[Callable[[Row, int], Messages | str | None], frozenset[str]]] = {
    "alpaca": (_alpaca, frozenset({"instruction", "input", "output"})),
    "responses": (_responses, frozenset({"prompt", "response"})),
    "gsm8k": (_gsm8k, frozenset({"question", "answer"})),
    "sharegpt": (_sharegpt, frozenset({"conversations"})),
    "mmlu": (_mmlu, frozenset({"question", "choices", "answer"})),
    "wikitext": (_wikitext, frozenset({"text"})),
}
"""Format to its converter and the source columns it uses up."""
