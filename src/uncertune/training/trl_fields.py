"""The fields of ``trl sft``, read from the source of TRL and transformers instead of importing them.

Importing takes seconds, reading a tenth of a second, so that ``--help`` and errors in a file are fast. A test compares
the result with the dataclasses themselves.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from uncertune.errors import UserError
from uncertune.settings import Spec
from uncertune.settings.spec import types_in

SOURCES = (
    ("trl", "scripts/utils.py", "ScriptArguments"),
    ("transformers", "training_args.py", "TrainingArguments"),
    ("trl", "trainer/base_config.py", "_BaseConfig"),
    ("trl", "trainer/sft_config.py", "SFTConfig"),
    ("trl", "trainer/model_config.py", "ModelConfig"),
    ("trl", "scripts/utils.py", "DatasetMixtureConfig"),
)
_ENUMS = (("transformers", "training_args.py"), ("transformers", "trainer_utils.py"))
_MAPPINGS = ("ParallelismConfig",)
UNKNOWN = object()
"""The default of a field whose default is computed."""

_COUNT: dict[str, Any] = {"least": 1}
_NOT_NEGATIVE: dict[str, Any] = {"least": 0}
_POSITIVE: dict[str, Any] = {"above": 0}
_SHARE: dict[str, Any] = {"least": 0, "below": 1}
_SEED: dict[str, Any] = {"least": 0, "most": 2**32 - 1}
RANGES: Mapping[str, Mapping[str, Any]] = {
    **dict.fromkeys(
        (
            *("max_length", "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"),
            *("lora_r", "lora_alpha", "eval_accumulation_steps", "dataset_num_proc"),
            *("dataloader_prefetch_factor", "torch_empty_cache_steps", "ddp_bucket_cap_mb", "ddp_timeout"),
        ),
        _COUNT,
    ),
    **dict.fromkeys(
        (
            *("learning_rate", "weight_decay", "max_grad_norm", "warmup_steps", "eval_delay", "neftune_noise_alpha"),
            *("dataloader_num_workers", "router_aux_loss_coef", "save_total_limit", "eval_steps"),
        ),
        _NOT_NEGATIVE,
    ),
    **dict.fromkeys(("logging_steps", "save_steps", "adam_epsilon"), _POSITIVE),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "lora_dropout", "label_smoothing_factor"), _SHARE),
    **dict.fromkeys(("seed", "data_seed"), _SEED),
    "test_split_size": {"above": 0, "below": 1},
    "max_steps": {"least": -1, "most": 10**9},
    "num_train_epochs": {"least": 0, "most": 10**6},
}

_LEVELS = ("passive", "detail", "debug", "info", "warning", "error", "critical")
CHOICES: Mapping[str, tuple[Any, ...]] = {
    "include_num_input_tokens_seen": ("all", "non_padding", "no", True, False),
    "log_level": _LEVELS,
    "log_level_replica": _LEVELS,
    "include_for_metrics": ("inputs", "loss"),
    "bnb_4bit_quant_storage": ("uint8", "int8", "float16", "bfloat16", "float32", "float64"),
}
"""Values that the source names in its help texts alone, or computes."""


@cache
def specs() -> Mapping[str, Spec]:
    """Every field, in TRL's order. Raises UserError if a package is missing."""
    enums = {name: values for source in _ENUMS for name, values in _enums(_tree(*source))}
    out: dict[str, Spec] = {}
    for package, file, name in SOURCES:
        for statement in _class(_tree(package, file), name).body:
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                spec = _spec(statement, enums)
                if spec is not None:
                    out[spec.name] = spec
    return out


@cache
def _tree(package: str, file: str) -> ast.Module:
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise UserError(f"the package {package} is missing; run: pip install {package}")
    path = Path(next(iter(found.submodule_search_locations))) / file
    return ast.parse(path.read_text(encoding="utf-8"))


def _class(tree: ast.Module, name: str) -> ast.ClassDef:
    return next(one for one in tree.body if isinstance(one, ast.ClassDef) and one.name == name)


def _enums(tree: ast.Module) -> Iterator[tuple[str, tuple[Any, ...]]]:
    for one in tree.body:
        if isinstance(one, ast.ClassDef) and any(getattr(base, "id", "") == "ExplicitEnum" for base in one.bases):
            values = [each.value for each in one.body if isinstance(each, ast.Assign)]
            yield one.name, tuple(each.value for each in values if isinstance(each, ast.Constant))


def _spec(statement: ast.AnnAssign, enums: Mapping[str, tuple[Any, ...]]) -> Spec | None:
    """The description of a dataclass attribute; None if the constructor does not set it."""
    assert isinstance(statement.target, ast.Name)
    name, annotation = statement.target.id, ast.unparse(statement.annotation)
    given = {one.arg: one.value for one in getattr(statement.value, "keywords", ()) if one.arg}
    if name.startswith("_") or _literal(given.get("init")) is False or statement.value is None:
        return None
    metadata = given.get("metadata")
    described = {}
    if isinstance(metadata, ast.Dict):
        for key, value in zip(metadata.keys, metadata.values, strict=True):
            described[_literal(key)] = _literal(value)
    types, item = types_in(annotation)
    if any(mapping in annotation for mapping in _MAPPINGS):
        types = (*types, "dict")
    choices = CHOICES.get(name, described.get("choices"))
    if choices is None or choices is UNKNOWN:
        choices = next((values for enum, values in enums.items() if annotation.startswith(enum)), ())
    text = described.get("help")
    default = _literal(given["default"]) if "default" in given else UNKNOWN
    return Spec(
        name,
        types,
        "any" if name == "datasets" else item,
        default,
        help=text if isinstance(text, str) else "",
        choices=tuple(choices),
        group="TRL",
        **RANGES.get(name, {}),
    )


def _literal(node: ast.AST | None) -> Any:
    try:
        return ast.literal_eval(node) if node is not None else UNKNOWN
    except ValueError:
        return UNKNOWN
