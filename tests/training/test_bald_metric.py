"""Selection by epistemic uncertainty in training: the mask is that of the library's own numbers."""

import pytest
import torch

from helpers.harness import VOCABULARY, rows, run, settings
from helpers.tiny import tiny_model, tiny_tokenizer
from uncertune import UncertuneTrainer
from uncertune.selection import select
from uncertune.training.batch import document_hash
from uncertune.uncertainty import token_uncertainty

BALD = {"objective": "masked_mle", "selection_metric": "bald", "bald_samples": 4, "bald_rate": 0.2}


def test_the_most_uncertain_tokens_are_selected(tmp_path):
    data = rows(4)
    step = run(tmp_path, data=data, lora=False, dtype=torch.float32, per_device_train_batch_size=4, seed=11, **BALD)
    scores, hashes = [], []
    for row in data:  # one by one and unpadded: each document's numbers are its own
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
        model = tiny_model("llama", VOCABULARY)
        scores.append(token_uncertainty(model, ids, labels, samples=4, rate=0.2, seed=11).epistemic)
        hashes.append(document_hash(ids[0], labels[0]))
    order = {document: index for index, (_, document) in enumerate(step.masks)}
    ranked = sorted(range(4), key=lambda i: order[hashes[i]])
    chosen = select(torch.cat([scores[i] for i in ranked]), 0.25).split([len(scores[i]) for i in ranked])
    assert step.metrics[-1]["selected_fraction"] == pytest.approx(0.25, abs=0.03)
    for index, mask in zip(ranked, chosen, strict=True):
        bits = torch.tensor([int(bit) for byte in step.masks[1, hashes[index]] for bit in f"{byte:08b}"])
        assert bits[: len(mask)].bool().tolist() == mask.tolist()


def test_the_evaluation_uses_the_same_metric(tmp_path):
    trainer = UncertuneTrainer(
        tiny_model("llama", VOCABULARY),
        settings(tmp_path, eval_strategy="no", per_device_eval_batch_size=4, **BALD),
        train_dataset=rows(4),
        eval_dataset=rows(4, seed=1),
        processing_class=tiny_tokenizer(),
    )
    metrics = trainer.evaluate()
    assert 0 < metrics["eval_objective"] < metrics["eval_loss"]


def test_a_model_without_dropout_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("uncertune.uncertainty.dropout.dropout_sites", lambda model: [])
    with pytest.raises(ValueError, match="dropout"):
        run(tmp_path, data=rows(4), lora=False, **BALD)
