"""Exact selection of the highest scores over several ranks, without gathering or sorting them.

A score becomes an integer key of the same order. Histograms of the key's digits, summed over ranks, fix the key of the
last selected score, one digit at a time; ties at that key go to the earlier score in data order. The ranks exchange one
histogram per digit and one count per part, however many scores there are.

Shape legend: ``T`` scores of one part (a micro-batch), ``R`` ranks, ``P`` parts of each rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

SumOverRanks = Callable[[Tensor], Tensor]
"""Sums an int64 tensor, of the same shape on every rank, over all ranks."""
GatherRanks = Callable[[list[int]], list[list[int]]]
"""Gathers this rank's integers from every rank, in rank order."""

DIGIT_BITS = 11  # 2048 counts of 8 bytes: 16 KiB per digit to exchange; 3 digits for float32, 6 for float64


def alone(counts: Tensor) -> Tensor:
    """The sum over one rank."""
    return counts


def gather_alone(numbers: list[int]) -> list[list[int]]:
    """The numbers of one rank."""
    return [numbers]


def top_masks(
    parts: Sequence[Tensor],
    count: int,
    *,
    rank: int = 0,
    sum_over_ranks: SumOverRanks = alone,
    gather: GatherRanks = gather_alone,
) -> tuple[list[Tensor], float]:
    """Masks of the ``count`` highest scores of all parts of all ranks, and the lowest of these scores.

    ``parts`` are this rank's, (T,) floating point without NaN, all of one dtype on every rank; the masks are bool (T,),
    on the devices of the parts. Data order is part by part, within a part rank by rank, then position: the selection
    equals that of a stable descending sort of all scores in this order. NaN is returned where ``count`` is 0.

    Raises ValueError where there are fewer than ``count`` scores.
    """
    if count == 0:
        return [torch.zeros_like(part, dtype=torch.bool) for part in parts], float("nan")
    bits = 64 if any(part.dtype == torch.float64 for part in parts) else 32
    keys = [_keys(part, bits) for part in parts]
    found, missing, shift = -(1 << (bits - 1)), count, bits
    while shift > 0:
        outer, shift = shift, max(shift - DIGIT_BITS, 0)
        lowest = found >> shift if outer == bits else found << (outer - shift)
        histogram = torch.zeros(1 << DIGIT_BITS, dtype=torch.long)
        for key in keys:
            inside = key if outer == bits else key[(key >> outer) == found]
            histogram += torch.bincount((inside >> shift) - lowest, minlength=1 << DIGIT_BITS).cpu()
        from_above = sum_over_ranks(histogram).flip(0).cumsum(0)
        if outer == bits and int(from_above[-1]) < count:
            raise ValueError(f"count is {count}, but there are only {int(from_above[-1])} scores")
        place = int(torch.searchsorted(from_above, missing))  # the first digit from above that reaches it
        missing -= int(from_above[place - 1]) if place else 0
        found = lowest + (1 << DIGIT_BITS) - 1 - place
    ties = gather([int((key == found).sum()) for key in keys])
    mine = _shares(ties, missing)[rank]
    return [_mask(key, found, share) for key, share in zip(keys, mine, strict=True)], _score(found, bits)


def _mask(key: Tensor, last: int, share: int) -> Tensor:
    """Keys above ``last``, and the first ``share`` of those equal to it."""
    equal = key == last
    return (key > last) | (equal & (equal.cumsum(0) <= share))


def _shares(ties: list[list[int]], missing: int) -> list[list[int]]:
    """How many ties each part of each rank gets of the ``missing`` ones, in data order."""
    shares = [[0] * len(one) for one in ties]
    for part in range(max(map(len, ties), default=0)):
        for rank, one in enumerate(ties):
            if part < len(one):
                shares[rank][part] = min(missing, one[part])
                missing -= shares[rank][part]
    return shares


def _keys(scores: Tensor, bits: int) -> Tensor:
    """int64 keys in the order of the scores; −0 and 0 have one key. Negative floats count their magnitude downwards."""
    if bits == 64:
        key = (scores.double() + 0.0).view(torch.int64)
        return key ^ ((key >> 63) & 0x7FFF_FFFF_FFFF_FFFF)
    key = (scores.float() + 0.0).view(torch.int32)
    return (key ^ ((key >> 31) & 0x7FFF_FFFF)).long()


def _score(key: int, bits: int) -> float:
    """The score of a key."""
    number = torch.tensor(key)
    if bits == 64:
        return float((number ^ ((number >> 63) & 0x7FFF_FFFF_FFFF_FFFF)).view(torch.float64))
    number = number.int()
    return float((number ^ ((number >> 31) & 0x7FFF_FFFF)).view(torch.float32))
