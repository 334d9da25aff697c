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
from uncertune.scoring.options import ScoreOptions


@dataclass(frozen=True)
class Prepared:
    """What a scoring run works on; ``accelerator`` says which part of the documents is this process's."""

    model: nn.Module
    tokenizer: Any
    rows: list[Row]
    accelerator: Any


def prepare(options: ScoreOptions) -> Prepared:
    """Load model and data; label as training does. Raises UserError for what cannot be loaded or has no response."""
    assert options.data is not None
    assert options.model is not None
    field = options.dataset_text_field
    data = load(
        options.data,
        config=options.dataset_config,
        split=options.dataset_split,
        data_dir=options.data_dir,
        format=options.dataset_format,
        text_field=field if field != "text" else None,
        max_samples=options.max_samples,
        seed=options.seed,
    )
    model, tokenizer = _model(options), _tokenizer(options)
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    model.to(accelerator.device).eval()
    vocabulary = model.get_input_embeddings().num_embeddings
    how = labelling_of(data[0], tokenizer, text_field=field, vocabulary=vocabulary)
    name = f"dataset {options.data!r}"
    rows = [tokenise(one, number, tokenizer, how, name) for number, one in enumerate(data)]
    return Prepared(model, tokenizer, within(rows, options.max_length, options.data), accelerator)


def _tokenizer(options: ScoreOptions) -> Any:
    """The adapter's tokenizer where it was saved with one, else the model's; with the template that is asked for."""
    from transformers import AutoTokenizer

    own = options.adapter is not None and (Path(options.adapter) / "tokenizer_config.json").is_file()
    source = str(options.adapter) if own else resolve_model(str(options.model))
    template = options.chat_template_path
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        if template is not None and template.endswith((".jinja", ".j2")):
            tokenizer.chat_template = Path(template).expanduser().read_text(encoding="utf-8")
        elif template is not None:
            tokenizer.chat_template = AutoTokenizer.from_pretrained(resolve_model(template)).chat_template
    except (OSError, ValueError, KeyError) as error:
        what = f"tokenizer of {source!r}" if template is None else f"chat_template_path {template!r}"
        raise UserError(f"{what} cannot be loaded: {first_line(error)}") from error
    return tokenizer


def _model(options: ScoreOptions) -> Any:
    """The model, with the adapter where one is given."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    path = resolve_model(str(options.model))
    extra = {"attn_implementation": options.attn_implementation} if options.attn_implementation else {}
    try:
        base = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, options.dtype), **extra)
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        raise UserError(f"model {options.model!r} cannot be loaded: {first_line(error)}") from error
    if options.adapter is None:
        return base
    try:
        return PeftModel.from_pretrained(base, options.adapter)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = first_line(error)
        raise UserError(f"adapter {options.adapter!r} cannot be put on model {options.model!r}: {reason}") from error
