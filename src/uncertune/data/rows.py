"""The only place where text becomes token ids and labels: for training, scoring, evaluation and generation.

Equal to the preparation of TRL 1.16's ``SFTTrainer``, by test, for ``messages``, ``prompt`` and ``completion`` (text or
turns), ``text`` and ``input_ids``:

* plain text and a plain completion end in the end-of-sequence token, which is added if it is missing;
* a completion starts where prompt and prompt + completion, each tokenised as a whole, first differ;
* with ``assistant_only`` labels are −100 outside the assistant's turns, with ``completion_only`` outside the completion
  (the default for prompt and completion); otherwise every token is a label.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from uncertune.data import chat
from uncertune.data.formats import kind
from uncertune.data.sources import evaluation_split, load, own_columns
from uncertune.data.templates import Marks, assistant_marks
from uncertune.data.turns import kind_of
from uncertune.errors import UserError
from uncertune.runs.notes import note

IGNORED = -100


@dataclass(frozen=True)
class Row:
    """One row of a data set as tokens: its number in the data, ids, and labels of the same length (−100: no loss)."""

    number: int
    input_ids: list[int]
    labels: list[int]

    @property
    def responses(self) -> int:
        """The number of predicted tokens: labels other than −100 after the first token."""
        return sum(label != IGNORED for label in self.labels[1:])

    def cut(self, length: int) -> Row:
        """The first ``length`` tokens."""
        return Row(self.number, self.input_ids[:length], self.labels[:length])


@dataclass(frozen=True)
class Labelling:
    """The rule for which tokens of a row are labels.

    ``marks``: how the assistant's turns are found, for a loss on these alone; None for a loss on all tokens.
    ``completion_only``: None means true for prompt and completion, as in TRL.
    ``vocabulary``: the model's vocabulary size, to check ``input_ids`` against; None for no check.
    ``template``: what an error calls the chat template.
    """

    marks: Marks | None = None
    completion_only: bool | None = None
    text_field: str = "text"
    vocabulary: int | None = None
    template: str = "the chat template"


def labelling_of(row: Mapping[str, Any], tokenizer: Any, **fields: Any) -> Labelling:
    """The default labelling of data like ``row``: for ``messages``, the assistant's turns alone."""
    marks = assistant_marks(tokenizer) if kind(row) == "messages" else None
    return Labelling(marks=marks, **fields)


def tokenise(row: Mapping[str, Any], number: int, tokenizer: Any, how: Labelling, data: str = "") -> Row:
    """Token ids and labels of one row that ``formats.convert`` returned.

    Raises ``UserError`` with ``data`` and the row's number if the chat template refuses the conversation, an id is not
    in the vocabulary, or no column can be tokenised.
    """
    where = f"{data}: row {number}" if data else f"row {number}"
    if "input_ids" in row:
        return _given(row, number, how, where)
    if "prompt" in row and "completion" in row:
        return _prompt_completion(row, number, tokenizer, how, where)
    if isinstance(row.get("messages"), list):
        ids, said = chat.encode(
            tokenizer, row["messages"], where, marks=how.marks, **_template_options(row, how, where)
        )
        return _labelled(number, ids, _spoken(said, where))
    if not isinstance(row.get(how.text_field), str):
        raise UserError(f"{where}: the columns {', '.join(sorted(row))} hold nothing to tokenise")
    ids = tokenizer(text=_ended(row[how.text_field], tokenizer))["input_ids"]
    return _labelled(number, ids)


def read_rows(
    name: str,
    tokenizer: Any,
    *,
    limit: int | None,
    max_length: int,
    data_dir: str | None = None,
    columns: Mapping[str, str] | None = None,
    seed: int = 0,
) -> list[Row]:
    """The rows of ``DATA`` or ``DATA@SPLIT`` that have response tokens, cut to ``max_length`` tokens.

    ``columns`` names those of data that is not built in, as in ``uncertune.data.sources.load``. Labels are those of
    ``labelling_of``. Raises UserError for data that cannot be loaded or tokenised.
    """
    data, _, split = name.partition("@")
    records = load(
        data,
        split=split or evaluation_split(data),
        data_dir=data_dir,
        columns=own_columns(data, columns),
        max_samples=limit,
        seed=seed,
    )
    how = labelling_of(records[0], tokenizer)
    rows = [tokenise(one, number, tokenizer, how, f"dataset {data!r}") for number, one in enumerate(records)]
    return within(rows, max_length, name)


