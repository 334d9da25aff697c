"""Exactly ceil(q·T) of the highest, ties to the earlier, documents by their mean, random by its arguments alone."""

from fractions import Fraction
from math import ceil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from uncertune.selection import (
    RunningThreshold,
    document_means,
    exact_count,
    last_selected,
    random_scores,
    select,
    select_by_threshold,
)


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
    assert last_selected(scores, select(scores, 0.5)) == pytest.approx(0.7)
    document = torch.tensor([0, 0, 1, 1])
    mask = select(scores, 0.5, level="document", document=document)
    assert last_selected(scores, mask, level="document", document=document) == pytest.approx(0.6)
    assert last_selected(scores[:0], scores[:0].bool()) != last_selected(scores[:0], scores[:0].bool())


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


# ---- which end, and a threshold


def test_orders_select_from_the_top_the_bottom_and_the_middle():
    scores = torch.tensor([5.0, 1.0, 3.0, 2.0, 4.0])
    assert select(scores, 0.4).tolist() == [True, False, False, False, True]
    assert select(scores, 0.4, order="lowest").tolist() == [False, True, False, True, False]
    assert select(scores, 0.4, order="middle").tolist() == [False, False, True, False, True]
    assert select(scores, 0.6, order="middle").tolist() == [False, False, True, True, True]
    for order in ("highest", "lowest", "middle"):
        ties = select(torch.zeros(4), 0.5, order=order)
        assert ties.tolist() == ([False, True, True, False] if order == "middle" else [True, True, False, False])
        assert select(scores, 1, order=order).all()
    assert last_selected(scores, select(scores, 0.4, order="lowest"), order="lowest") == 2
    with pytest.raises(ValueError, match="selection_order must be one of highest, lowest, middle"):
        select(scores, 0.4, order="random")


def test_documents_are_selected_from_the_bottom_too():
    scores, document = torch.tensor([1.0, 9.0, 2.0, 2.0, 7.0]), torch.tensor([0, 0, 1, 1, 2])
    assert select(scores, 0.3, level="document", document=document, order="lowest").tolist() == [
        False, False, True, True, False
    ]  # fmt: skip


def test_a_threshold_selects_what_reaches_it():
    scores, document = torch.tensor([1.0, 9.0, 2.0, 2.0, 7.0]), torch.tensor([0, 0, 1, 1, 2])
    assert select_by_threshold(scores, 2.0).tolist() == [False, True, True, True, True]
    assert select_by_threshold(scores, 2.0, order="lowest").tolist() == [True, False, True, True, False]
    assert not select_by_threshold(scores, 10.0).any()
    assert select_by_threshold(scores, 5.0, level="document", document=document).tolist() == [
        True, True, False, False, True
    ]  # fmt: skip
    with pytest.raises(ValueError, match="two ends"):
        select_by_threshold(scores, 2.0, order="middle")
    with pytest.raises(ValueError, match="NaN"):
        select_by_threshold(scores * torch.nan, 2.0)


def test_a_running_threshold_is_a_moving_average():
    running = RunningThreshold(0.25, "token")
    running.update(2.0)
    running.update(float("nan"))
    running.update(3.0)
    assert running.value == pytest.approx(0.8 * 2 + 0.2 * 3)
    scores = torch.tensor([2.1, 2.3])
    assert running.mask(scores, torch.tensor([0, 0])).tolist() == [False, True]
    lowest = RunningThreshold(0.25, "token", "lowest", value=2.2)
    assert lowest.mask(scores, torch.tensor([0, 0])).tolist() == [True, False]
