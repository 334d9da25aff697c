"""Token-level measures of a model on a data set: loss, accuracy, calibration, entropy, and KL from the base.

Shape legend: ``T`` response tokens (flattened), ``V`` vocabulary, ``D`` hidden, ``G`` documents.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from uncertune.data.rows import Row
from uncertune.evaluation.measures import batches
from uncertune.fused import linear_token_stats, linear_weighted_nll
from uncertune.objectives import OBJECTIVES, FactoredTeacher, Head
from uncertune.runs.notes import progress
from uncertune.teachers.adapter import frozen_rows

BINS = 15
_LOGITS_BYTES = 64 * 2**20
HIGHER_IS_BETTER = {"accuracy": True, "loss": False, "ece": False}


@dataclass(frozen=True)
class TokenMeasures:
    """``sums`` has one entry per document: sums over its response tokens, in nats, and ``tokens``, their number."""

    sums: list[dict[str, float]]
    bins: list[dict[str, float]]
    """Bins of equal width in the probability of the likeliest token: mean confidence, accuracy, count of tokens."""

    @property
    def metrics(self) -> dict[str, float]:
        """Means over all response tokens, and the expected calibration error.

        ECE = Σ_b (tokens_b / tokens) · |accuracy_b − confidence_b| over 15 bins (Guo et al. 2017, eq. 5).
        """
        tokens = self._total("tokens")
        means = {name: self._total(name) / tokens for name in self._names}
        gap = sum(one["tokens"] * abs(one["accuracy"] - one["confidence"]) for one in self.bins)
        return {**means, "ece": gap / tokens, "tokens": tokens}

    @property
    def errors(self) -> dict[str, float]:
        """Standard errors of the means, with documents as the independent units (ratio estimator)."""
        tokens, count = self._total("tokens"), len(self.sums)
        if count < 2:
            return {}
        out = {}
        for name in self._names:
            mean = self._total(name) / tokens
            square = sum((one[name] - mean * one["tokens"]) ** 2 for one in self.sums)
            out[name] = math.sqrt(square * count / (count - 1)) / tokens
        return out

    @property
    def _names(self) -> list[str]:
        return [name for name in self.sums[0] if name != "tokens"]

    def _total(self, name: str) -> float:
        return math.fsum(one[name] for one in self.sums)


@torch.no_grad()
def measure_tokens(
    model: Any,
    documents: Sequence[Row],
    *,
    pad: int,
    batch_size: int,
    base: Callable[[], AbstractContextManager[None]] | None = None,
    kept: dict[int, FactoredTeacher] | None = None,
    label: str = "",
) -> TokenMeasures:
    """Measure ``model`` in its current state, after ``attach_head``; with ``base``, also its KL from the base.

    ``base()`` is a context in which the same model is the base, for KL(base ‖ model), exact over the vocabulary. The
    base's outputs are cached in ``kept``, batch by batch, for the next model on the same documents.
    """
    device = next(model.parameters()).device
    order = sorted(range(len(documents)), key=lambda g: -len(documents[g].input_ids))
    names = ["loss", "accuracy", "entropy", *(["kl"] if base is not None else []), "tokens"]
    sums = {name: torch.zeros(len(documents), dtype=torch.float64) for name in names}
    bins = torch.zeros(3, BINS, dtype=torch.float64)
    kept = {} if kept is None else kept
    bar = progress(len(documents), f"tokens {label}".strip(), "documents", leave=False)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        (batch,) = batches([documents[g] for g in chosen], len(chosen), pad, device)
        labels = batch.pop("labels")[:, 1:]
        mask = labels != -100
        inputs = {**batch, "use_cache": False}
        if base is not None and start not in kept:
            with base():
                kept[start] = frozen_rows(model, inputs, mask)
        found = _measure(frozen_rows(model, inputs, mask), labels[mask], kept.get(start))
        row_T = mask.nonzero()[:, 0].cpu()
        place_T = torch.tensor(chosen)[row_T]
        correct_T, confidence_T = found["accuracy"], found.pop("confidence")
        for name, values_T in found.items():
            sums[name].index_add_(0, place_T, values_T)
        sums["tokens"].index_add_(0, place_T, torch.ones_like(correct_T))
        bin_T = (confidence_T * BINS).long().clamp(max=BINS - 1)
        for part, values_T in zip(bins, (confidence_T, correct_T, torch.ones_like(correct_T)), strict=True):
            part.index_add_(0, bin_T, values_T)
        bar.update(len(chosen))
    bar.close()
    columns = {name: values.tolist() for name, values in sums.items()}
    per_document = [{name: columns[name][g] for name in names} for g in range(len(documents))]
    return TokenMeasures(per_document, _bins(bins))


def _measure(rows: FactoredTeacher, labels_T: Tensor, base: FactoredTeacher | None) -> dict[str, Tensor]:
    """Each quantity (T,) on the CPU in float64."""
    stats = linear_token_stats(rows.hidden, rows.head, labels_T)
    top_T, confidence_T = _likeliest(rows.hidden, rows.head)
    out = {
        "loss": stats.loss,
        "accuracy": top_T == labels_T,
        "entropy": stats.entropy,
        "confidence": confidence_T,
    }
    if base is not None:
        targets = OBJECTIVES["distill"](labels_T, teacher=base)
        cross_T = linear_weighted_nll(rows.hidden, rows.head, targets)
        entropy_T = linear_token_stats(base.hidden, base.head, labels_T).entropy
        out["kl"] = (cross_T - entropy_T).clamp(min=0)  # below 0 only by rounding
    return {name: values.cpu().double() for name, values in out.items()}


def _likeliest(hidden_TD: Tensor, head: Head) -> tuple[Tensor, Tensor]:
    """The likeliest token of each position and its probability, (T,) each, without all (T, V) logits at once."""
    chunk = max(1, _LOGITS_BYTES // (4 * head.vocabulary))
    tops, confidences = [], []
    for hidden_tD in hidden_TD.split(chunk):
        top = (logits_tV := head.logits(hidden_tD).float()).max(dim=-1)
        tops.append(top.indices)
        confidences.append((top.values - logits_tV.logsumexp(dim=-1)).exp())
    if not tops:
        return hidden_TD.new_zeros(0, dtype=torch.long), hidden_TD.new_zeros(0, dtype=torch.float32)
    return torch.cat(tops), torch.cat(confidences)


def _bins(sums: Tensor) -> list[dict[str, float]]:
    out = []
    for confidence, correct, tokens in sums.T.tolist():
        out.append(
            {
                "confidence": confidence / tokens if tokens else 0.0,
                "accuracy": correct / tokens if tokens else 0.0,
                "tokens": tokens,
            }
        )
    return out
