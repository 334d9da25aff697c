"""Tasks prepared for a tokenizer: documents as tokens, or settings of lm-eval's generation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from uncertune.data.rows import Row, read_rows
from uncertune.errors import UserError
from uncertune.evaluation import harness
from uncertune.evaluation.checks import TOKENS
from uncertune.evaluation.models import ModelSpec
from uncertune.evaluation.tokenizers import end_of_turn, template_digest
from uncertune.objectives import FactoredTeacher


@dataclass(frozen=True)
class How:
    """The arguments of ``measure`` that apply to all models and tasks."""

    limit: int | None
    limits: Mapping[str, int]
    num_fewshot: int | None
    plain_prompts: bool
    max_length: int
    max_new_tokens: int | None
    batch_size: int
    seed: int
    data_dir: str | None
    dataset_columns: Mapping[str, str] | None
    dtype: str
    attn_implementation: str | None
    backend: str
    overwrite: bool

    def limit_of(self, task: str) -> int | None:
        return self.limits.get(task, self.limit)


@dataclass(frozen=True)
class Prepared:
    """A task prepared for one tokenizer: a task of lm-eval, or the documents of a token-level task.

    ``settings`` are the same for every model; ``preparation`` depends on the tokenizer.
    """

    name: str
    task: harness.HarnessTask | None
    documents: list[Row]
    settings: dict[str, Any]
    preparation: dict[str, Any]
    base_rows: dict[int, FactoredTeacher] = field(default_factory=dict)
    """Cached outputs of the base on the documents, batch by batch."""


def prepare(
    name: str, task: harness.HarnessTask | None, one: ModelSpec, tokenizer: Any, digest: str, how: How
) -> Prepared:
    """A task prepared for the tokenizer of ``one``, and so for every model with the same tokenizer."""
    settings: dict[str, Any] = {
        "limit": how.limit_of(name),
        "seed": how.seed,
        "dtype": how.dtype,
        "attn_implementation": how.attn_implementation,
        "backend": how.backend,
    }
    preparation: dict[str, Any] = {"tokenizer": digest}
    preparation["chat_template"] = None if how.plain_prompts else template_digest(tokenizer)
    if task is None:
        documents = read_rows(
            name.removeprefix(TOKENS),
            tokenizer,
            limit=how.limit_of(name),
            max_length=how.max_length,
            data_dir=how.data_dir,
            columns=how.dataset_columns,
            seed=how.seed,
        )
        data = hashlib.blake2b(digest_size=8)
        for document in documents:
            data.update(json.dumps([document.number, document.input_ids, document.labels]).encode())
        return Prepared(
            name,
            None,
            documents,
            {**settings, "max_length": how.max_length},
            {**preparation, "data": data.hexdigest()},
        )
    if not how.plain_prompts and not tokenizer.chat_template:
        raise UserError(
            f"model {one.source!r} has no chat template: give one with --chat_template_path, or --plain_prompts"
        )
    generation = _generation(task, tokenizer, how)
    settings |= {
        "num_fewshot": how.num_fewshot,
        "plain_prompts": how.plain_prompts,
        "max_new_tokens": generation.get("max_gen_toks"),
        "versions": task.versions,
        "lm_eval": harness.require(),
    }
    preparation["generation"] = generation
    return Prepared(task.name, task, [], json.loads(json.dumps(settings)), preparation)


def _generation(task: harness.HarnessTask, tokenizer: Any, how: How) -> dict[str, Any]:
    """Overrides of the task's generation settings: the length, and a stop at the template's end of a turn."""
    if not task.generates:
        return {}
    out: dict[str, Any] = {}
    if limit := how.max_new_tokens or harness.NEW_TOKENS.get(task.name):
        out["max_gen_toks"] = limit
    end = None if how.plain_prompts else end_of_turn(tokenizer)
    if end is not None and end != tokenizer.eos_token:
        own = [stop for one in task.generates for stop in _stops(one)]
        if end not in own:
            out["until"] = [*dict.fromkeys(own), end]
    return out


def _stops(task: Any) -> list[str]:
    stops = (task.config.generation_kwargs or {}).get("until") or []
    return [stops] if isinstance(stops, str) else list(stops)
