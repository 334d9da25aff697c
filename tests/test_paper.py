"""``docs/paper.md``: its modules and tests exist, its commands parse, and nothing of the paper is left out."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from uncertune.cli import sweep, train
from uncertune.cli.main import command_of
from uncertune.sweep.plan import plan
from uncertune.training.arguments import arguments_of

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
PARSERS = {
    "demo": command_of("demo").parse,
    "train": lambda words: arguments_of(*train.parse(words)),
    "score": command_of("score").parse,
    "evaluate": command_of("evaluate").parse,
    "compare": command_of("compare").parse,
    "study": command_of("study").parse,
    "sweep": lambda words: plan(**sweep.parse(words)),
}
CODE = re.findall(r"`([^`]+)`", PAGE)
COMMANDS = sorted({code for code in CODE if code.startswith("uncertune ")})


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_parses(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = shlex.split(command)
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


# ---- the small commands, for real


def small_commands():
    """Those of the last column of the figures' table, each once, in the page's order; the sweeps are `results`."""
    rows = PAGE.split("## Figures and tables")[1].split("## Equations")[0].splitlines()
    cells = [row.split(" | ")[-1] for row in rows if row.startswith("|")]
    found = dict.fromkeys(code for cell in cells for code in re.findall(r"`(uncertune [^`]+)`", cell))
    return [command for command in found if not command.startswith("uncertune sweep")]


def test_every_kind_of_command_is_among_the_small_ones():
    assert {command.split()[1] for command in small_commands()} == {"demo", "score", "study", "evaluate", "compare"}


@pytest.mark.slow
@pytest.mark.skipif("UNCERTUNE_DATA" not in os.environ, reason="needs the real data")
def test_the_small_commands_run(tmp_path):
    """Some twenty minutes on two cores."""
    for command in small_commands():
        words = [sys.executable, "-m", "uncertune.cli", *shlex.split(command)[1:]]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stderr[-2000:]}"
        folder = tmp_path / words[words.index("--output_dir") + 1]
        assert list(folder.glob("*.html")) or (folder / "results.md").is_file(), command
