"""Changes from one model to another on the same tokens, for example between checkpoints (claim C10)."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from uncertune.errors import UserError
from uncertune.scoring.run import QUANTITIES, TOKENS, is_complete
from uncertune.statistics.bootstrap import mean_of
from uncertune.statistics.intervals import Estimate

_TOKEN = ("rate", "document", "position", "token")


def earlier_scores(folder: str) -> pa.Table:
    """The finished scores of ``folder``. Raises UserError if it has none."""
    path = Path(folder)
    if not is_complete(path):
        raise UserError(f"against: {folder!r} holds no {TOKENS}: give an output_dir of uncertune score")
    return pq.read_table(path / TOKENS)


def aligned(now: pa.Table, before: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Both tables in the order of rates, documents and positions.

    Raises UserError if they do not score the same tokens at the same rates.
    """
    order = [(name, "ascending") for name in _TOKEN[:3]]
    now, before = now.sort_by(order), before.sort_by(order)
    if any(now[name].to_pylist() != before[name].to_pylist() for name in _TOKEN):
        raise UserError(
            "against: those scores are of other tokens or rates: score the same data with the same tokenizer, "
            "max_samples, max_length and rate"
        )
    return now, before


def change(now: pa.Table, before: pa.Table, *, draws: int, seed: int) -> dict[str, Estimate]:
    """Mean of (now − before) of each quantity over aligned tokens, in nats, with an interval over documents."""
    document = now["document"].to_numpy()
    return {
        name: mean_of(now[name].to_numpy() - before[name].to_numpy(), document, draws=draws, seed=seed)
        for name in QUANTITIES
    }
