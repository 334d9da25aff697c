"""The caches of a run: outputs of its frozen models (teacher, anchor, reference of ``rho``) for its documents.

``open_caches`` opens the caches that the configuration needs and checks their folders when the trainer is built; a
model whose outputs are all on disk is not loaded. Missing entries are filled in before the first step or evaluation, or
(``teacher_cache_fill: first_epoch``) as the documents come.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from uncertune.errors import UserError
from uncertune.fused.transfers import to_device
from uncertune.models import head_shape, output_head
from uncertune.objectives import FactoredTeacher, Head, SparseTeacher
from uncertune.runs.folder import TEACHER_CACHE
from uncertune.runs.notes import note, progress
from uncertune.teachers import cache
from uncertune.teachers.adapter import ModelTeacher, Teacher
from uncertune.teachers.cache import Document, Kind
from uncertune.teachers.fingerprints import (
    base_fingerprint,
    documents_fingerprint,
    teacher_fingerprint,
    text_fingerprint,
    tokenizer_fingerprint,
)
from uncertune.teachers.shards import HEAD, Shards, described
from uncertune.training import devices
from uncertune.training.batch import IGNORED, Tokens, document_hash, document_texts, response_mask
from uncertune.training.dataset import fingerprint_data
from uncertune.training.devices import all_ranks, sum_over_ranks

PAD = torch.nn.utils.rnn.pad_sequence


@dataclass(frozen=True)
class CachedHidden:
    """Cached hidden states (T, D) that need the student's frozen head."""

    hidden: Tensor

    def bound(self, head: Head) -> FactoredTeacher:
        """The teacher, with the head of the student's forward."""
        return FactoredTeacher(self.hidden.to(head.weight.dtype), head.detached())


