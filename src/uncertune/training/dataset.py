"""Training data: rows as token ids and labels, truncated and packed by TRL, with side columns along the labels."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow.compute as pc
from datasets import Dataset
from trl import pack_dataset
from trl.trainer.utils import global_then_local_main_first

from uncertune.data import reading
from uncertune.data.rows import Labelling, tokenise
from uncertune.data.templates import assistant_marks
from uncertune.data.turns import read_turns
from uncertune.errors import UserError
from uncertune.objectives import IGNORED
from uncertune.runs.notes import note
from uncertune.training import side_columns
from uncertune.training.batch import SIDE_COLUMNS
from uncertune.training.config import UncertuneConfig
from uncertune.training.holdout import count_shared

PEEKED_ROWS = 100
TRAIN = "train"
"""TRL's name of the training data; evaluation data has other names."""


def readable(rows: Any, name: str, args: UncertuneConfig, formatting_func: Any = None) -> Any:
    """Rows of any known format, in the form of ``uncertune.data.sources.load``, which can be tokenised.

    ``rows`` may be a mapping of names to data. Streams, data for ``formatting_func`` and prepared data are unchanged.
    Raises UserError for rows of an unknown format.
    """
    if isinstance(rows, dict):
        return {key: readable(one, key, args, formatting_func) for key, one in rows.items()}
    prepared = isinstance(args.dataset_kwargs, dict) and args.dataset_kwargs.get("skip_prepare_dataset")
    if not isinstance(rows, Dataset) or prepared or formatting_func is not None or rows.format["type"] == "custom":
        return rows
    return reading.readable(rows, f"{name} data", text_field=_text_field(args), named=name == TRAIN)


def report_shared(train: Any, evaluation: Any) -> None:
    """Print the number of evaluation rows that are also training rows, if any; streams are not checked."""
    named = evaluation if isinstance(evaluation, dict) else {"evaluation": evaluation}
    for name, rows in named.items():
        if isinstance(train, Dataset) and isinstance(rows, Dataset) and (shared := count_shared(train, rows)):
            note(
                f"{name} data: {shared} of {len(rows)} rows are also training rows, so its loss is not that of unseen "
                "data"
            )


def _text_field(args: UncertuneConfig) -> str | None:
    return args.dataset_text_field if args.dataset_text_field != "text" else None


