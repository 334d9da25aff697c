"""The options of ``uncertune evaluate`` and ``uncertune generate``, without a heavy import."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from uncertune import options
from uncertune.errors import UserError

BACKENDS = ("hf", "vllm")
TOKENS = "tokens:"


@dataclass(frozen=True)
class ModelOptions:
    """Which models, and how they are asked; common to both commands."""

    models: tuple[str, ...] = ()
    output_dir: str | None = None
    labels: str | None = None
    batch_size: int = 16
    max_new_tokens: int | None = None
    seed: int = 0
    data_dir: str | None = None
    chat_template_path: str | None = None
    dtype: str = "auto"
    attn_implementation: str | None = None
    overwrite: bool = False

    @property
    def chosen_labels(self) -> tuple[str, ...]:
        return options.split(self.labels)


@dataclass(frozen=True)
class EvaluateOptions(ModelOptions):
    """What ``uncertune evaluate`` can be told."""

    tasks: str | None = None
    seed: int = 1234
    limit: int | None = None
    limits: str | None = None
    num_fewshot: int | None = None
    plain_prompts: bool = False
    max_length: int = 1024
    backend: str = "hf"

    @property
    def chosen_tasks(self) -> tuple[str, ...]:
        return options.split(self.tasks)

    def limit_of(self, task: str) -> int | None:
        return limits_of(self.limits).get(task, self.limit)


@dataclass(frozen=True)
class GenerateOptions(ModelOptions):
    """What ``uncertune generate`` can be told."""

    prompts: str = "alpaca_eval"
    dataset_split: str | None = None
    dataset_config: str | None = None
    limit: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0


COMMON_HELP = {
    **options.HELP,
    "models": "a model, and LoRA adapters of it (folders, runs, hub ids); an adapter alone brings its base along",
    "output_dir": "folder of the results",
    "labels": "names of the models in the results, with commas; by default the last part of each path",
    "batch_size": "prompts that run together",
    "seed": "of every random number",
}
EVALUATE_HELP = {
    **COMMON_HELP,
    "seed": "of every random number; lm-eval's own",
    "tasks": "with commas: gsm8k, ifeval, any other task of lm-eval, or tokens:DATA and tokens:DATA@SPLIT for loss, "
    "accuracy, calibration and KL from the base on the response tokens of a data set",
    "limit": "documents of each task, the first ones; all",
    "limits": "documents of single tasks, with commas, like gsm8k=32,ifeval=16; --limit is for the others",
    "num_fewshot": "worked examples in a prompt; each task's own number",
    "plain_prompts": "prompts as the tasks write them, without the chat template",
    "max_length": "tokens after which a document of tokens:DATA is cut",
    "max_new_tokens": "longest answer; 512 for gsm8k, else the task's own",
    "backend": "hf (transformers), or vllm where that is installed",
    "overwrite": "measure anew what output_dir holds of these models and tasks",
}
GENERATE_HELP = {
    **COMMON_HELP,
    "prompts": "alpaca_eval, ifeval, gsm8k, word_problems, a file with messages or prompts, a folder or a hub id",
    "dataset_split": "split of the prompts; test where there is one",
    "limit": "prompts to answer, the first ones; all",
    "max_new_tokens": "longest answer, in tokens; 1024",
    "temperature": "0 takes the likeliest token, above 0 samples",
    "top_p": "when sampling, the likeliest tokens that make up this share",
    "overwrite": "answer anew what output_dir holds of these models",
}


def evaluate_parser() -> argparse.ArgumentParser:
    """The parser of ``uncertune evaluate``."""
    return options.parser(
        EvaluateOptions,
        "uncertune evaluate",
        "A model and LoRA adapters of it on lm-eval's tasks and on token-level measures, one base in memory. Writes "
        "OUT/LABEL/TASK.json, the samples beside it, and one table. Started again, it goes on where it stopped.",
        EVALUATE_HELP,
        positional="models",
    )


def generate_parser() -> argparse.ArgumentParser:
    """The parser of ``uncertune generate``."""
    return options.parser(
        GenerateOptions,
        "uncertune generate",
        "Answers of a model and of LoRA adapters of it to the same prompts, one base in memory. Writes "
        "OUT/LABEL.jsonl, one line a prompt. Started again, it goes on at the batch where it stopped.",
        GENERATE_HELP,
        positional="models",
    )


def parse_evaluate(arguments: list[str]) -> EvaluateOptions:
    """Options from flags, over those of ``--config``. Raises UserError, one line, for what cannot be used."""
    out = options.parse(EvaluateOptions, evaluate_parser(), arguments)
    _check(out, "--output_dir evaluation")
    if not out.chosen_tasks:
        raise UserError("tasks is missing: give it, for example --tasks gsm8k,ifeval,tokens:wikitext2")
    if len(set(out.chosen_tasks)) < len(out.chosen_tasks):
        raise UserError(f"tasks: {out.tasks!r} names a task twice: keep one")
    check_limits(out.limits, out.chosen_tasks)
    if TOKENS in out.chosen_tasks:
        raise UserError(f"tasks: {TOKENS!r} needs a data set, for example tokens:wikitext2")
    if out.num_fewshot is not None and out.num_fewshot < 0:
        raise UserError(f"num_fewshot must be 0 or more, got {out.num_fewshot}")
    if out.max_length < 2:
        raise UserError(f"max_length must be at least 2, got {out.max_length}")
    options.check_choice("backend", out.backend, BACKENDS)
    if out.backend == "vllm" and any(task.startswith(TOKENS) for task in out.chosen_tasks):
        raise UserError(f"backend: {TOKENS}… needs the logits of transformers: leave those tasks to --backend hf")
    return out


def parse_generate(arguments: list[str]) -> GenerateOptions:
    """Options from flags, over those of ``--config``. Raises UserError, one line, for what cannot be used."""
    out = options.parse(GenerateOptions, generate_parser(), arguments)
    _check(out, "--output_dir answers")
    if not 0 <= out.temperature < float("inf"):
        raise UserError(f"temperature must be 0 (greedy) or more, got {out.temperature}")
    if not 0 < out.top_p <= 1:
        raise UserError(f"top_p must be in (0, 1], got {out.top_p}")
    if out.top_p < 1 and out.temperature == 0:
        raise UserError(f"top_p: {out.top_p} is for sampling, and temperature 0 does not sample: give both, or neither")
    return out


def limits_of(text: str | None) -> dict[str, int]:
    """``NAME=COUNT`` with commas between them. Raises UserError for anything else."""
    out = {}
    for part in options.split(text):
        name, _, count = part.rpartition("=")
        if not name or not count.isdecimal() or int(count) < 1:
            raise UserError(f"limits: {part!r} must be a task and a number from 1 on, like gsm8k=32")
        out[name] = int(count)
    return out


def check_limits(text: str | None, names: Sequence[str]) -> None:
    """Raise UserError for a limit of what is not asked for."""
    foreign = [name for name in limits_of(text) if name not in names]
    if foreign:
        raise UserError(f"limits: {foreign[0]!r} is not among {', '.join(names) or 'the tasks'}")


def _check(out: EvaluateOptions | GenerateOptions, folder: str) -> None:
    if not out.models:
        raise UserError("models is missing: give a model and adapters, for example smollm2-135m runs/mle")
    if not out.output_dir:
        raise UserError(f"output_dir is missing: give it, for example {folder}")
    check_numbers(out, "limit")


def check_numbers(out: ModelOptions, *names: str) -> None:
    """Raise UserError for a count below 1 (of ``names``, and of those common to all commands), or an unknown dtype."""
    options.check_counts(out, "batch_size", "max_new_tokens", *names)
    options.check_choice("dtype", out.dtype, options.DTYPES)