@dataclass
class Cached:
    """One frozen model's outputs; ``live`` is the model while entries are missing."""

    kind: Kind
    shards: Shards
    documents: list[Document]
    top_k: int
    as_it_goes: bool
    trainer: Any
    live: Teacher | None = None
    lacks: bool = False
    _head: FactoredTeacher | None = None
    """The teacher's head; None if it is the student's."""
    _head_found: bool = False
    _fresh: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    _nothing: dict[str, Tensor] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether no known entry is missing."""
        known = all(one.key in self.shards for one in self.documents) and bool(self.documents)
        return known and (self.kind != "hidden" or self.shards.has(HEAD))

    @property
    def missing(self) -> list[Document]:
        return [one for one in self.documents if one.key not in self.shards]

    def rows(self, model: nn.Module, tokens: Tokens) -> FactoredTeacher | SparseTeacher | CachedHidden:
        """p_ref of the response tokens of a micro-batch."""
        columns = self.columns(model, tokens)
        if self.kind == "topk":
            return cache.sparse_teacher(columns)
        if not self._head_found:
            self.trainer.accelerator.wait_for_everyone()  # the first rank may still be writing it
            self._head, self._head_found = _own_head(self.shards, model), True
        if self._head is None:
            return CachedHidden(columns["hidden"])
        return replace(self._head, hidden=columns["hidden"].to(self._head.head.weight.dtype))

    def columns(self, model: nn.Module, tokens: Tokens) -> dict[str, Tensor]:
        """The cached columns for the response tokens of a micro-batch, on their device."""
        keys = tokens.hashes
        unknown = [key for key in keys if key not in self.shards and key not in self._fresh]
        if self.as_it_goes and self.live is not None and sum_over_ranks({"n": len(unknown)})["n"]:
            self._ask(model, tokens, keys)
        elif unknown:
            raise UserError(
                f"eval_dataset: {len(unknown)} documents of a batch are not in {str(self.shards.folder)!r}, which has "
                "those of the trainer's train_dataset and eval_dataset: give them when the trainer is built"
            )
        if not keys:
            columns = self._nothing or {name: column[:0] for name, column in self.shards.sample().items()}
        elif not any(key in self._fresh for key in keys):
            columns = self.shards.read(keys)
        else:
            pieces = [self._fresh.get(key) or self.shards.read([key]) for key in keys]
            columns = {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
        return {name: to_device(column, tokens.labels.device) for name, column in columns.items()}

    # ---- filling

    def fill(self, model: nn.Module) -> None:
        """Compute the missing entries, all ranks together."""
        main = self.trainer.accelerator.is_main_process
        total = sum(one.tokens for one in self.missing)
        quiet = self.trainer.args.disable_tqdm or not main
        with progress(total, f"{self.kind} cache", "tokens", disable=quiet) as bar:
            cache.fill(
                self.shards,
                self.documents,
                lambda documents: self._compute(model, documents),
                per_token=self.per_token,
                batch_size=self.batch_size,
                gather=all_ranks,
                progress=lambda count: bar.update(count * self.trainer.accelerator.num_processes),
            )
        while self.kind == "hidden" and sum_over_ranks({"lacks": not self.shards.has(HEAD)})["lacks"]:
            self._compute(model, self.documents[:1])  # the first rank stores the head, unless another run does
            self.trainer.accelerator.wait_for_everyone()
            self.shards.refresh()

    @property
    def batch_size(self) -> int:
        """Documents of a forward that fills. A training batch fits too: without gradients it takes less memory."""
        args = self.trainer.args
        return int(max(args.per_device_train_batch_size, args.per_device_eval_batch_size))

    @property
    def per_token(self) -> int:
        """Bytes on disk for one response token."""
        return cache.bytes_per_token(
            self.kind, {"hidden": self._head_shape[1], "topk": self.top_k, "loss": 0}[self.kind]
        )

    @property
    def _head_shape(self) -> tuple[int, ...]:
        model = self.live.model if isinstance(self.live, ModelTeacher) else self.trainer.model
        return head_shape(model)

    def announce(self) -> None:
        """Print the size and the folder of the cache. Raises UserError if it does not fit."""
        rows, width = self._head_shape
        line = cache.check_space(
            self.shards.folder, self.missing, self.per_token, 4 * rows * width if self.kind == "hidden" else 0
        )
        if self.trainer.accelerator.is_main_process:
            for name in self.shards.damaged:
                note(f"{self.kind} cache: {name} is damaged and will be computed again")
            note(f"{self.kind} cache: {line}")

    def _compute(self, model: nn.Module, documents: Sequence[Document]) -> dict[str, Tensor]:
        texts = [self._text(one) for one in documents]
        ids = PAD([text for text, _ in texts], batch_first=True)
        labels = PAD([label for _, label in texts], batch_first=True, padding_value=IGNORED)
        attention = PAD([torch.ones_like(text) for text, _ in texts], batch_first=True)
        batch = {"input_ids": ids, "attention_mask": attention, "labels": labels}
        batch = self.trainer._prepare_inputs(batch)
        labels = batch.pop("labels")
        return self._live_columns(model, {**batch, "use_cache": False}, labels)

    def _live_columns(self, model: nn.Module, inputs: dict[str, Any], labels: Tensor) -> dict[str, Tensor]:
        assert self.live is not None
        mask = response_mask(labels)
        with self.trainer.accelerator.autocast():
            rows = self.live.rows(model, inputs, mask)
        if self.kind == "hidden" and not self.shards.has(HEAD) and self.trainer.accelerator.is_main_process:
            cache.write_head(self.shards, rows)
        return cache.columns_of(self.kind, rows, labels[:, 1:][mask], self.top_k)

    def _text(self, document: Document) -> tuple[Tensor, Tensor]:
        rows, number, place = document.where
        return document_texts(self.trainer.data_collator([rows[number]]))[place]

    def _ask(self, model: nn.Module, tokens: Tokens, keys: list[str]) -> None:
        """Run the live model on a micro-batch, and store new entries."""
        columns = self._live_columns(model, tokens.inputs, tokens.spread())
        columns = {name: column.cpu() for name, column in columns.items()}
        self._nothing = {name: column[:0] for name, column in columns.items()}
        counts = torch.bincount(tokens.documents.index, minlength=len(keys)).tolist()
        start = 0
        for key, count in zip(keys, counts, strict=True):
            if key not in self.shards and key not in self._fresh:
                self._fresh[key] = {name: column[start : start + count].clone() for name, column in columns.items()}
            start += count
        if sum(len(next(iter(one.values()))) for one in self._fresh.values()) * self.per_token > cache.SHARD_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write the entries that were computed as the documents came."""
        if not self._fresh:
            return
        keys, pieces = list(self._fresh), list(self._fresh.values())
        columns = {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
        counts = [len(next(iter(piece.values()))) for piece in pieces]
        with self.shards.claim(cache.shard_name(keys)) as mine:
            if mine:
                self.shards.write(keys, counts, columns)
                self._fresh = {}
        self.shards.refresh()


class Caches(TrainerCallback):
    """The caches of a run. Entries computed as documents came are written with each checkpoint and at the end."""

    def __init__(self, members: Sequence[Cached] = (), anchor: Cached | None = None, rho: Cached | None = None) -> None:
        self.members, self.anchor, self.rho = list(members), anchor, rho
        self._ready = False

    @property
    def all(self) -> list[Cached]:
        return [one for one in (*self.members, self.anchor, self.rho) if one is not None]

    def ready(self, model: nn.Module) -> bool:
        """Fill the caches with fill ``ahead``, and release their models; False if that was done before."""
        if self._ready:
            return False
        self._ready = True
        for one in self.all:
            if one.lacks and not one.as_it_goes:
                with torch.random.fork_rng():
                    one.fill(model)
            elif one.lacks:
                one.shards.begin()
        for one in self.all:
            if not (one.lacks and one.as_it_goes):
                one.live = None
        return True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.flush()

    def flush(self) -> None:
        """Write the entries that are only in memory."""
        for one in self.all:
            one.flush()


def _own_head(shards: Shards, model: nn.Module) -> FactoredTeacher | None:
    """The teacher's head from the cache, or None if it is the student's frozen head."""
    shards.refresh()
    student, entry = output_head(model), shards.entry(HEAD)
    trained = any(tensor is not None and tensor.requires_grad for tensor in (student.weight, student.bias))
    if not trained and cache.head_digest(student) == entry["digest"]:
        return None
    tensors = {name: tensor.to(student.weight.device) for name, tensor in shards.tensors(HEAD).items()}
    nothing = tensors["weight"].new_zeros(0, tensors["weight"].shape[1])
    return FactoredTeacher(nothing, Head(tensors["weight"], tensors.get("bias"), entry["softcap"], entry["scale"]))


def open_caches(trainer: Any, teachers: Sequence[str | nn.Module]) -> Caches:
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
            top_k = about["top_k"] = max(top_k, stored)  # a cache of more tokens can be used
        asked = devices.as_main_process(partial(_fingerprint, source, trainer.model))
        shards = Shards(folder / name, about, {"teacher": asked, **common})
        out = Cached(kind, shards, training + evaluation, top_k, as_it_goes, trainer)
        out.lacks = bool(sum_over_ranks({"lacks": not out.complete})["lacks"])
        return out

    members: list[Cached] = []
    anchor, rho = None, None
    goes = args.teacher_cache_fill == "first_epoch"
    if args.teacher_cache != "none":
        for number, teacher in enumerate(teachers if args.uses_teacher else ()):
            name = args.teacher_cache if number == 0 else f"{args.teacher_cache}-{number + 1}"
            members.append(one(args.teacher_cache, teacher, name, goes))
        if args.uses_anchor:
            anchor = one("hidden", args.anchor, "anchor", goes)
    if scored:
        source = teachers[0] if args.rho_reference == "teacher" else args.rho_reference
        assert source is not None
        rho = one("loss", source, "rho", False)
    return Caches(members, anchor, rho)


def _fingerprint(source: str | nn.Module, student: nn.Module) -> str:
    return base_fingerprint(student) if source == "base" else teacher_fingerprint(source, student)


def _evaluation_sets(rows: Any) -> list[Any]:
    if rows is None:
        return []
    return list(rows.values()) if isinstance(rows, dict) else [rows]


def _documents(trainer: Any, rows: Any) -> Iterator[Document]:
    """The documents of prepared rows that have response tokens, in order."""
    rows = rows.select_columns([name for name in ("input_ids", "labels", "seq_lengths") if name in rows.column_names])
    for number in range(len(rows)):
        for place, (ids, labels) in enumerate(document_texts(trainer.data_collator([rows[number]]))):
            tokens = int((labels[1:] != IGNORED).sum())
            yield Document(document_hash(ids, labels), len(ids), tokens, (rows, number, place))
