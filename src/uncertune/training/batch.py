"""The tokens of a collated batch: response tokens, their documents, and side columns.

Shape legend: ``B`` rows, ``L`` positions, ``T`` response tokens of the batch in row-major order. A response token is a
label that is not −100; position t of the hidden states predicts the label at t + 1.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from uncertune.errors import UserError
from uncertune.fused.transfers import to_cpu, to_device
from uncertune.objectives import IGNORED

SELECTED = "uncertune_selected"
"""Key under which a step's mask (T,) is stored in its batches."""

ROW_LENGTHS = "uncertune_row_lengths"
"""Key of a flattened batch: the lengths (rows,) of its rows."""

LAYOUT = "uncertune_layout"
"""Key under which a batch's ``Layout`` is stored in it."""

SIDE_COLUMNS = ("token_weight", "advantages", "advantages_ids", "old_log_probs", "oracle", "oracle_ids")


def response_mask(labels: Tensor) -> Tensor:
    """(B, L − 1) bool: the positions whose next token is a response token."""
    return labels[:, 1:] != IGNORED


@dataclass(frozen=True)
class Documents:
    """For each response token: its document's number in the batch (0, 1, … by first token), and its position there."""

    index: Tensor
    position: Tensor

    @property
    def count(self) -> int:
        return int(self.index[-1]) + 1 if self.index.numel() else 0


@dataclass(frozen=True)
class Layout:
    """Which tokens of a batch are response tokens, and which document each is part of; all on the CPU.

    On the device the host would have to wait for each of these, since shapes depend on values.
    """

    columns: Mapping[str, Tensor]
    """Input ids, labels, and the attention mask or the positions, (B, L) each."""

    @functools.cached_property
    def index(self) -> Tensor:
        """(T,) int64: the positions that predict response tokens, in the flattened (B, L)."""
        return torch.nn.functional.pad(response_mask(self.columns["labels"]), (0, 1)).flatten().nonzero()[:, 0]

    @property
    def inputs(self) -> int:
        """The number of tokens without padding."""
        mask = self.columns.get("attention_mask")
        return self.columns["input_ids"].numel() if mask is None else int(mask.sum())

    @functools.cached_property
    def documents(self) -> Documents:
        """The documents (``spans``) of the response tokens."""
        return _documents(self.columns)

    @functools.cached_property
    def hashes(self) -> list[str]:
        """``document_hashes`` of the batch."""
        return document_hashes(self.columns)


def layouts(batches: Sequence[Mapping[str, Any]]) -> list[Layout]:
    """The layout of every batch, by one transfer from the device."""
    names = [[name for name in _LAID_OUT if name in batch] for batch in batches]
    columns = iter(to_cpu([batch[name] for batch, found in zip(batches, names, strict=True) for name in found]))
    return [Layout({name: next(columns) for name in found}) for found in names]


def layout_of(batch: Mapping[str, Any]) -> Layout:
    """The layout stored in a batch, or computed from it."""
    return batch[LAYOUT] if LAYOUT in batch else layouts([batch])[0]


_LAID_OUT = ("input_ids", "labels", "attention_mask", "position_ids")


def _documents(batch: Mapping[str, Tensor]) -> Documents:
    labels = batch["labels"]
    mask = response_mask(labels)
    if _is_flat(batch):
        position = batch["position_ids"]
        start = (position == 0).flatten().cumsum(0).view_as(position)
    else:
        position = torch.arange(labels.shape[1], device=labels.device).expand_as(labels)
        if "attention_mask" in batch:  # the padding may be on either side
            position = position - _padding(batch["attention_mask"])[:, None]
        start = torch.arange(labels.shape[0], device=labels.device)[:, None].expand_as(labels)
    label_T, place_T = start[:, 1:][mask], position[:, 1:][mask]
    changes = (label_T[1:] != label_T[:-1]).long() if label_T.numel() else label_T
    return Documents(torch.cat([label_T[:1] * 0, changes.cumsum(0)]), place_T.long())


