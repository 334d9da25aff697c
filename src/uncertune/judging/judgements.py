"""Judgements of every pair in both orders, with a cache by content so that no question is repeated."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from uncertune.judging.judge import FINAL, JUDGED, Judge, Question, Reply
from uncertune.judging.pairs import Pair
from uncertune.runs.files import write_atomically
from uncertune.runs.notes import progress

MODEL_FIRST, BASELINE_FIRST = "model_first", "baseline_first"


@dataclass(frozen=True)
class Judgement:
    """The judge's reply to one pair in one order; ``preference`` is that for the model's answer, or None."""

    id: str
    order: str
    outcome: str
    preference: float | None
    reply: str
    judge: str
    mass: float | None
    """Probability of the two letters together, if known."""


class Cache:
    """Replies by a digest of the judge and the question: an append-only file of JSON lines.

    A reply that another attempt could change (a timeout, a server's error) is not kept.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, Reply] = {}
        whole = path.read_bytes() if path.is_file() else b""
        kept = whole[: whole.rfind(b"\n") + 1]
        if len(kept) < len(whole):  # a crash truncated the last line
            os.truncate(path, len(kept))
        for line in kept.decode("utf-8", "replace").split("\n")[:-1]:
            if (found := _read_line(line)) is not None:
                self._known[found[0]] = found[1]

    def get(self, key: str) -> Reply | None:
        return self._known.get(key)

    def add(self, key: str, reply: Reply, judge: str) -> None:
        if reply.outcome not in FINAL:
            return
        self._known[key] = reply
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, **asdict(reply), "judge": judge}, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _read_line(line: str) -> tuple[str, Reply] | None:
    """Key and reply of a line of the cache; None for a damaged one, whose question is asked again."""
    try:
        found = json.loads(line)
        reply = Reply(found["outcome"], found["first"], found["text"], found["mass"])
        numbers = [float(one) for one in (reply.first, reply.mass) if one is not None]
    except (ValueError, LookupError, TypeError):
        return None
    whole = reply.outcome in FINAL and (reply.first is not None) == (reply.outcome == JUDGED)
    return (str(found["key"]), reply) if whole and all(0 <= one <= 1 for one in numbers) else None


def judge_pairs(judge: Judge, pairs: Sequence[Pair], cache: Cache, *, label: str = "") -> list[Judgement]:
    """Judgements of both orders of every pair, from the cache if it has them.

    Raises UserError if the judge cannot continue; its replies so far are in the cache.
    """
    asked = list(_both_orders(pairs))
    keys = [_key(judge, question) for _, _, question in asked]
    todo = {key: question for key, (_, _, question) in zip(keys, asked, strict=True) if cache.get(key) is None}
    replies: dict[str, Reply] = {}
    names = list(todo)
    if todo:
        bar = progress(len(asked), f"judgements {label}".strip(), "judgements", initial=len(asked) - len(todo))
        with bar, contextlib.closing(judge.ask(list(todo.values()))) as answers:
            for number, reply in answers:
                replies[names[number]] = reply
                cache.add(names[number], reply, judge.name)
                bar.update()
    known = {**replies, **{key: kept for key in keys if (kept := cache.get(key)) is not None}}
    out = []
    for key, (pair, order, _) in zip(keys, asked, strict=True):
        reply = known[key]
        first = reply.first if order == MODEL_FIRST or reply.first is None else 1 - reply.first
        out.append(Judgement(pair.id, order, reply.outcome, first, reply.text, judge.name, reply.mass))
    return out


def write_judgements(path: Path, judgements: Sequence[Judgement]) -> None:
    """Write one line per judgement."""
    write_atomically(path, "".join(json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in judgements))


def _both_orders(pairs: Sequence[Pair]) -> Iterator[tuple[Pair, str, Question]]:
    for pair in pairs:
        yield pair, MODEL_FIRST, Question(pair.messages, pair.model, pair.baseline)
        yield pair, BASELINE_FIRST, Question(pair.messages, pair.baseline, pair.model)


def _key(judge: Judge, question: Question) -> str:
    content: list[Any] = [judge.identity, question.messages, question.first, question.second]
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()
