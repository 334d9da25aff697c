"""Numbers as people read them: signs, arrows, gaps, and lines that fit."""

import math
import os
import shutil
import sys
from dataclasses import replace

import pytest

from helpers.report_pages import table
from uncertune.report import Column, Table, to_markdown, to_text
from uncertune.report.tables import cell, format_value

SHARE = Column("accuracy", "Accuracy", "higher", 1, percent=True)
LOSS = Column("loss", "Loss", "lower", 2)
COUNT = Column("n", "Count", None, 0)


@pytest.mark.parametrize(
    ("value", "column", "text"),
    [
        (None, LOSS, "–"),
        (math.nan, LOSS, "NaN"),
        (math.inf, LOSS, "∞"),
        (-math.inf, LOSS, "−∞"),
        (0.4126, SHARE, "41.3%"),
        (-1.5, LOSS, "−1.50"),
        (-0.0001, LOSS, "0.00"),
        (12345, COUNT, "12,345"),
        ("n/a", SHARE, "n/a"),
    ],
)
def test_values(value, column, text):
    assert format_value(value, column) == text


@pytest.mark.parametrize(
    ("value", "baseline", "column", "change", "tone"),
    [
        (0.43, 0.41, SHARE, "+2.0▲", "better"),
        (0.39, 0.41, SHARE, "−2.0▽", "worse"),
        (1.5, 2.0, LOSS, "−0.50▼", "better"),
        (2.5, 2.0, LOSS, "+0.50△", "worse"),
        (2.001, 2.0, LOSS, "±0.00", "same"),
        (1.999, 2.0, LOSS, "±0.00", "same"),
        (1500, 200, COUNT, "+1,300", "plain"),
        (None, 2.0, LOSS, "", "plain"),
        (2.0, None, LOSS, "", "plain"),
        (math.nan, 2.0, LOSS, "", "plain"),
        (2.0, math.nan, LOSS, "", "plain"),
        ("n/a", 2.0, LOSS, "", "plain"),
    ],
)
def test_differences(value, baseline, column, change, tone):
    shown = cell(value, baseline, column)
    assert (shown.change, shown.tone) == (change, tone)


def test_better_and_worse_differ_without_colour():
    marks = {
        cell(value, 2.0, column).arrow for value in (1.0, 3.0) for column in (LOSS, replace(LOSS, better="higher"))
    }
    assert len(marks) == 4


def test_text_of_six_columns_fits_a_hundred():
    text = to_text(table())
    assert max(map(len, text.splitlines())) <= 100
    for piece in (
        "masked_mle_distill",
        "1.4%",
        "+0.9▲",
        "−2.2▽",
        "−0.470▼",
        "NaN",
        "–",
        "n/a",
        "Differences are to base",
    ):
        assert piece in text


def test_text_is_aligned():
    plain = Table("T", "", (LOSS, COUNT), ({"arm": "a", "loss": 1.0, "n": 5}, {"arm": "b", "loss": 12.5}), "arm", "a")
    assert to_text(plain).splitlines() == [
        "T",
        "",
        "Arm         Loss ↓  Count",
        "─────────────────────────",
        "a     1.00              5",
        "b    12.50 +11.50△      –",
        "",
        "Differences are to a; filled arrows ▲▼ are better, hollow △▽ worse.",
    ]


@pytest.mark.parametrize("width", [40, 60, 80])
def test_text_keeps_to_a_narrow_terminal(width):
    text = to_text(table(), width=width)
    assert max(map(len, text.splitlines())) <= width
    assert text.count("masked_mle_distill") >= 1
    assert all(entry in text for entry in ("+0.9▲", "1,312"))


def test_wide_characters_take_two_columns():
    rows = ({"arm": "基準", "loss": 1.0}, {"arm": "ab", "loss": 2.0})
    lines = to_text(Table("T", "", (LOSS,), rows, "arm", None)).splitlines()
    assert lines[-2:] == ["基準    1.00", "ab      2.00"]


def test_without_a_baseline_there_are_no_differences():
    bare = replace(table(), baseline=None)
    assert "▲" not in to_text(bare)
    assert "Differences" not in to_text(bare) + to_markdown(bare)


def test_text_from_strangers_moves_no_cursor():
    rows = ({"arm": "a\x1b[2J", "loss": "one\ntwo"}, {"arm": "b\u202e", "loss": "\ud800"})
    hostile = Table("T\x07", "", (LOSS,), rows, "arm", None)
    assert to_text(hostile).splitlines()[-2:] == ["a\ufffd[2J  one two", "b\ufffd           \ufffd"]
    assert not {"\x1b", "\x07", "\u202e", "\ud800"} & set(to_text(hostile) + to_markdown(hostile))


def test_an_empty_table_has_its_headings():
    empty = Table("Nothing yet", "", (LOSS,), (), "arm", None)
    assert "Loss ↓" in to_text(empty)
    assert to_markdown(empty).splitlines() == ["| Arm | Loss ↓ |", "|:--|--:|"]
    assert to_text(Table("No columns", "", (), ({"arm": "a"},), "arm", None)).splitlines()[-1] == "a"


def test_a_baseline_that_names_no_row_is_refused():
    with pytest.raises(ValueError, match=r"no row has arm = 'absent'; rows: 'base', 'mle'"):
        replace(table(), baseline="absent")


def test_markdown():
    rows = ({"arm": "a|b", "loss": 1.0}, {"arm": "<b>x</b>\n_y_", "loss": 0.5})
    assert to_markdown(Table("T", "", (LOSS,), rows, "arm", "a|b")).splitlines()[:4] == [
        "| Arm | Loss ↓ |",
        "|:--|--:|",
        "| a\\|b | 1.00 |",
        "| &lt;b&gt;x&lt;/b&gt; \\_y\\_ | 0.50 (−0.50▼) |",
    ]


@pytest.mark.parametrize(("columns", "widest"), [(60, 60), (80, 80), (200, 100)])
def test_a_table_fits_its_terminal(monkeypatch, columns, widest):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(shutil, "get_terminal_size", lambda *_, **__: os.terminal_size((columns, 24)))
    text = to_text(table())
    assert max(map(len, text.splitlines())) <= widest
    assert text == to_text(table(), widest)
