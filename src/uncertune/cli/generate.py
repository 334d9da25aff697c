"""``uncertune generate``: options, and the call."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from uncertune.cli.evaluate import ModelOptions
from uncertune.cli.options import Command, dataset_config
from uncertune.data.files import check_there
from uncertune.errors import UserError
from uncertune.evaluation.checks import check_sampling, check_unique
from uncertune.settings import option


@dataclass(frozen=True, kw_only=True)
class GenerateOptions(ModelOptions):
    """Options of ``uncertune generate``."""

    models: tuple[str, ...] = option(
        help="a model, and LoRA adapters of it (folders, runs, hub ids); then, for a quick look, a question in quotes",
        positional=True,
        example="smollm2-135m runs/mle",
    )
    output_dir: str | None = option(None, "folder of the answers", unit="DIR", unset="needed but for a question")
    prompt: str | None = option(None, "one question to answer on the terminal; nothing is written")
    prompts: str = option(
        "alpaca_eval",
        "alpaca_eval, ifeval, gsm8k, word_problems, a file with messages or prompts, a folder or a hub id",
    )
    dataset_split: str | None = option(None, "split of the prompts", unset="test where there is one")
    dataset_config: str | None = dataset_config()
    limit: int | None = option(None, "prompts to answer, the first ones", least=1, unset="all")
    max_new_tokens: int | None = option(None, "longest answer, in tokens", least=1, unset="1024; 256 for a question")
    temperature: float = option(0.0, "0 takes the likeliest token, above 0 samples", least=0)
    top_p: float = option(1.0, "when sampling, the likeliest tokens that make up this share", above=0, most=1)


def check(given: GenerateOptions) -> None:
    """Raise UserError for options that do not go together."""
    check_sampling(given.temperature, given.top_p)
    check_unique("labels", given.labels)
    question = question_of(given)[1]
    check_there(None if question else given.prompts)
    if question and given.dataset_columns:
        raise UserError("dataset_columns has no effect on a question: leave it out")
    if not question and not given.output_dir:
        raise UserError("output_dir is missing: give it, for example --output_dir answers")


def question_of(given: GenerateOptions) -> tuple[tuple[str, ...], str | None]:
    """The models, and the question if there is one: from ``--prompt``, or a last word that contains a space."""
    last = given.models[-1]
    if given.prompt is not None:
        return given.models, given.prompt
    if len(given.models) > 1 and any(letter.isspace() for letter in last.strip()) and not Path(last).exists():
        return given.models[:-1], last
    return given.models, None


def call(given: GenerateOptions) -> None:
    """Answer the prompts into files, or a question on the terminal."""
    models, question = question_of(given)
    if question is None:
        from uncertune.evaluation.generate import generate

        arguments = asdict(given)
        del arguments["prompt"]
        generate(**arguments)
        return
    from uncertune.evaluation.generate import answer

    given = replace(given, models=models, max_new_tokens=given.max_new_tokens or 256)
    names = ("labels", "max_new_tokens", "temperature", "top_p", "seed", "chat_template_path", "dtype")
    same = {name: getattr(given, name) for name in (*names, "attn_implementation", "allow_pickle")}
    for label, (said,) in answer(given.models, [question], **same).items():
        cut = "" if said.ended else f"\n[cut at {given.max_new_tokens} tokens]"
        print(f"{label}:\n{said.text}{cut}\n" if len(models) > 1 else f"{said.text}{cut}")


COMMAND = Command(
    "generate",
    "answers of a model and its adapters to the same prompts, one line each; or to one question",
    GenerateOptions,
    call,
    "Answer the same prompts with a model and LoRA adapters of it, with one base in memory. Writes OUT/LABEL.jsonl, "
    'one line per prompt; run the same command again to resume. For a quick look: uncertune generate RUN "a question".',
    check,
)
