"""No tensor of T × V elements is built in a training step, forward or backward, by any objective (SPEC B5)."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from helpers.harness import settings
from helpers.tiny import WIDTH, tiny_model, tiny_tokenizer
from uncertune import UncertuneTrainer
from uncertune.fused import projection

ROWS, LENGTH, VOCABULARY, CHUNK = 8, 40, 4000, 8
TOKENS = ROWS * (LENGTH - 1)
LEGITIMATE = VOCABULARY * max(WIDTH, 4 * CHUNK)
"""Elements of the head (and of its gradient), and of one chunk of logits, which is four times as large with a trained
head: a tenth of the T × V that must not be."""


class Largest(TorchDispatchMode):
    """Watches every operation, those inside an autograd.Function and its backward too: on the CPU they run in the
    caller's thread. Counts the elements of the storage behind each result, so that views count as what they view."""

    def __init__(self):
        super().__init__()
        self.elements, self.operation = 0, ""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                elements = leaf.untyped_storage().nbytes() // leaf.element_size()
                if elements > self.elements:
                    self.elements, self.operation = elements, str(function)
        return out


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setitem(projection.CHUNK_ROWS, "cpu", CHUNK)


def data():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, VOCABULARY, (ROWS, LENGTH), generator=generator).tolist()
    return Dataset.from_list([{"input_ids": row, "labels": row} for row in ids])


def trainer_of(folder, objective, lora, **fields):
    teacher = None
    if "distill" in objective:
        teacher = tiny_model("llama", VOCABULARY, seed=5)
        if lora:
            config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
            get_peft_model(tiny_model("llama", VOCABULARY), config).save_pretrained(str(folder / "teacher"))
            teacher = str(folder / "teacher")
    return UncertuneTrainer(
        tiny_model("llama", VOCABULARY),
        settings(folder / "run", objective=objective, per_device_eval_batch_size=ROWS, **fields),
        train_dataset=data(),
        eval_dataset=data(),
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM") if lora else None,
        teacher=teacher,
    )


OBJECTIVE = pytest.mark.parametrize(
    "objective", ["mle", "masked_mle", "distill", "masked_mle_distill", "truncated_distill"]
)


@OBJECTIVE
@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
def test_a_step_builds_no_logits(tmp_path, objective, lora, autocast):
    assert TOKENS * VOCABULARY > 9 * LEGITIMATE
    trainer = trainer_of(tmp_path, objective, lora, per_device_train_batch_size=ROWS, bf16=autocast)
    with Largest() as seen:
        trainer.train()
        trainer.evaluate()
    assert seen.elements <= LEGITIMATE, seen.operation
    assert trainer.state.global_step == 1


def test_nor_does_the_pass_that_selects_over_micro_batches(tmp_path):
    cut = {"per_device_train_batch_size": ROWS // 2, "gradient_accumulation_steps": 2}
    trainer = trainer_of(tmp_path, "masked_mle_distill", True, **cut)
    with Largest() as seen:
        trainer.train()
    assert seen.elements <= LEGITIMATE, seen.operation


def test_the_watcher_sees_logits(tmp_path, monkeypatch):
    """Plain logits of the forward, and a tensor that only a custom function's backward builds."""
    ids = torch.tensor(data()["input_ids"])
    with Largest() as seen:
        tiny_model("llama", VOCABULARY)(input_ids=ids, labels=ids).loss.backward()
    assert seen.elements >= TOKENS * VOCABULARY

    class Wasteful(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad + torch.zeros(TOKENS, VOCABULARY).sum()

    with Largest() as seen:
        Wasteful.apply(torch.ones(3, requires_grad=True)).sum().backward()
    assert seen.elements == TOKENS * VOCABULARY

    monkeypatch.setitem(projection.CHUNK_ROWS, "cpu", 10**6)  # one chunk is all of them
    trainer = trainer_of(tmp_path, "mle", True, per_device_train_batch_size=ROWS)
    with Largest() as seen:
        trainer.train()
    assert seen.elements >= TOKENS * VOCABULARY
