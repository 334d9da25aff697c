"""Progress: a bar on a terminal, elsewhere a line a minute, nothing if quiet or in one of several processes."""

import io
import subprocess
import sys

import pytest

from uncertune.cli.terminal import Showing
from uncertune.runs import notes
from uncertune.runs.notes import NO_BARS, duration, progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Seconds that a test sets; every note counts from 100."""
    now = [100.0]
    monkeypatch.setattr(notes, "monotonic", lambda: now[0])
    return now


def test_without_a_terminal_a_line_a_minute(clock, capsys):
    with progress(938_148, "hidden cache", "tokens") as bar:
        for second in range(1, 144):
            clock[0] = 100.0 + second
            bar.update(6500)
    assert bar.n == 143 * 6500
    assert capsys.readouterr().err.splitlines() == [
        "hidden cache: 390,000 of 938,148 tokens, 1:24 left",
        "hidden cache: 780,000 of 938,148 tokens, 0:24 left",
    ]


def test_less_than_a_minute_and_the_last_step_say_nothing(clock, capsys):
    bar = progress(3, "answers", "answers")
    clock[0] += 59.9
    bar.update()
    clock[0] += 7200
    bar.update(2)
    bar.close()
    assert capsys.readouterr().err == ""


def test_rare_updates_and_work_that_was_done_before(clock, capsys):
    """What was there at the start took no time; without a unit the line counts alone."""
    bar = progress(100, "steps", initial=40)
    clock[0] += 600
    bar.update(0)
    bar.update(10)
    clock[0] += 3600
    bar.update(10)
    assert capsys.readouterr().err.splitlines() == [
        "steps: 50 of 100, 50:00 left",
        "steps: 60 of 100, 2:20:00 left",
    ]


def test_a_terminal_gets_a_bar(clock, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    bar = progress(8, "answers", "answers", initial=2, leave=True)
    clock[0] += 600
    bar.update(2)
    bar.close()
    kept = terminal.getvalue().split("\r")[-1]
    assert kept.startswith("answers:  50%|")
    assert "4/8" in kept
    assert "answers/s" in kept or "s/ answers" in kept


def test_a_bar_that_does_not_stay_is_wiped(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    progress(8, "answers", "answers", leave=False).close()
    assert terminal.getvalue().split("\r")[-1].strip() == ""
    assert "answers:   0%|" in terminal.getvalue()


@pytest.mark.parametrize("stderr", [Terminal, io.StringIO])
@pytest.mark.parametrize("shared", [True, False])
def test_disabled_or_shared_shows_nothing(shared, stderr, clock, monkeypatch):
    shown = stderr()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setattr(notes, "SHARED", shared)
    with progress(8, "answers", "answers", disable=not shared) as bar:
        clock[0] += 600
        bar.update(2)
    assert shown.getvalue() == ""


@pytest.mark.parametrize("quiet", [True, False])
def test_quiet_silences_the_lines_too(quiet, clock, monkeypatch, capsys):
    for name in NO_BARS:
        monkeypatch.setenv(name, "1")  # as a command sets them without a terminal
    with Showing(quiet=quiet).applied(), progress(8, "answers", "answers") as bar:
        clock[0] += 600
        bar.update(2)
    assert capsys.readouterr().err == ("" if quiet else "answers: 2 of 8 answers, 30:00 left\n")


@pytest.mark.parametrize("value", ["1", ""])
def test_a_terminal_follows_the_environment(value):
    """In a process of its own: tqdm reads its variables when it is imported."""
    program = (
        "import os, sys; sys.stderr.isatty = lambda: True; from uncertune.runs.notes import progress; "
        f"os.environ['TQDM_DISABLE'] = {value!r}; progress(8, 'answers', 'answers').close()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ("0%|" in done.stderr) == (value == "")


def test_times_are_short():
    assert [duration(one) for one in (0.4, 59.6, 3661)] == ["0:00", "1:00", "1:01:01"]
