"""The file: the same bytes each time, whole or not there, and no text in it that is read as markup."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser

import pytest

from helpers.report_pages import HOSTILE, curves, document, sample_page
from uncertune.report import Answers, Curves, Facts, Page, Series, Table, Tokens, render, write_page

VOID = {"meta", "link", "input", "br", "wbr", "img"}


class Outline(HTMLParser):
    """Every element, attribute and id of a page; fails on a tag that closes what is not open."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.attributes if key == name and value is not None]


@pytest.fixture(scope="module")
def html() -> str:
    return render(sample_page())


def test_the_same_page_gives_the_same_bytes(tmp_path, html):
    write_page(tmp_path / "a.html", sample_page())
    assert (tmp_path / "a.html").read_bytes() == html.encode()
    code = "import sys; from helpers.report_pages import sample_page; from uncertune.report import write_page; "
    code += "write_page(sys.argv[1], sample_page())"
    environment = os.environ | {"PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "b.html")], check=True, env=environment)
    assert (tmp_path / "b.html").read_bytes() == html.encode()


def test_elements_nest_and_references_resolve(html):
    outline = Outline(html)
    ids = outline.values("id")
    assert len(ids) == len(set(ids))
    for name in ("aria-labelledby", "for"):
        assert set(outline.values(name)) <= set(ids)
    assert {link[1:] for link in outline.values("href") if link.startswith("#")} <= set(ids)
    assert outline.tags.count("h1") == 1
    assert html.startswith('<!DOCTYPE html>\n<html lang="en">')


def test_strangers_text_makes_no_element_and_no_handler(html):
    outline = Outline(html)
    assert outline.tags.count("script") == 1
    assert outline.tags.count("style") == 1
    assert "img" not in outline.tags
    assert not [name for name, _ in outline.attributes if name.startswith("on") or name == "style"]
    assert "49" not in re.findall(r"Hostile[^<]*", html)[0]
    assert "<!--" not in html
    for text in HOSTILE[:4]:
        assert text not in html


def test_nothing_is_asked_of_the_network(html):
    outline = Outline(html)
    assert outline.values("src") == []
    assert {link for link in outline.values("href") if not link.startswith("#")} == {"data:,"}
    (style,) = re.findall("<style>(.*?)</style>", html, re.DOTALL)
    assert "url(" not in style
    assert "@import" not in style
    (policy,) = [value for value in outline.values("content") if "default-src" in value]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy


def test_text_that_html_cannot_hold_is_replaced(html):
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", html)
    assert "\ufffd" in html


def test_missing_numbers_are_shown_as_such(html):
    cells = re.findall(r"<td>(.*?)</td>", html, re.DOTALL)
    assert cells.count("–") == 4
    assert "NaN" in cells
    assert "n/a" in cells


def test_differences_say_better_or_worse_in_words(html):
    words = [" ".join(unescape(re.sub("<.*?>", "", cell)).split()) for cell in re.findall("<small.*</small>", html)]
    assert "+0.9 ▲ better" in words
    assert "−2.2 ▽ worse" in words
    assert "±0.0" in words


def test_a_name_keeps_its_colour_over_the_page():
    first, second = curves("One"), curves("Two")
    page = Page("", "", (first, Facts("", ()), replace(second, series=second.series[::-1])))
    pairs = re.findall(r'<path class="(stroke-series-\d)"[^>]*></path></svg>\s*<bdi>(.*?)</bdi>', render(page))
    pairs = pairs or re.findall(r'<path class="(stroke-series-\d)"[^>]*/></svg>\s*<bdi>(.*?)</bdi>', render(page))
    assert len(pairs) == 6
    assert len(set(pairs)) == 3


def test_drawings_carry_numbers_and_no_names(html):
    for drawing in re.findall(r"<svg viewBox.*?</svg>|<svg [^>]*role=\"img\".*?</svg>", html, re.DOTALL):
        assert not set(re.findall(r"<text[^>]*>([^<]*)</text>", drawing)) & {"mle", "nats", "training step"}
        assert "style=" not in drawing
        assert "#0" not in drawing


@pytest.mark.parametrize(
    "series",
    [
        (),
        (Series("empty", (), ()),),
        (Series("one", (5.0,), (1.0,)),),
        (Series("nan", (1.0, 2.0, 3.0), (float("nan"),) * 3),),
        (Series("gap", (1.0, 2.0, 3.0), (1.0, float("inf"), 2.0)),),
        (Series("名前 $x_1$ <b>", (0.5, 1.5), (-1e-9, 1e9)),),
        tuple(Series(f"run {i}", (0, 1), (i, i)) for i in range(30)),
    ],
)
def test_odd_curves_are_drawn(series):
    Outline(render(Page("", "", (Curves("Odd", "", "step", "nats", series),))))


def test_series_of_two_lengths_are_refused():
    with pytest.raises(ValueError, match="series 'a': 2 x values and 1 y values"):
        Series("a", (1.0, 2.0), (1.0,))


def test_empty_sections_and_repeated_titles():
    empty = (
        Facts("Same", ()),
        Facts("Same", ()),
        Facts("Same 2", ()),
        Table("Same", "", (), (), "arm", None),
        Tokens("", "", ()),
        Tokens("名", "", (document("None", (), ()),)),
        Answers("Same", "", (), ()),
    )
    ids = Outline(render(Page("", "", empty))).values("id")
    assert len(ids) == len(set(ids))


def test_contents_only_on_a_long_page():
    short = Page("", "", (Facts("A", ()),) * 3)
    assert "Contents" not in render(short)
    assert "<script>" not in render(short)
    assert 'aria-label="Contents"' in render(Page("", "", (Facts("A", ()),) * 4))


def test_a_page_without_tokens_admits_no_script():
    assert "script-src" not in render(Page("", "", (curves("Loss"),)))


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_page(path, sample_page())
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_folders_are_made_and_the_file_is_readable_as_any_other(tmp_path):
    path = tmp_path / "new" / "folder" / "report.html"
    write_page(str(path), Page("T", "", ()))
    (tmp_path / "plain").write_text("")
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_numbers_alone_need_neither_torch_nor_matplotlib():
    code = "import sys, uncertune.report; print({'torch', 'transformers', 'matplotlib'} & set(sys.modules))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-c", code], check=True, env=environment, capture_output=True, text=True)
    assert run.stdout.strip() == "set()"
