"""The tokenizer, chat template and special tokens of each model: the adapter's own if it was saved with them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uncertune.data.files import first_line
from uncertune.errors import UserError
from uncertune.models import load_tokenizer, resolve_model
from uncertune.runs.notes import note

_PROBE = "Is 12 + 30 = 42?\n\tYes, “it” is… naïve 你好"


def load_tokenizers(base: str, folders: Mapping[str, str | None], chat_template_path: str | None) -> dict[str, Any]:
    """By label: the tokenizer in the adapter's folder, if it has one, else the base's.

    ``chat_template_path`` replaces every chat template. Otherwise a model without a template takes the one that all
    adapters share. Prints one line if models differ in tokenizer or template.
    """
    own_base = load_tokenizer(base)
    found = {
        label: load_tokenizer(folder) if folder is not None and _has_tokenizer(folder) else own_base
        for label, folder in folders.items()
    }
    template = _given_template(chat_template_path) if chat_template_path is not None else None
    theirs = {one.chat_template for one in found.values() if one is not own_base and one.chat_template}
    for one in {id(one): one for one in (own_base, *found.values())}.values():
        if template is not None:
            one.chat_template = template
        elif not one.chat_template and one is not own_base:
            one.chat_template = own_base.chat_template
        elif not one.chat_template and len(theirs) == 1:
            one.chat_template = next(iter(theirs))
            note("the base has no chat template: that of its adapters is used")
        if one.pad_token_id is None:
            one.pad_token = one.eos_token
    same: dict[str, Any] = {}
    found = {label: same.setdefault(tokenizer_digest(one), one) for label, one in found.items()}
    _say_differences(found)
    return found


def tokenizer_digest(tokenizer: Any) -> str:
    """The identity of a tokenizer: vocabulary, special tokens, chat template, and its tokens of a probe text."""
    special = [tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token]
    content = [sorted(tokenizer.get_vocab().items()), special, _template(tokenizer), tokenizer(_PROBE)["input_ids"]]
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=8).hexdigest()


def template_digest(tokenizer: Any) -> str | None:
    """A digest of the chat template; None without one."""
    template = _template(tokenizer)
    return hashlib.blake2b(template.encode(), digest_size=8).hexdigest() if template else None


def end_of_turn(tokenizer: Any) -> str | None:
    """The text that the chat template writes after an assistant's turn; None if it is empty."""
    mark = "An answer"
    turns = [{"role": "user", "content": "A question"}, {"role": "assistant", "content": mark}]
    after = str(tokenizer.apply_chat_template(turns, tokenize=False)).rpartition(mark)[2]
    return after.strip() or None


def _template(tokenizer: Any) -> str:
    return (
        json.dumps(tokenizer.chat_template)
        if isinstance(tokenizer.chat_template, dict)
        else (tokenizer.chat_template or "")
    )


def _has_tokenizer(folder: str) -> bool:
    return (Path(folder) / "tokenizer_config.json").is_file()


def _given_template(path: str) -> str:
    if path.endswith((".jinja", ".j2")):
        try:
            return Path(path).expanduser().read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise UserError(f"chat_template_path: {path!r} cannot be read: {first_line(error)}") from error
    try:
        template = load_tokenizer(resolve_model(path)).chat_template
    except UserError as error:
        raise UserError(f"chat_template_path: {error}") from error
    if not template:
        raise UserError(f"chat_template_path: the model {path!r} has no chat template")
    return str(template)


def _say_differences(tokenizers: Mapping[str, Any]) -> None:
    """Print one line to stderr if the models of a command differ in tokenizer or template."""
    aspects = {
        "vocabulary": lambda one: len(one.get_vocab()),
        "chat template": _template,
        "end-of-sequence token": lambda one: one.eos_token,
        "padding token": lambda one: one.pad_token,
    }
    groups: dict[str, list[str]] = {}
    for label, one in tokenizers.items():
        groups.setdefault(tokenizer_digest(one), []).append(label)
    if len(groups) < 2:
        return
    names = [name for name, of in aspects.items() if len({of(one) for one in tokenizers.values()}) > 1]
    who = " | ".join(", ".join(labels) for labels in groups.values())
    note(
        f"models differ in {', '.join(names) or 'tokenizer'} ({who}): each is used with its own; "
        "--chat_template_path sets one template for all"
    )
