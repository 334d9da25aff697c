"""Around TRL's data preparation: templates, side columns kept along the labels, and a count of what is cut."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import trl.trainer.sft_trainer as trl_sft
from datasets import Dataset
from trl import pack_dataset

from uncertune.data.templates import training_template
from uncertune.errors import UserError
from uncertune.objectives import IGNORED
from uncertune.training import side_columns
from uncertune.training.batch import SIDE_COLUMNS
from uncertune.training.config import UncertuneConfig

PEEKED_ROWS = 100
TRAIN = "train"
"""TRL's name of the training data; evaluation data have other names."""


def resolve_assistant_only_loss(args: UncertuneConfig, rows: Any) -> UncertuneConfig:
    """``args`` with an unset ``assistant_only_loss`` as TRL's default, False; refused where that would be a guess."""
    if args.assistant_only_loss is not None:
        return args
    first: dict[str, Any] = next(iter(rows), {}) if rows is not None else {}
    if args.objective != "mle" and ("messages" in first or "conversations" in first):
        raise UserError(
            f"assistant_only_loss must be set, true or false, with messages data and objective={args.objective!r}: "
            "true puts the loss on the assistant's turns, false on every token, prompts included"
        )
    args = copy.copy(args)
    args.assistant_only_loss = False
    return args


@contextlib.contextmanager
def known_templates() -> Iterator[None]:
    """While TRL builds its trainer, the chat templates that this package has marked are known to it too."""
    trls, has_markers = trl_sft.get_training_chat_template, trl_sft.has_generation_markers

    trl_sft.get_training_chat_template = training_template
    trl_sft.has_generation_markers = lambda template: bool(template) and has_markers(template)  # it fails without one
    try:
        yield
    finally:
        trl_sft.get_training_chat_template, trl_sft.has_generation_markers = trls, has_markers


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """What TRL, PEFT and transformers refuse while a trainer is built, as a UserError of one line."""
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


def prepare(
    trl_prepare: Callable[..., Any],
    rows: Any,
    processing_class: Any,
    args: UncertuneConfig,
    packing: bool,
    formatting_func: Any,
    name: str,
) -> Any:
    """Rows with ``input_ids``, ``labels`` and the side columns given.

    Tokenising, labels, truncation and packing are TRL's. In between, on labels not yet cut: side columns are laid out
    one entry per token, and what truncation cuts or drops is counted and printed. Raises UserError for data without
    response tokens, and for side columns that are missing, unused or of another length than the labels.
    """
    if not isinstance(rows, Dataset):
        names = rows.column_names or list(next(iter(rows)))
        side_columns.check_names(args, names, training=name == TRAIN, streaming=True)
        rows = trl_prepare(rows, processing_class, args, packing, formatting_func, name)
        if not any(_answered(row["labels"]) for row in rows.take(PEEKED_ROWS)):
            raise _nothing_left(name, f"the first {PEEKED_ROWS}")
        return rows
    side_columns.check_names(args, rows.column_names, training=name == TRAIN)
    whole = copy.copy(args)
    whole.max_length, whole.shuffle_dataset = None, False
    rows = trl_prepare(rows, processing_class, whole, False, formatting_func, name)
    side = tuple(column for column in SIDE_COLUMNS if column in rows.column_names)
    if side:
        lay = {"function": side_columns.lay_out, "fn_kwargs": {"columns": side}, "desc": "Laying out side columns"}
        rows = rows.map(with_indices=True, **lay)
    _count(rows, args, packing, name)
    if not side:
        return trl_prepare(rows, processing_class, args, packing, formatting_func, name)
    return _cut_and_pack(rows, args, packing, ("input_ids", "labels", *side))


def check_prepared(args: UncertuneConfig, rows: Any) -> None:
    """With ``skip_prepare_dataset`` nothing is laid out, so what the objective cannot use is refused here."""
    if not (isinstance(args.dataset_kwargs, dict) and args.dataset_kwargs.get("skip_prepare_dataset")) or rows is None:
        return
    names = rows.column_names or list(next(iter(rows)))
    streaming = not isinstance(rows, Dataset)
    side_columns.check_names(args, names, training=True, streaming=streaming)
    if side := [name for name in SIDE_COLUMNS if name in names]:
        side_columns.check_laid_out(rows.select_columns(["labels", *side]), side)


def _answered(labels: Sequence[int]) -> bool:
    return any(label != IGNORED for label in labels[1:])


def _nothing_left(name: str, rows: str) -> UserError:
    return UserError(
        f"{name} data: none of {rows} rows has a response token left (labels are all -100): check the chat template, "
        "completion_only_loss, assistant_only_loss and max_length"
    )


def _count(rows: Dataset, args: UncertuneConfig, packing: bool, name: str) -> None:
    """Print what truncation will cut and drop; raise where no response token is left."""
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
        print(
            f"{name} data: {total} rows; {long} cut to max_length={limit} ({lost} response tokens lost); "
            f"{empty} without response tokens left, {'kept without loss' if packing or limit is None else 'dropped'}",
            file=sys.stderr,
        )


def _cut_and_pack(rows: Dataset, args: UncertuneConfig, packing: bool, names: tuple[str, ...]) -> Dataset:
    """TRL's truncation, filter, packing and shuffling, over more columns than two."""
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
    """16 hex digits of prepared rows: ids, labels and side columns, in their order; of a stream, its first 100 rows."""
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
