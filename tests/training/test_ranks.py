"""Two ranks give the mask, loss and gradient of one process (SPEC B1), also where rows are repeated to fill a batch."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from helpers.harness import VOCABULARY, relative_difference, rows, run
from helpers.tiny import tiny_model
from helpers.two_processes import two_processes

MASKED, BOTH = {"objective": "masked_mle"}, {"objective": "masked_mle_distill"}
DOCUMENT = {"selection_level": "document"}
PACKED = {"packing": True, "max_length": 30, "padding_free": True}

# name → (fields, rows, side column, rows of a micro-batch on two ranks, micro-batches)
CASES = {
    "even": (BOTH, 8, None, 2, 2),
    "ragged": (BOTH, 7, None, 2, 2),
    "last batch dropped": ({"objective": "mle", "dataloader_drop_last": True}, 11, None, 2, 2),
    "one row for two ranks": (MASKED, 5, None, 2, 2),
    "ragged, mle, weighted": ({"objective": "mle"}, 7, "token_weight", 4, 1),
    "ragged, in one micro-batch": (MASKED, 5, None, 4, 1),
    "ragged, dropout": ({**MASKED, "lora": {"lora_dropout": 0.4}}, 7, None, 4, 1),
    "ragged, documents": ({**MASKED, **DOCUMENT}, 7, None, 2, 2),
    "ragged, by selected": ({**MASKED, "normalize_by": "selected"}, 7, None, 4, 1),
    "ragged, random": ({**MASKED, "selection_metric": "random"}, 7, None, 2, 2),
    "ragged, random documents": ({**MASKED, **DOCUMENT, "selection_metric": "random"}, 7, None, 2, 2),
    "ragged, lowest": ({**BOTH, "selection_order": "lowest"}, 7, None, 2, 2),
    "ragged, middle, in one micro-batch": ({**MASKED, "selection_order": "middle"}, 7, None, 4, 1),
    "ragged, threshold of documents": ({**MASKED, **DOCUMENT, "selection_threshold": 6.3}, 7, None, 2, 2),
    "ragged, threshold by selected": (
        {**MASKED, "selection_threshold": 7.0, "normalize_by": "selected"},
        7,
        None,
        2,
        2,
    ),
    "ragged, checkpointed": ({**BOTH, "gradient_checkpointing": True}, 7, None, 2, 2),
    "ragged, checkpointed, full": ({**MASKED, "gradient_checkpointing": True, "lora": False}, 7, None, 2, 2),
    "one document kept": ({**MASKED, **DOCUMENT, "selection_fraction": 0.1}, 8, "token_weight", 1, 4),
    "running": ({**BOTH, "selection_scope": "running", "max_steps": 3, "num_train_epochs": 3}, 7, None, 2, 2),
    "running documents": (
        {**MASKED, **DOCUMENT, "selection_scope": "running", "max_steps": 2, "learning_rate": 1e-4},
        7,
        None,
        2,
        2,
    ),
    "by selected, a micro-batch alone": (
        {**MASKED, "normalize_by": "selected", "selection_scope": "microbatch", "selection_fraction": 1},
        8,
        None,
        2,
        2,
    ),
    "ragged, packed": ({**BOTH, **PACKED}, 13, None, 1, 3),
    "ragged, packed documents": ({**MASKED, **DOCUMENT, **PACKED}, 13, None, 2, 2),
}


def one(folder, case, ranks):
    """The step of a case in this process, which is one of ``ranks``; everything that ``torch.save`` can write."""
    fields, count, side, size, accumulation = CASES[case]
    step = run(
        Path(folder) / str(ranks) / case.replace(" ", "_"),
        data=rows(count, side=side),
        teacher=tiny_model("llama", VOCABULARY, torch.float64, seed=5) if "distill" in fields["objective"] else None,
        per_device_train_batch_size=size * (2 // ranks),
        gradient_accumulation_steps=accumulation,
        train_sampling_strategy="sequential",
        **fields,
    )
    return replace(step, trainer=None)


def all_cases(folder):
    return [one(folder, case, 2) for case in CASES]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    ranks = two_processes(all_cases, str(folder), folder / "results")
    return dict(zip(CASES, zip(*ranks, strict=True), strict=True))


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_are_one_process(tmp_path, two, case):
    left, right = two[case]
    whole = one(tmp_path, case, 1)
    assert left.masks == whole.masks
    assert relative_difference(left.gradient, right.gradient) == 0
    if "dropout" in case:  # which every rank draws for itself; the mask does not see it
        return
    assert left.loss == pytest.approx(whole.loss, rel=1e-9)
    assert relative_difference(left.gradient, whole.gradient) < 1e-9
    for name, value in whole.metrics[-1].items():
        if name not in ("kind", "step", "num_tokens"):
            assert left.metrics[-1][name] == pytest.approx(value, rel=1e-9), name
