"""Model and data of a scoring run: the documents as token ids and labels, as in training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from uncertune import models
from uncertune.data.rows import Row, labelling_of, tokenise, within
from uncertune.data.sources import load
from uncertune.evaluation.models import adapter_folder
from uncertune.evaluation.tokenizers import load_tokenizers
from uncertune.scoring.settings import Settings


@dataclass(frozen=True)
class Prepared:
    """Model and documents of a scoring run; ``accelerator`` assigns documents to this process."""

    model: nn.Module
    tokenizer: Any
    rows: list[Row]
    accelerator: Any


def prepare(settings: Settings) -> Prepared:
    """Load model and data, labelled as in training. Raises UserError if they cannot be loaded or have no response."""
    field = settings.dataset_text_field
    data = load(
        settings.data,
        config=settings.dataset_config,
        split=settings.dataset_split,
        data_dir=settings.data_dir,
        format=settings.dataset_format,
        text_field=field if field != "text" else None,
        columns=settings.dataset_columns,
        max_samples=settings.max_samples,
        seed=settings.seed,
    )
    model, tokenizer = load_model(
        settings.model,
        adapter=settings.adapter,
        chat_template_path=settings.chat_template_path,
        dtype=settings.dtype,
        attn_implementation=settings.attn_implementation,
        allow_pickle=settings.allow_pickle,
    )
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    model.to(accelerator.device)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    how = labelling_of(data[0], tokenizer, text_field=field, vocabulary=vocabulary)
    name = f"dataset {settings.data!r}"
    rows = [tokenise(one, number, tokenizer, how, name) for number, one in enumerate(data)]
    return Prepared(model, tokenizer, within(rows, settings.max_length, settings.data), accelerator)


def load_model(
    name: str,
    *,
    adapter: str | None = None,
    chat_template_path: str | None = None,
    dtype: str = "float32",
    attn_implementation: str | None = None,
    allow_pickle: bool = False,
) -> tuple[Any, Any]:
    """A model in eval mode, with the adapter if given, and its tokenizer.

    The tokenizer is the adapter's if it was saved with one, else the model's; the model is resized if the adapter's
    training added tokens. Raises UserError.
    """
    model = models.load_model(name, dtype=dtype, attn_implementation=attn_implementation, allow_pickle=allow_pickle)
    folder = None if adapter is None else adapter_folder(adapter)
    tokenizer = load_tokenizers(name, {name: folder}, chat_template_path)[name]
    if folder is not None:
        model = models.load_adapter(model, folder, allow_pickle=allow_pickle)
    return model.eval(), tokenizer
