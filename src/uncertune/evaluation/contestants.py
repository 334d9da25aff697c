"""The models of a command: one base in memory, and LoRA adapters of it that are switched on in turn."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from uncertune.data.files import first_line
from uncertune.errors import UserError
from uncertune.evaluation.lineup import Contestant, base_of, place_of, plan, run_base
from uncertune.evaluation.measures import adapter as switched_on
from uncertune.evaluation.options import ModelOptions
from uncertune.models import fingerprint, resolve_model
from uncertune.runs.folder import read


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
    entries = tuple(replace(one, digest=_digest(one.folder)) for one in entries)
    if not weights:
        return Contestants(base, path, entries, None, tokenizer, path)
    model, digest = _in_memory(base, path, entries, options)
    return Contestants(base, path, entries, model, tokenizer, digest)


def _in_memory(base: str, path: str, entries: Sequence[Contestant], options: ModelOptions) -> tuple[Any, str]:
    """The base with every adapter on it, frozen, and the base's fingerprint."""
    model = _load_model(base, path, options)
    digest = fingerprint(model)
    for one in entries:
        if one.folder is not None:
            _check_fingerprint(one, base, path, model)
            model = _put_on(model, one, base)
    model.requires_grad_(False)
    model.eval()
    if torch.accelerator.is_available():
        model.to(torch.accelerator.current_accelerator())
    return model, digest


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


def end_of_turn(tokenizer: Any) -> str | None:
    """What the chat template writes behind an assistant's turn, or None if that is nothing."""
    mark = "An answer"
    turns = [{"role": "user", "content": "A question"}, {"role": "assistant", "content": mark}]
    after = tokenizer.apply_chat_template(turns, tokenize=False).rpartition(mark)[2]
    return after.strip() or None


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
        same = place_of(resolve_model(base_of(one.folder))) == place_of(path)
    except UserError:
        same = False
    if not same:
        trained = run_base(Path(one.folder)) or "another model"
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
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"adapter {one.source!r} is of another base than {base!r}: {reason}") from error
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
