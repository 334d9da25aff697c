"""How often a step of training waits for the device, counted on a CPU that counts as one."""

from collections import Counter

import pytest
import torch

from helpers.harness import VOCABULARY, rows, run
from helpers.synchronisations import Pretended
from helpers.tiny import tiny_model

MICRO_BATCHES = 4
STEP = 5
"""The batches' layout, the record, the gradient's norm, and the loss and the norm that ``Trainer`` logs."""

MASKED, BOTH = {"objective": "masked_mle"}, {"objective": "masked_mle_distill"}
SCORES, GROUPS = 1, MICRO_BATCHES
"""Of a selection over the step: all scores at once; and of each micro-batch, which of its tokens have weight."""
UPLOADED = 3
"""Columns of a new batch of selected documents, which ``Trainer`` moves to the device."""

SETTINGS = {
    "mle": ({"objective": "mle"}, STEP),
    "masked": (MASKED, STEP + SCORES + GROUPS),
    "masked in the forward": ({**MASKED, "selection_scope": "microbatch"}, STEP + MICRO_BATCHES + GROUPS),
    "masked with a scoring pass": ({**MASKED, "selection_memory_gb": 0.0}, STEP + SCORES + GROUPS),
    "masked documents": ({**MASKED, "selection_level": "document"}, STEP + SCORES + GROUPS + UPLOADED),
    "masked by a running threshold": ({**MASKED, "selection_scope": "running"}, STEP + MICRO_BATCHES + GROUPS),
    "masked at random": ({**MASKED, "selection_metric": "random"}, STEP + GROUPS),
    "packed": ({**MASKED, "packing": True, "padding_free": True, "max_length": 30}, STEP + SCORES + GROUPS),
    "distilled": (BOTH, STEP + SCORES + GROUPS),
    "distilled, cached": ({**BOTH, "teacher_cache": "hidden"}, STEP + SCORES + GROUPS),
    "anchored": ({"objective": "mle", "anchor": "base", "anchor_weight": 0.1}, STEP),
}


def waits(folder, steps, fields):
    device = Pretended()

    def prepare(trainer):
        models = [getattr(one, "model", None) for one in (*trainer.references.members, trainer.references.anchor)]
        for model in (trainer.model, *models):
            if model is not None:
                device.hold(*model.parameters(), *model.buffers())

    with device:
        run(
            folder,
            data=rows(26 if "packing" in fields else 8),
            teacher=tiny_model("llama", VOCABULARY, torch.float64, seed=5)
            if "distill" in fields["objective"]
            else None,
            prepare=prepare,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=MICRO_BATCHES,
            gradient_checkpointing=True,
            probe_steps=0,
            max_steps=steps,
            **fields,
        )
    return Counter(device.waits)


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_step_rarely_waits_for_the_device(tmp_path, setting):
    fields, most = SETTINGS[setting]
    found = waits(tmp_path / "three", 3, fields)
    found.subtract(waits(tmp_path / "two", 2, fields))
    assert found.total() <= most, sorted((+found).items(), key=lambda one: one[0][1])
