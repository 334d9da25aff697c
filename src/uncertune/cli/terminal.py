"""The flags of every command for its output, ``--quiet``, ``--log_level`` and ``--debug``, and progress bars.

Results go to stdout; notes, tables of training and progress to stderr. Bars are drawn on a terminal only and removed
when they are done; elsewhere ``runs.notes.progress`` prints a note a minute.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from uncertune.errors import UserError
from uncertune.runs.notes import NO_BARS

LEVELS = ("debug", "info", "warning", "error", "critical")
_OWN_LEVEL = ("TRANSFORMERS_VERBOSITY", "DATASETS_VERBOSITY", "HF_HUB_VERBOSITY")
_LOGGERS = ("transformers", "datasets", "huggingface_hub", "trl", "peft", "accelerate", "lm_eval")
_DEBUG_OPTIONS = ("underflow_overflow", "tpu_metrics_debug")  # what TRL's own field ``debug`` takes


@dataclass(frozen=True)
class Showing:
    """The output settings of a command."""

    debug: bool = False
    quiet: bool = False
    log_level: str | None = None

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Inside the block: bars if stderr is a terminal, loggers at their level, nothing on stderr if quiet."""
        if sys.stderr.isatty() and not self.quiet:
            os.environ.setdefault("TQDM_LEAVE", "")
        else:
            for name in NO_BARS:
                os.environ.setdefault(name, "1")
        if self.log_level is not None:
            _set_level(self.log_level)
        if not self.quiet:
            yield
            return
        with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stderr(nowhere):
            yield


def _set_level(level: str) -> None:
    for variable in _OWN_LEVEL:
        os.environ[variable] = level
    logging.basicConfig(format="%(name)s: %(message)s")
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(level.upper())
    if level in ("error", "critical"):
        warnings.simplefilter("ignore")


def separated(arguments: Sequence[str]) -> tuple[list[str], Showing]:
    """The arguments without the flags of every command, and the settings of these flags.

    Raises UserError for a level that does not exist.
    """
    kept: list[str] = []
    debug, quiet, level = os.environ.get("UNCERTUNE_DEBUG", "") not in ("", "0"), False, None
    words = list(arguments)
    while words:
        word = words.pop(0)
        name, has_value, value = word.partition("=")
        if word == "--debug" and not (words and words[0] in _DEBUG_OPTIONS):
            debug = True
        elif word == "--quiet":
            quiet = True
        elif name in ("--log_level", "--log-level"):
            level = value if has_value else (words.pop(0) if words else "")
            if level not in LEVELS:
                raise UserError(f"log_level must be one of {', '.join(LEVELS)}, got {level!r}")
        else:
            kept.append(word)
    return kept, Showing(debug, quiet, level)
