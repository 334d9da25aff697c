"""Fingerprints of teachers, tokenizers and templates; from files if the model is not loaded."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import xxhash
from torch import Tensor, nn

from uncertune.errors import UserError
from uncertune.models import added_parameters, fingerprint, resolve_model

_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")
_PASSING = frozenset(
    ("base_model_name_or_path", "revision", "inference_mode", "peft_version", "_name_or_path", "transformers_version")
)


def teacher_fingerprint(source: str | nn.Module, student: nn.Module) -> str:
    """Fingerprint of a teacher, 16 hex digits: of a folder all bytes of its weights and its configuration, of a hub id
    its commit, of a model a sample of its base's weights and all that PEFT has added. An adapter's includes its
    base.
    """
    parts: list[Any]
    if not isinstance(source, str):
        parts = [fingerprint(source), str(getattr(source, "active_adapters", None) or "")]
        for name, config in sorted(getattr(source, "peft_config", {}).items()):
            parts += [name, _settings(config.to_dict())]
        return _hash([*parts, *(part for pair in added_parameters(source) for part in pair)])
    path = Path(resolve_model(source))
    if not path.is_dir():
        return _hash([source, _commit(source)])
    parts = []
    for file in sorted(file for pattern in _WEIGHTS for file in path.glob(pattern)):
        parts += [file.name, file]
    for name in ("config.json", "adapter_config.json"):
        if (path / name).is_file():
            settings = json.loads((path / name).read_text(encoding="utf-8"))
            parts.append(_settings(settings))
            if name == "adapter_config.json":
                base = settings.get("base_model_name_or_path")
                parts.append(fingerprint(student) if hasattr(student, "peft_config") else str(base))
    return _hash(parts)


def _settings(settings: dict[str, Any]) -> str:
    """A configuration as text, without fields that have no effect on the outputs."""
    kept = {name: value for name, value in settings.items() if name not in _PASSING}
    return json.dumps(
        kept, sort_keys=True, default=lambda value: sorted(value) if isinstance(value, set) else str(value)
    )


def base_fingerprint(student: nn.Module) -> str:
    """Fingerprint of the student's base model, 16 hex digits."""
    return _hash(["base", fingerprint(student)])


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Fingerprint of a vocabulary, 16 hex digits."""
    return _hash([json.dumps(sorted(tokenizer.get_vocab().items()))])


def text_fingerprint(text: str | None) -> str:
    """Fingerprint of a chat template, 16 hex digits, or ``none``."""
    return "none" if text is None else _hash([text])


def documents_fingerprint(keys: Iterable[str]) -> str:
    """Fingerprint of a set of documents in any order, 16 hex digits."""
    return _hash(sorted(set(keys)))


def _commit(name: str) -> str:
    """The commit of a hub id, from the hub's own cache or the hub."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        try:
            return Path(hf_hub_download(name, "adapter_config.json")).parent.name
        except EntryNotFoundError:
            return Path(hf_hub_download(name, "config.json")).parent.name
    except (OSError, ValueError) as error:
        raise UserError(f"teacher {name!r} cannot be found: {' '.join(str(error).split())}") from error


def _hash(parts: Iterable[Any]) -> str:
    digest = xxhash.xxh3_64()
    for part in parts:
        if isinstance(part, Path):
            with open(part, "rb") as file:
                while block := file.read(2**24):
                    digest.update(block)
        elif isinstance(part, Tensor):
            digest.update(part.detach().float().cpu().numpy().tobytes())
        else:
            digest.update(str(part).encode())
        digest.update(b"\0")
    return digest.hexdigest()
