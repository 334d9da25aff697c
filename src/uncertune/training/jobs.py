"""From parsed arguments to a job: data, evaluation data, LoRA and quantisation, as ``trl sft`` builds them."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from transformers import AutoConfig
from trl import get_dataset, get_peft_config, get_quantization_config

from uncertune.data.sources import column_names, is_file, load
from uncertune.errors import UserError
from uncertune.models import load_tokenizer, resolve_model
from uncertune.models.loading import check_files
from uncertune.runs.notes import note
from uncertune.training.arguments import Arguments
from uncertune.training.holdout import split_off
from uncertune.training.pipeline import Job


def job_of(given: Arguments) -> Job:
    """Load what the arguments name. Raises UserError for missing names and unusable data."""
    model, training = given.model, given.training
    if not model.model_name_or_path:
        raise UserError("model_name_or_path is missing: give a hub id, a folder, a .gguf file, or smollm2-135m")
    _check_quantized(model)
    training.model_init_kwargs = {
        "revision": model.model_revision,
        "trust_remote_code": training.trust_remote_code,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
        **(training.model_init_kwargs or {}),
    }
    _check_model(model.model_name_or_path, training.model_init_kwargs)
    with _refusals("model configuration"):
        peft_config, quantization_config = get_peft_config(model), get_quantization_config(model)
    evaluates = str(getattr(training.eval_strategy, "value", training.eval_strategy)) != "no"
    train, evaluation = _data(given, evaluates)
    return Job(
        model=model.model_name_or_path,
        config=training,
        train_dataset=train,
        eval_dataset=evaluation,
        peft_config=peft_config,
        quantization_config=quantization_config,
        resolved=given.resolved(),
    )


def _check_quantized(model: Any) -> None:
    """Refuse a quantised base that cannot be loaded or trained here."""
    if not (model.load_in_4bit or model.load_in_8bit):
        return
    field = "load_in_4bit" if model.load_in_4bit else "load_in_8bit"
    if not model.use_peft:
        raise UserError(f"{field}: quantised weights cannot be trained themselves: set use_peft: true")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(f"{field} needs the package bitsandbytes; run: pip install 'uncertune[qlora]'")
    if model.load_in_4bit and not torch.accelerator.is_available():
        raise UserError("load_in_4bit: bitsandbytes cannot train on 4-bit weights on a CPU: set load_in_8bit instead")


def _check_model(name: str, options: dict[str, Any]) -> None:
    """Raise UserError before data is loaded if the name has no model and tokenizer."""
    where = {key: options[key] for key in ("revision", "trust_remote_code")}
    check_files(resolve_model(name))
    with _refusals(f"model_name_or_path {name!r} cannot be loaded"):
        AutoConfig.from_pretrained(resolve_model(name), **where)
        load_tokenizer(name, **where)


@contextlib.contextmanager
def _refusals(what: str) -> Iterator[None]:
    """Errors of other libraries about a name or a value, as a UserError of one line."""
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(f"{what}: {' '.join(str(error).split()) or type(error).__name__}") from error


def _data(given: Arguments, evaluates: bool) -> tuple[Any, Any]:
    data, mixture = given.data, given.mixture
    if mixture.datasets:
        if data.dataset_name:
            note(f"dataset_name: {data.dataset_name!r} is left out, since datasets is set")
        with _refusals("datasets cannot be loaded"):
            splits = get_dataset(replace(mixture, test_split_size=None))  # TRL's split has no seed
        if mixture.test_split_size is not None:
            return _split(splits[data.dataset_train_split], given, evaluates)
        for field in ("dataset_train_split", *(["dataset_test_split"] if evaluates else [])):
            if getattr(data, field) not in splits:
                raise UserError(f"{field}: datasets have no split {getattr(data, field)!r}, only {', '.join(splits)}")
        return splits[data.dataset_train_split], splits[data.dataset_test_split] if evaluates else None
    if not data.dataset_name:
        raise UserError(
            "dataset_name is missing: give alpaca, gsm8k, sharegpt, word_problems, a file, a folder or a hub id"
        )

    name, field = data.dataset_name, given.training.dataset_text_field

    def one(split: str, limit: int | None) -> Any:
        return load(
            name,
            config=data.dataset_config,
            split=split,
            data_dir=data.data_dir,
            format=data.dataset_format,
            text_field=field if field != "text" else None,
            columns=column_names(data.dataset_columns),
            max_samples=limit,
            streaming=data.dataset_streaming,
            seed=given.training.seed,
        )

    apart = data.dataset_test_split != data.dataset_train_split  # equal splits are intended
    if evaluates and apart and mixture.test_split_size is None and is_file(name):
        raise UserError(
            f"eval_strategy: the file {name!r} has no test split to evaluate on: set test_split_size: 0.1 to keep a "
            "tenth of its rows for evaluation, or give a folder with train.jsonl and test.jsonl as dataset_name"
        )
    train = one(data.dataset_train_split, data.max_train_samples)
    if mixture.test_split_size is not None:
        return _split(train, given, evaluates)
    return train, one(data.dataset_test_split, data.max_eval_samples) if evaluates else None


def _split(rows: Any, given: Arguments, evaluates: bool) -> tuple[Any, Any]:
    """Training rows, and at most ``max_eval_samples`` evaluation rows by ``test_split_size``."""
    train, test = split_off(rows, float(given.mixture.test_split_size), given.training.seed)
    limit = given.data.max_eval_samples or len(test)
    note(f"test_split_size: {len(test)} of {len(rows)} rows are kept out of training")
    return train, test.select(range(min(limit, len(test)))) if evaluates else None
