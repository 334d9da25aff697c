"""Which tokens: a score per token, and the top fraction of them."""

from uncertune.selection.scores import METRICS, document_means, random_scores
from uncertune.selection.select import LEVELS, SCOPES, exact_count, select, threshold

__all__ = [
    "LEVELS",
    "METRICS",
    "SCOPES",
    "document_means",
    "exact_count",
    "random_scores",
    "select",
    "threshold",
]
