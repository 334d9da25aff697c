"""Exactly ceil(q·T) of the highest, ties to the earlier, documents by their mean, random by its arguments alone."""

from fractions import Fraction
from math import ceil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from uncertune.selection import document_means, exact_count, random_scores, select, threshold


@given(st.integers(1, 1000), st.integers(1, 1000), st.integers(0, 5000))
def test_count_is_exact_on_the_decimal(numerator, digits, total):
    fraction = f"{min(numerator, 1000) / 1000:.3f}"
    assert exact_count(fraction, total) == ceil(Fraction(fraction) * total)
    assert exact_count(float(fraction), total) == ceil(Fraction(fraction) * total)


def test_count_where_floats_go_wrong():
    assert ceil(0.07 * 100) == 8
    assert exact_count(0.07, 100) == 7
    assert exact_count("0.1", 30) == 3
    assert exact_count(0.25, 5) == 2
    assert exact_count(1, 5) == 5
    assert exact_count(1e-9, 5) == 1


@given(st.lists(st.integers(0, 5), max_size=60), st.integers(1, 100))
def test_tokens_against_a_sort(scores, percent):
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    expected = set(order[: ceil(Fraction(percent, 100) * len(scores))])
    mask = select(torch.tensor(scores, dtype=torch.float32), percent / 100)
    assert mask.dtype == torch.bool
    assert {i for i, chosen in enumerate(mask.tolist()) if chosen} == expected


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6)), max_size=60), st.integers(1, 100))
def test_documents_against_a_sort(rows, percent):
    documents: dict[int, list[int]] = {}
    for score, document in rows:
        documents.setdefault(document, []).append(score)
    mean = {d: Fraction(sum(s), len(s)) for d, s in documents.items()}
    first = {d: i for i, d in enumerate(documents)}
    order = sorted(documents, key=lambda d: (-mean[d], first[d]))
    expected = set(order[: ceil(Fraction(percent, 100) * len(documents))])
    mask = select(
        torch.tensor([s for s, _ in rows], dtype=torch.float64),
        percent / 100,
        level="document",
        document=torch.tensor([d for _, d in rows], dtype=torch.long),
    )
    assert mask.tolist() == [d in expected for _, d in rows]


def test_large_inputs_have_no_limit():
    scores = torch.rand(2**24 + 10)  # more than torch.quantile takes
    assert int(select(scores, 0.25).sum()) == exact_count(0.25, scores.numel())


def test_threshold_is_the_lowest_selected():
    scores = torch.tensor([0.1, 0.9, 0.5, 0.7])
    assert threshold(scores, select(scores, 0.5)) == pytest.approx(0.7)
    document = torch.tensor([0, 0, 1, 1])
    mask = select(scores, 0.5, level="document", document=document)
    assert threshold(scores, mask, level="document", document=document) == pytest.approx(0.6)
    assert threshold(scores[:0], scores[:0].bool()) != threshold(scores[:0], scores[:0].bool())


def test_document_means_do_not_depend_on_labels():
    scores = torch.tensor([1.0, 2.0, 3.0, 5.0])
    means, index = document_means(scores, torch.tensor([7, 3, 7, 1]))
    assert means.tolist() == [2.0, 2.0, 5.0]
    assert index.tolist() == [0, 1, 0, 2]


def test_random_is_uniform_and_counter_based():
    document = torch.arange(500).repeat_interleave(40)
    position = torch.arange(40).repeat(500)
    draw = random_scores(0, 3, document, position)
    assert draw.min() >= 0
    assert draw.max() < 1
    assert draw.unique().numel() == draw.numel()
    histogram = torch.histc(draw, 10, 0, 1)
    assert (histogram - 2000).abs().max() < 200  # about 4.7 standard deviations
    pairs = torch.stack([draw[:-1], draw[1:]])
    assert torch.corrcoef(pairs)[0, 1].abs() < 0.03
    chosen = torch.randperm(draw.numel())[:100]
    assert torch.equal(random_scores(0, 3, document[chosen], position[chosen]), draw[chosen])
    for other in (random_scores(1, 3, document, position), random_scores(0, 4, document, position)):
        assert (other != draw).all()


def test_refusals():
    scores = torch.rand(4)
    for fraction in (0, 2, -0.1, 1.01, "a", float("nan"), float("inf")):
        with pytest.raises(ValueError, match="selection_fraction"):
            select(scores, fraction)
    with pytest.raises(ValueError, match="NaN"):
        select(torch.tensor([1.0, float("nan")]), 0.5)
    with pytest.raises(ValueError, match="selection_level"):
        select(scores, 0.5, level="sentence")
    with pytest.raises(ValueError, match="document labels"):
        select(scores, 0.5, level="document")
    with pytest.raises(ValueError, match="document labels"):
        select(scores, 0.5, level="document", document=torch.zeros(3, dtype=torch.long))
