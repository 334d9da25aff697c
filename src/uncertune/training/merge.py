"""Merging a run's adapter into its base: a plain model that loads without PEFT."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from transformers.trainer_utils import align_special_tokens

from uncertune.errors import UserError
from uncertune.models.loading import base_model_of, load_adapter, load_model, load_tokenizer
from uncertune.runs.files import atomic_folder
from uncertune.runs.folder import check_path, check_writable
from uncertune.runs.records import METRICS, read_metrics, read_settings


def merge(
    run: Path,
    target: Path,
    *,
    base: str | None = None,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> Path:
    """Merge the adapter in ``run`` into ``base`` (by default the model that the run names); return ``target``.

    The folder is written atomically. ``dtype`` is that of the weights, ``auto`` the base's. The model's configuration
    and generation configuration take their special tokens from the tokenizer of the run.
    ``trust_remote_code`` runs code of the base model, ``allow_pickle`` reads weights stored as a pickle; neither is
    taken from the run.

    Raises UserError for a run without an adapter, an output folder that is not empty, and a base that does not fit.
    """
    if not (run / "adapter_config.json").is_file():
        full = any(run.glob("*.safetensors"))
        why = "holds a full model: it needs no merging" if full else "holds no adapter: give the folder of a LoRA run"
        raise UserError(f"run {str(run)!r} {why}")
    check_path(target)
    if target.is_dir() and any(target.iterdir()):
        raise UserError(f"output_dir {str(target)!r} exists and is not empty: choose a new folder")
    check_writable(target.parent)
    model, tokenizer = _merged(run, base or _base_of(run), dtype, trust_remote_code, allow_pickle)
    with atomic_folder(target) as unfinished:
        model.save_pretrained(str(unfinished))
        tokenizer.save_pretrained(str(unfinished))
        _write_card(run, unfinished)
    return target


def _base_of(run: Path) -> str:
    """The base model of the run, or the one that the adapter names."""
    named = read_settings(run).get("model_name_or_path")
    base = named if isinstance(named, str) and named else base_model_of(run)
    if not base:
        raise UserError(f"run {str(run)!r} does not name its base model: give base")
    return base


def _merged(run: Path, base: str, dtype: str, trust_remote_code: bool, allow_pickle: bool) -> tuple[Any, Any]:
    """The merged model and the run's tokenizer, or the base's."""
    revision = read_settings(run).get("model_revision")
    trusted: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    where = {**trusted, "revision": revision if isinstance(revision, str) and revision else "main"}
    own = (run / "tokenizer_config.json").is_file()
    tokenizer = load_tokenizer(str(run), **trusted) if own else load_tokenizer(base, **where)
    model = load_model(base, dtype=dtype, allow_pickle=allow_pickle, **where)
    if getattr(model, "is_quantized", False):
        raise UserError(f"base {base!r} is stored quantised: give the unquantised model as base")
    with warnings.catch_warnings():  # about a trained head that was tied, which is handled below
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")
        try:
            model = load_adapter(model, run, allow_pickle=allow_pickle).merge_and_unload(safe_merge=True)
        except (ValueError, RuntimeError, KeyError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(f"run {str(run)!r} cannot be merged into base {base!r}: {reason}") from error
    if model.get_output_embeddings().weight is not model.get_input_embeddings().weight:
        model.config.tie_word_embeddings = (
            False  # the head was trained separately from the embedding that it was tied to
        )
    align_special_tokens(model, tokenizer)
    return model, tokenizer


def _write_card(run: Path, folder: Path) -> None:
    from uncertune.training.publishing import CARD, model_card

    settings = read_settings(run)
    if not settings:
        return
    rows = read_metrics(run / METRICS) if (run / METRICS).is_file() else []
    (folder / CARD).write_text(model_card(settings, rows, adapter=False), encoding="utf-8")
