"""``uncertune compare``: options, and the call."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from uncertune.cli.evaluate import EvaluateOptions, ModelOptions, max_length, num_fewshot, plain_prompts
from uncertune.cli.options import Command, dataset_config
from uncertune.data.files import check_there
from uncertune.errors import UserError
from uncertune.evaluation.checks import check_columns, check_limits, check_tasks, check_unique, read_limits
from uncertune.settings import option, specs_of

_TASKS = specs_of(EvaluateOptions)["tasks"].help
_JUDGE = "judge"


@dataclass(frozen=True, kw_only=True)
class CompareOptions(ModelOptions):
    """Options of ``uncertune compare``."""

    models: tuple[str, ...] = option(
        help="a model and LoRA adapters of it (folders, runs, hub ids), or files of answers (a.jsonl b.jsonl)",
        positional=True,
        example="smollm2-135m runs/mle runs/masked_mle_distill",
    )
    output_dir: str = option(help="folder of the comparison", unit="DIR", example="--output_dir comparison")
    seed: int = option(1234, "seed of every random number; the default is lm-eval's", least=0)
    tasks: tuple[str, ...] = option((), _TASKS)
    prompts: str | None = option(
        None, "prompts of the judged answers: alpaca_eval, a file with messages or prompts, a folder or a hub id"
    )
    dataset_split: str | None = option(None, "split of the prompts", unset="test where there is one")
    dataset_config: str | None = dataset_config()
    limit: int | None = option(None, "documents of each task and prompts, the first ones", least=1, unset="all")
    limits: str | None = option(
        None, "of single tasks and of the prompts, with commas, like gsm8k=32,ifeval=16,alpaca_eval=24"
    )
    num_fewshot: int | None = num_fewshot()
    plain_prompts: bool = plain_prompts()
    max_length: int = max_length()
    max_new_tokens: int | None = option(
        None, "longest answer, in tokens", least=1, unset="512 for gsm8k, 1024 for prompts, else the task's own"
    )
    baseline: str | None = option(None, "label of the model that all others are compared with", unset="the first model")
    in_distribution: tuple[str, ...] = option(
        (), "those of the tasks and prompts that are like the training data, with commas"
    )
    judge: str | None = option(
        None,
        "model that judges: its name at --judge_url, or a model that runs here",
        unset="nothing is judged",
        group=_JUDGE,
    )
    judge_url: str | None = option(
        None,
        "address of an OpenAI-compatible server (vLLM, llama.cpp, Ollama, a hosted one), with its /v1",
        unit="URL",
        group=_JUDGE,
    )
    judge_key: str | None = option(
        None,
        "name of the environment variable that holds the server's key",
        unset="OPENAI_API_KEY, if the address has https",
        group=_JUDGE,
    )
    judge_concurrency: int = option(8, "requests at a time", least=1, most=1024, group=_JUDGE)
    judge_timeout: float = option(
        120.0, "seconds that a request and its whole reply may take", above=0, most=86400, group=_JUDGE
    )
    judge_retries: int = option(
        4, "further attempts after a timeout, a broken connection or reply, 429 or 5xx", least=0, most=100, group=_JUDGE
    )
    judge_max_tokens: int = option(
        16, "longest reply; raise it for a judge that reasons before it decides", least=1, group=_JUDGE
    )
    judge_batch_size: int = option(4, "questions that run together in a judge that runs here", least=1, group=_JUDGE)

    @property
    def asked(self) -> tuple[str, ...]:
        """Tasks, and the prompts."""
        return (*self.tasks, *([self.prompts] if self.prompts else []))


def check(given: CompareOptions) -> None:
    """Raise UserError for options that do not go together."""
    if len(given.models) < 2:
        raise UserError("models: a comparison needs two or more: give a model and adapters, or files of answers")
    if given.tasks:
        check_tasks(given.tasks, {})
    check_there(given.prompts)
    check_columns(given.dataset_columns, given.tasks, given.prompts)
    check_limits(read_limits(given.limits), given.asked)
    check_unique("labels", given.labels)
    foreign = [name for name in given.in_distribution if name not in given.asked]
    if foreign:
        raise UserError(f"in_distribution: {foreign[0]!r} is not among {', '.join(given.asked) or 'the tasks'}")
    if given.judge_url and not given.judge:
        raise UserError(f"judge is missing: name the model that {given.judge_url!r} serves, for example --judge NAME")


def call(given: CompareOptions) -> None:
    """Compare, and print the page."""
    from uncertune.comparison.compare import JudgeSettings, compare

    arguments = {name: value for name, value in asdict(given).items() if not name.startswith(_JUDGE)}
    judge = {name.removeprefix("judge_"): value for name, value in asdict(given).items() if name.startswith("judge_")}
    arguments["judge"] = JudgeSettings(given.judge, **judge, allow_pickle=given.allow_pickle) if given.judge else None
    page = compare(**{**arguments, "limits": read_limits(given.limits)})
    print(f"page: {page}")


COMMAND = Command(
    "compare",
    "models on tasks, and their answers head to head before a judge, on one page",
    CompareOptions,
    call,
    "Compare models on tasks, and their answers head to head with a baseline's before a judge, in both orders. Writes "
    "win rates adjusted for length and presentation order, and one page. Run the same command again to resume.",
    check,
)