def spans(batch: Mapping[str, Any]) -> list[tuple[int, slice]]:
    """Row and columns, without padding, of each document: a row or, in a flattened batch (packing, padding-free), a
    segment. Padding may be on either side.

    Raises UserError for padding within a row.
    """
    rows, length = batch["input_ids"].shape
    if _is_flat(batch):
        out = []
        for row in range(rows):
            starts = (batch["position_ids"][row] == 0).nonzero()[:, 0].tolist()
            out += [(row, slice(start, end)) for start, end in zip(starts, [*starts[1:], length], strict=True)]
        return out
    if "attention_mask" not in batch:
        return [(row, slice(0, length)) for row in range(rows)]
    mask = batch["attention_mask"].cpu()  # one copy instead of one for each row
    starts, counts = _padding(mask).tolist(), mask.long().sum(-1).tolist()
    found = [(row, slice(start, start + count)) for row, (start, count) in enumerate(zip(starts, counts, strict=True))]
    if not all(bool(mask[row, span].all()) for row, span in found):
        raise UserError("data_collator: an attention_mask has zeros between its ones: pad on one side only")
    return found


def _is_flat(batch: Mapping[str, Any]) -> bool:
    return "attention_mask" not in batch and "position_ids" in batch


def _padding(attention_mask: Tensor) -> Tensor:
    """(B,) columns of padding before the first token of each row of a mask (B, L)."""
    if attention_mask.dim() != 2:
        raise UserError(f"data_collator: attention_mask must be (rows, columns), got {tuple(attention_mask.shape)}")
    return attention_mask.long().argmax(-1)


def document_texts(batch: Mapping[str, Any]) -> list[tuple[Tensor, Tensor]]:
    """Input ids and labels, (L,) each, of every document of a batch that has response tokens."""
    labels, ids = batch["labels"].cpu(), batch["input_ids"].cpu()
    return [(ids[row, span], labels[row, span]) for row, span in document_spans(batch)]


def document_hashes(batch: Mapping[str, Any]) -> list[str]:
    """A hash of the input ids and labels of each document that has response tokens, 16 hex digits.

    The first label of a document never counts (no hidden state predicts it), so shuffling, packing and padding do not
    change the hash.
    """
    return [document_hash(*text) for text in document_texts(batch)]


def document_spans(batch: Mapping[str, Any]) -> list[tuple[int, slice]]:
    """Row and columns of each document that has response tokens, in the order of ``documents``."""
    labels = batch["labels"].cpu()
    return [
        (row, span) for row, span in spans(batch) if bool((labels[row, span.start + 1 : span.stop] != IGNORED).any())
    ]


def document_hash(input_ids: Tensor, labels: Tensor) -> str:
    """Hash of one document, (L,) each, 16 hex digits."""
    digest = hashlib.blake2b(digest_size=8)
    digest.update(input_ids.to(torch.int64).contiguous().numpy().tobytes())
    digest.update(labels[1:].to(torch.int64).contiguous().numpy().tobytes())
    return digest.hexdigest()


