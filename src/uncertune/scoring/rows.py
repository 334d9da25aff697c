"""Model and data of a scoring run: the documents as training would see them, token ids and labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from uncertune.data.files import first_line
from uncertune.data.rows import Row, labelling_of, tokenise, within
from uncertune.data.sources import load
from uncertune.errors import UserError
from uncertune.models import resolve_model
from uncertune.scoring.settings import Settings


@dataclass(frozen=True)
class Prepared:
    """What a scoring run works on; ``accelerator`` says which part of the documents is this process's."""

    model: nn.Module
    tokenizer: Any
    rows: list[Row]
    accelerator: Any


def prepare(settings: Settings) -> Prepared:
    """Load model and data; label as training does. Raises UserError for what cannot be loaded or has no response."""
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
    )
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    model.to(accelerator.device)
    vocabulary = model.get_input_embeddings().num_embeddings
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
) -> tuple[Any, Any]:
    """A model in eval mode, with the adapter where one is given, and its tokenizer.

    The tokenizer is the adapter's where it was saved with one, else the model's. Raises UserError, one line.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    extra = {"attn_implementation": attn_implementation} if attn_implementation else {}
    try:
        model = AutoModelForCausalLM.from_pretrained(resolve_model(name), dtype=getattr(torch, dtype), **extra)
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        raise UserError(f"model {name!r} cannot be loaded: {first_line(error)}") from error
    tokenizer = _tokenizer(name, adapter, chat_template_path)
    if adapter is not None:
        try:
            model = PeftModel.from_pretrained(model, adapter)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            reason = first_line(error)
            raise UserError(f"adapter {adapter!r} cannot be put on model {name!r}: {reason}") from error
    return model.eval(), tokenizer


def _tokenizer(name: str, adapter: str | None, template: str | None) -> Any:
    from transformers import AutoTokenizer

    own = adapter is not None and (Path(adapter) / "tokenizer_config.json").is_file()
    source = str(adapter) if own else resolve_model(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"the tokenizer of {source!r} cannot be loaded: {first_line(error)}") from error
    if template is None:
        return tokenizer
    try:
        if template.endswith((".jinja", ".j2")):
            tokenizer.chat_template = Path(template).expanduser().read_text(encoding="utf-8")
        else:
            tokenizer.chat_template = AutoTokenizer.from_pretrained(resolve_model(template)).chat_template
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"chat_template_path {template!r} cannot be loaded: {first_line(error)}") from error
    return tokenizer
