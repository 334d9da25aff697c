"""``uncertune evaluate``: options, and the call."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from uncertune.cli import options
from uncertune.cli.options import Command
from uncertune.evaluation.checks import BACKENDS, check_columns, check_tasks, check_unique, read_limits
from uncertune.settings import option


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Options of evaluate, generate and compare for the models and how they run."""

    models: tuple[str, ...] = option(
        help="a model, and LoRA adapters of it (folders, runs, hub ids); an adapter alone brings its base along",
        positional=True,
        example="smollm2-135m runs/mle",
    )
    labels: tuple[str, ...] = option(
        (), "names of the models in the results, with commas", unset="the last part of each path"
    )
    batch_size: int = option(16, "prompts that run together", least=1)
    seed: int = option(0, "seed of every random number", least=0)
    data_dir: str | None = options.data_dir()
    dataset_columns: dict[str, str] | None = options.dataset_columns()
    chat_template_path: str | None = option(
        None,
        "a .jinja file, or a model, whose chat template all models use",
        unit="PATH",
        unset="each model's own, an adapter's the one it was trained with",
    )
    dtype: str = options.dtype()
    attn_implementation: str | None = options.attn_implementation()
    allow_pickle: bool = options.allow_pickle()
    overwrite: bool = option(False, "replace the results of these models in output_dir instead of resuming")


def num_fewshot() -> Any:
    return option(None, "worked examples in a prompt", least=0, unset="each task's own number")


def plain_prompts() -> Any:
    return option(False, "prompts as the tasks write them, without the chat template")


def max_length() -> Any:
    return option(1024, "tokens after which a document of tokens:DATA is cut", least=2)


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(ModelOptions):
    """Options of ``uncertune evaluate``."""

    output_dir: str = option(help="folder of the results", unit="DIR", example="--output_dir evaluation")
    tasks: tuple[str, ...] = option(
        help="with commas: gsm8k, ifeval, any other task of lm-eval, or tokens:DATA and tokens:DATA@SPLIT for loss, "
        "accuracy, calibration and KL from the base on the response tokens of a data set",
        example="--tasks gsm8k,ifeval,tokens:wikitext2",
    )
    seed: int = option(1234, "seed of every random number; the default is lm-eval's", least=0)
    limit: int | None = option(None, "documents of each task, the first ones", least=1, unset="all")
    limits: str | None = option(
        None, "documents of single tasks, with commas, like gsm8k=32,ifeval=16; --limit is for the others"
    )
    num_fewshot: int | None = num_fewshot()
    plain_prompts: bool = plain_prompts()
    max_length: int = max_length()
    max_new_tokens: int | None = option(
        None, "longest answer, in tokens", least=1, unset="512 for gsm8k, else the task's own"
    )
    backend: str = option("hf", "hf (transformers), or vllm where it is installed", choices=BACKENDS)


def check(given: EvaluateOptions) -> None:
    """Raise UserError for tasks, limits or labels that do not go together."""
    numbers = {"max_length": given.max_length, "num_fewshot": given.num_fewshot}
    check_tasks(given.tasks, read_limits(given.limits), **numbers, backend=given.backend)  # type: ignore[arg-type]
    check_columns(given.dataset_columns, given.tasks)
    check_unique("labels", given.labels)


def call(given: EvaluateOptions) -> None:
    """Measure, and print the table."""
    from uncertune.evaluation.evaluate import evaluate

    evaluate(**{**asdict(given), "limits": read_limits(given.limits)})


COMMAND = Command(
    "evaluate",
    "a model and its adapters on lm-eval's tasks and on token-level measures, as one table",
    EvaluateOptions,
    call,
    "Measure a model and LoRA adapters of it on lm-eval's tasks and on token-level measures, with one base in memory. "
    "Writes OUT/LABEL/TASK.json, the samples beside it, and one table. Run the same command again to resume.",
    check,
)