def mask_repeats(batch: Mapping[str, Any], rank: int, real: int) -> None:
    """Remove the response tokens, in place, from rows that only fill the last batch of an epoch.

    accelerate fills it with rows from the epoch's start, so that all ranks have equally many: row r of ``rank`` is row
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
    """The response tokens of a micro-batch: the model's inputs, their places, labels (T,), side columns.

    ``mask`` (B, L − 1) and ``index`` (T,) are the same places, ``index`` in the flattened (B, L).
    """

    inputs: dict[str, Any]
    mask: Tensor
    index: Tensor
    labels: Tensor
    side: dict[str, Tensor]
    layout: Layout

    @classmethod
    def of(cls, batch: Mapping[str, Any], inputs: dict[str, Any]) -> Tokens:
        """The response tokens of a batch with labels, and perhaps a layout and side columns."""
        layout, labels = layout_of(batch), batch["labels"]
        index = to_device(layout.index, labels.device)
        side = {name: _at(batch[name], index + 1) for name in SIDE_COLUMNS if name in batch}
        return cls(inputs, response_mask(labels), index, _at(labels, index + 1), side, layout)

    @property
    def documents(self) -> Documents:
        """The documents of the response tokens, on the CPU."""
        return self.layout.documents

    @property
    def hashes(self) -> list[str]:
        """``document_hashes`` of the micro-batch."""
        return self.layout.hashes

    @property
    def response(self) -> dict[str, Tensor]:
        """Their places, as arguments of a model with ``attach_head``."""
        return {"response_mask": self.mask, "response_index": self.index}

    def spread(self) -> Tensor:
        """The labels in their places (B, L)."""
        ids = self.inputs["input_ids"]
        labels = torch.full_like(ids, IGNORED, dtype=self.labels.dtype).flatten()
        return labels.index_copy(0, self.index + 1, self.labels).view(ids.shape)


def _at(column: Tensor, index: Tensor) -> Tensor:
    """The entries (T, …) of a column (B, L, …)."""
    return column.flatten(0, 1).index_select(0, index)


def document_rows(tokens: Tokens) -> tuple[Tensor, Tensor, Tensor]:
    """The documents of a micro-batch, one per row: input ids, labels and attention mask, (documents, L) each.

    Response tokens keep their order. Padded batches are unchanged; flattened ones are split into their documents.
    """
    ids, labels = tokens.inputs["input_ids"], tokens.spread()
    if "attention_mask" in tokens.inputs:
        return ids, labels, tokens.inputs["attention_mask"]
    if "position_ids" not in tokens.inputs:
        return ids, labels, torch.ones_like(ids)
    found = spans(tokens.inputs)
    pad = torch.nn.utils.rnn.pad_sequence
    return (
        pad([ids[row, span] for row, span in found], batch_first=True),
        pad([labels[row, span] for row, span in found], batch_first=True, padding_value=IGNORED),
        pad([torch.ones_like(ids[row, span]) for row, span in found], batch_first=True),
    )


class SideColumnCollator:
    """A collator that aligns the side columns of its examples, if any, with the labels of another collator.

    Values are (L,) or (L, K) nested lists per example; padding and smaller K are filled with 0. A flattened batch also
    gets the lengths of its rows. The collator may pad on either side.
    """

    def __init__(self, collator: Any) -> None:
        self.collator = collator

    @property
    def flattens(self) -> bool:
        """Whether it joins all rows into one, with ``position_ids``."""
        return getattr(self.collator, "padding_free", False)

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        columns = [name for name in SIDE_COLUMNS if name in examples[0]]
        batch = self.collator([{k: v for k, v in e.items() if k not in columns} for e in examples])
        lengths = [len(example["input_ids"]) for example in examples]
        if self.flattens:
            batch[ROW_LENGTHS] = torch.tensor(lengths)
        elif "attention_mask" in batch:
            for row, span in spans(batch):
                batch["labels"][row, span.start] = IGNORED  # padding on the left does not predict the first token
        if columns:
            places = self._places(batch, lengths)
            for name in columns:
                values = [example[name] for example in examples]
                batch[name] = self._lay(values, name, batch["labels"].shape, places)
        return batch

    def _places(self, batch: Mapping[str, Any], lengths: list[int]) -> list[tuple[int, int]]:
        """Row and column of each example's first token. Raises UserError if the batch has other lengths."""
        if self.flattens:
            return [(0, sum(lengths[:number])) for number in range(len(lengths))]
        found = spans(batch)
        if "attention_mask" in batch:
            there = [span.stop - span.start for _, span in found]
            if there != lengths:
                raise UserError(
                    f"data_collator: it made rows of {there} tokens from examples of {lengths}, so side columns cannot "
                    "be aligned with them: keep every token, and pad with attention_mask 0"
                )
        return [(row, span.start) for row, span in found]

    def _lay(self, values: list[list[Any]], name: str, shape: torch.Size, places: list[tuple[int, int]]) -> Tensor:
        """One column of all examples, (B, L) of numbers or (B, L, K) of lists of numbers, from ``places`` on."""
        nested = any(isinstance(entry, list) for value in values for entry in value)
        width = max((len(entry) for value in values for entry in value), default=0) if nested else 1
        out = torch.zeros(*shape, width, dtype=torch.long if name.endswith("_ids") else torch.float32)
        for value, (row, start) in zip(values, places, strict=True):
            for place, entry in enumerate(value):
                entries = torch.tensor(entry if nested else [entry], dtype=out.dtype)
                out[row, start + place][: len(entries)] = entries
        return out if nested else out[..., 0]
