"""``uncertune <command>``: find the command, run it, and turn every failure into one line and an exit status.

A user's mistake exits with status 2, an unexpected error with 1, a signal with 128 plus its number.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

from uncertune.cli.failures import report_failure
from uncertune.cli.terminal import Showing, separated
from uncertune.errors import InterruptedRun, UserError

DESCRIPTION = "Uncertainty-aware fine-tuning of language models."


COMMANDS = (
    *("demo", "init", "recipes", "check", "train", "merge", "score", "evaluate", "generate", "chat", "compare"),
    *("sweep", "report", "study", "completion"),
)


def command_of(name: str) -> Any:
    """The command of that name."""
    return import_module(f"uncertune.cli.{name}").COMMAND


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status."""
    given = list(sys.argv[1:] if argv is None else argv)
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # trl and peft use deprecated names of transformers, which a user cannot change
    warnings.filterwarnings("ignore", message=r"`(is_)?gradient_checkpointing` is deprecated", category=FutureWarning)
    arguments, showing = given, Showing()
    try:
        arguments, showing = separated(given)
        with showing.applied():
            return _run(arguments)
    except InterruptedRun as stopped:
        print(f"uncertune: {stopped}; resume with:\n  {_again(given)}", file=sys.stderr)
        return 128 + stopped.signal
    except KeyboardInterrupt:
        print(f"uncertune: interrupted; start again with:\n  {_again(given)}", file=sys.stderr)
        return 130
    except Exception as error:
        return report_failure(error, (arguments or [""])[0], showing.debug)


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        _help()
        return 0 if arguments else 2
    name, rest = arguments[0], arguments[1:]
    if name == "--version":
        from importlib.metadata import version

        print(f"uncertune {version('uncertune')}")
        return 0
    if name not in COMMANDS:
        raise UserError(f"unknown command {name!r}: choose from {', '.join(COMMANDS)}")
    return command_of(name).run(rest)


def _again(arguments: list[str]) -> str:
    """The command that resumes this one: the same, without the flag that deletes the old run."""
    words: list[str] = []
    for word in arguments:
        if words and words[-1] == "--overwrite":
            words.pop()
            if not word.startswith("-"):
                continue  # its value
        words.append(word)
    words = [word for word in words if not word.startswith("--overwrite")]
    files = [after for word, after in pairwise(words) if word == "--config"]
    if any(_sets_overwrite(Path(file)) for file in files):
        words += ["--overwrite", "false"]
    return shlex.join(["uncertune", *words])


def _sets_overwrite(file: Path) -> bool:
    try:
        return re.search(r"^overwrite:", file.read_text(encoding="utf-8"), re.MULTILINE) is not None
    except (OSError, ValueError):
        return False


def _help() -> None:
    print(f"usage: uncertune <command> [options]\n\n{DESCRIPTION}\n\ncommands:")
    for name in COMMANDS:
        print(f"  {name:<10} {command_of(name).summary}")
    print("\n`uncertune <command> --help` lists a command's options; they also come from YAML with --config FILE.")


if __name__ == "__main__":
    sys.exit(main())
