"""``uncertune merge``: a run's adapter folded into its base, as a plain model that needs no PEFT to load."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import yaml

from uncertune.errors import UserError
from uncertune.runs.files import atomic_folder


def merge(run: Path, target: Path, *, base: str | None = None, dtype: str = "auto") -> Path:
    """Merge the adapter in ``run`` into ``base`` (by default the model that the run names); return ``target``.

    The folder appears whole or not at all. ``dtype`` is that of the weights, ``auto`` the base's own.

    Raises UserError for a run without an adapter, an output folder that is not empty, and a base that does not fit.
    """
    if not (run / "adapter_config.json").is_file():
        full = any(run.glob("*.safetensors"))
        why = "holds a full model: it needs no merging" if full else "holds no adapter: give the folder of a LoRA run"
        raise UserError(f"run {str(run)!r} {why}")
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise UserError(f"output_dir {str(target)!r} exists and is not empty: choose a new folder")
    model, tokenizer = _merged(run, base or _base_of(run), dtype)
    with atomic_folder(target) as unfinished:
        model.save_pretrained(str(unfinished))
        if tokenizer is not None:
            tokenizer.save_pretrained(str(unfinished))
        _write_card(run, unfinished)
    return target


def _base_of(run: Path) -> str:
    """The base model as the run was told it, or as the adapter names it."""
    settings = _settings(run)
    named = json.loads((run / "adapter_config.json").read_text(encoding="utf-8")).get("base_model_name_or_path")
    base = settings.get("model_name_or_path") or named
    if not base:
        raise UserError(f"run {str(run)!r} does not name its base model: give base")
    return base


def _settings(run: Path) -> dict[str, Any]:
    file = run / "config.yaml"
    return (yaml.safe_load(file.read_text(encoding="utf-8")) or {}) if file.is_file() else {}


def _merged(run: Path, base: str, dtype: str) -> tuple[Any, Any]:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from uncertune.models import resolve_model

    settings = _settings(run)
    where = {"revision": settings.get("model_revision") or "main"}
    if settings.get("trust_remote_code"):
        where["trust_remote_code"] = True
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(run)) if (run / "tokenizer_config.json").is_file() else None
        model = AutoModelForCausalLM.from_pretrained(resolve_model(base), dtype=dtype, **where)
        if getattr(model, "is_quantized", False):
            raise UserError(f"base {base!r} is stored quantised: give the unquantised model as base")
        with warnings.catch_warnings():  # of a trained head that was tied, which is seen to below
            warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")
            model = PeftModel.from_pretrained(model, str(run)).merge_and_unload(safe_merge=True)
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"run {str(run)!r} cannot be merged into base {base!r}: {reason}") from None
    if model.get_output_embeddings().weight is not model.get_input_embeddings().weight:
        model.config.tie_word_embeddings = False  # a head trained apart from the embedding that it was tied to
    return model, tokenizer


def _write_card(run: Path, folder: Path) -> None:
    from uncertune.training.publishing import CARD, model_card
    from uncertune.training.runlog import METRICS, read_metrics

    settings = _settings(run)
    if not settings:
        return
    rows = read_metrics(run / METRICS) if (run / METRICS).is_file() else []
    (folder / CARD).write_text(model_card(settings, rows, adapter=False), encoding="utf-8")
