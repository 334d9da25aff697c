"""Patches of TRL's chat templates while it builds a trainer: accepted templates, and copies from another model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import trl.trainer.sft_trainer as trl_sft
from transformers import AutoTokenizer

from uncertune.data.templates import assistant_marks
from uncertune.errors import UserError

_REPLACED = (
    "get_training_chat_template",
    "has_generation_markers",
    "is_chat_template_stop_token_trained",
    "clone_chat_template",
)


@contextlib.contextmanager
def known_templates(*, adapter: bool) -> Iterator[None]:
    """Inside the block, TRL accepts templates without marks: ``tokenise`` finds the assistant's turns.

    A template copied from another model resizes the embedding only if its tokens need more rows. With an ``adapter``,
    raises UserError for tokens that PEFT cannot train.
    """
    trls = {name: getattr(trl_sft, name) for name in _REPLACED}

    def template_of(tokenizer: Any) -> str | None:
        marks = assistant_marks(tokenizer)
        return marks.template

    def stop_is_trained(tokenizer: Any, chat_template: str | None = None) -> bool:
        return assistant_marks(tokenizer).by_rendering or trls["is_chat_template_stop_token_trained"](
            tokenizer, chat_template=chat_template
        )

    def clone(model: Any, tokenizer: Any, source: str) -> tuple[Any, Any, list[int]]:
        copied = _clone_that_fits(model, tokenizer, source)
        if copied is None:
            copied = trls["clone_chat_template"](model, tokenizer, source)
        if adapter and copied[2]:
            _check_trainable(model, source, len(copied[2]))
        return copied

    trl_sft.get_training_chat_template = template_of
    trl_sft.is_chat_template_stop_token_trained = stop_is_trained
    # TRL's function fails on a tokenizer without a template
    trl_sft.has_generation_markers = lambda template: bool(template) and trls["has_generation_markers"](template)
    trl_sft.clone_chat_template = clone
    try:
        yield
    finally:
        for name, function in trls.items():
            setattr(trl_sft, name, function)


def _clone_that_fits(model: Any, tokenizer: Any, source: str) -> tuple[Any, Any, list[int]] | None:
    """``trl.clone_chat_template`` without its resizing; None if the embedding needs more rows.

    TRL always resizes to the size of the tokenizer, which removes rows from a larger embedding.
    """
    other = AutoTokenizer.from_pretrained(source)
    added = [token for token in other.added_tokens_decoder.values() if token.content not in tokenizer.vocab]
    if len(tokenizer.vocab) + len(added) > model.get_input_embeddings().weight.shape[0]:
        return None
    tokenizer.chat_template = other.get_chat_template()
    tokenizer.add_tokens(added)
    tokenizer.eos_token = other.eos_token
    model.config.get_text_config().eos_token_id = tokenizer.eos_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model, tokenizer, tokenizer.convert_tokens_to_ids([token.content for token in added])


def _check_trainable(model: Any, source: str, added: int) -> None:
    """Raise UserError if PEFT cannot train new tokens together with a fully trained head, since TRL asks for both."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    name = next((name for name, module in model.named_modules() if module is embedding), "").rpartition(".")[2]
    if embedding.weight is head.weight:
        why = "whose output head is tied to its embedding"
    elif name != "embed_tokens":
        why = f"whose embedding is named {name!r}, not 'embed_tokens'"
    else:
        return
    raise UserError(
        f"chat_template_path: {source!r} adds {added} tokens to the vocabulary, which LoRA cannot train in a model "
        f"{why}: set use_peft: false, or give a template (.jinja) that needs no new tokens"
    )
