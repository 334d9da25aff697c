"""The models of a command: one base in memory, and LoRA adapters of it that are switched on in turn."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from uncertune.data.files import first_line
from uncertune.errors import UserError
from uncertune.evaluation.measures import adapter as switched_on
from uncertune.evaluation.options import ModelOptions
from uncertune.models import fingerprint, resolve_model
from uncertune.teachers.adapter import is_adapter
from uncertune.training.folder import read


@dataclass(frozen=True)
class Contestant:
    """A model as named on the command line; ``folder`` holds its adapter, or it is the bare base (None)."""

    label: str
    source: str
    folder: str | None = None
    name: str | None = None
    """Of the adapter on the shared base."""
    digest: str | None = None
    """Of the adapter's weights."""


@dataclass(frozen=True)
class Contestants:
    """The base, its tokenizer, and everyone to be measured, in the order given."""

    base: str
    path: str
    entries: tuple[Contestant, ...]
    model: Any
    tokenizer: Any
    base_digest: str

    @property
    def adapters(self) -> tuple[Contestant, ...]:
        return tuple(one for one in self.entries if one.name is not None)

    @contextlib.contextmanager
    def active(self, one: Contestant) -> Iterator[None]:
        """``one`` switched on: its adapter, or none of them."""
        with switched_on(self.model, one.name) if self.adapters else contextlib.nullcontext():
            yield

    def weights(self, one: Contestant) -> dict[str, str | None]:
        """What tells these weights from others: digests of the base and of the adapter."""
        return {"base": self.base_digest, "adapter": one.digest}


def plan(names: Sequence[str], labels: Sequence[str] = ()) -> tuple[str, tuple[Contestant, ...]]:
    """The base, given first or inferred from the first adapter, and the models to measure, not yet loaded."""
    first = Path(names[0]).expanduser()
    called = _labels(names, labels)
    if is_adapter(first):
        base, adapters = base_of(first), list(zip(called, names, strict=True))
        entries: list[Contestant] = []
    else:
        base, adapters = names[0], list(zip(called[1:], names[1:], strict=True))
        entries = [Contestant(called[0], names[0])]
    for number, (label, name) in enumerate(adapters):
        entries.append(Contestant(label, name, _adapter_folder(name), f"adapter_{number}"))
    return base, tuple(entries)


def load(options: ModelOptions, *, weights: bool = True) -> Contestants:
    """Base and adapters in memory, on the accelerator where there is one; without ``weights`` the tokenizer alone.

    Raises UserError, one line, for a name under which there is nothing, an adapter of another base, labels that cannot
    be used.
    """
    from transformers import AutoTokenizer

    base, entries = plan(options.models, options.chosen_labels)
    path = resolve_model(base)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"model {base!r} has no tokenizer that can be loaded: {first_line(error)}") from error
    _set_template(tokenizer, options.chat_template_path, entries)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    for one in entries:
        _check_base(one, base, path)
    model = _load_model(base, path, options) if weights else None
    digest = fingerprint(model) if weights else path
    for one in entries:
        if weights and one.folder is not None:
            _check_fingerprint(one, base, path, model)
            model = _put_on(model, one, base)
    if weights:
        model.requires_grad_(False)
        model.eval()
        if torch.accelerator.is_available():
            model.to(torch.accelerator.current_accelerator())
    named = tuple(Contestant(one.label, one.source, one.folder, one.name, _digest(one.folder)) for one in entries)
    return Contestants(base, path, named, model, tokenizer, digest)


def base_of(folder: str | Path) -> str:
    """The model that an adapter was trained on: by its configuration, or the run's where that is a path elsewhere."""
    folder = Path(folder).expanduser()
    try:
        named = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError):
        named = None
    if named and Path(named).is_dir():
        return named
    base = _run_base(folder) or named
    if not base:
        raise UserError(f"adapter {str(folder)!r} does not say which model it is for: give that model first")
    try:
        resolve_model(base)
    except UserError as error:
        raise UserError(f"adapter {str(folder)!r}: its base is not here: {error}; or give the base first") from None
    return base


