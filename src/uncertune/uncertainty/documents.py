"""The rows of a batch without padding.

Shape legend: ``B`` rows, ``L`` columns, ``T`` response tokens of one row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from uncertune.errors import UserError


@dataclass(frozen=True, eq=False)
class Document:
    """One row: ``ids`` (L,) without padding; ``predicts`` (T,) the positions whose logits predict a response token,
    ``labels`` (T,) those tokens, ``position`` (T, 2) their (row, column) in the batch, on the CPU."""

    ids: Tensor
    predicts: Tensor
    labels: Tensor
    position: Tensor

    def __len__(self) -> int:
        return self.ids.shape[0]


def split_rows(
    input_ids: Tensor, labels: Tensor, attention_mask: Tensor | None, device: torch.device | None
) -> list[Document]:
    """The rows of a batch that have response tokens, on ``device`` (None: that of ``input_ids``).

    Raises UserError if shapes differ, a mask has holes, or a label is on padding.
    """
    if input_ids.dim() != 2 or input_ids.shape != labels.shape:
        raise UserError(
            f"labels: {tuple(labels.shape)} does not fit input_ids {tuple(input_ids.shape)}: both are (rows, columns)"
        )
    if input_ids.is_floating_point() or labels.is_floating_point():
        raise UserError(f"input_ids: {input_ids.dtype} and labels {labels.dtype} must be integers: give token ids")
    if attention_mask is not None and attention_mask.shape != input_ids.shape:
        raise UserError(
            f"attention_mask: {tuple(attention_mask.shape)} does not fit input_ids {tuple(input_ids.shape)}: "
            "give (rows, columns) of 0 and 1"
        )
    where = input_ids.device if device is None else device
    rows = (_document(row, input_ids, labels, attention_mask, where) for row in range(input_ids.shape[0]))
    return [document for document in rows if document is not None]


def _document(
    row: int, input_ids: Tensor, labels: Tensor, attention_mask: Tensor | None, device: torch.device
) -> Document | None:
    ids, targets = input_ids[row].cpu().long(), labels[row].cpu().long()
    start, stop = 0, ids.shape[0]
    if attention_mask is not None:
        real = attention_mask[row].cpu() != 0
        columns = real.nonzero().squeeze(1)
        start, stop = (int(columns[0]), int(columns[-1]) + 1) if columns.numel() else (0, 0)
        if not real[start:stop].all():
            raise UserError(f"attention_mask: row {row} has a hole between its tokens: pad at the ends only")
        if (targets[~real] != -100).any():
            raise UserError(f"labels: row {row} has a label on padding: set it to -100 there")
    predicts = (targets[start + 1 : stop] != -100).nonzero().squeeze(1)
    if predicts.numel() == 0:
        return None
    column = predicts + start + 1
    position = torch.stack((torch.full_like(column, row), column), dim=1)
    return Document(ids[start:stop].to(device), predicts.to(device), targets[column].to(device), position)
