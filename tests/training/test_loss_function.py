"""The losses in ``transformers.Trainer``, against its own loss and against dense formulas."""

import pytest
import torch
from datasets import Dataset
from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

from helpers.harness import VOCABULARY
from helpers.tiny import KINDS, tiny_model, tiny_tokenizer
from uncertune.errors import UserError
from uncertune.training.loss_function import loss_function, without_logits

IGNORED = -100


def data(count=8):
    generator = torch.Generator().manual_seed(0)
    rows = []
    for _ in range(count):
        ids = torch.randint(
            3, 97, (int(torch.randint(6, 14, (1,), generator=generator)),), generator=generator
        ).tolist()
        rows.append({"input_ids": ids, "labels": [IGNORED] * 3 + ids[3:], "attention_mask": [1] * len(ids)})
    return Dataset.from_list(rows)


def train(folder, kind="llama", objective=None, **options):
    model = tiny_model(kind, VOCABULARY).train()
    collator = DataCollatorForSeq2Seq(tiny_tokenizer())
    given = {}
    if objective is not None:
        model.config.output_hidden_states = True
        given["compute_loss_func"] = loss_function(model, objective, **options)
        collator = without_logits(collator)
    arguments = TrainingArguments(
        str(folder),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        num_train_epochs=2,
        logging_steps=1,
        learning_rate=1e-2,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = Trainer(model, arguments, train_dataset=data(), data_collator=collator, **given)
    trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


@pytest.mark.parametrize("kind", ["llama", "gemma2", "phi", "gpt2"])
def test_mle_is_the_loss_of_the_trainer(tmp_path, kind):
    theirs, ours = train(tmp_path / "theirs", kind), train(tmp_path / "ours", kind, "mle")
    assert len(ours) == 4
    assert ours == pytest.approx(theirs, rel=1e-4)


def dense(model, batch, objective, fraction=None):
    """(loss, gradient of the parameters) by plain logits."""
    labels = batch["labels"][:, 1:]
    mask = labels != IGNORED
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1][mask]
    nll = torch.nn.functional.cross_entropy(logits, labels[mask], reduction="none")
    if objective == "dft":
        weight = (-nll).exp().detach()
    else:
        count = -(-nll.numel() * int(fraction * 100) // 100)
        weight = torch.zeros_like(nll)
        weight[nll.detach().argsort(descending=True, stable=True)[:count]] = 1
    loss = (weight * nll).sum() / nll.numel()
    return loss, torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])


@pytest.mark.parametrize("name", ["dft", "masked_mle"])
@pytest.mark.parametrize("kind", KINDS[:4])
def test_loss_and_gradient_equal_plain_logits(kind, name):
    model = tiny_model(kind, VOCABULARY)
    batch = DataCollatorForSeq2Seq(tiny_tokenizer())([dict(row) for row in data(4)])
    options = {"weighting": "dft"} if name == "dft" else {"objective": "masked_mle", "selection_fraction": 0.3}
    compute = loss_function(model, **options)
    outputs = model(**{k: v for k, v in batch.items() if k != "labels"}, output_hidden_states=True, logits_to_keep=1)
    ours = compute(outputs, batch["labels"])
    gradient = torch.autograd.grad(ours, [p for p in model.parameters() if p.requires_grad])
    plain, expected = dense(model, batch, name, 0.3)
    assert float(ours.detach()) == pytest.approx(float(plain.detach()), rel=1e-5)
    for one, other in zip(gradient, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"objective": "distill"}, "objective must be one of mle, masked_mle .*'distill'"),
        ({"selection_metric": "rho"}, "selection_metric must be one of loss, entropy"),
        ({"selection_fraction": 0}, "selection_fraction"),
        ({"weighting": "dtf"}, "token_weighting must be one of none, dft"),
        ({"weighting": "focal", "weighting_options": {"gamma": -1}}, "focal_gamma must be at least 0"),
    ],
)
def test_what_cannot_be_used_is_refused(options, words):
    with pytest.raises(UserError, match=words):
        loss_function(tiny_model("llama"), **options)


def test_missing_hidden_states_are_one_line():
    model = tiny_model("llama")
    ids = torch.arange(3, 9)[None]
    with pytest.raises(UserError, match="output_hidden_states = True"):
        loss_function(model)(model(ids), ids)


def test_hidden_states_of_other_tokens_are_refused():
    model = tiny_model("llama")
    outputs = {"hidden_states": (torch.zeros(1, 8, 32),)}  # as with virtual tokens before the text
    with pytest.raises(UserError, match=r"hidden states are of \(1, 8\) tokens, the labels \(1, 6\)"):
        loss_function(model)(outputs, torch.arange(3, 9)[None])
