"""``docs/paper.md``: its modules and tests exist, its commands parse, and nothing of the paper is left out."""

import re
import shlex
from pathlib import Path

import pytest

from uncertune import demo_options
from uncertune.evaluation import compare_options, options
from uncertune.scoring import options as scoring
from uncertune.studies import options as studies
from uncertune.sweep import options as sweep
from uncertune.sweep.plan import plan
from uncertune.training import arguments

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
PARSERS = {
    "demo": demo_options.parse,
    "train": arguments.parse,
    "score": scoring.parse,
    "evaluate": options.parse_evaluate,
    "compare": compare_options.parse_compare,
    "study": studies.parse,
    "sweep": lambda words: plan(sweep.parse(words)),
}
CODE = re.findall(r"`([^`]+)`", PAGE)
COMMANDS = sorted({code for code in CODE if code.startswith("uncertune ")})


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_parses(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = shlex.split(command.replace(" R/", " src/uncertune/recipes/"))
    assert PARSERS[words[1]](words[2:])


@pytest.mark.parametrize("path", sorted({code for code in CODE if re.match(r"(src|tests|docs)/", code)}))
def test_a_file_exists(path):
    assert (ROOT / path).exists()


def test_nothing_is_left_out():
    figures = {int(number) for number in re.findall(r"^\| Fig\. (\d+)", PAGE, re.MULTILINE)}
    assert figures == set(range(1, 13))
    assert "| Table 1" in PAGE
    assert set(re.findall(r"^\| (C\d+b?) ", PAGE, re.MULTILINE)) == {*(f"C{n}" for n in range(1, 12)), "C2b"}
    for equation in ("(1)", "(2) to (5)"):
        assert f"| {equation} " in PAGE
