"""The same short training by TRL's trainer and by ours, on every form of data."""

from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import LoraConfig
from trl import SFTTrainer

from helpers.harness import VOCABULARY
from helpers.tiny import tiny_model, tiny_tokenizer

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
