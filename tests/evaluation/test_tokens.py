"""Token-level measures from their sums: means, errors, calibration."""

import math

import pytest
import torch

from uncertune.evaluation.results import table_of
from uncertune.evaluation.tokens import TokenMeasures, _measure
from uncertune.objectives import FactoredTeacher, Head
from uncertune.report import to_markdown


def bin_(confidence, accuracy, tokens):
    return {"confidence": confidence, "accuracy": accuracy, "tokens": tokens}


SUMS = [
    {"loss": 6.0, "accuracy": 1.0, "tokens": 2.0},
    {"loss": 2.0, "accuracy": 3.0, "tokens": 4.0},
    {"loss": 4.0, "accuracy": 1.0, "tokens": 4.0},
]


def test_calibration_error_does_not_cancel_between_bins():
    """Overconfident by 0.2 on half of the tokens and underconfident by 0.2 on the others: 0.2, and not 0."""
    found = TokenMeasures(SUMS, [bin_(0.7, 0.5, 5.0), bin_(0.3, 0.5, 5.0), bin_(0.0, 0.0, 0.0)])
    assert found.metrics["ece"] == pytest.approx(0.2)
    assert TokenMeasures(SUMS, [bin_(0.9, 0.5, 8.0), bin_(0.5, 0.5, 2.0)]).metrics["ece"] == pytest.approx(0.32)


def test_means_are_over_tokens_and_errors_over_documents():
    found = TokenMeasures(SUMS, [bin_(0.5, 0.5, 10.0)])
    assert found.metrics["loss"] == pytest.approx(1.2)
    assert found.metrics["tokens"] == 10
    residuals = [6.0 - 1.2 * 2, 2.0 - 1.2 * 4, 4.0 - 1.2 * 4]
    assert found.errors["loss"] == pytest.approx(math.sqrt(sum(r * r for r in residuals) * 3 / 2) / 10)
    assert TokenMeasures(SUMS[:1], [bin_(0.5, 0.5, 2.0)]).errors == {}


def result(label, loss, error, documents, adapter=None):
    return {
        "task": "tokens:x",
        "model": label,
        "label": label,
        "metrics": {"loss": loss, "accuracy": 0.25, "tokens": 100.0},
        "stderr": {"loss": error},
        "higher_is_better": {"loss": False, "accuracy": True},
        "documents": documents,
        "settings": {},
        "weights": {"adapter": adapter},
    }


def test_the_table_says_how_many_and_how_sure():
    table = table_of([result("base", 2.0, 0.1, 5), result("tuned", 1.5, 0.2, 5, "a")])
    text = to_markdown(table)
    assert "tokens:x loss, n = 5" in text
    assert "2.000 ±0.278" in text, "Student's t with 4 degrees of freedom: 2.776"
    assert "1.500 ±0.555 (−0.500▼)" in text
    assert "25.0% |" in text, "an accuracy without a standard error has no interval"
    assert "Fewer than 30 documents: tokens:x (5)" in table.caption
    assert "Fewer" not in table_of([result("base", 2.0, 0.1, 30)]).caption


def test_equal_documents_have_no_interval_of_no_width():
    assert "2.000 |" in to_markdown(table_of([result("base", 2.0, 0.0, 40)]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_token_is_at_a_negative_divergence_from_itself(dtype):
    """Cross-entropy and entropy are rounded apart; their difference fell below 0 at half of these tokens."""
    rows = FactoredTeacher(torch.randn(200, 32).to(dtype), Head(torch.randn(500, 32).to(dtype)))
    found = _measure(rows, torch.randint(0, 500, (200,)), rows)["kl"]
    assert 0 <= float(found.min()) <= float(found.max()) < 1e-4
