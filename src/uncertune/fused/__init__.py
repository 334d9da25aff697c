"""The fused head: weighted loss and token statistics from hidden states and a head, without the (T, V) logits."""

from uncertune.fused.chunked import Scored, Swept
from uncertune.fused.linear import (
    linear_token_stats,
    linear_top_k,
    linear_weighted_nll,
    linear_weighted_nll_with_stats,
    score_tokens,
    weighted_sweep,
)
from uncertune.fused.projection import TokenStats

__all__ = [
    "Scored",
    "Swept",
    "TokenStats",
    "linear_token_stats",
    "linear_top_k",
    "linear_weighted_nll",
    "linear_weighted_nll_with_stats",
    "score_tokens",
    "weighted_sweep",
]
