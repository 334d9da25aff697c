"""Which tokens: a score per token, and the top fraction of them."""

from uncertune.selection.metrics import METRICS, Metric, scores_of
from uncertune.selection.scores import document_means, random_scores
from uncertune.selection.select import LEVELS, SCOPES, exact_count, select, threshold

__all__ = [
    "LEVELS",
    "METRICS",
    "SCOPES",
    "Metric",
    "document_means",
    "exact_count",
    "random_scores",
    "scores_of",
    "select",
    "threshold",
]
