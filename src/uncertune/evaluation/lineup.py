"""Who takes part: base, adapters and their labels, from names on the command line."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from uncertune.data.files import first_line
from uncertune.errors import UserError
from uncertune.models import resolve_model
from uncertune.runs.folder import read
from uncertune.teachers.adapter import is_adapter


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


def plan(names: Sequence[str], labels: Sequence[str] = ()) -> tuple[str, tuple[Contestant, ...]]:
    """The base, given first or inferred from the first adapter, and the models to measure, not yet loaded."""
    first = Path(names[0]).expanduser()
    called = labels_of(names, labels)
    if is_adapter(first):
        base, adapters = base_of(first), list(zip(called, names, strict=True))
        entries: list[Contestant] = []
    else:
        base, adapters = names[0], list(zip(called[1:], names[1:], strict=True))
        entries = [Contestant(called[0], names[0])]
    for number, (label, name) in enumerate(adapters):
        entries.append(Contestant(label, name, _adapter_folder(name), f"adapter_{number}"))
    return base, tuple(entries)


def base_of(folder: str | Path) -> str:
    """The model that an adapter was trained on: by its configuration, or the run's where that is a path elsewhere."""
    folder = Path(folder).expanduser()
    try:
        named = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError):
        named = None
    if named and Path(named).is_dir():
        return named
    base = run_base(folder) or named
    if not base:
        raise UserError(f"adapter {str(folder)!r} does not say which model it is for: give that model first")
    try:
        resolve_model(base)
    except UserError as error:
        raise UserError(f"adapter {str(folder)!r}: its base is not here: {error}; or give the base first") from None
    return base


def run_base(folder: Path) -> str | None:
    """``model_name_or_path`` of the run that left the folder."""
    if not read(folder) or not (folder / "config.yaml").is_file():
        return None
    settings = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    return settings.get("model_name_or_path") if isinstance(settings, dict) else None


# ---- labels


def labels_of(names: Sequence[str], given: Sequence[str] = ()) -> list[str]:
    """One label a name, those given or the last parts of each path. Raises UserError for what cannot be one."""
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
    """The last parts of a path, one more where the last is a checkpoint's."""
    path = Path(name).expanduser()
    parts = [part for part in (path.resolve() if path.exists() else path).parts if part.strip("/.")]
    if parts and parts[-1].startswith("checkpoint-"):
        depth += 1
    return re.sub(r"[^\w.+-]+", "-", "-".join(parts[-depth:])).strip("-.") or "model"


def place_of(name: str) -> str:
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else name


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
