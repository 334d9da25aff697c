"""What a collated batch says of its tokens: which are response, of which document, with which side columns.

Shape legend: ``B`` rows, ``L`` positions, ``T`` response tokens of the batch in row-major order. A response token is a
label that is not −100; position t of the hidden states predicts the label at t + 1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from uncertune.objectives import IGNORED

SELECTED = "uncertune_selected"
"""Key under which a step's mask (T,) is stored in its batches."""

ROW_LENGTHS = "uncertune_row_lengths"
"""Key of a flattened batch: the lengths (rows,) of the rows it was laid out from."""

SIDE_COLUMNS = ("token_weight", "advantages", "advantages_ids", "old_log_probs", "oracle", "oracle_ids")


def response_mask(labels: Tensor) -> Tensor:
    """(B, L − 1) bool: the positions whose next token is a response token."""
    return labels[:, 1:] != IGNORED


@dataclass(frozen=True)
class Documents:
    """Of each response token: its document's number in the batch, 0, 1, … by first token, and its place in it."""

    index: Tensor
    position: Tensor

    @property
    def count(self) -> int:
        return int(self.index[-1]) + 1 if self.index.numel() else 0


def documents(batch: Mapping[str, Any]) -> Documents:
    """The documents of a batch: its rows or, where it is flattened (packing, padding-free), its segments."""
    labels = batch["labels"]
    mask = response_mask(labels)
    if "attention_mask" not in batch and "position_ids" in batch:
        position = batch["position_ids"]
        start = (position == 0).flatten().cumsum(0).view_as(position)
    else:
        position = torch.arange(labels.shape[1], device=labels.device).expand_as(labels)
        start = torch.arange(labels.shape[0], device=labels.device)[:, None].expand_as(labels)
    label_T, place_T = start[:, 1:][mask], position[:, 1:][mask]
    changes = (label_T[1:] != label_T[:-1]).long() if label_T.numel() else label_T
    return Documents(torch.cat([label_T[:1] * 0, changes.cumsum(0)]), place_T.long())


def document_texts(batch: Mapping[str, Any]) -> list[tuple[Tensor, Tensor]]:
    """Input ids and labels, (L,) each, of every document of a batch that has response tokens."""
    labels, ids = batch["labels"].cpu(), batch["input_ids"].cpu()
    return [(ids[row, span], labels[row, span]) for row, span in document_spans(batch)]


def document_hashes(batch: Mapping[str, Any]) -> list[str]:
    """A hash of the input ids and labels of each document that has response tokens, 16 hex digits.

    The first label of a document never counts (no hidden state predicts it), so shuffling, packing and padding leave
    the hash as it is.
    """
    return [document_hash(*text) for text in document_texts(batch)]


def document_spans(batch: Mapping[str, Any]) -> list[tuple[int, slice]]:
    """Row and columns of each document that has response tokens, in the order of ``documents``."""
    labels = batch["labels"].cpu()
    out = []
    for row in range(labels.shape[0]):
        if "attention_mask" in batch:
            spans = [(0, int(batch["attention_mask"][row].sum()))]
        elif "position_ids" in batch:
            starts = (batch["position_ids"][row] == 0).nonzero()[:, 0].tolist()
            spans = list(zip(starts, [*starts[1:], labels.shape[1]], strict=True))
        else:
            spans = [(0, labels.shape[1])]
        out += [
            (row, slice(start, end)) for start, end in spans if bool((labels[row, start + 1 : end] != IGNORED).any())
        ]
    return out


def document_hash(input_ids: Tensor, labels: Tensor) -> str:
    """16 hex digits of one document, (L,) each."""
    digest = hashlib.blake2b(digest_size=8)
    digest.update(input_ids.to(torch.int64).contiguous().numpy().tobytes())
    digest.update(labels[1:].to(torch.int64).contiguous().numpy().tobytes())
    return digest.hexdigest()


