"""With ``objective="mle"`` the trainer gives the losses of TRL's ``SFTTrainer`` (SPEC B7)."""

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from helpers.tiny import tiny_model, tiny_tokenizer
from uncertune import UncertuneConfig, UncertuneTrainer
from uncertune.runs import read_metrics

VOCABULARY = 259
PRECISION = {"float32": {"bf16": False}, "default": {}}
"""``default`` is TRL's: bfloat16 autocast, with the same rounding at every place that trains. There the learning rate
is TRL's default too: a larger one lifts one different bit above the tolerance within five steps, in TRL against itself.
"""
WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "then", "runs", "home"]


def sentence(start: int, words: int) -> str:
    return " ".join(WORDS[(start + 5 * place) % len(WORDS)] for place in range(words))


def dataset(form: str, count: int, first: int = 0) -> Dataset:
    rows: list[dict[str, Any]] = []
    for number in range(first, first + count):
        question, answer = sentence(number, 2 + number % 3), sentence(3 * number + 1, 1 + number % 4)
        if form == "text":
            rows.append({"text": question + answer})
        elif form == "prompt":
            rows.append({"prompt": question, "completion": " " + answer})
        else:
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            rows.append({"messages": turns * (1 + number % 2)})
    return Dataset.from_list(rows)


FORMS = {
    "text": ("text", {}),
    "prompt and completion": ("prompt", {}),
    "messages": ("messages", {"assistant_only_loss": False}),
    "messages, assistant only": ("messages", {"assistant_only_loss": True}),
}


def losses(trainer_class: Any, config_class: Any, folder: Path, form: str, kind: str, lora: bool, **fields: Any) -> Any:
    """The losses of five optimizer steps of two micro-batches each, the gradient norms, and eval_loss after them."""
    data, more = FORMS[form]
    settings = {
        "output_dir": str(folder / trainer_class.__name__),
        "use_cpu": True,
        "max_steps": 5,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "per_device_eval_batch_size": 8,  # one batch: TRL's eval_loss is a mean of batch means
        "learning_rate": 1e-3 if fields.get("bf16") is False else 2e-5,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    trainer = trainer_class(
        tiny_model(kind, VOCABULARY),
        config_class(**{**settings, **more, **fields}),
        train_dataset=dataset(data, 20),
        eval_dataset=dataset(data, 5, first=20),
        processing_class=tiny_tokenizer(marked=True),
        peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM") if lora else None,
    )
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    evaluated = trainer.evaluate()
    if trainer_class is SFTTrainer and trainer.aux_loss_enabled:  # ours is cross-entropy and nothing else
        evaluated["eval_loss"] -= trainer.router_aux_loss_coef * evaluated["eval_aux_loss"]
    return (
        [entry["loss"] for entry in logs],
        [entry["grad_norm"] for entry in logs],
        evaluated["eval_loss"],
        [entry.get("aux_loss", 0.0) for entry in logs],
    )


def test_the_auxiliary_loss_is_in_every_steps_record(tmp_path):
    losses(UncertuneTrainer, UncertuneConfig, tmp_path, "text", "mixtral", False, bf16=False)
    steps = read_metrics(tmp_path / "UncertuneTrainer" / "metrics.jsonl", "step")
    assert len(steps) == 5
    assert all(row["aux_loss"] > 0 for row in steps)


def both(folder: Path, form: str = "text", kind: str = "llama", lora: bool = False, **fields: Any) -> Any:
    theirs = losses(SFTTrainer, SFTConfig, folder, form, kind, lora, **fields)
    ours = losses(UncertuneTrainer, UncertuneConfig, folder, form, kind, lora, **fields)
    return theirs, ours


def assert_same(theirs: Any, ours: Any) -> None:
    assert len(ours[0]) == 5
    assert abs(theirs[0][0] - theirs[0][-1]) > 1e-3  # training moved
    assert ours[0] == pytest.approx(theirs[0], abs=1e-5)
    assert ours[1] == pytest.approx(theirs[1], rel=1e-4)
    assert ours[2] == pytest.approx(theirs[2], abs=1e-5)
    assert ours[3] == pytest.approx(theirs[3], abs=1e-5)


@pytest.mark.parametrize("precision", PRECISION)
@pytest.mark.parametrize("lora", [False, True], ids=["dense", "lora"])
@pytest.mark.parametrize("form", FORMS)
def test_the_losses_are_trls(tmp_path, form, lora, precision):
    assert_same(*both(tmp_path, form, lora=lora, **PRECISION[precision]))


@pytest.mark.parametrize("precision", PRECISION)
def test_packed(tmp_path, precision):
    packed = {"packing": True, "max_length": 80, "eval_packing": True, "num_train_epochs": 3}
    assert_same(*both(tmp_path, "prompt and completion", lora=True, **packed, **PRECISION[precision]))


@pytest.mark.parametrize("precision", PRECISION)
@pytest.mark.parametrize("kind", ["gemma2", "cohere", "mixtral", "phi"])
def test_heads_that_do_more(tmp_path, kind, precision):
    """Soft-cap, logit scale, the auxiliary loss of a mixture of experts, and a biased head trained in full."""
    theirs, ours = both(tmp_path, kind=kind, **PRECISION[precision])
    assert_same(theirs, ours)
    assert (max(ours[3]) > 0) == (kind == "mixtral")


def test_other_settings_that_touch_the_loss(tmp_path):
    """Clipping, weight decay, warm-up, gradient checkpointing, truncation, shuffling and an odd last step."""
    fields = {
        "bf16": False,
        "max_steps": -1,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 3,
        "gradient_accumulation_steps": 2,
        "max_length": 120,
        "weight_decay": 0.1,
        "warmup_steps": 2,
        "max_grad_norm": 0.5,
        "gradient_checkpointing": True,
        "lr_scheduler_type": "cosine",
        "shuffle_dataset": True,
    }
    theirs, ours = both(tmp_path, "messages, assistant only", lora=True, **fields)
    assert len(ours[0]) == 4  # 20 rows in steps of 6, 6, 6 and 2
    assert ours[0] == pytest.approx(theirs[0], abs=1e-5)
    assert ours[2] == pytest.approx(theirs[2], abs=1e-5)


def test_another_objective_would_be_seen(tmp_path):
    """The comparison has teeth: a quarter of the tokens is not MLE."""
    theirs = losses(SFTTrainer, SFTConfig, tmp_path, "text", "llama", True, bf16=False)
    fields = {"bf16": False, "objective": "masked_mle"}
    ours = losses(UncertuneTrainer, UncertuneConfig, tmp_path, "text", "llama", True, **fields)
    with pytest.raises(AssertionError):
        assert_same(theirs, ours)
