"""The token page: what travels in it, and what it does in a browser."""

import json
import re

import pytest

from helpers.report_pages import HOSTILE, hostile_text
from uncertune.report import Moment, ScoredDocument, TokenPage, draw_tokens, render_token_page, write_token_page
from uncertune.report.html import payload

VISIBLE = ".text span"


def document(title: str, text: tuple[str, ...], moments: int = 3) -> ScoredDocument:
    """Two prompt tokens; then token i has epistemic i / 100 and loss (n − i) / 10; at moment m every third is selected
    from the m-th on, and all numbers grow by m."""
    words = ("User:", " why?\n", *text)
    count = len(text)

    def values(start: float, step: float, shift: int) -> list[float | None]:
        return [None, None, *(start + step * i + shift for i in range(count))]

    return ScoredDocument(
        title,
        words,
        [False, False, *[True] * count],
        [
            Moment(
                f"step {10 * m}",
                {"epistemic": values(0, 0.01, m), "loss": values(count / 10, -0.1, m)},
                [False, False, *(i % 3 == m % 3 for i in range(count))],
            )
            for m in range(moments)
        ],
    )


def sample() -> TokenPage:
    words = tuple(f" word{i}" for i in range(40))
    return TokenPage(
        f"Tokens {hostile_text()}",
        hostile_text(),
        (
            document("Plain", words),
            document(hostile_text(), HOSTILE + words),
            document("שלום", ("שלום", " עולם", " שוב ושוב"), 1),
        ),
    )


def test_nothing_of_a_text_can_leave_the_data():
    """The data element holds no markup at all, and the page no second script of ours."""
    html = render_token_page(sample())
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)[1]
    assert not set("<>&") & set(data)
    texts = json.loads(data)["documents"][1]["text"]
    assert "</script><script>window.hacked = 1</script>" in texts
    assert html.count("<script") == 2
    assert "<img" not in html


def test_the_same_page_gives_the_same_bytes(tmp_path):
    for name in ("a.html", "b.html"):
        write_token_page(tmp_path / name, sample())
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_quantities_that_nothing_has_are_left_out_and_numbers_are_rounded():
    moment = Moment("", {"loss": [None, 1.23456789, float("nan")], "entropy": [None] * 3}, [False] * 3)
    page = TokenPage("", "", (ScoredDocument("", ("a", "b", "c"), (False, True, True), (moment,)),))
    data = payload(page)
    assert [quantity["key"] for quantity in data["quantities"]] == ["loss"]
    assert data["documents"][0]["moments"][0]["values"]["loss"] == [None, 1.235, None]


def test_columns_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="different lengths"):
        Moment("start", {"loss": [1.0]}, [False, True])
    with pytest.raises(ValueError, match="differs"):
        ScoredDocument("t", ("a",), (True,), (Moment("start", {}, [False, True]),))


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_a_text_as_a_figure(tmp_path, suffix):
    text = ScoredDocument(
        "t", ("Is", " it?", "\n", " " + "long " * 60), (False, True, True, True), document("", ("a", "b")).moments
    )
    path = tmp_path / f"text.{suffix}"
    draw_tokens(path, text, "epistemic")
    assert path.stat().st_size > 3000
    again = path.read_bytes()
    draw_tokens(path, text, "epistemic")
    assert path.read_bytes() == again
    if suffix == "svg":
        assert "Is" in path.read_text()


# ---- in a browser


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("tokens") / "tokens.html"
    write_token_page(path, sample())
    return path.as_uri()


def levels(page) -> list[str]:
    """The colour class of each token."""
    return page.eval_on_selector_all(VISIBLE, "all => all.map(s => s.className.match(/s\\d/)?.[0] ?? '')")


def chosen(page) -> list[str]:
    return page.locator(VISIBLE + ".on").all_text_contents()


def switch(page, name: str) -> None:
    page.locator(".by label", has_text=re.compile(f"^{name}$")).click()


