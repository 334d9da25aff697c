"""Selection by a threshold: a fixed one, or one carried over from earlier steps (SPEC B1, B11).

Scope ``running``: the first step is selected exactly. From then on a token (or document) is selected if its score
reaches the moving average of the exact thresholds of earlier steps, so no pass over a step's micro-batches is needed
before its training forwards.

Shape legend: ``T`` response tokens (flattened, in data order).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from uncertune.selection.scores import document_means
from uncertune.selection.select import Level, Order, check

DECAY = 0.8
"""Decay of the moving average, which covers about 1 / (1 − 0.8) = 5 steps."""


def select_by_threshold(
    scores: Tensor,
    threshold: float,
    *,
    order: Order = "highest",
    level: Level = "token",
    document: Tensor | None = None,
) -> Tensor:
    """bool (T,): the scores of at least ``threshold``, or of at most ``threshold`` with order ``lowest``; by document
    all tokens of those with such a mean score. ``threshold`` is in the unit of the scores. The mask may be empty.

    Raises ValueError for order ``middle``, NaN scores, an unknown level or order, and missing document labels.
    """
    check(scores, level, order, document)
    if order == "middle":
        raise ValueError("selection_order='middle' has two ends: give a fraction, not a threshold")
    if level == "document":
        assert document is not None
        means, index = document_means(scores, document)
        scores = means[index]
    return scores.double() >= threshold if order == "highest" else scores.double() <= threshold


@dataclass
class RunningThreshold:
    """``value``: the moving average of exact thresholds, or None before the first step."""

    fraction: float
    level: Level
    order: Order = "highest"
    decay: float = DECAY
    value: float | None = None

    def mask(self, scores: Tensor, document: Tensor) -> Tensor:
        """(T,) bool: the tokens whose score, or whose document's mean score, reaches ``value``."""
        assert self.value is not None
        if float(self.fraction) == 1:
            return torch.ones_like(scores, dtype=torch.bool)
        return select_by_threshold(scores, self.value, order=self.order, level=self.level, document=document)

    def update(self, threshold: float) -> None:
        """Update the average with the exact threshold of a step; NaN, from a step without tokens, changes nothing."""
        if not math.isnan(threshold):
            self.value = threshold if self.value is None else self.decay * self.value + (1 - self.decay) * threshold