def resolve_assistant_only_loss(args: UncertuneConfig, rows: Any) -> UncertuneConfig:
    """``args`` with ``assistant_only_loss`` set: by default true for conversations and objectives other than ``mle``.

    It does not apply to data without conversations, and becomes false. Prints a line for a value that was not given.
    """
    first: dict[str, Any] = next(iter(rows), {}) if rows is not None else {}
    turns = [first.get(name) for name in ("messages", "conversations", "prompt")]
    conversation = any(isinstance(one, list) for one in turns)
    wanted = args.assistant_only_loss
    if wanted is None:
        used = args.objective != "mle" and "completion" not in first and conversation
        if used:
            note(
                f"assistant_only_loss: true, as objective={args.objective!r} needs response tokens; set it to false "
                "for a loss on every token, prompts included"
            )
    else:
        used = wanted and (conversation or not first)
        if wanted and not used:
            note(
                "assistant_only_loss: true does not apply to data without conversations: the loss is on completions, "
                "or on all tokens of a text"
            )
    if used is not wanted:
        args = copy.copy(args)
        args.assistant_only_loss = used
    return args


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """Errors of TRL, PEFT and transformers while a trainer is built, as a UserError of one line."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, OSError, RuntimeError) as error:
        line = " ".join(str(error).split())
        if "chat_template is not set" in line:
            line = (
                "chat_template_path: the tokenizer has no chat template, which messages data needs; set it to a "
                "template file (.jinja) or to a model whose template fits"
            )
        elif isinstance(error, RuntimeError) and "assistant_only_loss" not in line:
            raise
        raise UserError(line) from error


def labelling(args: UncertuneConfig, tokenizer: Any, completion_only: bool | None) -> Labelling:
    """Which tokens the arguments make labels."""
    return Labelling(
        marks=assistant_marks(tokenizer) if args.assistant_only_loss else None,
        completion_only=completion_only,
        text_field=args.dataset_text_field,
        template=f"the chat template {args.chat_template_path!r}" if args.chat_template_path else "the chat template",
    )


def prepare(
    trl_prepare: Callable[..., Any],
    rows: Any,
    tokenizer: Any,
    args: UncertuneConfig,
    packing: bool,
    formatting_func: Any,
    name: str,
    how: Labelling,
) -> Any:
    """Rows with ``input_ids``, ``labels`` and the given side columns.

    Ids and labels are those of ``uncertune.data.rows``, truncation and packing are TRL's. Before truncation, side
    columns are expanded to one entry per token, and what truncation removes is counted and printed.
    Raises UserError for rows that cannot be tokenised, data without response tokens, and for side columns that are
    missing, unused or of another length than the labels.
    """
    stream = not isinstance(rows, Dataset)
    if not stream and rows.format["type"] == "custom":
        return trl_prepare(rows, tokenizer, args, packing, formatting_func, name)  # raises TRL's error
    names = rows.column_names or list(next(iter(rows)))
    if not stream and not {"messages", "prompt", "input_ids", args.dataset_text_field} & set(names):
        rows = readable(rows, name, args, formatting_func)
        names = rows.column_names
    side_columns.check_names(args, names, training=name == TRAIN, streaming=stream)
    with global_then_local_main_first():
        rows = _tokenised(rows, names, tokenizer, args, formatting_func, name, how)
    if stream:
        rows = trl_prepare(rows, tokenizer, args, packing, None, name)
        if not any(_answered(row["labels"]) for row in rows.take(PEEKED_ROWS)):
            raise _nothing_left(name, f"the first {PEEKED_ROWS}")
        return rows
    side = tuple(column for column in SIDE_COLUMNS if column in rows.column_names)
    if side:
        lay = {"function": side_columns.lay_out, "fn_kwargs": {"columns": side}, "desc": "Laying out side columns"}
        rows = rows.map(with_indices=True, **lay)
    _count(rows, args, packing, name)
    if not side:
        return trl_prepare(rows, tokenizer, args, packing, None, name)
    return _cut_and_pack(rows, args, packing, ("input_ids", "labels", *side))


def _tokenised(
    rows: Any,
    names: Sequence[str],
    tokenizer: Any,
    args: UncertuneConfig,
    formatting_func: Any,
    name: str,
    how: Labelling,
) -> Any:
    """The rows with ids, labels and side columns."""
    tells = (
        {} if not isinstance(rows, Dataset) else {"num_proc": args.dataset_num_proc, "desc": f"Tokenizing {name} data"}
    )
    arguments = {"tokenizer": tokenizer, "how": how, "formatting_func": formatting_func, "data": f"{name} data"}
    others = [column for column in names if column not in ("input_ids", "labels", *SIDE_COLUMNS)]
    return rows.map(_ids_and_labels, with_indices=True, fn_kwargs=arguments, remove_columns=others, **tells)


def _ids_and_labels(
    row: dict[str, Any], index: int, *, tokenizer: Any, how: Labelling, formatting_func: Any, data: str
) -> dict[str, list[int]]:
    if formatting_func is not None and "input_ids" not in row:
        row = {**row, how.text_field: formatting_func(row)}
    if isinstance(row.get("conversations"), list):  # of a stream, which is not converted before
        row = {**row, "messages": read_turns(row["conversations"], "conversations", index)}
    found = tokenise(row, index, tokenizer, how, data)
    return {"input_ids": found.input_ids, "labels": found.labels}


def check_prepared(args: UncertuneConfig, rows: Any) -> None:
    """Check data with ``skip_prepare_dataset``, whose side columns are not expanded."""
    if not (isinstance(args.dataset_kwargs, dict) and args.dataset_kwargs.get("skip_prepare_dataset")) or rows is None:
        return
    names = rows.column_names or list(next(iter(rows)))
    streaming = not isinstance(rows, Dataset)
    side_columns.check_names(args, names, training=True, streaming=streaming)
    if side := [name for name in SIDE_COLUMNS if name in names]:
        side_columns.check_laid_out(rows.select_columns(["labels", *side]), side)


def check_ids(rows: Any, vocabulary: int, name: str) -> None:
    """Raise UserError if ``input_ids`` of the data contain a token that the model does not have."""
    if isinstance(rows, dict):
        for key, one in rows.items():
            check_ids(one, vocabulary, key)
    if not isinstance(rows, Dataset):
        return
    for column in {"input_ids", "labels"} & set(rows.column_names):
        start = 0
        for batch in rows.select_columns([column]).with_format("arrow").iter(batch_size=1000):
            highest = pc.max(pc.list_flatten(batch[column])).as_py()
            if highest is not None and highest >= vocabulary:
                lists = batch[column].to_pylist()
                row = next(row for row, values in enumerate(lists) if values and max(values) >= vocabulary)
                raise UserError(
                    f"{name} data: row {start + row}: {column!r} holds {highest}, which is not in the model's "
                    f"vocabulary of {vocabulary} tokens"
                )
            start += batch.num_rows


def _answered(labels: Sequence[int]) -> bool:
    return any(label != IGNORED for label in labels[1:])


def _nothing_left(name: str, rows: str) -> UserError:
    return UserError(
        f"{name} data: none of {rows} rows has a response token left (labels are all -100): check the chat template, "
        "completion_only_loss, assistant_only_loss and max_length"
    )


def _count(rows: Dataset, args: UncertuneConfig, packing: bool, name: str) -> None:
    """Print what truncation will remove; raise UserError if no response token is left."""
    limit = args.max_length if not (packing and args.packing_strategy != "bfd") else None
    total, long, lost, empty = 0, 0, 0, 0
    for number, row in enumerate(rows.select_columns(["input_ids", "labels"]).with_format("numpy")):
        labels = row["labels"]
        if len(labels) != len(row["input_ids"]):
            raise UserError(
                f"{name} data: labels of row {number} are {len(labels)} long, input_ids {len(row['input_ids'])}"
            )
        answered = int((labels[1:] != IGNORED).sum())
        kept = answered
        if limit is not None and len(labels) > limit:
            cut = labels[:limit] if packing or args.truncation_mode == "keep_start" else labels[-limit:]
            kept = int((cut[1:] != IGNORED).sum())
            long += 1
        total, lost, empty = total + 1, lost + answered - kept, empty + (kept == 0)
    if total == empty:
        raise _nothing_left(name, str(total))
    if long or empty:
        note(
            f"{name} data: {total} rows; {long} cut to max_length={limit} ({lost} response tokens lost); "
            f"{empty} without response tokens left, {'kept without loss' if packing or limit is None else 'dropped'}"
        )


def _cut_and_pack(rows: Dataset, args: UncertuneConfig, packing: bool, names: tuple[str, ...]) -> Dataset:
    """TRL's truncation, filter, packing and shuffling, with further columns."""
    rows = rows.select_columns(list(names))
    if packing:
        rows = rows.shuffle(seed=args.seed) if args.shuffle_dataset else rows
        rows = pack_dataset(rows, args.max_length, args.packing_strategy)
    elif args.max_length is not None:
        span = slice(None, args.max_length) if args.truncation_mode == "keep_start" else slice(-args.max_length, None)
        rows = rows.map(lambda row: {name: row[name][span] for name in names}, desc="Truncating")
        rows = rows.filter(lambda row: any(label != IGNORED for label in row["labels"]), desc="Dropping masked rows")
    return rows.shuffle(seed=args.seed) if args.shuffle_dataset else rows


def fingerprint_data(rows: Any) -> str:
    """Fingerprint of prepared rows (ids, labels, side columns), 16 hex digits; of a stream, its first 100 rows."""
    digest = hashlib.blake2b(digest_size=8)
    if not hasattr(rows, "__len__"):
        for row in rows.take(100):
            digest.update(json.dumps([list(row["input_ids"]), list(row["labels"])]).encode())
        return digest.hexdigest()
    kept = [name for name in rows.column_names if name in ("input_ids", "labels", *SIDE_COLUMNS)]
    for batch in rows.select_columns(sorted(kept)).with_format("arrow").iter(batch_size=1000):
        for name in sorted(kept):
            digest.update(json.dumps(batch[name].to_pylist()).encode())
    return digest.hexdigest()