@pytest.mark.browser
def test_the_switch_changes_the_colours_and_the_scale(visit):
    page = visit()
    assert page.locator(".by label").all_text_contents() == ["epistemic", "loss", "selected"]
    rising = levels(page)
    assert rising[:2] == ["", ""]
    assert rising[2:] == sorted(rising[2:])
    assert page.locator(".scale p").text_content() == "epistemic in nats"
    switch(page, "loss")
    falling = levels(page)
    assert falling[2:] == sorted(falling[2:], reverse=True)
    assert falling[2] > falling[-1]
    assert page.locator(".scale p").text_content() == "loss in nats"
    switch(page, "selected")
    assert [i for i, level in enumerate(levels(page)) if level] == [2 + i for i in range(0, 40, 3)]


@pytest.mark.browser
def test_hover_gives_every_number_exactly(visit):
    page = visit()
    page.locator(VISIBLE).nth(5).hover()
    assert page.locator(".tip").text_content() == "token 6 · selected\nepistemic 0.0300 nats\nloss 3.700 nats, p = 2.5%"
    page.locator(VISIBLE).nth(0).hover()
    assert page.locator(".tip").text_content().startswith("token 1 · prompt\nepistemic –")
    page.locator("h1").hover()
    assert not page.locator(".tip").is_visible()


@pytest.mark.browser
def test_words_are_explained_and_spaces_shown(visit):
    page = visit()
    meaning = page.locator(".meaning")
    assert meaning.text_content().startswith("epistemic: what the model does not know")
    assert "disagree" in page.locator(".by label", has_text="epistemic").get_attribute("title")
    switch(page, "loss")
    assert meaning.text_content() == "loss: −log p of this token, given the text before it"
    switch(page, "selected")
    assert meaning.text_content() == ""
    page.get_by_label("show spaces").check()
    assert page.locator(VISIBLE).nth(2).text_content() == "␣\u200bword0"
    page.get_by_label("show spaces").uncheck()
    assert page.locator(VISIBLE).nth(2).text_content() == " word0"


@pytest.mark.browser
def test_the_slider_moves_what_is_selected(visit):
    page = visit()
    slider = page.locator(".moment input")
    assert chosen(page)[:2] == [" word0", " word3"]
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert page.locator(".moment output").text_content() == "step 10"
    assert chosen(page)[:2] == [" word1", " word4"]
    page.keyboard.press("End")
    assert chosen(page)[:2] == [" word2", " word5"]
    assert "step 20" in page.locator(".summary").text_content()
    page.get_by_role("button", name="Next").click()
    assert page.locator(".moment output").text_content() == "step 20"  # the moment stays from text to text
    page.get_by_role("button", name="Next").click()
    assert not slider.is_visible()  # the last has one moment only


@pytest.mark.browser
def test_the_list_sorts_filters_and_leads_to_the_token(visit):
    page = visit()
    first = page.locator(".list tbody tr").first
    assert first.locator("th").text_content() == "␣\u200bword39"
    assert first.locator("td").last.text_content() == "0.100p = 90%"
    page.locator(".list thead button", has_text="epistemic").click()  # once more: the other way
    assert first.locator("th").text_content() == "␣\u200bword0"
    page.locator(".list thead button", has_text="loss").click()
    assert first.locator("th").text_content() == "␣\u200bword0"
    assert page.locator(".list thead th[aria-sort=descending]").text_content().startswith("loss")
    page.get_by_label("Contains").fill("WORD3")
    assert page.locator(".list [role=status]").text_content() == "11 tokens"
    page.get_by_label("selected only").check()
    assert page.locator(".list [role=status]").text_content() == "5 tokens"  # 3, 30, 33, 36, 39
    page.get_by_label("all documents").check()
    assert int(page.locator(".list [role=status]").text_content().split()[0]) > 5
    page.locator(".list tbody tr", has_text="2 :").first.locator("button").click()
    assert page.locator("select").input_value() == "1"
    assert "word3" in page.locator(VISIBLE + ".at").text_content()
    assert page.locator(".tip").is_visible()


@pytest.mark.browser
def test_hostile_text_is_text(visit):
    page = visit()
    page.get_by_role("button", name="Next").click()
    assert "</script><script>window.hacked = 1</script>" in page.locator(VISIBLE).all_text_contents()
    assert "⟨U+202E⟩override" in page.locator(VISIBLE).all_text_contents()
    for token in page.locator(VISIBLE).all()[:16]:
        token.hover()
    page.get_by_label("all documents").check()
    page.get_by_label("Contains").fill("<")
    page.get_by_role("button", name="Next").click()
    assert page.locator(".text").get_attribute("dir") == "rtl"