def within(rows: Sequence[Row], length: int, name: str) -> list[Row]:
    """The rows cut to ``length`` tokens, without those left without a response token; prints how many of each.

    Raises ``UserError`` if no row is left.
    """
    found = [cut for row in rows if (cut := row.cut(length)).responses]
    if not found:
        raise UserError(f"max_length: none of {len(rows)} rows of {name!r} has a response token within {length} tokens")
    long = sum(len(row.input_ids) > length for row in rows)
    if long or len(found) < len(rows):
        note(
            f"{name}: {len(rows)} rows; {long} cut to max_length={length}; {len(rows) - len(found)} without response "
            "tokens left out"
        )
    return found


# ---- the kinds of rows


def _prompt_completion(row: Mapping[str, Any], number: int, tokenizer: Any, how: Labelling, where: str) -> Row:
    prompt, completion = row["prompt"], row["completion"]
    said = None
    if isinstance(prompt, list):
        options = _template_options(row, how, where)
        template = how.marks.template if how.marks else None
        before, _ = chat.encode(tokenizer, prompt, where, add_generation_prompt=True, template=template, **options)
        ids, said = chat.encode(tokenizer, prompt + completion, where, marks=how.marks, **options)
        said = _spoken(said, where)
    else:
        before = tokenizer(text=prompt)["input_ids"]
        ids = tokenizer(text=prompt + _ended(completion, tokenizer))["input_ids"]
    start = next((n for n, (a, b) in enumerate(zip(before, ids, strict=False)) if a != b), min(len(before), len(ids)))
    completed = None if how.completion_only is False else [int(place >= start) for place in range(len(ids))]
    return _labelled(number, ids, said, completed)


def _given(row: Mapping[str, Any], number: int, how: Labelling, where: str) -> Row:
    """The data's own ids, with its labels or with the masks that TRL reads; checked."""
    ids = _checked(row["input_ids"], "input_ids", how.vocabulary, where)
    if row.get("labels") is not None:
        labels = _checked(row["labels"], "labels", how.vocabulary, where, lowest=IGNORED)
        if len(labels) != len(ids):
            raise UserError(f"{where}: 'labels' are {len(labels)} long, 'input_ids' {len(ids)}")
        return Row(number, ids, labels)
    names = ["assistant_masks", *(["completion_mask"] if how.completion_only else [])]
    return _labelled(number, ids, *(row.get(name) for name in names))


def _checked(values: Any, name: str, vocabulary: int | None, where: str, lowest: int = 0) -> list[int]:
    """Token ids, checked: integers in the vocabulary, or −100 where ``lowest`` allows it."""
    if not isinstance(values, list):
        raise UserError(f"{where}: '{name}' is {kind_of(values)}, not a list of token ids")
    if set(map(type, values)) - {int}:
        place = next(place for place, one in enumerate(values) if type(one) is not int)
        raise UserError(f"{where}: '{name}' holds {values[place]!r} at place {place}, which is not a token id")
    if values and (min(values) < lowest or (vocabulary is not None and max(values) >= vocabulary)):
        wrong = next(one for one in values if one < lowest or (vocabulary is not None and one >= vocabulary))
        size = f", which has {vocabulary} tokens" if vocabulary is not None else ""
        raise UserError(f"{where}: '{name}' holds {wrong}, which is not in the model's vocabulary{size}")
    for one in values if lowest < 0 and values and min(values) < 0 else ():
        if one < 0 and one != IGNORED:
            raise UserError(f"{where}: '{name}' holds {one}; of negative numbers only {IGNORED} (no loss) is a label")
    return values


def _template_options(row: Mapping[str, Any], how: Labelling, where: str) -> dict[str, Any]:
    options = row.get("chat_template_kwargs") or None
    if not (options is None or (isinstance(options, Mapping) and all(isinstance(name, str) for name in options))):
        raise UserError(f"{where}: 'chat_template_kwargs' is {kind_of(options)}, not a mapping of names to values")
    return {"tools": row.get("tools") or None, "options": options, "named": how.template}


def _ended(text: str, tokenizer: Any) -> str:
    """The text with the end-of-sequence token at its end, where the tokenizer has one."""
    end = tokenizer.eos_token or ""
    return text if text.endswith(end) else text + end


def _spoken(said: list[int] | None, where: str) -> list[int] | None:
    if said is not None and 1 not in said:
        raise UserError(f"{where}: the marks of the chat template leave no token to the assistant")
    return said


def _labelled(number: int, ids: Sequence[int], *masks: Sequence[int] | None) -> Row:
    """Labels: the ids where every given mask is 1, elsewhere −100."""
    given = [mask for mask in masks if mask is not None]
    labels = [token if all(bits) else IGNORED for token, *bits in zip(ids, *given, strict=True)]
    return Row(number, list(ids), labels)
