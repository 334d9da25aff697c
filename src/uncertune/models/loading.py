"""Load models, tokenizers and adapters with one set of checks; every failure is one line.

Two things need an explicit flag of the command and are never taken from a file: running a model's code
(``trust_remote_code``), and reading weights stored as a pickle (``allow_pickle``).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from uncertune.errors import UserError
from uncertune.models.names import SMOLLM2, SMOLLM2_HUB, resolve_model
from uncertune.models.vocabulary import fit_vocabulary
from uncertune.runs.notes import note
from uncertune.runs.records import read_settings

_JSON = (
    *("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json", "special_tokens_map.json"),
    *("model.safetensors.index.json", "adapter_config.json"),
)
_ADAPTER = "adapter_model.safetensors"
_PICKLED_ADAPTER = "adapter_model.bin"
_LISTED = 3
REPORTED: Mapping[str, Any] = {"output_loading_info": True, "ignore_mismatched_sizes": True}
"""Options of ``from_pretrained`` for its report of mismatches, which ``check_complete`` reads."""


def fast_dtype() -> str:
    """The faster of bfloat16 and float32 here: bfloat16 takes half the time of float32 on an accelerator and on a
    processor that multiplies it, and some ten times as long on other processors."""
    fast = torch.accelerator.is_available() or "AVX512" in torch.backends.cpu.get_cpu_capability()
    return "bfloat16" if fast else "float32"


def load_tokenizer(name: str, *, revision: str = "main", trust_remote_code: bool = False) -> Any:
    """The tokenizer of a model given by hub id, folder or short name. Raises UserError."""
    from transformers import AutoTokenizer

    path = resolve_model(name)
    check_files(path)
    with _in_one_line(f"the tokenizer of model {name!r} cannot be loaded"):
        return AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code)


def load_model(
    name: str,
    *,
    dtype: str | torch.dtype = "auto",
    revision: str = "main",
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> Any:
    """A causal language model given by hub id, folder or short name.

    Raises UserError for a damaged file in a local folder (by its path), for weights that lack tensors of the model, for
    a pickle without ``allow_pickle``, and for any other error of transformers.
    """
    from transformers import AutoModelForCausalLM

    path = resolve_model(name)
    options: dict[str, Any] = {"attn_implementation": attn_implementation} if attn_implementation else {}
    if trust_remote_code:
        options["trust_remote_code"] = True
    with _in_one_line(f"model {name!r} cannot be loaded"), checked_weights(path, allow_pickle=allow_pickle) as more:
        _announce(name)
        model, report = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, revision=revision, **REPORTED, **options, **more
        )
        check_complete(name, report)
    return model


def _announce(name: str) -> None:
    shown = Path(name).name if Path(name).is_dir() else name
    note(f"loading the weights of {shown}")


@contextlib.contextmanager
def checked_weights(path: str, *, allow_pickle: bool = False) -> Iterator[dict[str, Any]]:
    """Check a model's local files; yields the options with which ``from_pretrained`` refuses pickles.

    An error about missing safetensors names the flag.
    """
    check_files(path)
    folder = Path(path)
    pickles = sorted(folder.glob("pytorch_model*.bin")) if folder.is_dir() else []
    if pickles and not any(folder.glob("*.safetensors")) and not allow_pickle:
        raise UserError(_pickle_line(pickles[0]))
    try:
        yield {} if allow_pickle else {"use_safetensors": True}
    except OSError as error:
        if not allow_pickle and "safetensors" in str(error) and not folder.is_dir():
            raise UserError(
                f"model {path!r} has no weights as safetensors: if it stores them as a pickle (.bin), which can run "
                "code when it is read, convert it, or give the flag --allow_pickle if you trust its source"
            ) from error
        raise


def _pickle_line(file: Path) -> str:
    return (
        f"{str(file)!r} is a pickle, which can run code when it is read: convert it to safetensors, or, if you trust "
        "its source, give the flag --allow_pickle"
    )


def check_complete(name: str, report: Mapping[str, Any]) -> None:
    """Raise UserError if a model's files lack tensors, which transformers would initialise at random.

    ``report`` is the loading info that ``from_pretrained(..., output_loading_info=True)`` returns.
    """
    missing = sorted(report.get("missing_keys") or ())
    if missing:
        more = f" and {len(missing) - _LISTED} more" if len(missing) > _LISTED else ""
        shown = ", ".join(missing[:_LISTED])
        raise UserError(f"model {name!r}: its files lack {len(missing)} tensors of the model ({shown}{more})")
    entries = report.get("mismatched_keys") or ()
    other = sorted(str(entry[0] if isinstance(entry, tuple) else entry) for entry in entries)
    if other:
        raise UserError(f"model {name!r}: {len(other)} tensors have another shape than in the model ({other[0]})")


def check_files(path: str | Path) -> None:
    """Raise UserError with the path of a damaged JSON or safetensors file in a model's or an adapter's folder."""
    from safetensors import SafetensorError, safe_open

    folder = Path(path)
    if not folder.is_dir():
        return
    for name in _JSON:
        if (folder / name).exists():
            _check_json(folder / name)
    if (folder / "chat_template.jinja").exists():
        _read(folder / "chat_template.jinja")
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt"):
                pass
        except OSError as error:
            raise UserError(f"{str(file)!r} cannot be read: {_first_line(error)}") from error
        except (SafetensorError, ValueError) as error:
            raise UserError(f"{str(file)!r} is damaged: {_first_line(error)}") from error
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        _check_index(index)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{str(file)!r} cannot be read: {_first_line(error)}") from error


def _check_json(file: Path) -> Any:
    try:
        content = json.loads(_read(file))
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{str(file)!r} is damaged: {_first_line(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{str(file)!r} is damaged: it holds {type(content).__name__} instead of a JSON object")
    return content


def _check_index(index: Path) -> None:
    shards = _check_json(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise UserError(f"{str(index)!r} is damaged: it has no weight_map of tensors to files")
    for name in sorted(set(shards.values())):
        if Path(name).name != name or not (index.parent / name).is_file():
            raise UserError(f"{str(index)!r} names {name!r}, which is missing")


# ---- adapters


def load_adapter(model: Any, folder: str | Path, *, name: str = "default", allow_pickle: bool = False) -> Any:
    """``model`` with the PEFT adapter of a local folder on it, frozen; the model may already have adapters.

    If training added tokens to the vocabulary, the model is resized first (``fit_vocabulary``).

    Raises UserError for a damaged file, a pickle without ``allow_pickle``, an adapter of another base.
    """
    from peft import PeftModel

    check_adapter(folder, allow_pickle=allow_pickle)
    with _in_one_line(f"adapter {str(folder)!r} does not fit the model"), warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing adapter keys")  # PEFT would leave them untrained
        fit_vocabulary(model, folder)
        if hasattr(model, "peft_config"):
            model.load_adapter(str(folder), adapter_name=name)
        else:
            model = PeftModel.from_pretrained(model, str(folder), adapter_name=name)
    lacking = _stored(folder) ^ _loaded(model, name) if (Path(folder) / _ADAPTER).is_file() else set()
    if lacking:
        raise UserError(
            f"adapter {str(folder)!r} does not fit the model: {len(lacking)} of its tensors have no counterpart "
            f"({min(lacking)})"
        )
    return model


def check_adapter(folder: str | Path, *, allow_pickle: bool = False) -> None:
    """Raise UserError for a folder without a readable adapter, and for a pickle without ``allow_pickle``."""
    folder = Path(folder)
    check_files(folder)
    if not (folder / "adapter_config.json").is_file():
        raise UserError(f"{str(folder)!r} holds no adapter: adapter_config.json is missing")
    if (folder / _ADAPTER).is_file():
        return
    pickle = folder / _PICKLED_ADAPTER
    if not pickle.is_file():
        raise UserError(f"{str(folder)!r} holds no adapter: {_ADAPTER} is missing")
    if not allow_pickle:
        raise UserError(_pickle_line(pickle))


def adapter_digest(folder: str | Path) -> str | None:
    """A digest of an adapter's weights, 16 hex digits; None where the folder holds none."""
    for file in (Path(folder) / _ADAPTER, Path(folder) / _PICKLED_ADAPTER):
        if file.is_file():
            return hashlib.blake2b(file.read_bytes(), digest_size=8).hexdigest()
    return None


