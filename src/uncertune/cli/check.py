"""``uncertune check``: what a run of ``uncertune train`` would train on, without training."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from uncertune.cli import train
from uncertune.cli.options import asks_help, help_text
from uncertune.settings import Spec
from uncertune.training import fields

if TYPE_CHECKING:
    from uncertune.training.check import Findings, Memory, Piece

PROGRAM = "uncertune check"
SUMMARY = "check a file of `uncertune train`, and show which tokens carry loss, without training"
DESCRIPTION = (
    "Do everything that `uncertune train` does before its first step, on the same file and flags: check the settings, "
    "the model, the chat template and the data. Print how many tokens there are and how many carry loss, two rows with "
    "these tokens marked, the steps of the run and an estimate of its memory. Nothing is trained or written. The file "
    "may be given without --config: uncertune check run.yaml."
)
MORE = "Every option of `uncertune train` is taken; `uncertune train --help` lists them."
_REVERSE, _RESET = "\x1b[7m", "\x1b[0m"
FEW = " (few: lower gradient_accumulation_steps, or train more epochs)"


def report(found: Findings, terminal: bool) -> str:
    """The result as lines of text; tokens with loss are in reverse video on a terminal, in ⟦ ⟧ elsewhere."""
    share = found.loss_tokens / found.tokens
    lines = [
        f"rows:         {found.rows:,}; {found.cut:,} cut to max_length, {found.left_out:,} left out",
        f"sequences:    {found.sequences:,} after cutting and packing",
        f"longest row:  {found.longest:,} tokens before cutting",
        f"tokens:       {found.tokens:,} in an epoch",
        f"with loss:    {found.loss_tokens:,} tokens ({share:.1%})",
        f"steps:        {found.steps:,}{FEW if found.steps < 10 else ''}",
        f"parameters:   {found.parameters:,}, of which {found.trained:,} are trained",
        *_memory(found.memory, found.checkpointing),
    ]
    how = "in reverse video" if terminal else "in ⟦ ⟧"
    for number, pieces in enumerate(found.examples, 1):
        lines += ["", f"example {number} (tokens with loss {how}):", marked(pieces, terminal)]
    return "\n".join(lines)


def marked(pieces: Iterable[Piece], terminal: bool) -> str:
    """The text of an example; control characters except the newline are escaped."""
    before, after = (_REVERSE, _RESET) if terminal else ("⟦", "⟧")
    return "".join(f"{before}{_visible(text)}{after}" if trained else _visible(text) for text, trained in pieces)


def _visible(text: str) -> str:
    return "".join(
        one if one.isprintable() or one == "\n" else one.encode("unicode_escape").decode("ascii") for one in text
    )


def _memory(memory: Memory, checkpointing: bool) -> list[str]:
    kept = "" if checkpointing else "; more, as gradient_checkpointing is off"
    parts = (
        ("parameters", memory.parameters),
        ("gradients and two optimizer moments of the trained parameters", memory.training),
        (f"inputs of the layers{kept}", memory.inputs),
        ("logits of the head", memory.logits),
    )
    total = f"memory:       about {_size(memory.total)}, without teacher and reference models"
    return [total, *(f"  {_size(size):>9}  {name}" for name, size in parts)]


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


class _Check:
    """Like ``options.Command``; its options are those of ``uncertune train``."""

    name, summary = "check", SUMMARY

    @property
    def specs(self) -> Mapping[str, Spec]:
        return fields.specs()

    def help(self, width: int = 0) -> str:
        return help_text(PROGRAM, DESCRIPTION, {}, MORE, width)

    def run(self, arguments: Sequence[str]) -> int:
        if asks_help(arguments):
            print(self.help())
            return 0
        if arguments and not arguments[0].startswith("--"):
            arguments = ["--config", *arguments]
        return self.call(train.parse(arguments))

    def call(self, given: tuple[dict[str, Any], dict[str, Any]]) -> int:
        from uncertune.training.arguments import arguments_of
        from uncertune.training.check import look
        from uncertune.training.jobs import job_of

        arguments = arguments_of(*given)
        print(report(look(job_of(arguments), overwrite=arguments.data.overwrite), sys.stdout.isatty()))
        return 0


COMMAND = _Check()