def _run_base(folder: Path) -> str | None:
    """``model_name_or_path`` of the run that left the folder."""
    if not read(folder) or not (folder / "config.yaml").is_file():
        return None
    settings = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    return settings.get("model_name_or_path") if isinstance(settings, dict) else None


# ---- labels


def _labels(names: Sequence[str], given: Sequence[str]) -> list[str]:
    if given:
        if len(given) != len(names):
            raise UserError(f"labels: {len(given)} for {len(names)} models: give one for each, with commas")
        found = [label for label in given if not re.fullmatch(r"[\w+][\w.+-]*", label)]
        if found:
            raise UserError(f"labels: {found[0]!r} cannot be a folder's name: use letters, digits, '.', '-', '_'")
        twice = [label for label, count in Counter(given).items() if count > 1]
        if twice:
            raise UserError(f"labels: {twice[0]!r} is given twice: every model needs its own")
        return list(given)
    if len({_place(name) for name in names}) < len(names):
        twice = [name for name, count in Counter(map(_place, names)).items() if count > 1]
        raise UserError(f"models: {twice[0]!r} is given twice: keep one")
    for depth in range(1, 1 + max(name.count("/") for name in names) + 2):
        labels = [_label(name, depth) for name in names]
        if len(set(labels)) == len(labels):
            return labels
    return [f"{label}-{number}" for number, label in enumerate(labels, start=1)]


def _label(name: str, depth: int) -> str:
    """The last parts of a path, one more where the last is a checkpoint's."""
    path = Path(name).expanduser()
    parts = [part for part in (path.resolve() if path.exists() else path).parts if part.strip("/.")]
    if parts and parts[-1].startswith("checkpoint-"):
        depth += 1
    return re.sub(r"[^\w.+-]+", "-", "-".join(parts[-depth:])).strip("-.") or "model"


def _place(name: str) -> str:
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else name


# ---- loading


def _adapter_folder(name: str) -> str:
    """A local folder with the adapter. Raises UserError where the name stands for none."""
    path = Path(name).expanduser()
    if is_adapter(path):
        return str(path)
    if path.is_dir():
        kind = "a whole model" if (path / "config.json").is_file() else "no adapter (adapter_config.json is missing)"
        hint = "; evaluate it by a command of its own, with the same output_dir" if kind == "a whole model" else ""
        raise UserError(f"adapter {name!r} is {kind}{hint}")
    if path.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UserError(f"adapter {name!r}: there is no such folder, and it is not a hub id (owner/name)")
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(name, allow_patterns=["adapter_*", "tokenizer*", "chat_template*"])
    except Exception as error:  # whatever the hub raises
        raise UserError(f"adapter {name!r} is no folder, nor to be had from the hub: {first_line(error)}") from error
    if not is_adapter(folder):
        raise UserError(f"adapter {name!r} of the hub is no adapter: adapter_config.json is missing")
    return folder


def _set_template(tokenizer: Any, given: str | None, entries: Sequence[Contestant]) -> None:
    """The chat template: the given one, else the model's, else the one that all adapters were saved with."""
    from transformers import AutoTokenizer

    if given is not None:
        if given.endswith(".jinja"):
            try:
                tokenizer.chat_template = Path(given).expanduser().read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"chat_template_path: {given!r} cannot be read: {first_line(error)}") from error
            return
        try:
            tokenizer.chat_template = AutoTokenizer.from_pretrained(resolve_model(given)).chat_template
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"chat_template_path: {given!r} has no tokenizer: {first_line(error)}") from error
        if not tokenizer.chat_template:
            raise UserError(f"chat_template_path: the model {given!r} has no chat template")
        return
    if tokenizer.chat_template:
        return
    found = set()
    for one in entries:
        if one.folder is not None and (Path(one.folder) / "tokenizer_config.json").is_file():
            found.add(AutoTokenizer.from_pretrained(one.folder).chat_template)
    if len(found) == 1 and (template := found.pop()):
        tokenizer.chat_template = template
        print("the base has no chat template: the one its adapters were trained with is used", file=sys.stderr)