def base_model_of(folder: str | Path) -> str | None:
    """The base model that an adapter's configuration names; ``smollm2-135m`` if its run trained on that name, which
    loads without the hub. Raises UserError if a file is damaged."""
    named = _check_json(Path(folder) / "adapter_config.json").get("base_model_name_or_path")
    if named == SMOLLM2_HUB and any(
        read_settings(one).get("model_name_or_path") == SMOLLM2 for one in (Path(folder), Path(folder).parent)
    ):
        return SMOLLM2 if resolve_model(SMOLLM2) != SMOLLM2_HUB else SMOLLM2_HUB
    return named if isinstance(named, str) and named else None


def _stored(folder: str | Path) -> set[str]:
    """The low-rank matrices in an adapter's file, by name."""
    from safetensors import safe_open

    with safe_open(Path(folder) / _ADAPTER, framework="pt") as file:
        return {name for name in file.keys() if "lora_" in name}  # noqa: SIM118 (not a mapping)


def _loaded(model: Any, name: str) -> set[str]:
    from peft import get_peft_model_state_dict

    found = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    return {name for name in found if "lora_" in name}


# ---- within TRL


@contextlib.contextmanager
def checked_in_trl(*, allow_pickle: bool = False) -> Iterator[None]:
    """Inside the block, a model that TRL loads by name is checked like one of ``load_model``."""
    import trl.trainer.sft_trainer as trl_sft

    original = trl_sft.create_model_from_path

    def create(name: str, *args: Any, **options: Any) -> Any:
        with _in_one_line(f"model {name!r} cannot be loaded"), checked_weights(name, allow_pickle=allow_pickle) as more:
            _announce(name)
            model, report = original(name, *args, **{**options, **REPORTED, **more})
            check_complete(name, report)
        return model

    trl_sft.create_model_from_path = create
    try:
        yield
    finally:
        trl_sft.create_model_from_path = original


# ---- errors


@contextlib.contextmanager
def _in_one_line(what: str) -> Iterator[None]:
    """Errors of other libraries while they read files, as a UserError of one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise UserError(f"{what}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
