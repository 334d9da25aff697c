"""Questions to a judge, and how its replies are read.

A reply is one of two letters. If the judge's probabilities are known, the preference is p(A) / (p(A) + p(B)), and
p(A) + p(B) shows how well it kept to the letters; of a reply without probabilities, the letter counts as certain.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from uncertune.data.turns import Messages

LABELS = ("A", "B")
JUDGED, UNPARSABLE, REFUSED, TOO_LONG = "judged", "unparsable", "refused", "too_long"
BAD_REPLY = "bad_reply"
"""A server's reply that is not a chat completion: HTML, empty, or broken JSON."""
FINAL = frozenset((JUDGED, UNPARSABLE, REFUSED, TOO_LONG))
"""Outcomes that another attempt would not change; the next run asks again after the others (timeout, http_429, …)."""

TEMPLATE = """\
Two answers to the same instruction are given below. Decide which one is better: the more helpful, correct and \
complete, and the one that does what the instruction asks. Neither the order of the answers nor their length counts.

# Instruction

{instruction}

# Answer A

{first}

# Answer B

{second}

# Your decision

Which answer is better? Reply with one letter, A or B, and nothing else."""

_THOUGHT = re.compile(r"<think>.*?(</think>|$)", re.DOTALL)
_ALONE = re.compile(r"\W*([AB])\W*")
_CHOSEN = (
    re.compile(r"\[\[([AB])\]\]"),
    re.compile(r"^\W*(?:(?:[Aa]nswer|[Rr]esponse|[Oo]ption)\W+)?([AB])\W+is\W+(?:\w+\W+)?better\b"),
    re.compile(r"\b(?:[Aa]nswer|[Rr]esponse|[Oo]ption|[Dd]ecision)(?:\W+is)?\W+([AB])\b"),
)
_REFUSAL = re.compile(
    r"^\W*(?:sorry\b|as an ai\b|i(?:['’]m| am) (?:sorry|afraid|unable|not able)\b"
    r"|i (?:can ?not|can['’]?t|won['’]?t|will not)\b)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Question:
    """A conversation and two answers to it, in the order shown."""

    messages: Messages
    first: str
    second: str


@dataclass(frozen=True)
class Reply:
    """The reply to a question.

    ``first`` is the probability that the answer shown first is better, None without a preference. ``mass`` is the
    probability of the two letters together, None if unknown.
    """

    outcome: str
    first: float | None = None
    text: str = ""
    mass: float | None = None


class Judge(Protocol):
    """A model that prefers one of two answers; ``identity`` is everything its replies depend on."""

    name: str

    @property
    def identity(self) -> Mapping[str, Any]: ...

    def check(self) -> None:
        """Raise UserError if the judge cannot be asked."""

    def ask(self, questions: Sequence[Question]) -> Generator[tuple[int, Reply]]:
        """Replies as they come, each with its question's number, one for every question unless UserError is raised."""


def instruction(messages: Messages) -> str:
    """A conversation as text: a single turn alone, several turns with their roles."""
    if len(messages) == 1:
        return str(messages[0]["content"])
    return "\n\n".join(f"[{turn['role']}]\n{turn['content']}" for turn in messages)


def text_of(question: Question) -> str:
    """The judge's prompt, filled in one pass, so that placeholders inside an answer stay unchanged."""
    filled = {"instruction": instruction(question.messages), "first": question.first, "second": question.second}
    return re.sub(r"\{(instruction|first|second)\}", lambda found: filled[found[1]], TEMPLATE)


def writable(text: str) -> str:
    """The text with U+FFFD for lone surrogates, which cannot be written as UTF-8."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def read_reply(text: str, probabilities: Sequence[Mapping[str, float]] = (), *, refused: bool = False) -> Reply:
    """A reply from its text and, if known, the likeliest tokens at each position with their probabilities."""
    decision = _THOUGHT.sub("", text)
    alone = _ALONE.fullmatch(decision)
    if refused or (alone is None and _REFUSAL.search(decision)):
        return Reply(REFUSED, text=text)
    letter = alone[1] if alone else _letter(decision)
    if letter is None and text.lstrip().startswith("<think>"):
        return Reply(UNPARSABLE, text=text)
    for place in _places(probabilities, letter):
        masses = [sum(share for token, share in place.items() if token.strip() == label) for label in LABELS]
        if sum(masses) > 0:
            return Reply(JUDGED, masses[0] / sum(masses), text, min(sum(masses), 1.0))
    if letter is None:
        return Reply(UNPARSABLE, text=text)
    return Reply(JUDGED, float(letter == LABELS[0]), text)


def _letter(text: str) -> str | None:
    for pattern in _CHOSEN:
        found = set(pattern.findall(text))
        if len(found) == 1:
            return found.pop()
    return None


def _places(probabilities: Sequence[Mapping[str, float]], letter: str | None) -> Iterator[Mapping[str, float]]:
    """The last position with a letter; without a letter, the first position if both are among its likeliest tokens."""
    if letter is None:
        first = {token.strip() for token in probabilities[0]} if probabilities else set()
        yield from probabilities[:1] if first.issuperset(LABELS) else ()
        return
    for place in reversed(probabilities):
        if place and max(place, key=place.__getitem__).strip() == letter:
            yield place
