"""A collator that pads on the left changes no number."""

import pytest
import torch

from helpers.harness import VOCABULARY, relative_difference, rows, run
from helpers.tiny import tiny_model
from uncertune.errors import UserError

VARIANTS = {
    "mle, weighted": ({"objective": "mle"}, "token_weight", False),
    "documents": ({"objective": "masked_mle_distill", "selection_level": "document"}, None, True),
    "dropped documents": ({"objective": "masked_mle", "selection_level": "document"}, None, False),
    "random": ({"objective": "masked_mle", "selection_metric": "random"}, None, False),
    "bald": ({"objective": "masked_mle", "selection_metric": "bald", "bald_samples": 2}, None, False),
    "cached teacher": ({"objective": "distill", "teacher_cache": "hidden"}, None, True),
}


def on_the_left(collator, damage=None):
    def collate(examples):
        batch = collator(examples)
        for row, mask in enumerate(batch["attention_mask"]):
            shift = int((mask == 0).sum())
            for name in ("input_ids", "labels", "attention_mask"):
                batch[name][row] = batch[name][row].roll(shift)
        if damage is not None:
            damage(batch)
        return batch

    return collate


def step(folder, fields, side, taught, wrap=None, **more):
    def prepare(trainer):
        if wrap is not None:
            trainer.data_collator.collator = wrap(trainer.data_collator.collator)

    return run(
        folder,
        data=rows(4, side=side),
        teacher=tiny_model("llama", VOCABULARY, torch.float64, seed=5) if taught else None,
        prepare=prepare,
        per_device_train_batch_size=4,
        **fields,
        **more,
    )


@pytest.mark.parametrize("name", VARIANTS)
def test_the_side_of_the_padding_changes_nothing(tmp_path, name):
    right = step(tmp_path / "right", *VARIANTS[name])
    left = step(tmp_path / "left", *VARIANTS[name], wrap=on_the_left)
    assert left.masks == right.masks
    assert left.loss == pytest.approx(right.loss, rel=1e-6)
    assert relative_difference(left.gradient, right.gradient) < 1e-6  # rotary positions are rounded to float32


def hole(batch):
    batch["attention_mask"][:, -3] = 0


def fewer(batch):
    batch["attention_mask"][:, -1] = 0


def square(batch):
    batch["attention_mask"] = batch["attention_mask"][:, None, None, :]


@pytest.mark.parametrize(
    ("damage", "words"),
    [(hole, "zeros between its ones"), (fewer, "side columns cannot be aligned"), (square, "must be")],
)
def test_what_cannot_be_placed_is_refused(tmp_path, damage, words):
    with pytest.raises(UserError, match=words):
        step(tmp_path, *VARIANTS["mle, weighted"], wrap=lambda collator: on_the_left(collator, damage))
