"""Answers of two models to the same prompts, from files of ``uncertune generate`` or of other programs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uncertune.data.files import EXTENSIONS, extension, read_rows
from uncertune.data.prompts import read_prompt
from uncertune.data.turns import Messages
from uncertune.errors import UserError

ANSWER_COLUMNS = ("answer", "output", "response", "completion")

Answers = dict[str, dict[str, Any]]
"""By prompt, in the file's order: id, messages, answer, and the line's other fields."""


@dataclass(frozen=True)
class Pair:
    """A prompt and two answers to it."""

    id: str
    messages: Messages
    model: str
    baseline: str


def is_answer_file(name: str) -> bool:
    """Whether a name on the command line is a file of answers instead of a model (a folder, a hub id, a .gguf file)."""
    path = Path(name).expanduser()
    if path.suffix.lower() == ".gguf":
        return False
    return path.is_file() or (extension(path) is not None and not path.is_dir())


def stem(name: str) -> str:
    """A file's path without its extension."""
    return next((name[: -len(ending)] for ending in reversed(EXTENSIONS) if name.lower().endswith(ending)), name)


def read_answers(path: str | Path) -> Answers:
    """The answers of a file: a prompt (messages, prompt, instruction) and an ``answer``, ``output`` or ``response``.

    Raises UserError for a row without a prompt or an answer, and for a prompt that is answered twice.
    """
    out: Answers = {}
    for index, row in enumerate(read_rows(Path(path).expanduser())):
        said = next((row[name] for name in ANSWER_COLUMNS if isinstance(row.get(name), str)), None)
        if said is None:
            found = ", ".join(sorted(row))
            raise UserError(
                f"answers {str(path)!r}: row {index} has no column {', '.join(ANSWER_COLUMNS)}; it has {found}"
            )
        try:
            prompt = read_prompt(row, index)
        except UserError as error:
            raise UserError(f"answers {str(path)!r}: {error}") from error
        name = prompt.id
        if name in out:
            raise UserError(
                f"answers {str(path)!r}: row {index} answers a prompt that an earlier row answers: keep one"
            )
        kept = {"model": row.get("model") or row.get("generator") or Path(path).name}
        kept |= {column: row.get(column) for column in ("tokens", "ended")}
        out[name] = {"id": name, "messages": prompt.messages, "answer": said, **kept}
    if not out:
        raise UserError(f"answers {str(path)!r}: it holds no answers")
    return out


def check_same_prompts(answers: Mapping[str, Answers], baseline: str) -> None:
    """Raise UserError if a model answers other prompts than the baseline."""
    asked = answers[baseline]
    for label, given in answers.items():
        lacking, extra = asked.keys() - given.keys(), given.keys() - asked.keys()
        if lacking or extra:
            source, name = (asked, next(iter(sorted(lacking)))) if lacking else (given, next(iter(sorted(extra))))
            opening = json.dumps(str(source[name]["messages"][-1]["content"])[:60], ensure_ascii=False)
            raise UserError(
                f"answers of {label!r} are to other prompts than those of {baseline!r}: {len(lacking)} of its "
                f"{len(asked)} are missing, {len(extra)} others are present (such as {opening})"
            )


def pairs_of(model: Answers, baseline: Answers) -> list[Pair]:
    """Both answers to each prompt, in the baseline's order."""
    return [Pair(name, one["messages"], model[name]["answer"], one["answer"]) for name, one in baseline.items()]
