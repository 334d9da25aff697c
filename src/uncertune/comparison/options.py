"""The options of ``uncertune compare``, without a heavy import."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from uncertune import options
from uncertune.errors import UserError
from uncertune.evaluation.options import (
    COMMON_HELP,
    EVALUATE_HELP,
    TOKENS,
    ModelOptions,
    check_limits,
    check_numbers,
    limits_of,
)


@dataclass(frozen=True)
class CompareOptions(ModelOptions):
    """What ``uncertune compare`` can be told."""

    seed: int = 1234
    tasks: str | None = None
    prompts: str | None = None
    dataset_split: str | None = None
    dataset_config: str | None = None
    limit: int | None = None
    limits: str | None = None
    num_fewshot: int | None = None
    plain_prompts: bool = False
    max_length: int = 1024
    baseline: str | None = None
    in_distribution: str | None = None
    judge: str | None = None
    judge_url: str | None = None
    judge_key: str | None = None
    judge_concurrency: int = 8
    judge_timeout: float = 120.0
    judge_retries: int = 4
    judge_max_tokens: int = 16
    judge_batch_size: int = 4

    @property
    def chosen_tasks(self) -> tuple[str, ...]:
        return options.split(self.tasks)

    @property
    def in_distribution_tasks(self) -> tuple[str, ...]:
        return options.split(self.in_distribution)

    @property
    def asked(self) -> tuple[str, ...]:
        """Tasks, and the prompts."""
        return (*self.chosen_tasks, *([self.prompts] if self.prompts else []))

    @property
    def limited_tasks(self) -> tuple[str, ...]:
        """Tasks with a limit of their own."""
        return tuple(task for task in self.chosen_tasks if task in limits_of(self.limits))

    def limit_of(self, name: str) -> int | None:
        return limits_of(self.limits).get(name, self.limit)


HELP = {
    **COMMON_HELP,
    "models": "a model and LoRA adapters of it (folders, runs, hub ids), or files of answers (a.jsonl b.jsonl)",
    "seed": EVALUATE_HELP["seed"],
    "tasks": EVALUATE_HELP["tasks"],
    "prompts": "what the judge's answers are to: alpaca_eval, a file with messages or prompts, a folder or a hub id",
    "dataset_split": "split of the prompts; test where there is one",
    "dataset_config": "configuration of a hub data set of prompts",
    "limit": "documents of each task and prompts, the first ones; all",
    "limits": "of single tasks and of the prompts, with commas, like gsm8k=32,ifeval=16,alpaca_eval=24",
    "num_fewshot": EVALUATE_HELP["num_fewshot"],
    "plain_prompts": EVALUATE_HELP["plain_prompts"],
    "max_length": EVALUATE_HELP["max_length"],
    "max_new_tokens": "longest answer, in tokens; 512 for gsm8k, 1024 for prompts, else the task's own",
    "baseline": "label of the model that all others are compared with; the first one",
    "in_distribution": "those of the tasks and prompts that are like what the models were trained on, with commas",
    "judge": "model that judges: its name at --judge_url, or a model that runs here; without it nothing is judged",
    "judge_url": "address of an OpenAI-compatible server (vLLM, llama.cpp, Ollama, a hosted one), with its /v1",
    "judge_key": "environment variable that holds the server's key; OPENAI_API_KEY, if the address has https",
    "judge_concurrency": "requests at a time",
    "judge_timeout": "seconds after which a request has failed",
    "judge_retries": "further attempts after a timeout, a broken connection, 429 or 5xx",
    "judge_max_tokens": "longest reply; raise it for a judge that reasons before it decides",
    "judge_batch_size": "questions that run together in a judge that runs here",
    "overwrite": "measure and answer anew; judgements are kept by content all the same",
}


def compare_parser() -> argparse.ArgumentParser:
    """The parser of ``uncertune compare``."""
    return options.parser(
        CompareOptions,
        "uncertune compare",
        "Models on tasks, and their answers head to head with a baseline's before a judge, in both orders; win rates "
        "adjusted for length and position; one page. Started again, it goes on where it stopped.",
        HELP,
        positional="models",
    )


def parse_compare(arguments: list[str]) -> CompareOptions:
    """Options from flags, over those of ``--config``. Raises UserError, one line, for what cannot be used."""
    out = options.parse(CompareOptions, compare_parser(), arguments)
    if len(out.models) < 2:
        raise UserError("models: a comparison needs two or more: give a model and adapters, or files of answers")
    if not out.output_dir:
        raise UserError("output_dir is missing: give it, for example --output_dir comparison")
    check_numbers(out, "limit", "judge_concurrency", "judge_max_tokens", "judge_batch_size")
    if len(set(out.chosen_tasks)) < len(out.chosen_tasks):
        raise UserError(f"tasks: {out.tasks!r} names a task twice: keep one")
    if TOKENS in out.chosen_tasks:
        raise UserError(f"tasks: {TOKENS!r} needs a data set, for example tokens:wikitext2")
    check_limits(out.limits, out.asked)
    foreign = [name for name in out.in_distribution_tasks if name not in out.asked]
    if foreign:
        raise UserError(f"in_distribution: {foreign[0]!r} is not among {', '.join(out.asked) or 'the tasks'}")
    _check_judge(out)
    return out


def _check_judge(out: CompareOptions) -> None:
    if out.judge_url and not out.judge:
        raise UserError(f"judge is missing: name the model that {out.judge_url!r} serves, for example --judge NAME")
    if not out.judge_timeout > 0:
        raise UserError(f"judge_timeout must be above 0 seconds, got {out.judge_timeout}")
    if out.judge_retries < 0:
        raise UserError(f"judge_retries must be 0 or more, got {out.judge_retries}")
