"""Measures of an adapter against its base, beside dense logits of both."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from helpers.tiny import tiny_model
from uncertune.data.rows import Row
from uncertune.evaluation.measures import drift_from_base
from uncertune.models import attach_head

VOCABULARY = 97


def test_drift_is_that_of_dense_logits():
    model = get_peft_model(tiny_model("llama", VOCABULARY), LoraConfig(r=4, target_modules="all-linear"))
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    attach_head(model)
    prompt = [5, 17, 40]
    with torch.no_grad(), model.disable_adapter():  # an answer of its own, so that the base predicts most of it
        ids = model.generate(
            input_ids=torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0
        )[0]
    ids[-2] = (ids[-2] + 1) % VOCABULARY  # and a token that it does not
    rows = [Row(0, ids.tolist(), [-100] * len(prompt) + ids[len(prompt) :].tolist())]
    found = drift_from_base(model, "default", rows, pad=0)

    with torch.no_grad():
        tuned = model(input_ids=ids[None]).logits[0, len(prompt) - 1 : -1].float()
        with model.disable_adapter():
            base = model(input_ids=ids[None]).logits[0, len(prompt) - 1 : -1].float()
    labels = ids[len(prompt) :]
    kl = torch.nn.functional.kl_div(tuned.log_softmax(-1), base.log_softmax(-1), log_target=True, reduction="none")
    assert found.kl == pytest.approx(float(kl.sum(-1).mean()), rel=1e-4)
    known = base.argmax(-1) == labels
    assert 0 < int(known.sum()) < len(labels)
    assert found.kept == pytest.approx(float((tuned.argmax(-1) == labels)[known].float().mean()))
    assert 0 < found.kept < 1
