"""A fraction of the tokens or documents by their scores, exactly (SPEC S10, S11, B11)."""

from __future__ import annotations

from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor

from uncertune.selection.scores import document_means

Level = Literal["token", "document"]
Order = Literal["highest", "lowest", "middle"]
LEVELS = ("token", "document")
ORDERS = ("highest", "lowest", "middle")
SCOPES = ("batch", "microbatch", "running")


def exact_count(fraction: float | str | Fraction, total: int) -> int:
    """``ceil(fraction · total)``, exact on the decimal as written: 0.07 of 100 is 7, although 0.07 * 100 > 7 in floats.

    Raises ValueError for anything but a number in (0, 1].
    """
    try:
        exact = Fraction(str(fraction))
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"selection_fraction must be a number in (0, 1], got {fraction!r}") from None
    if not 0 < exact <= 1:
        raise ValueError(f"selection_fraction must be in (0, 1], got {fraction!r}")
    return -((-exact.numerator * total) // exact.denominator)


def select(
    scores: Tensor,
    fraction: float | str | Fraction,
    *,
    level: Level = "token",
    document: Tensor | None = None,
    order: Order = "highest",
) -> Tensor:
    """The highest scores: a bool mask (T,) with exactly ``ceil(fraction · T)`` tokens, ties to the earlier one.

    With ``level="document"``, ``document`` (T,) labels each token's document, and the mask holds all tokens of
    ``ceil(fraction · documents)`` documents, those of the highest mean score, ties to the document that starts first.

    ``order="lowest"`` selects the lowest scores. ``"middle"`` leaves out as many above as below, or one fewer above if
    their number is odd.

    Raises ValueError for a fraction outside (0, 1], NaN scores, an unknown level or order, or missing document labels.
    """
    exact_count(fraction, 0)  # refuses a bad fraction even if there is nothing to select
    check(scores, level, order, document)
    if level == "token":
        return _ranked(scores, fraction, order)
    assert document is not None
    means, index = document_means(scores, document)
    return _ranked(means, fraction, order)[index]


def check(scores: Tensor, level: str, order: str, document: Tensor | None) -> None:
    """Raise ValueError for scores, a level, an order or documents that cannot be used."""
    if scores.dim() != 1:
        raise ValueError(f"scores must be (T,), got {tuple(scores.shape)}")
    if level not in LEVELS:
        raise ValueError(f"selection_level must be one of {', '.join(LEVELS)}, got {level!r}")
    if order not in ORDERS:
        raise ValueError(f"selection_order must be one of {', '.join(ORDERS)}, got {order!r}")
    if bool(scores.isnan().any()):
        raise ValueError("scores contain NaN: the model's loss or entropy is not a number on some token")
    if level == "document" and (document is None or document.shape != scores.shape):
        raise ValueError("selection_level='document' needs document labels of the scores' shape")


def ranks_above(order: Order, count: int, total: int) -> int:
    """How many of ``total`` scores in the given order come before the ``count`` selected ones."""
    return (total - count) // 2 if order == "middle" else 0


def _ranked(scores: Tensor, fraction: float | str | Fraction, order: Order) -> Tensor:
    count = exact_count(fraction, scores.numel())
    above = ranks_above(order, count, scores.numel())
    ranking = torch.sort(scores, descending=order != "lowest", stable=True).indices
    mask = torch.zeros_like(scores, dtype=torch.bool)
    mask[ranking[above : above + count]] = True
    return mask


def last_selected(
    scores: Tensor,
    mask: Tensor,
    *,
    level: Level = "token",
    document: Tensor | None = None,
    order: Order = "highest",
) -> float:
    """The lowest selected score, with order ``lowest`` the highest one (at document level: mean score).

    NaN where nothing is selected.
    """
    if level == "document":
        if document is None:
            raise ValueError("selection_level='document' needs document labels")
        means, index = document_means(scores, document)
        scores = means[index]
    chosen = scores[mask]
    if not chosen.numel():
        return float("nan")
    return float(chosen.max() if order == "lowest" else chosen.min())
