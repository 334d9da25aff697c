"""What of a run folder goes to the hub: the model and what loads it.

Records, selection masks, probe texts, caches and the references' folders stay where they are, as does ``config.yaml``,
which names paths of this machine.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import transformers.trainer as transformers_trainer

PUBLISHED = (
    "README.md",
    *("adapter_config.json", "adapter_model.safetensors"),
    *("config.json", "generation_config.json", "model.safetensors", "model.safetensors.index.json"),
    "model-*-of-*.safetensors",
    *("tokenizer*", "vocab*", "merges.txt", "added_tokens.json", "special_tokens_map.json", "*.model"),
    *("chat_template.jinja", "additional_chat_templates/*"),
    "*.py",  # of models with code of their own
)
_BELOW = ("[!a]*/*", "a[!d]*/*")
"""All folders but ``additional_chat_templates``; ``*`` takes in ``/``."""


class _ModelOnly:
    """The hub's client, which uploads of an output folder only what is ``PUBLISHED``."""

    def __init__(self, api: Any) -> None:
        self._api = api

    def __getattr__(self, name: str) -> Any:
        return getattr(self._api, name)

    def upload_folder(self, *, path_in_repo: str | None = None, **options: Any) -> Any:
        if path_in_repo is None:  # else a checkpoint that hub_strategy asks for, whole
            options |= {"allow_patterns": list(PUBLISHED), "ignore_patterns": list(_BELOW)}
        return self._api.upload_folder(path_in_repo=path_in_repo, **options)


@contextlib.contextmanager
def model_only() -> Iterator[None]:
    """While ``Trainer`` uploads its output folder, only the model goes."""
    theirs = transformers_trainer.hf_api
    transformers_trainer.hf_api = lambda: _ModelOnly(theirs())
    try:
        yield
    finally:
        transformers_trainer.hf_api = theirs
