"""Teachers: the last hidden states of response tokens and a head, which give p_ref.

With LoRA the teacher is a second adapter on the student's base weights; under full fine-tuning it is a separate model
with a separate head.
"""

from __future__ import annotations

import contextlib
import copy
import json
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from uncertune.errors import UserError
from uncertune.models import (
    attach_head,
    causal_lm,
    fingerprint,
    has_weights,
    head_shape,
    load_adapter,
    load_model,
    load_tokenizer,
    resolve_model,
    verify_head,
)
from uncertune.models.adapters import active_adapter
from uncertune.models.loading import base_model_of, check_adapter
from uncertune.objectives import FactoredTeacher, Head


@dataclass(frozen=True)
class AdapterTeacher:
    """The adapter ``name`` of the student's PEFT model, activated for one forward pass."""

    name: str

    def rows(
        self, student: nn.Module, inputs: Mapping[str, Any], mask: Tensor, index: Tensor | None = None
    ) -> FactoredTeacher:
        """p_ref of the response tokens of ``mask`` (B, L − 1); ``student`` may be wrapped (DDP, FSDP)."""
        with active_adapter(student, self.name):
            return frozen_rows(student, inputs, mask, index)


@dataclass(frozen=True)
class ModelTeacher:
    """A separate, frozen model."""

    model: nn.Module

    def rows(
        self, student: nn.Module, inputs: Mapping[str, Any], mask: Tensor, index: Tensor | None = None
    ) -> FactoredTeacher:
        """p_ref of the response tokens of ``mask`` (B, L − 1)."""
        return frozen_rows(self.model, inputs, mask, index)


@dataclass(frozen=True)
class BaseTeacher:
    """The student's base model: its adapters are disabled for one forward pass."""

    def rows(
        self, student: nn.Module, inputs: Mapping[str, Any], mask: Tensor, index: Tensor | None = None
    ) -> FactoredTeacher:
        """The base model's distribution of the response tokens of ``mask`` (B, L − 1)."""
        with active_adapter(student, None):
            return frozen_rows(student, inputs, mask, index)


Teacher = AdapterTeacher | ModelTeacher | BaseTeacher


def frozen_rows(
    model: nn.Module, inputs: Mapping[str, Any], mask: Tensor, index: Tensor | None = None
) -> FactoredTeacher:
    """Hidden states of the response tokens and the head, without gradient and with dropout off.

    ``mask`` and ``index`` are ``response_mask`` and ``response_index`` of ``attach_head``.
    """
    taken: list[FactoredTeacher] = []

    def take(hidden: Tensor, head: Head, _aux_loss: Tensor | None) -> dict[str, Tensor]:
        taken.append(FactoredTeacher(hidden, head.detached()))
        return {}

    with torch.no_grad(), evaluating(model):
        model(**inputs, head_fn=take, response_mask=mask, response_index=index)
    return taken[0]


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside the block, so without dropout; the mode is restored, also after an exception."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def is_adapter(path: str | Path) -> bool:
    """Whether a folder holds a PEFT adapter."""
    return (Path(path).expanduser() / "adapter_config.json").is_file()


def adapter_folder(source: str) -> str | None:
    """The local folder of a PEFT adapter given by folder or hub id; None if it is not an adapter or not available."""
    local = Path(resolve_model(source))
    if not local.is_dir() and re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        try:
            local = Path(snapshot_download(source, allow_patterns=["adapter_*"]))
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError):
            return None
    return str(local) if is_adapter(local) else None


def load_base(student: nn.Module, field: str) -> Teacher:
    """The model before training: the base of a PEFT model, otherwise a frozen copy.

    ``field`` is the configuration field that errors name. Raises UserError if the weights are not on this rank and
    cannot be copied.
    """
    if hasattr(student, "peft_config"):
        return BaseTeacher()
    if not has_weights(student):
        raise UserError(f"{field}='base' cannot copy sharded weights: give the model's folder or hub id")
    model = copy.deepcopy(student)
    model.requires_grad_(False)
    model.eval()
    return ModelTeacher(model)


def load_teacher(
    source: str | nn.Module,
    student: nn.Module,
    *,
    name: str,
    tokenizer: Any,
    dtype: Any,
    allow_pickle: bool = False,
    field: str = "teacher",
) -> Teacher:
    """The teacher from a path, a hub id or a model, for an unwrapped transformers or PEFT model as student.

    ``name`` is the adapter's name on the student; ``field`` is the configuration field that errors name. Raises
    UserError for a model that is missing, does not fit, or has another vocabulary.
    """
    if isinstance(source, str):
        folder = adapter_folder(source) if hasattr(student, "peft_config") else None
        if folder is not None:
            check_adapter(folder, allow_pickle=allow_pickle)
            return _load_adapter(folder, student, name, field)
        model = _load_model(source, tokenizer, dtype, allow_pickle, field)
    else:
        model = source
        if causal_lm(model) is causal_lm(student):
            raise UserError(f"{field} is the model that is trained: give a copy of it, or a path")
    model.requires_grad_(False)
    model.eval()
    attach_head(model)
    verify_head(model)
    _check_vocabulary(source if isinstance(source, str) else type(model).__name__, model, student, field)
    return ModelTeacher(model)


def _load_adapter(path: str, student: nn.Module, name: str, field: str) -> AdapterTeacher:
    identity = json.loads(run.read_text()).get("identity", {}) if (run := Path(path) / "run.json").is_file() else {}
    if has_weights(student) and identity.get("model", ours := fingerprint(student)) != ours:
        warnings.warn(f"{field} {path!r} was trained on another base model than this one", stacklevel=2)
    try:
        student.load_adapter(path, adapter_name=name, is_trainable=False)  # type: ignore[operator]
    except (RuntimeError, ValueError, KeyError) as error:
        base = json.loads((Path(path) / "adapter_config.json").read_text()).get("base_model_name_or_path")
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{field} {path!r} is an adapter of {base!r} and does not fit this model: {reason}") from None
    return AdapterTeacher(name)


def _load_model(path: str, tokenizer: Any, dtype: Any, allow_pickle: bool, field: str) -> nn.Module:
    local = resolve_model(path)
    try:
        if is_adapter(local):
            base = base_model_of(local)
            if base is None:
                raise UserError("its adapter_config.json does not name the base model")
            model = load_model(base, dtype=dtype, allow_pickle=allow_pickle)
            model = load_adapter(model, local, allow_pickle=allow_pickle)
        else:
            model = load_model(local, dtype=dtype, allow_pickle=allow_pickle)
    except UserError as error:
        raise UserError(f"{field} {path!r}: {error}") from error
    try:
        vocabulary = load_tokenizer(local).get_vocab()
    except UserError:
        vocabulary = None
    if vocabulary is not None and tokenizer is not None and vocabulary != tokenizer.get_vocab():
        raise UserError(
            f"{field} {path!r} has another vocabulary ({len(vocabulary)} tokens) than the student "
            f"({len(tokenizer.get_vocab())}): both need the same tokenizer"
        )
    return model


def _check_vocabulary(name: str, teacher: nn.Module, student: nn.Module, field: str) -> None:
    size, wanted = head_shape(teacher)[0], head_shape(student)[0]
    if size != wanted:
        raise UserError(
            f"{field} {name!r} has another vocabulary (an output head of {size} tokens) than the student ({wanted})"
        )
