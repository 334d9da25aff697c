"""The top fraction of tokens or documents, exactly (SPEC S10, S11)."""

from __future__ import annotations

from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor

from uncertune.selection.scores import document_means

Level = Literal["token", "document"]
LEVELS = ("token", "document")
SCOPES = ("batch", "microbatch", "running")


def exact_count(fraction: float | str | Fraction, total: int) -> int:
    """``ceil(fraction · total)`` on the decimal as written: 0.07 of 100 is 7, though 0.07 * 100 > 7 in floats.

    Raises ValueError outside (0, 1], and for what is no number.
    """
    try:
        exact = Fraction(str(fraction))
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"selection_fraction must be a number in (0, 1], got {fraction!r}") from None
    if not 0 < exact <= 1:
        raise ValueError(f"selection_fraction must be in (0, 1], got {fraction!r}")
    return -((-exact.numerator * total) // exact.denominator)


def select(
    scores: Tensor, fraction: float | str | Fraction, *, level: Level = "token", document: Tensor | None = None
) -> Tensor:
    """The highest scores: a bool mask (T,) with exactly ``ceil(fraction · T)`` tokens, ties to the earlier one.

    With ``level="document"``, ``document`` (T,) labels each token's document, and the mask holds all tokens of
    ``ceil(fraction · documents)`` documents, those of the highest mean score, ties to the document that starts first.

    Raises ValueError for a fraction outside (0, 1], NaN scores, an unknown level, or missing document labels.
    """
    if scores.dim() != 1:
        raise ValueError(f"scores must be (T,), got {tuple(scores.shape)}")
    if level not in LEVELS:
        raise ValueError(f"selection_level must be one of {', '.join(LEVELS)}, got {level!r}")
    exact_count(fraction, 0)  # validates also where there is nothing to select
    if bool(scores.isnan().any()):
        raise ValueError("scores contain NaN: the model's loss or entropy is not a number on some token")
    if level == "token":
        return _top(scores, fraction)
    if document is None or document.shape != scores.shape:
        raise ValueError("selection_level='document' needs document labels of the scores' shape")
    means, index = document_means(scores, document)
    return _top(means, fraction)[index]


def _top(scores: Tensor, fraction: float | str | Fraction) -> Tensor:
    count = exact_count(fraction, scores.numel())
    order = torch.sort(scores, descending=True, stable=True).indices
    mask = torch.zeros_like(scores, dtype=torch.bool)
    mask[order[:count]] = True
    return mask


def threshold(scores: Tensor, mask: Tensor, *, level: Level = "token", document: Tensor | None = None) -> float:
    """The lowest selected score (at document level: mean score); NaN where nothing is selected."""
    if level == "document":
        if document is None:
            raise ValueError("selection_level='document' needs document labels")
        means, index = document_means(scores, document)
        scores = means[index]
    chosen = scores[mask]
    return float(chosen.min()) if chosen.numel() else float("nan")
