"""Scope ``running``: a threshold carried over from earlier steps, so that no pass is needed to find it (SPEC B1).

The first step is selected exactly, as scope ``batch`` does. From then on a token (or document) is selected where its
score is at least the moving average of what the exact thresholds of the steps before would have been. Those are found
at the end of each step, over all ranks, from the scores that its training forwards gave.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from uncertune.runs.files import write_atomically
from uncertune.selection import document_means
from uncertune.training.batch import Documents
from uncertune.training.step import Rule, choose

DECAY = 0.8
"""Weight of the past in the moving average, which so looks back over about 1 / (1 − 0.8) = 5 steps."""

STATE = "running_threshold.json"


@dataclass
class RunningThreshold:
    """``value``: the moving average of exact thresholds, or None before the first step; the same on every rank."""

    rule: Rule
    decay: float = DECAY
    value: float | None = None
    _scores: list[Tensor | None] = field(default_factory=list)
    _documents: list[Documents] = field(default_factory=list)
    _masks: list[Tensor] = field(default_factory=list)

    def mask(self, scores: Tensor, document: Tensor) -> Tensor:
        """(T,) bool: the tokens whose score, or whose document's mean score, is at least ``value``."""
        assert self.value is not None
        if float(self.rule.fraction) == 1:
            return torch.ones_like(scores, dtype=torch.bool)
        if self.rule.level == "document":
            means, index = document_means(scores, document)
            scores = means[index]
        return scores.double() >= self.value

    def choose(self, scores: Tensor, documents: Documents) -> Tensor:
        """The mask (T,) of one micro-batch, whose scores are kept until ``finish``."""
        scores = scores.detach().cpu()
        mask = self.mask(scores, documents.index.cpu())
        self._scores.append(scores)
        self._documents.append(documents)
        self._masks.append(mask)
        return mask.to(documents.index.device)

    def finish(self, step: int) -> dict[str, float]:
        """Move on to the next step; how many of this rank's tokens both masks, and either of them, selected."""
        exact = choose(self.rule, step, self._scores, self._documents)
        pairs = [(mask, one.cpu()) for mask, one in zip(self._masks, exact.masks, strict=True)]
        self._scores, self._documents, self._masks = [], [], []
        self.update(exact.threshold)
        return {
            "exact_and_running": float(sum(int((mask & one).sum()) for mask, one in pairs)),
            "exact_or_running": float(sum(int((mask | one).sum()) for mask, one in pairs)),
        }

    def update(self, threshold: float) -> None:
        """Take in the exact threshold of a step; NaN, that of a step without tokens, says nothing."""
        if not math.isnan(threshold):
            self.value = threshold if self.value is None else self.decay * self.value + (1 - self.decay) * threshold

    def save(self, folder: str | Path) -> None:
        write_atomically(Path(folder) / STATE, json.dumps({"threshold": self.value}))

    def load(self, folder: str | Path) -> None:
        self.value = json.loads((Path(folder) / STATE).read_text(encoding="utf-8"))["threshold"]
