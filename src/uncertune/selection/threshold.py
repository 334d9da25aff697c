"""Selection by a threshold: a fixed one, or one carried over from earlier steps (SPEC B1, B11).

Scope ``running``: the first step is selected exactly. From then on a token (or document) is selected where its score
reaches the moving average of what the exact thresholds of earlier steps would have been, so no pass over a step's
micro-batches is needed before its training forwards.

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
"""Weight of the past in the moving average, which looks back over about 1 / (1 − 0.8) = 5 steps."""


def select_by_threshold(
    scores: Tensor,
    threshold: float,
    *,
    order: Order = "highest",
    level: Level = "token",
    document: Tensor | None = None,
) -> Tensor:
    """bool (T,): the scores of at least ``threshold``, or with order ``lowest`` at most; at document level the tokens
    of the documents whose mean score is. ``threshold`` is in the unit of the scores; nothing may be selected.

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
        """Take in the exact threshold of a step; NaN, that of a step without tokens, changes nothing."""
        if not math.isnan(threshold):
            self.value = threshold if self.value is None else self.decay * self.value + (1 - self.decay) * threshold