@pytest.mark.browser
def test_arrow_keys_read_the_tokens(visit):
    page = visit()
    page.locator(".text").focus()
    page.keyboard.press("End")
    assert page.locator(".tip").text_content().startswith("token 42")
    page.keyboard.press("ArrowLeft")
    assert page.locator(".tip").text_content().startswith("token 41")
    page.keyboard.press("Escape")
    assert not page.locator(".tip").is_visible()


@pytest.mark.browser
@pytest.mark.parametrize("width", [320, 360, 768, 1200])
def test_the_page_fits(visit, width):
    page = visit(width, has_touch=True, is_mobile=width < 700)
    fits = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    assert page.evaluate(fits)
    page.locator(VISIBLE).nth(20).tap()
    box = page.locator(".tip").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= width
    page.get_by_role("button", name="Next").tap()
    assert page.evaluate(fits)


@pytest.mark.browser
def test_two_hundred_documents_of_five_hundred_tokens_are_fast(browser, tmp_path):
    words = tuple(f" w{i % 97}" for i in range(500))
    page = TokenPage("Many", "", tuple(document(f"text {i}", words) for i in range(200)))
    path = tmp_path / "many.html"
    write_token_page(path, page)
    assert path.stat().st_size < 12e6
    context = browser.new_context()
    opened = context.new_page()
    opened.goto(path.as_uri())
    opened.locator(VISIBLE).nth(499).wait_for(timeout=10_000)
    milliseconds = opened.evaluate("""() => {
        const time = (action) => { const start = performance.now(); action(); return performance.now() - start; };
        const next = document.querySelectorAll(".pager button")[1];
        const loss = document.querySelectorAll(".by input")[1];
        const all = document.querySelector("input[name=everywhere]");
        return [time(() => next.click()), time(() => loss.click()), time(() => all.click())];
    }""")
    context.close()
    assert milliseconds[0] < 1000
    assert milliseconds[1] < 1000
    assert milliseconds[2] < 5000


@pytest.mark.browser
def test_probabilities_near_0_and_1_and_a_list_within_a_phone(browser, tmp_path):
    """No “100%” for a token that has less; the list's three columns need no scrolling, headings stand over values."""
    losses = [12.0, 3.0, 0.005, 1e-5]
    moment = Moment("step 0", {"loss": losses, "entropy": [0.0123] * 4}, [False] * 4)
    write_token_page(
        tmp_path / "near.html",
        TokenPage("Near", "", (ScoredDocument("one", ("<|im_end|>", " b", " c", " d"), [True] * 4, [moment]),)),
    )
    page = browser.new_context(viewport={"width": 390, "height": 800}).new_page()
    page.goto((tmp_path / "near.html").as_uri())
    shares = page.locator(".list td small").all_text_contents()
    assert shares == ["p = <0.01%", "p = 5%", "p = 99.5%", "p = >99.99%"]
    assert page.eval_on_selector(".list .scroll, .list", "one => one.scrollWidth <= one.clientWidth")
    text = (
        "one => { const r = document.createRange(); r.selectNodeContents(one); return r.getBoundingClientRect().left; }"
    )
    head, value = (page.eval_on_selector(f".list {part} th:first-child", text) for part in ("thead", "tbody"))
    assert abs(head - value) < 1


@pytest.mark.browser
def test_a_difference_stands_above_its_interval(browser, tmp_path):
    from uncertune.report.html import render
    from uncertune.report.page import Column, FormattedValue, Page, Table

    cell = FormattedValue("1.178", "Δ +0.0980 [+0.0885, +0.1075] *")
    table = Table("Loss", "", (Column("loss", "loss", "lower", 3),), ({"arm": "a", "loss": cell},), "arm", None)
    (tmp_path / "page.html").write_text(render(Page("Page", "", (table,))), encoding="utf-8")
    page = browser.new_context().new_page()
    page.goto((tmp_path / "page.html").as_uri())
    assert page.locator("td small").inner_text() == "Δ +0.0980\n[+0.0885, +0.1075] *"