def _check_base(one: Contestant, base: str, path: str) -> None:
    """Refuse an adapter that names another model of the hub as its base."""
    if one.folder is None:
        return
    named = json.loads((Path(one.folder) / "adapter_config.json").read_text(encoding="utf-8"))
    theirs = named.get("base_model_name_or_path")
    if theirs and not Path(theirs).exists() and not Path(path).exists() and theirs.count("/") <= 1 and theirs != path:
        raise UserError(f"adapter {one.source!r} is of the base {theirs!r}, not of {base!r}")


def _check_fingerprint(one: Contestant, base: str, path: str, model: Any) -> None:
    """Refuse an adapter that a run trained on other weights, where the run says on which.

    A run may have rounded the weights first (bfloat16), so the roundings are tried too; a base of the same name that
    was quantised for training counts as the same.
    """
    assert one.folder is not None
    theirs = read(Path(one.folder)).get("identity", {}).get("model")
    if theirs is None or theirs in {fingerprint(model, as_dtype=dtype) for dtype in _ROUNDINGS}:
        return
    try:
        same = _place(resolve_model(base_of(one.folder))) == _place(path)
    except UserError:
        same = False
    if not same:
        trained = _run_base(Path(one.folder)) or "another model"
        raise UserError(f"adapter {one.source!r} is of another base than {base!r}: it was trained on {trained!r}")


_ROUNDINGS = (None, torch.bfloat16, torch.float16)


def _load_model(base: str, path: str, options: ModelOptions) -> Any:
    from transformers import AutoModelForCausalLM

    extra = {"attn_implementation": options.attn_implementation} if options.attn_implementation else {}
    try:
        return AutoModelForCausalLM.from_pretrained(path, dtype=options.dtype, **extra)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(f"model {base!r} cannot be loaded: {first_line(error)}") from error


def _put_on(model: Any, one: Contestant, base: str) -> Any:
    from peft import PeftModel

    assert one.folder is not None
    try:
        if hasattr(model, "peft_config"):
            model.load_adapter(one.folder, adapter_name=one.name)
        else:
            model = PeftModel.from_pretrained(model, one.folder, adapter_name=one.name)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = first_line(error)
        raise UserError(f"adapter {one.source!r} does not fit the base {base!r}: {reason}") from error
    lacking = _tensors(one) ^ _carried(model, one)
    if lacking:
        raise UserError(
            f"adapter {one.source!r} is of another base than {base!r}: {len(lacking)} of its tensors have no "
            f"counterpart ({min(lacking)})"
        )
    return model


def _tensors(one: Contestant) -> set[str]:
    """The low-rank matrices in an adapter's file, by name."""
    from safetensors import safe_open

    assert one.folder is not None
    path = Path(one.folder) / "adapter_model.safetensors"
    if not path.is_file():
        raise UserError(f"adapter {one.source!r} has no adapter_model.safetensors: save it as safetensors")
    with safe_open(path, framework="pt") as file:
        return {name for name in file.keys() if "lora_" in name}  # noqa: SIM118 (it is no mapping)


def _carried(model: Any, one: Contestant) -> set[str]:
    from peft import get_peft_model_state_dict

    found = get_peft_model_state_dict(model, adapter_name=one.name, save_embedding_layers=False)
    return {name for name in found if "lora_" in name}


def _digest(folder: str | None) -> str | None:
    if folder is None:
        return None
    file = Path(folder) / "adapter_model.safetensors"
    return hashlib.blake2b(file.read_bytes(), digest_size=8).hexdigest() if file.is_file() else None
