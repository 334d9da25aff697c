"""Which caches a run asks for, and what they must have been made with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from uncertune.errors import UserError
from uncertune.runs.folder import TEACHER_CACHE
from uncertune.teachers.cache import Document, Kind
from uncertune.teachers.fingerprints import (
    documents_fingerprint,
    teacher_fingerprint,
    text_fingerprint,
    tokenizer_fingerprint,
)
from uncertune.teachers.shards import Shards, described
from uncertune.training import devices
from uncertune.training.batch import IGNORED, document_hash, document_texts
from uncertune.training.caching import Cached, Caches
from uncertune.training.dataset import fingerprint_data
from uncertune.training.step import sum_over_ranks


def open_caches(trainer: Any, teacher: str | nn.Module | None) -> Caches:
    """The caches that the configuration asks for, checked against their folders. Nothing is written."""
    args = trainer.args
    sets = [trainer.train_dataset, *_evaluation_sets(trainer.eval_dataset)]
    finite = all(hasattr(rows, "__len__") for rows in sets)
    scored = finite and args.selection_extra == "reference_loss"
    if args.teacher_cache == "none" and not scored:
        return Caches()
    if not finite and args.teacher_cache_fill == "ahead":
        raise UserError(
            "teacher_cache_fill='ahead' needs to know all documents: with dataset_streaming set it to first_epoch"
        )
    training = list(_documents(trainer, trainer.train_dataset)) if finite else []
    evaluation = [one for rows in sets[1:] for one in _documents(trainer, rows)] if finite else []
    data = documents_fingerprint(one.key for one in training) if finite else fingerprint_data(trainer.train_dataset)
    common = {
        "tokenizer": tokenizer_fingerprint(trainer._tokenizer),
        "data": data,
        "template": text_fingerprint(getattr(trainer._tokenizer, "chat_template", None)),
        "precision": f"{next(trainer.model.parameters()).dtype}, {trainer.accelerator.mixed_precision}",
    }
    folder = Path(args.teacher_cache_dir or Path(args.output_dir) / TEACHER_CACHE)

    def one(kind: Kind, source: str | nn.Module, name: str, as_it_goes: bool) -> Cached:
        about: dict[str, Any] = {"kind": kind}
        top_k = args.teacher_top_k
        if kind == "topk":
            stored = described(folder / name).get("top_k", top_k)
            top_k = about["top_k"] = stored if stored > top_k else top_k  # more than is asked for serves too
        asked = devices.as_main_process(lambda: teacher_fingerprint(source, trainer.model))
        shards = Shards(folder / name, about, {"teacher": asked, **common})
        out = Cached(kind, shards, training + evaluation, top_k, as_it_goes, trainer)
        out.lacks = bool(sum_over_ranks({"lacks": not out.complete})["lacks"])
        return out

    cached, rho = None, None
    if args.teacher_cache != "none":
        assert teacher is not None
        cached = one(args.teacher_cache, teacher, args.teacher_cache, args.teacher_cache_fill == "first_epoch")
    if scored:
        source = teacher if args.rho_reference == "teacher" else args.rho_reference
        assert source is not None
        rho = one("loss", source, "rho", False)
    return Caches(cached, rho)


def _evaluation_sets(rows: Any) -> list[Any]:
    if rows is None:
        return []
    return list(rows.values()) if isinstance(rows, dict) else [rows]


def _documents(trainer: Any, rows: Any) -> Iterator[Document]:
    """The documents of prepared rows that have response tokens, in their order."""
    rows = rows.select_columns([name for name in ("input_ids", "labels", "seq_lengths") if name in rows.column_names])
    for number in range(len(rows)):
        for place, (ids, labels) in enumerate(document_texts(trainer.data_collator([rows[number]]))):
            tokens = int((labels[1:] != IGNORED).sum())
            yield Document(document_hash(ids, labels), len(ids), tokens, (rows, number, place))
