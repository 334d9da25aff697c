"""The fields of ``uncertune train``, described without a heavy import.

Ours are the dataclasses below, which ``UncertuneConfig`` and ``DataArguments`` extend; TRL's and transformers' are read
from the source of their packages (``trl_fields``). ``checked`` checks settings of a training run field by field, for
the command line, files, and the arms of a sweep.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from uncertune.errors import UserError
from uncertune.settings import Spec, convert, near, option, shown, specs_of
from uncertune.training import trl_fields

NORMALIZERS = ("all", "selected")
TRUNCATIONS = ("plain", "renormalized", "tail")
CACHES = ("none", "hidden", "topk")
FILLS = ("ahead", "first_epoch")
# The names of registries that need torch; a test compares them.
OBJECTIVES = (
    *("mle", "masked_mle", "distill", "truncated_distill", "masked_mle_distill", "policy_gradient", "oracle"),
)
METRICS = ("loss", "entropy", "rho", "random", "bald")
LEVELS = ("token", "document")
SCOPES = ("batch", "microbatch", "running")
ORDERS = ("highest", "lowest", "middle")
TOKEN_WEIGHTINGS = ("none", "dft", "eaft", "infosft", "focal")
BALD_MEMBERS = ("dropout", "teacher")
FORMATS = ("auto", "trl", "alpaca", "gsm8k", "sharegpt", "responses", "mmlu", "wikitext")


@dataclass
class ObjectiveFields:
    """The fields that ``UncertuneConfig`` adds to TRL's. A new field belongs here."""

    objective: str = option("mle", "what each token is asked for", choices=OBJECTIVES, group="objective")
    token_weighting: str = option(
        "none",
        "weight of the label's term, a function of the model's own prediction at that token",
        choices=TOKEN_WEIGHTINGS,
        group="token weighting",
    )
    eaft_top_k: int = option(20, "most probable tokens whose entropy eaft takes", least=2, group="token weighting")
    eaft_alpha: float = option(1.0, "exponent of eaft", group="token weighting")
    infosft_cutoff: float = option(
        0.93, "probability of the label from which infosft's weight is 0", above=0, below=1, group="token weighting"
    )
    focal_gamma: float = option(2.0, "exponent of focal", group="token weighting")
    anchor: str = option(
        "none",
        "fixed model that the trained model is kept close to: none, base (the model before training), a folder or a "
        "hub id",
        unit="MODEL",
        group="anchor",
    )
    anchor_weight: float = option(0.1, "weight of KL(anchor ‖ model)", least=0, group="anchor")
    normalize_by: str = option(
        "all", "divide the loss by all response tokens, or by the selected ones", choices=NORMALIZERS, group="objective"
    )
    assistant_only_loss: bool | None = option(
        None,
        "loss on the assistant's turns only, for data with messages",
        group="objective",
        unset="true for built-in data, and for messages with an objective other than mle",
    )
    selection_metric: str = option("loss", "score by which tokens are selected", choices=METRICS, group="selection")
    selection_fraction: float = option(
        0.25, "fraction of tokens, or documents, selected", above=0, most=1, group="selection"
    )
    selection_order: str = option("highest", "which end of the scores is selected", choices=ORDERS, group="selection")
    selection_threshold: float | None = option(
        None, "select by this value of the metric, in its unit, instead of a fraction", group="selection"
    )
    selection_level: str = option(
        "token", "select tokens, or whole documents by their mean score", choices=LEVELS, group="selection"
    )
    selection_scope: str = option(
        "batch",
        "rank over the whole step or each micro-batch, or compare with a threshold from earlier steps",
        choices=SCOPES,
        group="selection",
    )
    selection_memory_gb: float = option(
        2.0,
        "memory a rank for running the forwards of a step before its selection, with gradient checkpointing; 0: never",
        unit="GB",
        least=0,
        group="selection",
    )
    rho_reference: str | None = option(
        None,
        "holdout reference of the metric rho: a folder, a hub id, teacher, or auto (trained first)",
        unit="MODEL",
        group="selection",
    )
    bald_samples: int = option(10, "dropout passes of the metric bald", least=2, most=10_000, group="selection")
    bald_rate: float = option(0.1, "dropout rate of the metric bald", above=0, below=1, group="selection")
    bald_members: str = option(
        "dropout",
        "ensemble of the metric bald: dropout, or the teacher's members",
        choices=BALD_MEMBERS,
        group="selection",
    )
    teacher: list[str] | str | None = option(
        None,
        "model to distil from: folder or hub id of an adapter or model, or auto (trained first with MLE); the "
        "distributions of several, with commas, are averaged",
        unit="MODEL",
        group="teacher",
    )
    teacher_members: int = option(
        1, "how many teachers auto trains, each with its own seed", least=1, most=1000, group="teacher"
    )
    teacher_checkpoint: str = option(
        "last",
        "with teacher auto: stage 1 at its last step, or at its best evaluation (needs eval_strategy)",
        choices=("last", "best"),
        group="teacher",
    )
    teacher_top_k: int = option(64, "tokens that truncated_distill keeps", least=1, group="teacher")
    teacher_truncation: str = option(
        "plain", "what truncated_distill does with the other tokens", choices=TRUNCATIONS, group="teacher"
    )
    epsilon: float = option(
        0.2, "policy_gradient clips the importance ratio below 1 − epsilon", least=0, group="policy gradient"
    )
    epsilon_high: float | None = option(
        None, "and above 1 + epsilon_high", least=0, unset="epsilon", group="policy gradient"
    )
    teacher_cache: str = option(
        "none", "keep the teacher's hidden states, or its top k, on disk, so that it runs once", choices=CACHES,
        group="cache",
    )  # fmt: skip
    teacher_cache_fill: str = option(
        "ahead", "fill the cache before the first step, or during the first epoch", choices=FILLS, group="cache"
    )
    teacher_cache_dir: str | None = option(
        None, "folder of the cache; runs may share it", unit="DIR", unset="teacher_cache in output_dir", group="cache"
    )
    probe_steps: int | None = option(
        None,
        "score a few texts token by token every N steps; 0: never",
        least=0,
        unset="at the start, the middle and the end",
        group="records",
    )
    probe_samples: int = option(
        0, "dropout passes over those texts, for their uncertainty; 0, or at least 2", least=0, group="records"
    )
    allow_pickle: bool = option(
        False,
        "load weights stored as a pickle (.bin), which can run code; only as a flag, never in a file",
        group="run",
    )
    save_report: bool = option(
        True, "write report.html and tokens.html into the folder of the run when training ends", group="records"
    )
    save_selection: bool = option(
        True, "write which tokens were selected at each step to selection.parquet", group="records"
    )


