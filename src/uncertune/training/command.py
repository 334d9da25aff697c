"""From parsed arguments to a job: data, evaluation data, LoRA and quantisation, as ``trl sft`` builds them."""

from __future__ import annotations

from typing import Any

from trl import get_dataset, get_peft_config, get_quantization_config

from uncertune.data.sources import load
from uncertune.errors import UserError
from uncertune.training.arguments import Arguments
from uncertune.training.pipeline import Job


def job_of(given: Arguments) -> Job:
    """Load what the arguments name. Raises UserError for missing names and unusable data."""
    model, training = given.model, given.training
    if not model.model_name_or_path:
        raise UserError("model_name_or_path is missing: give a hub id, a folder, a .gguf file, or smollm2-135m")
    training.model_init_kwargs = {
        "revision": model.model_revision,
        "trust_remote_code": training.trust_remote_code,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
        **(training.model_init_kwargs or {}),
    }
    evaluates = str(getattr(training.eval_strategy, "value", training.eval_strategy)) != "no"
    train, evaluation = _data(given, evaluates)
    return Job(
        model=model.model_name_or_path,
        config=training,
        train_dataset=train,
        eval_dataset=evaluation,
        peft_config=get_peft_config(model),
        quantization_config=get_quantization_config(model),
        resolved=given.resolved(),
    )


def _data(given: Arguments, evaluates: bool) -> tuple[Any, Any]:
    data, mixture = given.data, given.mixture
    if mixture.datasets:
        if data.dataset_name:
            raise UserError("dataset_name and datasets are both set: keep one")
        splits = get_dataset(mixture)
        train = splits[data.dataset_train_split]
        return train, splits[data.dataset_test_split] if evaluates else None
    if not data.dataset_name:
        raise UserError(
            "dataset_name is missing: give alpaca, gsm8k, sharegpt, word_problems, a file, a folder or a hub id"
        )

    def one(split: str, limit: int | None) -> Any:
        return load(
            data.dataset_name or "",
            config=data.dataset_config,
            split=split,
            data_dir=data.data_dir,
            format=data.dataset_format,
            max_samples=limit,
            streaming=data.dataset_streaming,
            seed=given.training.seed,
        )

    train = one(data.dataset_train_split, data.max_train_samples)
    return train, one(data.dataset_test_split, data.max_eval_samples) if evaluates else None
