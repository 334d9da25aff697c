"""One step cut into micro-batches: its masks are those of ``select`` on all scores, its record adds up."""

import math

import pytest
import torch

from uncertune.errors import NotFiniteError
from uncertune.fused import TokenStats
from uncertune.selection import last_selected, random_scores, select
from uncertune.training.batch import Documents, document_hash
from uncertune.training.step import Rule, StepRecord, choose, count_of, first_documents, in_order

LENGTHS = [[3, 2], [4], [], [1, 5, 2]]
"""Response tokens of each document, by micro-batch."""


def documents():
    """Every micro-batch's documents, numbered from 0 in each."""
    out = []
    for lengths in LENGTHS:
        index = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths, dtype=torch.long))
        position = torch.cat([torch.arange(length) for length in lengths] or [torch.zeros(0, dtype=torch.long)])
        out.append(Documents(index, position))
    return out


def labels():
    """The document of every token of the step, numbered through."""
    lengths = [length for one in LENGTHS for length in one]
    return torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))


@pytest.mark.parametrize("order", ["highest", "lowest", "middle"])
@pytest.mark.parametrize("level", ["token", "document"])
@pytest.mark.parametrize("fraction", [0.07, 0.3, 0.5, 1.0])
def test_the_mask_is_that_of_all_scores_together(level, order, fraction):
    scores = torch.randint(0, 5, (17,)).float()  # with ties
    parts = list(scores.split([sum(one) for one in LENGTHS]))
    found = choose(Rule("loss", fraction, level, 0, order), 3, parts, documents())
    how = {"level": level, "document": labels(), "order": order}
    mask = select(scores, fraction, **how)
    assert torch.cat(found.masks).tolist() == mask.tolist()
    assert found.selected == int(mask.sum())
    assert found.threshold == pytest.approx(last_selected(scores, mask, **how))


@pytest.mark.parametrize("order", ["highest", "lowest"])
def test_a_fixed_threshold_selects_what_reaches_it(order):
    scores = torch.arange(17.0)
    parts = list(scores.split([sum(one) for one in LENGTHS]))
    found = choose(Rule("loss", 0.25, "token", 0, order, 11.0), 0, parts, documents())
    assert torch.cat(found.masks).tolist() == [one >= 11 if order == "highest" else one <= 11 for one in range(17)]
    assert found.threshold == 11


@pytest.mark.parametrize("level", ["token", "document"])
def test_random_scores_depend_on_the_place_in_the_step(level):
    place = torch.cat([one.position for one in documents()])
    for seed in range(8):
        found = choose(Rule("random", 0.3, level, seed), 5, [None] * len(LENGTHS), documents())
        scores = random_scores(seed, 5, labels(), place if level == "token" else place * 0)
        mask = select(scores, 0.3, level=level, document=labels())
        assert torch.cat(found.masks).tolist() == mask.tolist()
    assert first_documents(documents()) == [0, 2, 3, 3]
    assert [count_of(one.index) for one in documents()] == [2, 1, 0, 3]


def test_micro_batches_are_ordered_by_accumulation_step_and_then_by_rank():
    ranks = [["a", "b", "c"], ["x", "y"]]
    assert list(in_order(ranks)) == [(0, 0, "a"), (0, 1, "x"), (1, 0, "b"), (1, 1, "y"), (2, 0, "c")]


def test_a_score_that_is_nan_is_named_by_its_micro_batch():
    parts = [torch.zeros(5), torch.tensor([0.0, math.nan, 1, 2]), torch.zeros(0), torch.zeros(8)]
    with pytest.raises(NotFiniteError, match="step 3, micro-batch 2 of 4: the entropy of a token is nan"):
        choose(Rule("entropy", 0.5, "token", 0), 2, parts, documents())


def record(**fields):
    """A record of two micro-batches, 4 and 2 tokens, 3 of them selected."""
    out = StepRecord(6, tokens=6, micro_batches=2, selected=3, **fields)
    losses = [torch.tensor([1.0, 2, 3, 4]), torch.tensor([5.0, 7])]
    masks = [torch.tensor([True, False, False, True]), torch.tensor([True, False])]
    out.add(inputs=20, anchor_loss=1.5, anchor_kl=0.6, kl=1.2)
    for loss_T, mask_T in zip(losses, masks, strict=True):
        assert not out.complete
        out.add_loss(loss_T, mask_T, lambda: ["d"], 0)
        out.add_nll(loss_T, mask_T)
        out.add(aux_loss=0.4, aux_losses=1)
        out.add_stats(TokenStats(loss_T[:2], loss_T[:2] / 10, torch.tensor([True, False])))
    out.add(selected=3)
    out.thresholds = [2.0, math.nan, 3.0]
    assert out.complete
    return out


def test_the_means_of_a_step():
    found = record().finish()
    wanted = {
        "loss": 22 / 6,
        "inputs": 20,
        "entropy": (0.1 + 0.2 + 0.5 + 0.7) / 4,
        "mean_token_accuracy": 0.5,
        "kl": 0.2,
        "anchor_loss": 0.25,
        "anchor_kl": 0.1,
        "aux_loss": 0.4,
        "loss_part_selected": (1 + 4 + 5) / 6,
        "loss_part_unselected": (2 + 3 + 7) / 6,
        "nll_selected": (1 + 4 + 5) / 3,
        "nll_unselected": (2 + 3 + 7) / 3,
        "selected_fraction": 0.5,
        "selection_threshold": 2.0,
    }
    assert {name: found[name] for name in wanted} == pytest.approx(wanted)


def test_by_selected_tokens_the_loss_and_its_parts_are_divided_by_them():
    found = record(by_selected=True, from_below=True).finish()
    wanted = {
        "loss": 22 / 3,
        "anchor_loss": 0.5,
        "anchor_kl": 0.1,
        "loss_part_selected": 10 / 3,
        "loss_part_unselected": 12 / 3,
        "selected_fraction": 0.5,
        "selection_threshold": 3.0,
    }
    assert {name: found[name] for name in wanted} == pytest.approx(wanted)


def test_a_loss_that_is_not_finite_names_its_micro_batch():
    out = StepRecord(6, tokens=2, micro_batches=2)
    for loss in (1.0, math.inf):
        out.add_loss(torch.tensor([loss]), None, lambda: ["d"], 0)
    with pytest.raises(NotFiniteError, match=r"step 7, micro-batch 2 of 2 \(documents d\): the loss is inf"):
        out.finish()


def test_the_key_of_a_document_is_that_of_its_ids_and_of_the_labels_that_are_predicted():
    """Of a cache and of recorded masks: the same text with loss on other tokens is another document."""
    ids, labels = torch.tensor([5, 6, 7, 8]), torch.tensor([5, -100, 7, 8])
    key = document_hash(ids, labels)
    assert key == document_hash(ids.to(torch.int32), torch.tensor([-100, -100, 7, 8]))
    assert len({key, document_hash(ids, torch.tensor([5, 6, 7, 8])), document_hash(ids + 1, labels)}) == 3