@dataclass
class DataFields:
    """Fields for the data, and for an existing run folder."""

    data_dir: str | None = option(
        None, "folder with the files of the built-in data sets", unit="DIR", unset="$UNCERTUNE_DATA", group="data"
    )
    dataset_format: str = option(
        "auto", "how rows become messages; auto: by their columns", choices=FORMATS, group="data"
    )
    dataset_columns: dict | str | None = option(
        None,
        'columns of other names, known name first: {"instruction": "query", "output": "response"}',
        unit="JSON",
        group="data",
    )
    max_train_samples: int | None = option(None, "train on the first N rows", least=1, unset="all", group="data")
    max_eval_samples: int | None = option(None, "evaluate on the first N rows", least=1, unset="all", group="data")
    overwrite: bool = option(False, "delete the run in output_dir and start again, instead of resuming", group="run")
    fill_teacher_cache_only: bool = option(False, "train auto references, fill the caches, and stop there", group="run")


@cache
def specs() -> Mapping[str, Spec]:
    """Every field of ``uncertune train``: ours first, then TRL's."""
    ours = {**specs_of(ObjectiveFields), **specs_of(DataFields)}
    return {**ours, **{name: spec for name, spec in trl_fields.specs().items() if name not in ours}}


def own() -> tuple[str, ...]:
    """Names of the fields that are not TRL's."""
    return (*specs_of(ObjectiveFields), *specs_of(DataFields))


def checked(settings: Mapping[Any, Any], where: str = "") -> dict[str, Any]:
    """Every setting, converted to its field's type; ``env``, as in TRL, is a mapping of environment variables.

    ``where`` names the source. Raises UserError for an unknown field and a value outside its type or range.
    """
    known, out = specs(), {}
    for name, value in settings.items():
        if name == "env":
            out[name] = _environment(value)
            continue
        if name not in known:
            hint = near(name, known) if isinstance(name, str) else ""
            raise UserError(
                f"unknown field {shown(name)}{where}: {hint or '`uncertune train --help` lists all fields'}"
            )
        if name == "resume_from_checkpoint" and isinstance(value, bool):  # as Trainer.train takes it
            value = str(value)
        out[name] = convert(known[name], value)
    return out


def _environment(values: Any) -> dict[str, str]:
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"env must be a mapping of environment variables to values, got {shown(values)}")
    out = {}
    for name, value in values.items():
        if not isinstance(name, str) or not name or "=" in name:
            raise UserError(f"env: {shown(name)} is not the name of an environment variable")
        if isinstance(value, list | dict) or value is None:
            raise UserError(f"env.{name} must be text, got {shown(value)}")
        out[name] = convert(Spec(f"env.{name}"), str(value))
        convert(Spec("env"), name)
    return out
