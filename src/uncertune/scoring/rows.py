"""Model and data of a scoring run: the documents as training would see them, token ids and labels."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from uncertune.data.sources import load
from uncertune.errors import UserError
from uncertune.models import resolve_model
from uncertune.scoring.options import ScoreOptions
from uncertune.training.batch import IGNORED
from uncertune.training.config import UncertuneConfig
from uncertune.training.trainer import UncertuneTrainer


@dataclass(frozen=True)
class Row:
    """One document: its number in the data, its token ids, and labels (−100 outside the response)."""

    document: int
    input_ids: list[int]
    labels: list[int]

    @property
    def responses(self) -> int:
        return sum(label != IGNORED for label in self.labels[1:])


@dataclass(frozen=True)
class Prepared:
    """What a scoring run works on; ``accelerator`` says which part of the documents is this process's."""

    model: nn.Module
    tokenizer: Any
    rows: list[Row]
    accelerator: Any


def prepare(options: ScoreOptions) -> Prepared:
    """Load model and data; label as the trainer does. Raises UserError for what cannot be loaded or has no response."""
    assert options.data is not None
    assert options.model is not None
    data = load(
        options.data,
        config=options.dataset_config,
        split=options.dataset_split,
        data_dir=options.data_dir,
        format=options.dataset_format,
        text_field=options.dataset_text_field if options.dataset_text_field != "text" else None,
        max_samples=options.max_samples,
        seed=options.seed,
    )
    conversation = {"messages", "conversations"} & set(data.column_names)
    config = UncertuneConfig(
        output_dir=str(options.output_dir),
        objective="masked_mle",
        assistant_only_loss=bool(conversation),
        dataset_text_field=options.dataset_text_field,
        chat_template_path=options.chat_template_path,
        max_length=None,
        bf16=False,
        use_cpu=not torch.accelerator.is_available(),
        model_init_kwargs={"dtype": options.dtype, "attn_implementation": options.attn_implementation},
        gradient_checkpointing=False,
        report_to="none",
        disable_tqdm=True,
        seed=options.seed,
    )
    trainer = UncertuneTrainer(_model(options), config, train_dataset=data)
    rows = _cut(trainer.train_dataset, options.max_length)
    return Prepared(trainer.model, trainer.processing_class, rows, trainer.accelerator)


def _model(options: ScoreOptions) -> Any:
    """The name, for the trainer to load; with an adapter the model that carries it."""
    assert options.model is not None
    if options.adapter is None:
        return options.model
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    path = resolve_model(options.model)
    extra = {"attn_implementation": options.attn_implementation} if options.attn_implementation else {}
    try:
        base = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, options.dtype), **extra)
        return PeftModel.from_pretrained(base, options.adapter)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"adapter {options.adapter!r} cannot be put on model {options.model!r}: {reason}") from error


def _cut(data: Any, limit: int) -> list[Row]:
    """Documents of at most ``limit`` tokens that have response tokens; says how many were cut or have none."""
    rows, cut, empty = [], 0, 0
    for number, one in enumerate(data):
        row = Row(number, list(one["input_ids"][:limit]), list(one["labels"][:limit]))
        cut += len(one["input_ids"]) > limit
        if row.responses:
            rows.append(row)
        else:
            empty += 1
    if not rows:
        raise UserError(
            f"max_length: none of {len(data)} documents has a response token within {limit} tokens: raise it"
        )
    if cut or empty:
        print(
            f"{len(data)} documents; {cut} cut to max_length={limit}; {empty} without response tokens left out",
            file=sys.stderr,
        )
    return rows
