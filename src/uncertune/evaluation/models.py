"""The models of a command: one base in memory, and LoRA adapters of it that are activated in turn.

Each adapter is used with the tokenizer, chat template and special tokens that it was saved with, the bare base with its
own. An adapter whose training resized the vocabulary gets a separate copy of the base.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from uncertune.data.files import first_line
from uncertune.errors import UserError
from uncertune.evaluation.tokenizers import load_tokenizers
from uncertune.models import active_adapter, fingerprint, load_adapter, load_model, resolve_model
from uncertune.models.loading import adapter_digest, base_model_of, check_adapter, checked_weights
from uncertune.models.vocabulary import added_rows
from uncertune.runs.folder import RUN
from uncertune.runs.records import read_json, read_settings
from uncertune.teachers.adapter import is_adapter

_ROUNDINGS = (None, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class ModelSpec:
    """A model by name; ``folder`` is that of its adapter, None for the bare base."""

    label: str
    source: str
    folder: str | None = None
    name: str | None = None
    """Fingerprint of base and adapter."""
    digest: str | None = None
    """Digest of the adapter's weights."""


@dataclass(frozen=True)
class LoadedModels:
    """The loaded models in the given order; ``models`` and ``tokenizers`` by label, most of them the same object.

    ``resized`` names the adapters with a vocabulary of another size: their model is a copy of the base.
    """

    base: str
    path: str
    specs: tuple[ModelSpec, ...]
    models: Mapping[str, Any]
    tokenizers: Mapping[str, Any]
    base_digest: str
    resized: frozenset[str] = frozenset()

    @property
    def adapters(self) -> tuple[ModelSpec, ...]:
        return tuple(one for one in self.specs if one.folder is not None)

    @contextlib.contextmanager
    def active(self, one: ModelSpec) -> Iterator[Any]:
        """The model of ``one`` with its adapter active; for the bare base, without adapters."""
        model = self.models[one.label]
        with active_adapter(model, one.name) if hasattr(model, "peft_config") else contextlib.nullcontext():
            yield model

    @contextlib.contextmanager
    def as_base(self, one: ModelSpec) -> Iterator[None]:
        """The model of ``one`` without its adapter."""
        model = self.models[one.label]
        with active_adapter(model, None) if hasattr(model, "peft_config") else contextlib.nullcontext():
            yield

    def weights(self, one: ModelSpec) -> dict[str, str | None]:
        """The identity of the weights: digests of the base and of the adapter."""
        return {"base": self.base_digest, "adapter": one.digest}


def load_models(
    names: Sequence[str] | LoadedModels,
    labels: Sequence[str] = (),
    *,
    chat_template_path: str | None = None,
    dtype: str = "auto",
    attn_implementation: str | None = None,
    allow_pickle: bool = False,
    weights: bool = True,
) -> LoadedModels:
    """A model and LoRA adapters of it, on the accelerator if there is one; only tokenizers if ``weights`` is false.

    Args:
        names: a model, then adapters of it (folders, runs, hub ids); or adapters alone, whose base is inferred. Models
            that are loaded already are returned.
        labels: one for each name; by default the last part of each path.
        chat_template_path: a .jinja file, or a model, whose chat template replaces that of every model.

    Raises UserError for a name that cannot be loaded, an adapter of another base, and unusable labels.
    """
    if isinstance(names, LoadedModels):
        return names
    base, specs = plan(names, labels)
    path = resolve_model(base)
    for one in specs:
        if one.folder is not None:
            check_adapter(one.folder, allow_pickle=allow_pickle)
            _check_base(one, base, path)
    specs = tuple(replace(one, digest=one.folder and adapter_digest(one.folder)) for one in specs)
    tokenizers = load_tokenizers(base, {one.label: one.folder for one in specs}, chat_template_path)
    if not weights:  # whoever loads them does so without these checks
        with checked_weights(path, allow_pickle=allow_pickle):
            pass
        return LoadedModels(base, path, specs, {}, tokenizers, path)

    def load() -> Any:
        return load_model(base, dtype=dtype, attn_implementation=attn_implementation, allow_pickle=allow_pickle)

    def with_adapter(model: Any, one: ModelSpec) -> Any:
        try:
            return load_adapter(model, str(one.folder), name=str(one.name), allow_pickle=allow_pickle)
        except UserError as error:
            raise UserError(f"adapter {one.source!r} is of another base than {base!r}: {error}") from error

    shared = load()
    digest = fingerprint(shared)
    resized = [one for one in specs if one.folder is not None and added_rows(shared, one.folder)]
    plain = [one for one in specs if one not in resized]
    for one in plain:
        if one.folder is not None:
            _check_fingerprint(one, base, path, shared)
            shared = with_adapter(shared, one)
    models = {one.label: shared for one in plain}
    for one in resized:  # resizing would change the model for the others
        models[one.label] = with_adapter(load() if models else shared, one)
    for model in models.values():
        _freeze(model)
    return LoadedModels(base, path, specs, models, tokenizers, digest, frozenset(one.label for one in resized))


def _freeze(model: Any) -> None:
    model.requires_grad_(False)
    model.eval()
    if torch.accelerator.is_available():
        model.to(torch.accelerator.current_accelerator())


