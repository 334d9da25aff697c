"""Document level under masked MLE: dropped documents are not run again (SPEC B2).

After the scoring pass only the selected documents have loss. They are redistributed over all ranks and packed into as
few micro-batches as the size of the old ones allows, with equally many forward and backward passes on every rank; a
rank without a document runs two tokens without loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from uncertune.training.batch import IGNORED, LAYOUT, SELECTED, SIDE_COLUMNS, document_spans, layout_of
from uncertune.training.devices import all_ranks

Example = dict[str, Any]


def keep_selected(
    batches: Sequence[dict[str, Any]],
    masks: Sequence[Tensor],
    collate: Callable[[list[Example]], dict[str, Any]],
    *,
    rank: int,
    ranks: int,
    rows: int,
    flattened: bool,
) -> list[dict[str, Any]] | None:
    """This rank's micro-batches of a step with only the documents that ``masks`` (T,) select.

    A new micro-batch has at most ``rows`` documents or, if ``flattened``, at most the tokens of the longest old one.
    The number of micro-batches stays the same; the first ones may be ``skipped``. None if more would be needed than
    before.
    """
    mine = [example for batch, mask in zip(batches, masks, strict=True) for example in _selected(batch, mask)]
    longest = max((batch["input_ids"].numel() for batch in batches), default=0)
    gathered = all_ranks((mine, longest))
    kept = [example for examples, _ in gathered for example in examples]
    bins = _first_fit(kept, max(length for _, length in gathered)) if flattened else _even(kept, rows, ranks)
    count = max(-(-len(bins) // ranks), 1)
    if count > len(batches):
        return None
    own = bins[rank::ranks]
    own += [[_without_loss(batches[0])]] * (count - len(own))
    return [_SKIPPED] * (len(batches) - count) + [_collated(collate, examples) for examples in own]


def skipped(batch: dict[str, Any]) -> bool:
    """Whether a micro-batch is a placeholder for documents that are not run."""
    return "labels" not in batch


_SKIPPED: dict[str, Any] = {"input_ids": torch.zeros(1, 0, dtype=torch.long)}


def _selected(batch: dict[str, Any], mask: Tensor) -> list[Example]:
    """Each selected document of a batch as a separate example, in plain lists."""
    layout = layout_of(batch)
    chosen = set(layout.documents.index[mask].tolist())
    columns = {**batch, **layout.columns}
    names = ["input_ids", "labels", *(name for name in SIDE_COLUMNS if name in batch)]
    return [
        {name: columns[name][row, span].tolist() for name in names}
        for number, (row, span) in enumerate(document_spans(columns))
        if number in chosen
    ]


def _without_loss(batch: dict[str, Any]) -> Example:
    """The first two tokens of a batch, without response tokens."""
    names = [name for name in SIDE_COLUMNS if name in batch]
    return {
        "input_ids": batch["input_ids"][0, :2].tolist(),
        "labels": [IGNORED] * 2,
        **{name: batch[name][0, :2].tolist() for name in names},
    }


def _collated(collate: Callable[[list[Example]], dict[str, Any]], examples: list[Example]) -> dict[str, Any]:
    batch = collate(examples)
    batch[LAYOUT] = layout = layout_of(batch)
    batch[SELECTED] = torch.ones(layout.index.numel(), dtype=torch.bool)
    return batch


def _even(examples: list[Example], rows: int, ranks: int) -> list[list[Example]]:
    """Bins of at most ``rows`` examples of similar length, equally many for every rank, of nearly equal size."""
    by_length = sorted(examples, key=lambda example: len(example["input_ids"]), reverse=True)
    count = -(-len(by_length) // (rows * ranks)) * ranks
    edges = [len(by_length) * number // count for number in range(count + 1)] if count else []
    return [by_length[start:end] for start, end in pairwise(edges) if end > start]


def _first_fit(examples: list[Example], capacity: int) -> list[list[Example]]:
    """Bins of at most ``capacity`` tokens: the longest example first, each into the first bin with room for it."""
    bins: list[list[Example]] = []
    room: list[int] = []
    for example in sorted(examples, key=lambda example: len(example["input_ids"]), reverse=True):
        length = len(example["input_ids"])
        number = next((number for number, left in enumerate(room) if left >= length), len(bins))
        if number == len(bins):
            bins.append([])
            room.append(capacity)
        bins[number].append(example)
        room[number] -= length
    return bins
