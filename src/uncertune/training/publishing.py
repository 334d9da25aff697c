"""The model card of a run, and the files of its folder that are uploaded to the hub.

The card is ``README.md``: metadata for the hub, the run's settings and its results. Only the model and the files that
load it are uploaded. Records, selection masks, probe texts, caches and reference folders stay local, as does
``config.yaml``, which contains local paths.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import transformers.trainer as transformers_trainer
from huggingface_hub import ModelCardData

from uncertune.models.names import SMOLLM2, SMOLLM2_HUB
from uncertune.report.tables import markdown_text
from uncertune.runs.secrets import without_secrets

CARD = "README.md"
_TOKENS = {"loss": "training loss", "entropy": "training entropy", "mean_token_accuracy": "training token accuracy"}
_RECENT = 10
_SELECTION = ("selection_metric", "selection_fraction", "selection_level", "selection_scope", "normalize_by")
_OPTIMIZER = (
    "learning_rate",
    "num_train_epochs",
    "max_steps",
    "seed",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
)


def model_card(settings: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], *, adapter: bool) -> str:
    """The card of a run with these settings (``config.yaml``) and records (``metrics.jsonl``), as Markdown."""
    settings = without_secrets(settings)
    base, data = settings.get("model_name_or_path"), settings.get("dataset_name")
    meta = ModelCardData(
        base_model=_hub_id(SMOLLM2_HUB if base == SMOLLM2 else base),
        datasets=[str(data)] if _hub_id(data) else None,
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["uncertune", "trl", "sft", str(settings.get("objective", "mle"))],
    )
    name = str(settings.get("hub_model_id") or Path(str(settings.get("output_dir") or "model")).name).split("/")[-1]
    lines = ["---", meta.to_yaml(), "---", "", f"# {markdown_text(name)}", "", _sentence(settings, adapter), ""]
    lines += _table("field", "value", _facts(settings))
    results = _results(rows)
    if results:
        lines += ["", "## Results", "", *_table("result", "value", results), ""]
        lines += ["Losses and entropies in nats per response token."]
    return "\n".join(lines) + "\n"


# Characters that would end a code span or a table's cell, move a cursor, or reverse the line.
_NOT_IN_CODE = re.compile("[`|\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def _hub_id(name: Any) -> str | None:
    """Whether a name may be a hub id, ``owner/name``, instead of a local path."""
    fits = isinstance(name, str) and re.fullmatch(r"\w[\w.-]*/[\w.-]+", name) and not Path(name).exists()
    return name if fits else None


def _sentence(settings: Mapping[str, Any], adapter: bool) -> str:
    base, data = settings.get("model_name_or_path"), settings.get("dataset_name")
    said = f"`{_shown(base)}`" if base else "a language model"
    on = f" on `{_shown(data)}`" if data else ""
    what = "A LoRA adapter of" if adapter else "A fine-tuned copy of"
    return f"{what} {said}, trained{on} with uncertune on TRL's `SFTTrainer`."


def _shown(name: Any) -> str:
    """A hub id or short name unchanged, or the last part of a path; on one line, safe in a code span."""
    text = " ".join(str(name).split())
    text = Path(text).name if text[:1] in "./~" or text.count("/") > 1 else text
    return _NOT_IN_CODE.sub("\ufffd", text)


def _facts(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    objective = str(settings.get("objective", "mle"))
    facts = [("objective", f"`{objective}`")]
    if objective.startswith("masked_mle"):
        names = [*_SELECTION, *(["rho_reference"] if settings.get("rho_reference") else [])]
        facts += [(name, _shown(settings[name])) for name in names if settings.get(name) is not None]
    if settings.get("token_weighting", "none") != "none":
        facts.append(("token_weighting", f"`{settings['token_weighting']}`"))
    if settings.get("anchor", "none") != "none":
        facts.append(("anchor", f"{_shown(settings['anchor'])}, weight {settings['anchor_weight']}"))
    if settings.get("teacher"):
        teacher = settings["teacher"]
        teacher = ", ".join(teacher) if isinstance(teacher, list) else str(teacher)
        auto = teacher == "auto" or Path(teacher.split(", ")[0]).name == "stage1"
        facts.append(("teacher", "auto: the same start, fine-tuned with MLE" if auto else _shown(teacher)))
    return facts + [(name, str(settings[name])) for name in _OPTIMIZER if settings.get(name) not in (None, -1)]


def _results(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Training values as means of the last steps, since one step is noise; the best and the last evaluation."""
    steps = [row for row in rows if row["kind"] == "step"]
    evaluations = [row for row in rows if row["kind"] == "eval" and row.get("eval_loss") is not None]
    recent = steps[-_RECENT:]
    over = f"mean of the last {len(recent)} steps" if len(recent) > 1 else "at the last step"
    found: list[tuple[str, Any]] = [("step", steps[-1]["step"])] if steps else []
    for name, text in {**_TOKENS, "selected_fraction": "selected fraction"}.items():
        known = [row[name] for row in recent if row.get(name) is not None]
        found += [(f"{text}, {over}", sum(known) / len(known))] if known else []
    found += [("tokens seen", steps[-1].get("num_tokens"))] if steps else []
    if evaluations:
        best, last = min(evaluations, key=lambda row: float(row["eval_loss"])), evaluations[-1]
        found += [(f"best eval loss, at step {best['step']}", best["eval_loss"])] if best is not last else []
        found += [("last eval loss", last["eval_loss"]), ("last eval objective", last.get("eval_objective"))]
    return [(text, f"{value:.4g}" if isinstance(value, float) else str(value)) for text, value in found if value]


def _table(left: str, right: str, rows: Sequence[tuple[str, str]]) -> list[str]:
    return [f"| {left} | {right} |", "|---|---|", *(f"| {one} | {value} |" for one, value in rows)]


# ---- upload

PUBLISHED = (
    "README.md",
    *("adapter_config.json", "adapter_model.safetensors"),
    *("config.json", "generation_config.json", "model.safetensors", "model.safetensors.index.json"),
    "model-*-of-*.safetensors",
    *("tokenizer*", "vocab*", "merges.txt", "added_tokens.json", "special_tokens_map.json", "*.model"),
    *("chat_template.jinja", "additional_chat_templates/*"),
    "*.py",  # custom code of models
)
_BELOW = ("[!a]*/*", "a[!d]*/*")
"""All folders but ``additional_chat_templates``; ``*`` takes in ``/``."""


class _ModelOnly:
    """The hub's client, restricted to the ``PUBLISHED`` files of an output folder."""

    def __init__(self, api: Any) -> None:
        self._api = api

    def __getattr__(self, name: str) -> Any:
        return getattr(self._api, name)

    def upload_folder(self, *, path_in_repo: str | None = None, **options: Any) -> Any:
        if path_in_repo is None:  # else a checkpoint that hub_strategy asks for, whole
            options |= {"allow_patterns": list(PUBLISHED), "ignore_patterns": list(_BELOW)}
        return self._api.upload_folder(path_in_repo=path_in_repo, **options)


@contextlib.contextmanager
def model_only() -> Iterator[None]:
    """Inside the block, ``Trainer`` uploads only the model of its output folder."""
    theirs = transformers_trainer.hf_api
    transformers_trainer.hf_api = lambda: _ModelOnly(theirs())
    try:
        yield
    finally:
        transformers_trainer.hf_api = theirs
