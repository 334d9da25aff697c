"""The kinds of the hardest tokens, and how they change from one model to another (Fig. 4, claim C4).

A token is a number if it contains a digit, a word if it contains a letter and no digit, and structure otherwise:
punctuation, operators, white space, and special tokens of the chat template such as the end of a turn.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from uncertune.selection import select
from uncertune.statistics.bootstrap import document_draws, estimate
from uncertune.statistics.intervals import Estimate

KINDS = ("structure", "number", "word")
BY = ("loss", "epistemic", "entropy")
"""Quantities that rank tokens."""

Shares = dict[str, Estimate]
Mask = NDArray[np.bool_]


def kind_of(text: str, *, special: bool = False) -> str:
    """The kind of a token; ``special`` tokens of the tokenizer count as structure."""
    if special or not any(character.isalnum() for character in text):
        return "structure"
    return "number" if any(character.isnumeric() for character in text) else "word"


def kinds_of(table: pa.Table, special: Collection[int]) -> Sequence[str]:
    """The kind of every token of a table of scores."""
    pairs = zip(table["text"].to_pylist(), table["token"].to_pylist(), strict=True)
    return [kind_of(text, special=token in special) for text, token in pairs]


def hardest(table: pa.Table, by: str, fraction: float) -> Mask:
    """(N,): the ⌈fraction · N⌉ tokens with the highest ``by``."""
    chosen: Mask = select(torch.from_numpy(table[by].to_numpy().copy()), fraction).numpy()
    return chosen


def composition(
    kinds: Sequence[str], document: NDArray[np.int64], now: Mask, before: Mask | None = None, *, draws: int, seed: int
) -> Shares:
    """Each kind's share of the tokens in ``now`` (N,), or the change of that share from ``before``.

    Intervals are over documents (cluster bootstrap).
    """
    names, index = np.unique(document, return_inverse=True)
    weights_RG = document_draws(len(names), draws, seed)
    everything = np.ones((1, len(names)))
    found = {}
    for kind in KINDS:
        is_kind = np.asarray([one == kind for one in kinds])

        def share(weights: NDArray[np.float64], is_kind: Mask = is_kind) -> NDArray[np.float64]:
            difference = _share(is_kind, now, index, weights)
            return difference if before is None else difference - _share(is_kind, before, index, weights)

        found[kind] = estimate(share(everything)[0], share(weights_RG))
    return found


def _share(
    is_kind: Mask, chosen: Mask, index: NDArray[np.int64], weights_RG: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(R,): the share of the kind among the chosen tokens; NaN for a draw without chosen tokens."""
    of_kind = weights_RG @ np.bincount(index, is_kind & chosen)
    of_all = weights_RG @ np.bincount(index, chosen)
    out = np.full(len(weights_RG), np.nan)
    np.divide(of_kind, of_all, out=out, where=of_all > 0)
    return out
