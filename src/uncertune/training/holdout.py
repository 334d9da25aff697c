"""A tenth of the data that nothing but the reference of ``rho`` is trained on (SPEC S9)."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from uncertune.errors import UserError

SHARE = 0.1


def held_out(rows: Any, seed: int) -> tuple[Any, Any]:
    """Rows split in two, nine tenths and one tenth, each in its old order.

    A row's side depends on its content and the seed alone: equal rows stay together, and neither order nor other rows
    decide. Raises UserError for streams and for data too small to split.
    """
    if not hasattr(rows, "__len__"):
        raise UserError(
            "rho_reference='auto' must split the data: load it without dataset_streaming, or give a reference"
        )
    digests = [_digest(row, seed) for row in rows]
    limit = sorted(digests)[max(0, round(SHARE * len(digests)) - 1)] if digests else ""
    parts = [[n for n, one in enumerate(digests) if (one <= limit) is held] for held in (False, True)]
    if not all(parts):
        raise UserError(
            f"rho_reference='auto' holds out a tenth of the data, and {len(digests)} rows are too few or all alike: "
            "give a reference"
        )
    return rows.select(parts[0]), rows.select(parts[1])


def _digest(row: dict[str, Any], seed: int) -> str:
    text = json.dumps(row, sort_keys=True, default=str)
    return hashlib.blake2b(f"{seed}\0{text}".encode(), digest_size=16).hexdigest()
