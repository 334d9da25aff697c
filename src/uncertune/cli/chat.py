"""``uncertune chat``: a conversation with a model on the terminal; nothing is written."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from uncertune.cli import options
from uncertune.cli.options import Command
from uncertune.evaluation.checks import check_sampling
from uncertune.settings import option

NEW, LEAVE = "/new", "/exit"


@dataclass(frozen=True, kw_only=True)
class ChatOptions:
    """Options of ``uncertune chat``."""

    model: str = option(help="a run, an adapter or a model (folder or hub id)", positional=True, example="runs/mine")
    max_new_tokens: int = option(512, "longest answer, in tokens", least=1)
    temperature: float = option(0.0, "0 takes the likeliest token, above 0 samples", least=0)
    top_p: float = option(1.0, "when sampling, the likeliest tokens that make up this share", above=0, most=1)
    seed: int = option(0, "seed of every random number", least=0)
    chat_template_path: str | None = options.chat_template_path()
    dtype: str = options.dtype()
    attn_implementation: str | None = options.attn_implementation()
    allow_pickle: bool = options.allow_pickle()


def check(given: ChatOptions) -> None:
    """Raise UserError for an invalid temperature or top_p."""
    check_sampling(given.temperature, given.top_p)


def call(given: ChatOptions) -> None:
    """Answer line by line until the end of the input."""
    from uncertune.evaluation.generate import answer
    from uncertune.evaluation.models import load_models

    models = load_models(
        [given.model],
        chat_template_path=given.chat_template_path,
        dtype=given.dtype,
        attn_implementation=given.attn_implementation,
        allow_pickle=given.allow_pickle,
    )
    names = ("max_new_tokens", "temperature", "top_p", "seed")
    print(f"{given.model}: {NEW} starts over, {LEAVE} or an end of input leaves", file=sys.stderr)
    turns: list[dict[str, Any]] = []
    while (said := _next_line()) not in (None, LEAVE):
        if said == NEW:
            turns = []
        if said in (NEW, ""):
            continue
        turns.append({"role": "user", "content": said})
        ((reply,),) = answer(models, [turns], **{name: getattr(given, name) for name in names}).values()
        print(reply.text + ("" if reply.ended else f"\n[cut at {given.max_new_tokens} tokens]"))
        turns.append({"role": "assistant", "content": reply.text})


def _next_line() -> str | None:
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return None


COMMAND = Command(
    "chat",
    "talk to a run or a model on the terminal",
    ChatOptions,
    call,
    "Talk to a run, an adapter or a model on the terminal: a line is a turn, and the conversation goes on. Nothing is "
    "written.",
    check,
)