def _check_base(one: ModelSpec, base: str, path: str) -> None:
    """Refuse an adapter that names another model of the hub as its base."""
    theirs = base_model_of(str(one.folder))
    if theirs is None or theirs.count("/") > 1 or theirs == path:
        return
    if not Path(theirs).exists() and not Path(path).exists():
        raise UserError(f"adapter {one.source!r} is of the base {theirs!r}, not of {base!r}")


def _check_fingerprint(one: ModelSpec, base: str, path: str, model: Any) -> None:
    """Refuse an adapter whose run was trained on other weights, if the run recorded them.

    A run may have rounded the weights (bfloat16), so rounded weights are compared too; a base of the same name that was
    quantised for training counts as the same.
    """
    identity = _run_record(Path(str(one.folder))).get("identity")
    theirs = identity.get("model") if isinstance(identity, dict) else None
    if theirs is None or theirs in {fingerprint(model, as_dtype=dtype) for dtype in _ROUNDINGS}:
        return
    try:
        same = place_of(resolve_model(base_of(str(one.folder)))) == place_of(path)
    except UserError:
        same = False
    if not same:
        trained = run_base(Path(str(one.folder))) or "another model"
        raise UserError(f"adapter {one.source!r} is of another base than {base!r}: it was trained on {trained!r}")


# ---- names


def plan(names: Sequence[str], labels: Sequence[str] = ()) -> tuple[str, tuple[ModelSpec, ...]]:
    """The base, given first or inferred from the first adapter, and the models to measure, before loading."""
    if not names:
        raise UserError("models is missing: give a model and adapters, for example smollm2-135m runs/mle")
    first = Path(names[0]).expanduser()
    called = labels_of(names, labels)
    if is_adapter(first):
        base, adapters = base_of(first), list(zip(called, names, strict=True))
        specs: list[ModelSpec] = []
    else:
        base, adapters = names[0], list(zip(called[1:], names[1:], strict=True))
        specs = [ModelSpec(called[0], names[0])]
    for number, (label, name) in enumerate(adapters):
        specs.append(ModelSpec(label, name, adapter_folder(name), f"adapter_{number}"))
    return base, tuple(specs)


def base_of(folder: str | Path) -> str:
    """The model that an adapter was trained on: from its configuration, or from the run's if that path is gone."""
    folder = Path(folder).expanduser()
    named = base_model_of(folder)
    if named is not None and Path(named).is_dir():
        return named
    base = run_base(folder) or named
    if base is None:
        raise UserError(f"adapter {str(folder)!r} does not name its base model: give the base first")
    try:
        resolve_model(base)
    except UserError as error:
        raise UserError(
            f"adapter {str(folder)!r}: its base is not available: {error}; or give the base first"
        ) from None
    return base


def _run_record(folder: Path) -> dict[str, Any]:
    """``run.json`` of the folder's run; empty without a run. Raises UserError for a damaged file."""
    return read_json(folder / RUN) if (folder / RUN).is_file() else {}


def run_base(folder: Path) -> str | None:
    """``model_name_or_path`` of the folder's run. Raises UserError for a damaged config.yaml."""
    named = read_settings(folder).get("model_name_or_path") if _run_record(folder) else None
    return named if isinstance(named, str) else None


# ---- labels


def labels_of(names: Sequence[str], given: Sequence[str] = ()) -> list[str]:
    """One label per name, as given or the last parts of each path. Raises UserError for an invalid label."""
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
    if len({place_of(name) for name in names}) < len(names):
        twice = [name for name, count in Counter(map(place_of, names)).items() if count > 1]
        raise UserError(f"models: {twice[0]!r} is given twice: keep one")
    for depth in range(1, 1 + max(name.count("/") for name in names) + 2):
        labels = [_label(name, depth) for name in names]
        if len(set(labels)) == len(labels):
            return labels
    return [f"{label}-{number}" for number, label in enumerate(labels, start=1)]


def _label(name: str, depth: int) -> str:
    """The last part of a path, or the last two if the last is a checkpoint's."""
    path = Path(name).expanduser()
    parts = [part for part in (path.resolve() if path.exists() else path).parts if part.strip("/.")]
    if parts and parts[-1].startswith("checkpoint-"):
        depth += 1
    return re.sub(r"[^\w.+-]+", "-", "-".join(parts[-depth:])).strip("-.") or "model"


def place_of(name: str) -> str:
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else name


def adapter_folder(name: str) -> str:
    """A local folder with the adapter. Raises UserError if the name is not that of an adapter."""
    path = Path(name).expanduser()
    if is_adapter(path):
        return str(path)
    if path.is_dir():
        kind = (
            "a whole model" if (path / "config.json").is_file() else "not an adapter (adapter_config.json is missing)"
        )
        hint = "; evaluate it by a separate command, with the same output_dir" if kind == "a whole model" else ""
        raise UserError(f"adapter {name!r} is {kind}{hint}")
    if path.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UserError(f"adapter {name!r}: there is no such folder, and it is not a hub id (owner/name)")
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(name, allow_patterns=["adapter_*", "tokenizer*", "chat_template*"])
    except Exception as error:  # any error of the hub
        raise UserError(
            f"adapter {name!r} is neither a local folder nor available on the hub: {first_line(error)}"
        ) from error
    if not is_adapter(folder):
        raise UserError(f"adapter {name!r} of the hub is not an adapter: adapter_config.json is missing")
    return folder