def mask_repeats(batch: Mapping[str, Any], rank: int, real: int) -> None:
    """Take the response tokens away, in place, from rows that only fill the last batch of an epoch.

    accelerate fills it with rows from the epoch's start, so that every rank has as many: row r of ``rank`` is row
    ``rank · rows + r`` of the batch over all ranks, whose first ``real`` rows are data.
    """
    labels, lengths = batch["labels"], batch.get(ROW_LENGTHS)
    rows = labels.shape[0] if lengths is None else len(lengths)
    kept = min(max(real - rank * rows, 0), rows)
    if lengths is None:
        labels[kept:] = IGNORED
    else:
        labels[:, int(lengths[:kept].sum()) :] = IGNORED


@dataclass(frozen=True)
class Tokens:
    """The response tokens of a micro-batch: the model's inputs, their places (B, L − 1), labels (T,), side columns."""

    inputs: dict[str, Any]
    mask: Tensor
    labels: Tensor
    side: dict[str, Tensor]
    documents: Documents

    @property
    def hashes(self) -> list[str]:
        """``document_hashes`` of the micro-batch."""
        return document_hashes({**self.inputs, "labels": self.spread()})

    def spread(self) -> Tensor:
        """The labels in their places (B, L)."""
        labels = torch.full_like(self.inputs["input_ids"], IGNORED)
        labels[:, 1:][self.mask] = self.labels
        return labels


def document_rows(tokens: Tokens) -> tuple[Tensor, Tensor, Tensor]:
    """The documents of a micro-batch one a row: input ids, labels and attention mask, (documents, L) each.

    Response tokens keep their order. Padded batches come back as they are; flattened ones are cut at their documents.
    """
    ids, labels = tokens.inputs["input_ids"], tokens.spread()
    if "attention_mask" in tokens.inputs:
        return ids, labels, tokens.inputs["attention_mask"]
    if "position_ids" not in tokens.inputs:
        return ids, labels, torch.ones_like(ids)
    spans = []
    for row in range(ids.shape[0]):
        starts = (tokens.inputs["position_ids"][row] == 0).nonzero()[:, 0].tolist()
        spans += [(row, slice(start, end)) for start, end in zip(starts, [*starts[1:], ids.shape[1]], strict=True)]
    pad = torch.nn.utils.rnn.pad_sequence
    return (
        pad([ids[row, span] for row, span in spans], batch_first=True),
        pad([labels[row, span] for row, span in spans], batch_first=True, padding_value=IGNORED),
        pad([torch.ones_like(ids[row, span]) for row, span in spans], batch_first=True),
    )


class SideColumnCollator:
    """A collator that lays the side columns of its examples, where they have any, along the labels another one made.

    Values are (L,) or (L, K) nested lists per example; shorter rows and smaller K are filled with 0. A flattened batch
    also says how long its rows were.
    """

    def __init__(self, collator: Any) -> None:
        self.collator = collator

    @property
    def flattens(self) -> bool:
        """Whether it lays all rows into one, with ``position_ids``."""
        return getattr(self.collator, "padding_free", False)

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        columns = [name for name in SIDE_COLUMNS if name in examples[0]]
        batch = self.collator([{k: v for k, v in e.items() if k not in columns} for e in examples])
        if self.flattens:
            batch[ROW_LENGTHS] = torch.tensor([len(example["input_ids"]) for example in examples])
        for name in columns:
            batch[name] = self._lay([example[name] for example in examples], name, batch["labels"].shape)
        return batch

    def _lay(self, values: list[list[Any]], name: str, shape: torch.Size) -> Tensor:
        """One column of all examples, (B, L) of numbers or (B, L, K) of lists of numbers."""
        nested = any(isinstance(entry, list) for value in values for entry in value)
        width = max((len(entry) for value in values for entry in value), default=0) if nested else 1
        out = torch.zeros(*shape, width, dtype=torch.long if name.endswith("_ids") else torch.float32)
        start = 0
        for row, value in enumerate(values):
            for place, entry in enumerate(value):
                entries = torch.tensor(entry if nested else [entry], dtype=out.dtype)
                where = (0, start + place) if self.flattens else (row, place)
                out[where][: len(entries)] = entries
            start += len(value)
        return out if nested else out[..., 0]
