"""Arithmetic word problems with worked answers: a training task without a download, whose answers can be checked.

A problem is a story of one to three steps, each one operation on whole numbers. The answer shows the steps as
``3 * 4 = 12``, one per line, and ends with ``#### 12`` (GSM8K's mark of the final number).

The same seed gives the same problems on every machine: ``random.Random`` seeded by a string, and no ``hash()``. A
question belongs to the train or the test split by a digest of its text, so no seed brings a test question into
training.
"""

import hashlib
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

from uncertune.data.stories import CONTINUATIONS, OPENINGS, Story
from uncertune.errors import UserError

LEVELS = (1, 2, 3)
SPLITS = ("train", "test")
_TEST_ONE_IN = 8

_FINAL = re.compile(r"[ \t*$]*(-?)\$?(\d{1,3}(?:,\d{3})+|\d+)(?!\d|[.,]\d*[1-9]|,\d)")


@dataclass(frozen=True)
class WordProblem:
    """A question, its worked solution (last line ``#### <answer>``), the answer, and the number of steps."""

    question: str
    solution: str
    answer: int
    level: int

    def messages(self) -> list[dict[str, str]]:
        """The problem as a conversation of one user and one assistant turn."""
        return [{"role": "user", "content": self.question}, {"role": "assistant", "content": self.solution}]


def word_problems(seed: int = 0, level: int | None = None, *, split: str = "train") -> Iterator[WordProblem]:
    """An endless stream of problems of one level (1, 2 or 3 steps) or of all three, of one split.

    Raises ``UserError`` for another level or split.
    """
    if level is not None and level not in LEVELS:
        raise UserError(f"level: {level!r} is not one of 1, 2, 3 (steps); leave it out for all")
    if split not in SPLITS:
        raise UserError(f"split: {split!r} is not one of word_problems; use {' or '.join(SPLITS)}")
    return _problems(seed, level, split)


def split_of(question: str) -> str:
    """``"train"`` or ``"test"`` by the SHA-256 of the question's text; one question in eight is for testing."""
    digest = hashlib.sha256(question.encode("utf-8")).digest()
    return "test" if int.from_bytes(digest[:8], "big") % _TEST_ONE_IN == 0 else "train"


def check_answer(text: str, answer: int) -> bool:
    """Whether the number after the last ``####`` of the text is the answer; False without that mark.

    Ignores commas between thousands, a dollar sign, asterisks, a final full stop, ``.00`` and words after the number.
    """
    mark = text.rfind("####")
    if mark < 0:
        return False
    found = _FINAL.match(text, mark + 4)
    return found is not None and int(found[1] + found[2].replace(",", "")) == answer


def _problems(seed: int, level: int | None, split: str) -> Iterator[WordProblem]:
    rng = random.Random(f"word problems, seed {seed}")
    while True:
        problem = _problem(rng, level or rng.choice(LEVELS))
        if problem is not None and split_of(problem.question) == split:
            yield problem


def _problem(rng: random.Random, level: int) -> WordProblem | None:
    """One problem, or None where the story so far allows no further step."""
    story = Story(rng)
    rng.choice(OPENINGS)(story)
    last = None
    for _ in range(level - 1):
        possible = [make for applies, make in CONTINUATIONS if make is not last and applies(story)]
        if not possible:
            return None
        last = rng.choice(possible)
        last(story)
    solution = "\n".join([*story.steps, f"#### {story.total}"])
    return WordProblem(" ".join([*story.sentences, story.question]), solution, story.total, level)
