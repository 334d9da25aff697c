"""Rank correlation of many rows at once."""

from __future__ import annotations

import torch
from torch import Tensor


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's correlation (...,) over the last dimension of (..., N); equal values share their mean rank.

    NaN if one of the two is constant.
    """
    x, y = (rank - rank.mean(-1, keepdim=True) for rank in map(ranks, torch.broadcast_tensors(a, b)))
    return (x * y).sum(-1) / (x.square().sum(-1) * y.square().sum(-1)).sqrt()


def ranks(values: Tensor) -> Tensor:
    """Ranks from 0 over the last dimension, float64; equal values share their mean rank."""
    values = values.contiguous()
    ordered = values.sort(-1).values
    below, not_above = (torch.searchsorted(ordered, values, right=right) for right in (False, True))
    return (below + not_above - 1).double() / 2
