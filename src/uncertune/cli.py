"""``uncertune <command>``: the command line. Heavy imports happen inside the command that needs them."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence

from uncertune.errors import UserError

DESCRIPTION = "Uncertainty-aware fine-tuning of language models."


def train(arguments: list[str]) -> int:
    """fine-tune a model: TRL's `trl sft` fields, and objective, selection_*, teacher"""
    from uncertune.training import arguments as fields

    if {"-h", "--help"} & set(arguments):
        fields.parser("uncertune train").print_help()
        return 0
    given = fields.parse(arguments)

    from uncertune.report.training import write_run_page
    from uncertune.training.command import job_of
    from uncertune.training.folder import STAGE_1
    from uncertune.training.pipeline import run

    folder = run(job_of(given), overwrite=given.data.overwrite)
    if (folder / STAGE_1).is_dir():
        write_run_page(folder / STAGE_1)
    page = write_run_page(folder)
    print(f"run:    {folder}\npage:   {page}")
    if (tokens := folder / "tokens.html").is_file():
        print(f"tokens: {tokens}")
    return 0


def demo(arguments: list[str]) -> int:
    """fine-tune SmolLM2-135M three ways on word problems, and show what each learned and forgot"""
    from uncertune.demo_options import parse

    options = parse(arguments)

    from uncertune.demo import run_demo

    run_demo(options)
    return 0


def score(arguments: list[str]) -> int:
    """uncertainty of every response token of a data set, with figures and a page to read"""
    from uncertune.scoring.options import parse

    options = parse(arguments)

    from uncertune.scoring.command import score as run_score

    run_score(options)
    return 0


def evaluate(arguments: list[str]) -> int:
    """a model and its adapters on lm-eval's tasks and on token-level measures, as one table"""
    from uncertune.evaluation.options import parse_evaluate

    options = parse_evaluate(arguments)

    from uncertune.evaluation.command import evaluate as run_evaluate

    run_evaluate(options)
    return 0


def generate(arguments: list[str]) -> int:
    """answers of a model and its adapters to the same prompts, one line each"""
    from uncertune.evaluation.options import parse_generate

    options = parse_generate(arguments)

    from uncertune.evaluation.answers import generate as run_generate

    run_generate(options)
    return 0


def study(arguments: list[str]) -> int:
    """the paper's toy studies, and a language whose uncertainty is known"""
    from uncertune.studies.options import parse

    options = parse(arguments)

    from uncertune.studies.command import study as run_study

    run_study(options)
    return 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "demo": demo,
    "train": train,
    "score": score,
    "evaluate": evaluate,
    "generate": generate,
    "study": study,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; a user's mistake is one line on stderr and status 2, an interrupt is status 130."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # trl and peft ask transformers for old names on their own; a user can do nothing about it
    warnings.filterwarnings("ignore", message=r"`(is_)?gradient_checkpointing` is deprecated", category=FutureWarning)
    if not arguments or arguments[0] in ("-h", "--help"):
        _help()
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(f"uncertune {version('uncertune')}")
        return 0
    name, rest = arguments[0], arguments[1:]
    try:
        if name not in COMMANDS:
            raise UserError(f"unknown command {name!r}: choose from {', '.join(COMMANDS)}")
        return COMMANDS[name](rest)
    except UserError as error:
        print(f"uncertune: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "uncertune: interrupted; the same command, without --overwrite, goes on from the last checkpoint",
            file=sys.stderr,
        )
        return 130


def _help() -> None:
    print(f"usage: uncertune <command> [options]\n\n{DESCRIPTION}\n\ncommands:")
    for name, command in COMMANDS.items():
        print(f"  {name:<10} {(command.__doc__ or '').strip()}")
    print("\n`uncertune <command> --help` lists a command's options; they also come from YAML with --config FILE.")


if __name__ == "__main__":
    sys.exit(main())
