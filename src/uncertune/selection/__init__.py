"""Token selection: a score per token, then a fraction of the tokens, or those beyond a threshold."""

from uncertune.selection.metrics import METRICS, Metric, scores_of
from uncertune.selection.scores import document_means, random_scores
from uncertune.selection.select import LEVELS, ORDERS, SCOPES, exact_count, last_selected, select
from uncertune.selection.threshold import RunningThreshold, select_by_threshold

__all__ = [
    "LEVELS",
    "METRICS",
    "ORDERS",
    "SCOPES",
    "Metric",
    "RunningThreshold",
    "document_means",
    "exact_count",
    "last_selected",
    "random_scores",
    "scores_of",
    "select",
    "select_by_threshold",
]
