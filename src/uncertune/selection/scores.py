"""Scores of tokens, and of documents as the mean over their response tokens (SPEC S9, S10).

``uncertune.selection.metrics`` defines the score of each metric.

Shape legend: ``T`` response tokens (flattened, in data order), ``N`` documents.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MULTIPLIERS = (-0x61C8864680B583EB, -0x4B47D0C5A43B4A4D, -0x2F1B9B96F2D6A3C5)  # odd 64-bit constants
_MASK = (1 << 64) - 1


def random_scores(seed: int, step: int, document: Tensor, position: Tensor) -> Tensor:
    """Uniform scores in [0, 1), float64 (T,), by a counter-based hash of the arguments alone.

    ``document`` (T,) int64 is the document's index in the optimizer step, ``position`` (T,) int64 the token's place in
    its document. A token draws the same number however its step is cut into micro-batches. For one draw per document,
    give position 0 everywhere.
    """
    if document.shape != position.shape or document.dtype != torch.long or position.dtype != torch.long:
        raise ValueError("document and position must both be (T,) int64")
    state = _mix(torch.full_like(document, _signed(seed)))
    for word in (torch.full_like(document, step), document, position):
        state = _mix(state ^ _mix(word + _MULTIPLIERS[0]))
    return _shift(state, 11).double() * 2.0**-53


def document_means(scores: Tensor, document: Tensor) -> tuple[Tensor, Tensor]:
    """The mean score of each document, float64 (N,), and each token's document index (T,) by first appearance.

    ``scores`` is (T,), ``document`` (T,) any integer label. Sums are taken in data order.
    """
    index = first_appearance(document)
    count = int(index.max()) + 1 if index.numel() else 0
    total = torch.zeros(count, dtype=torch.float64, device=scores.device).index_add_(0, index, scores.double())
    return total / torch.bincount(index, minlength=count), index


def first_appearance(document: Tensor) -> Tensor:
    """Labels (T,) renumbered 0, 1, … in the order of their first token."""
    if document.numel() == 0:
        return document.long()
    labels, inverse = torch.unique(document, return_inverse=True)
    position = torch.arange(document.numel(), device=document.device)
    first = torch.full((labels.numel(),), document.numel(), device=document.device).scatter_reduce(
        0, inverse, position, "amin"
    )
    rank = torch.empty_like(first)
    rank[first.argsort()] = torch.arange(labels.numel(), device=document.device)
    return rank[inverse]


def _signed(value: int) -> int:
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def _shift(word: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64; torch has only the arithmetic one."""
    return (word >> bits) & ((1 << (64 - bits)) - 1)


def _mix(word: Tensor) -> Tensor:
    """A bijective finaliser on 64 bits: xor-shifts and odd multiplications, which wrap in int64."""
    word = (word ^ _shift(word, 30)) * _MULTIPLIERS[1]
    word = (word ^ _shift(word, 27)) * _MULTIPLIERS[2]
    return word ^ _shift(word, 31)
