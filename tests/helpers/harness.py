"""One optimizer step of a tiny model, cut in different ways, with everything worth comparing kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback

from helpers.tiny import tiny_model, tiny_tokenizer
from uncertune import UncertuneConfig, UncertuneTrainer
from uncertune.models import whole
from uncertune.runs import read_metrics

VOCABULARY = 259
LENGTHS = (9, 14, 6, 11, 17, 8, 12, 10)  # ragged; a step of 8 rows


def rows(count: int = 8, seed: int = 0, side: str | None = None) -> Dataset:
    """Pre-tokenised rows: about the first third is prompt (−100), and a hole in the middle of some answers."""
    generator = torch.Generator().manual_seed(seed)

    def draw(high: int, size: tuple[int, ...]) -> list[Any]:
        return torch.randint(3, high, size, generator=generator).tolist()

    def uniform(*size: int) -> list[Any]:
        return torch.randn(*size, generator=generator).tolist()

    data = []
    for number in range(count):
        length = LENGTHS[number % len(LENGTHS)]
        ids = draw(VOCABULARY, (length,))
        labels = [-100] * (length // 3) + ids[length // 3 :]
        if number % 3 == 0:
            labels[length // 2] = -100
        row: dict[str, Any] = {"input_ids": ids, "labels": labels}
        if side == "advantages":
            row["advantages"] = uniform(length)
        if side == "advantages_dense":
            row["advantages"] = uniform(length, VOCABULARY)
        if side == "oracle":
            row["oracle"] = torch.rand(length, 3, generator=generator).softmax(-1).tolist()
            row["oracle_ids"] = [[id, id + 1, id + 2] for id in draw(VOCABULARY - 2, (length,))]
        if side == "token_weight":
            row["token_weight"] = torch.rand(length, generator=generator).tolist()
        data.append(row)
    return Dataset.from_list(data)


LORA = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM", "init_lora_weights": False}


@dataclass
class Step:
    """The accumulated gradient before clipping, the logged loss, and the mask of every document."""

    gradient: dict[str, torch.Tensor]
    loss: float
    masks: dict[str, bytes]
    trainer: UncertuneTrainer
    metrics: list[dict[str, Any]]


class _Keep(TrainerCallback):
    def __init__(self) -> None:
        self.gradients: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        parameters = model.named_parameters()
        self.gradients.append({n: whole(p.grad).clone() for n, p in parameters if p.grad is not None})


def settings(folder: Path, **fields: Any) -> UncertuneConfig:
    """A configuration for tiny models: no mixed precision, no clipping, no checkpoints, quiet."""
    quiet = {
        "output_dir": str(folder),
        "bf16": False,
        "use_cpu": True,
        "max_grad_norm": 0.0,
        "learning_rate": 1e-2,
        "save_strategy": "no",
        "report_to": "none",
        "save_report": False,
        "logging_steps": 1,
        "disable_tqdm": True,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
        "max_steps": 1,
    }
    return UncertuneConfig(**{**quiet, **fields})


def run(
    folder: Path,
    *,
    data: Dataset,
    kind: str = "llama",
    dtype: torch.dtype = torch.float64,
    lora: dict[str, Any] | bool = True,
    teacher: Any = None,
    model: Any = None,
    prepare: Callable[[UncertuneTrainer], None] | None = None,
    **fields: Any,
) -> Step:
    """Train a tiny model for the steps asked for, and return what the last one did; ``prepare`` is called before."""
    model = tiny_model(kind, VOCABULARY, dtype) if model is None else model
    options = {**LORA, **(lora if isinstance(lora, dict) else {})}
    keep = _Keep()
    trainer = UncertuneTrainer(
        model,
        settings(folder, **fields),
        train_dataset=data,
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(**options) if lora else None,
        teacher=teacher,
        callbacks=[keep],
    )
    if dtype == torch.float64:
        trainer.model.double()
    if prepare is not None:
        prepare(trainer)
    trainer.train()
    table = folder / "selection.parquet"
    masks = {}
    if table.is_file():
        masks = {(row["step"], row["document"]): row["selected"] for row in pq.read_table(table).to_pylist()}
    log = read_metrics(folder / "metrics.jsonl", "step")
    return Step(keep.gradients[-1], log[-1]["loss"], masks, trainer, log)


def relative_difference(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    """‖left − right‖ / ‖right‖ over all parameters together."""
    assert left.keys() == right.keys()
    difference = sum(float((left[n] - right[n]).double().square().sum()) for n in left)
    return (difference / sum(float(right[n].double().square().sum()) for n in right)) ** 0.5
