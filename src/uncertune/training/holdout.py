"""Rows held out of training: a tenth for the reference of ``rho`` (SPEC S9), or a test split."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from uncertune.errors import UserError

SHARE = 0.1
"""Share of the rows for the reference of ``rho``."""


def held_out(
    rows: Any, seed: int, share: float = SHARE, *, field: str = "rho_reference='auto'", fix: str = "give a reference"
) -> tuple[Any, Any]:
    """Rows split into the larger part and a part of ``share``, both in their old order.

    A row's part depends on its content and the seed alone, not on order or other rows, and equal rows stay together.
    Raises UserError, with the field that asks for the split and a fix, for streams and for data that is too small.
    """
    if not hasattr(rows, "__len__"):
        raise UserError(f"{field} must split the data: load it without dataset_streaming, or {fix}")
    digests = [_digest(row, seed) for row in rows]
    limit = sorted(digests)[max(0, round(share * len(digests)) - 1)] if digests else ""
    parts = [[n for n, one in enumerate(digests) if (one <= limit) is held] for held in (False, True)]
    if not all(parts):
        raise UserError(
            f"{field} holds out {share:.0%} of the rows, but {len(digests)} rows are too few or all equal: {fix}"
        )
    return rows.select(parts[0]), rows.select(parts[1])


def split_off(rows: Any, share: float, seed: int) -> tuple[Any, Any]:
    """Training rows and a test split of ``test_split_size``. Raises UserError outside (0, 1)."""
    if not 0 < share < 1:
        raise UserError(f"test_split_size must be in (0, 1), the share of the rows to evaluate on; got {share}")
    fix = "name a data set with a test split"
    return held_out(rows, seed, share, field=f"test_split_size={share:g}", fix=fix)


def count_shared(train: Any, evaluation: Any) -> int:
    """The number of evaluation rows that are also training rows, in all common columns."""
    columns = sorted(set(train.column_names) & set(evaluation.column_names))
    if not columns:
        return 0
    seen = {_digest(row, 0) for row in train.select_columns(columns)}
    return sum(_digest(row, 0) in seen for row in evaluation.select_columns(columns))


def _digest(row: dict[str, Any], seed: int) -> str:
    text = json.dumps(row, sort_keys=True, default=str)
    return hashlib.blake2b(f"{seed}\0{text}".encode(), digest_size=16).hexdigest()
