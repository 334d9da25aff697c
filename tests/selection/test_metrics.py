"""The registry of metrics: what each scores, what it needs, and that nothing falls through to another."""

from types import SimpleNamespace

import pytest
import torch

from uncertune.selection import METRICS, scores_of

STATS = SimpleNamespace(loss=torch.tensor([3.0, 1.0]), entropy=torch.tensor([0.5, 2.0]))
EXTRA = torch.tensor([1.0, 4.0])
EXPECTED = {"loss": [3.0, 1.0], "entropy": [0.5, 2.0], "rho": [2.0, -3.0], "bald": [1.0, 4.0]}


@pytest.mark.parametrize("name", [name for name, metric in METRICS.items() if not metric.drawn])
def test_scores(name):
    metric = METRICS[name]
    given = scores_of(name, STATS if metric.needs_stats else None, EXTRA if metric.extra else None)
    assert given.tolist() == EXPECTED[name]


@pytest.mark.parametrize(("name", "missing"), [("loss", "stats"), ("rho", "reference_loss"), ("bald", "epistemic")])
def test_what_is_missing_is_named(name, missing):
    with pytest.raises(TypeError, match=f"'{name}' needs {missing}"):
        scores_of(name, None if missing == "stats" else STATS, None)


def test_random_has_no_score():
    assert METRICS["random"].drawn
    with pytest.raises(TypeError, match="'random' is drawn"):
        scores_of("random", STATS, EXTRA)


def test_an_unknown_metric_is_an_error():
    with pytest.raises(KeyError):
        scores_of("los", STATS, EXTRA)
