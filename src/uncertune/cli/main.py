"""``uncertune <command>``: the command line. Heavy imports happen inside the command that needs them."""

from __future__ import annotations

import os
import re
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

from uncertune.errors import InterruptedRun, UserError

DESCRIPTION = "Uncertainty-aware fine-tuning of language models."


def train(arguments: list[str]) -> int:
    """fine-tune a model: TRL's `trl sft` fields, and objective, selection_*, teacher"""
    from uncertune.training import arguments as fields

    if {"-h", "--help"} & set(arguments):
        fields.parser("uncertune train").print_help()
        return 0
    given = fields.parse(arguments)

    from uncertune.runs.folder import RHO, STAGE_1
    from uncertune.training.command import job_of
    from uncertune.training.page import write_run_page
    from uncertune.training.pipeline import fill_caches, run

    if given.data.fill_teacher_cache_only:
        print(f"cache:  {fill_caches(job_of(given), overwrite=given.data.overwrite)}")
        return 0
    folder = run(job_of(given), overwrite=given.data.overwrite)
    for stage in (STAGE_1, RHO):
        if (folder / stage).is_dir():
            write_run_page(folder / stage)
    page = write_run_page(folder)
    print(f"run:    {folder}\npage:   {page}")
    if (tokens := folder / "tokens.html").is_file():
        print(f"tokens: {tokens}")
    return 0


def merge(arguments: list[str]) -> int:
    """fold a run's LoRA adapter into its base: a plain model that transformers and vLLM load"""
    from uncertune.training.merge import merge as run_merge
    from uncertune.training.merge import parse

    print(f"model:  {run_merge(parse(arguments))}")
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

    from uncertune.evaluation.evaluate import evaluate as run_evaluate

    run_evaluate(options)
    return 0


def generate(arguments: list[str]) -> int:
    """answers of a model and its adapters to the same prompts, one line each"""
    from uncertune.evaluation.options import parse_generate

    options = parse_generate(arguments)

    from uncertune.evaluation.generate import generate as run_generate

    run_generate(options)
    return 0


def compare(arguments: list[str]) -> int:
    """models on tasks, and their answers head to head before a judge, on one page"""
    from uncertune.comparison.options import parse_compare

    options = parse_compare(arguments)

    from uncertune.comparison.compare import compare as run_compare

    print(f"page: {run_compare(options)}")
    return 0


def sweep(arguments: list[str]) -> int:
    """train and measure objectives × metrics × levels × q × seeds from one file: one table, and the Pareto front"""
    from uncertune.sweep.options import parse, parser

    if {"-h", "--help"} & set(arguments):
        parser().print_help()
        return 0
    request = parse(arguments)

    from uncertune.sweep.command import sweep as run_sweep

    return 0 if run_sweep(request) else 1


def report(arguments: list[str]) -> int:
    """make the pages of sweeps, comparisons and runs anew"""
    from uncertune.cli.report import parse, redraw

    options = parse(arguments)
    for folder in options.folders:
        print(f"page: {redraw(Path(folder).expanduser(), Path(options.output_dir or folder).expanduser())}")
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
    "merge": merge,
    "score": score,
    "evaluate": evaluate,
    "generate": generate,
    "compare": compare,
    "sweep": sweep,
    "report": report,
    "study": study,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; a user's mistake is one line on stderr and status 2, a signal is 128 and its number."""
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
    except InterruptedRun as stopped:
        print(f"uncertune: {stopped}; go on with:\n  {_again(arguments)}", file=sys.stderr)
        return 128 + stopped.signal
    except KeyboardInterrupt:
        print(f"uncertune: interrupted; start again with:\n  {_again(arguments)}", file=sys.stderr)
        return 130


def _again(arguments: list[str]) -> str:
    """The command that goes on where this one stopped: the same, but that it never deletes what is there."""
    words: list[str] = []
    for word in arguments:
        if words and words[-1] == "--overwrite":
            words.pop()
            if not word.startswith("-"):
                continue  # its value
        words.append(word)
    words = [word for word in words if not word.startswith("--overwrite")]
    files = [after for word, after in pairwise(words) if word == "--config"]
    if any(re.search(r"^overwrite:", Path(file).read_text(encoding="utf-8"), re.MULTILINE) for file in files):
        words += ["--overwrite", "false"]
    return shlex.join(["uncertune", *words])


def _help() -> None:
    print(f"usage: uncertune <command> [options]\n\n{DESCRIPTION}\n\ncommands:")
    for name, command in COMMANDS.items():
        print(f"  {name:<10} {(command.__doc__ or '').strip()}")
    print("\n`uncertune <command> --help` lists a command's options; they also come from YAML with --config FILE.")


if __name__ == "__main__":
    sys.exit(main())
