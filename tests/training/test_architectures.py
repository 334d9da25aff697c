"""Every family of models trains through the same path, and its first step's loss is the definition's."""

import pytest
import torch

from helpers.harness import VOCABULARY, rows, run
from helpers.tiny import KINDS, tiny_model
from uncertune.objectives import OBJECTIVES, weighted_nll
from uncertune.selection import select


def plain(model, data):
    """Logits of all response tokens of all rows, row by row through the model's own forward, and their labels."""
    logits, labels = [], []
    for row in data:
        ids, wanted = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])[1:]
        with torch.no_grad():
            logits.append(model(input_ids=ids, use_cache=False).logits[0, :-1][wanted != -100])
        labels.append(wanted[wanted != -100])
    return torch.cat(logits), torch.cat(labels)


MODEL = {
    "gemma2": {"attn_implementation": "eager"},
    "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
}
LORA = {"gpt2": {"fan_in_fan_out": True}}  # its linear layers are Conv1D


# peft 0.21 asks itself for adapters on Mixtral's experts, and then finds none to adapt
@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys:RuntimeWarning")
@pytest.mark.parametrize(
    ("kind", "lora"),
    [(kind, True) for kind in KINDS] + [(kind, False) for kind in ("llama", "gemma2", "gpt2", "phi", "mixtral")],
)
def test_two_steps_of_the_papers_objective(tmp_path, kind, lora):
    data = rows(8)
    dtype = torch.float32 if kind == "mixtral" else torch.float64  # experts are not multiplied in float64
    student = tiny_model(kind, VOCABULARY, dtype, **MODEL.get(kind, {}))
    teacher = tiny_model(kind, VOCABULARY, dtype, seed=5, **MODEL.get(kind, {}))
    z, labels = plain(student, data)
    p_ref = plain(teacher, data)[0].softmax(-1)
    loss = torch.nn.functional.cross_entropy(z, labels, reduction="none")
    targets = OBJECTIVES["masked_mle_distill"](labels, selected=select(loss, 0.25), teacher=p_ref)
    expected = float(weighted_nll(z, targets).mean())

    step = run(
        tmp_path,
        data=data,
        model=student,
        teacher=teacher,
        dtype=dtype,
        lora={"init_lora_weights": True, **LORA.get(kind, {})} if lora else False,  # adapters that start at nothing
        objective="masked_mle_distill",
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        max_steps=2,
    )

    first, second = step.metrics
    assert first["loss"] == pytest.approx(expected, rel=1e-9 if dtype == torch.float64 else 1e-5)
    assert 0 < second["loss"] < first["loss"]
    assert step.gradient
    assert all(gradient.isfinite().all() for gradient in step.gradient.values())
    trainable = {name for name, parameter in step.trainer.model.named_parameters() if parameter.requires_grad}
    assert step.gradient.keys() == trainable
    assert all(("lora_" in name) == lora for name in trainable)
