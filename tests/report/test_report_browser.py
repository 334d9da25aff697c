"""The page in a browser: what it asks for, what it does on a key, a hover and a tap, and how it fits a phone."""

import pytest

from helpers.report_pages import sample_page
from uncertune.report import Curves, Page, Series, write_page

pytestmark = pytest.mark.browser

SELECTED = ".document:not(.away) .frame:visible .text span.on"


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_page(path, sample_page())
    return path.as_uri()


def selected(page) -> list[str]:
    return page.locator(SELECTED).all_text_contents()


def next_document(page) -> None:
    page.get_by_role("button", name="Next").click()


def test_nothing_is_asked_for_and_nothing_alien_runs(visit):
    page = visit()
    next_document(page)
    for token in page.locator(".document:not(.away) .frame:visible .text span").all()[:25]:
        token.hover()
    assert "window.hacked = 1" in page.locator(".document:not(.away) .frame:visible .text").text_content()


def test_the_policy_refuses_a_script_that_got_in(visit, browser, address):
    context = browser.new_context()
    page = context.new_page()
    page.goto(address)
    page.evaluate("""() => {
        const script = document.createElement("script");
        script.textContent = "window.hacked = 5";
        document.body.append(script);
    }""")
    assert page.evaluate("window.hacked ?? null") is None
    context.close()
    visit()


def test_the_switch_changes_the_marked_tokens(visit):
    page = visit()
    moments = page.locator(".document:not(.away) .moments label")
    assert moments.all_text_contents() == ["start", "middle", "end"]
    start = selected(page)
    assert start[:3] == [" word0", " word3", " word6"]
    moments.nth(1).click()
    assert selected(page)[:3] == [" word1", " word4", " word7"]
    moments.nth(0).click()
    assert selected(page) == start


def test_the_switch_obeys_the_keyboard_and_all_documents_follow(visit):
    page = visit()
    page.locator(".document:not(.away) .moments input").first.focus()
    page.keyboard.press("ArrowRight")
    assert selected(page)[0] == " word1"
    page.keyboard.press("ArrowRight")
    assert selected(page)[0] == " word2"
    next_document(page)
    next_document(page)
    assert selected(page)[0] == " word2"


def test_documents_are_paged_through_by_keyboard(visit):
    page = visit()
    position = page.locator(".pager output")
    heading = page.locator(".document:not(.away) h3")
    assert (position.text_content(), heading.text_content()) == ("1 of 3", "Plain")
    page.get_by_role("button", name="Next").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    assert (position.text_content(), heading.text_content()) == ("3 of 3", "Third")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Space")
    assert position.text_content() == "2 of 3"


def test_hover_shows_the_number(visit):
    page = visit()
    tip = page.locator(".tip")
    assert not tip.is_visible()
    page.locator(SELECTED).nth(1).hover()
    assert tip.text_content() == "1.00 nats, p = 37% · selected"
    page.locator("h1").hover()
    assert not tip.is_visible()


def test_tap_shows_the_number_within_the_screen(visit):
    page = visit(360, has_touch=True, is_mobile=True)
    tokens = page.locator(".document:not(.away) .frame:visible .text span")
    for index in range(6, 30):
        tokens.nth(index).tap()
        assert page.locator(".tip").text_content().startswith(f"{0.25 + (index - 6) / 4:.2f} nats")
        box = page.locator(".tip").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 360
    page.locator(".tokens h2").tap()
    assert not page.locator(".tip").is_visible()


def test_arrow_keys_walk_the_tokens(visit):
    page = visit()
    tip = page.locator(".tip")
    page.locator(".document:not(.away) .frame:visible .text").focus()
    for key, note in [
        ("ArrowRight", "not scored · prompt"),
        ("End", "15.00 nats, p = <0.01%"),
        ("ArrowLeft", "14.75 nats, p = <0.01%"),
        ("Home", "not scored · prompt"),
    ]:
        page.keyboard.press(key)
        assert tip.text_content() == note
    page.keyboard.press("Escape")
    assert not tip.is_visible()


def test_the_command_is_copied(browser, address, tmp_path):
    path = tmp_path / "page.html"
    command = "uncertune train --config 'my runs/a&b/config.yaml'"
    write_page(path, Page("A run", "", (), command=command))
    context = browser.new_context()
    for denied in (False, True):
        page = context.new_page()
        page.goto(path.as_uri())
        page.evaluate(
            """denied => {
            const write = navigator.clipboard.writeText.bind(navigator.clipboard);
            const note = (text) => { window.copied = text; };
            navigator.clipboard.writeText = async (text) => {
                if (denied) throw new Error("denied");
                await write(text);
                note(text);
            };
            document.addEventListener("copy", () => note(getSelection().toString()));
        }""",
            denied,
        )
        page.get_by_role("button", name="Copy").click()
        page.get_by_role("button", name="Copied").wait_for()
        assert page.evaluate("window.copied") == command
    context.close()


def test_the_switch_smooths_a_noisy_curve(browser, tmp_path):
    path = tmp_path / "page.html"
    noisy = Series("noisy", tuple(range(100)), tuple(float(x % 2) for x in range(100)))
    few = Series("few", (0, 50, 99), (0.0, 1.0, 0.5), dots=True)
    curves = [Curves(name, "", "step", "nats", lines) for name, lines in (("a", (noisy, few)), ("b", (few,)))]
    write_page(path, Page("Curves", "", tuple(curves)))
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(path.as_uri())
    switch = page.get_by_label("Smooth")
    assert switch.count() == 1, "three points need none"
    raw, smooth = page.locator("#a--raw"), page.locator("#a--smoothed")
    assert (raw.is_visible(), smooth.is_visible()) == (True, False)
    switch.check()
    assert smooth.is_visible()
    assert page.locator("#a--raw").evaluate("one => getComputedStyle(one).opacity") == "0.25"
    assert smooth.bounding_box()["height"] < 0.7 * raw.bounding_box()["height"]
    context.close()


@pytest.mark.parametrize("width", [320, 360, 768, 1200])
def test_the_page_never_scrolls_sideways(visit, width):
    page = visit(width)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    for _ in range(2):
        next_document(page)
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_plots_stand_side_by_side_on_a_desk_and_stack_on_a_phone(visit):
    def tops(page) -> int:
        return len({round(figure.bounding_box()["y"]) for figure in page.locator("section.curves").all()})

    assert tops(visit(1200)) == 1
    assert tops(visit(360)) == 2


def test_numbers_on_the_axes_are_readable_on_a_phone(visit):
    for text in visit(360).locator("figure > svg text").all():
        assert text.bounding_box()["height"] >= 10


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(visit, scheme):
    """WCAG AA, 4.5 : 1, for plain and muted text, marks of better and worse, and the most deeply coloured token."""
    page = visit(color_scheme=scheme)
    ratios = page.evaluate("""() => {
        const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
        const paint = (...colours) => {
            canvas.clearRect(0, 0, 1, 1);
            for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
            return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
        };
        const light = (rgb) => {
            const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
            const [r, g, b] = rgb.map((v) => linear(v / 255));
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const ground = getComputedStyle(document.body).backgroundColor;
        const names = [".lead", ".caption", ".better", ".worse", ".right", ".wrong", "a", ".text span.s7", ".text .p"];
        return names.map((name) => {
            const style = getComputedStyle(document.querySelector(name));
            const under = paint(ground, style.backgroundColor);
            const [high, low] = [light(paint(style.color)), light(under)].sort((a, b) => b - a);
            return [name, (high + 0.05) / (low + 0.05)];
        });
    }""")
    assert [name for name, ratio in ratios if ratio < 4.5] == []


def test_tokens_of_one_word_stay_together_in_either_direction(visit):
    page = visit()
    next_document(page)
    tokens = page.locator(".document:not(.away) .frame:visible .text span")
    texts = tokens.all_text_contents()
    assert "⟨U+202E⟩override" in texts
    assert "⟨U+0000⟩⟨U+001B⟩[31m" in texts
    after = tokens.nth(texts.index(" word0")).bounding_box()
    following = tokens.nth(texts.index(" word1")).bounding_box()
    assert following["y"] > after["y"] or following["x"] > after["x"]


def test_without_scripts_the_moments_still_switch(browser, address):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(address)
    assert page.locator(".document").count() == page.locator(".document:visible").count() == 3
    assert page.locator(".frame:visible").count() == 3 + 1  # one a document, and the key
    assert not page.locator(".pager").is_visible()
    first = page.locator(".document").first
    assert first.locator(".frame:visible .on").first.text_content() == " word0"
    first.locator("label").nth(2).click()
    assert first.locator(".frame:visible .on").first.text_content() == " word2"
    assert first.locator(".text:visible span").nth(6).get_attribute("title") == "0.25 nats, p = 78%"
    context.close()


def test_print_shows_every_document_and_names_its_moment(visit):
    page = visit()
    page.emulate_media(media="print", color_scheme="dark")
    assert page.locator(".document:visible").count() == 3
    assert page.locator(".summary b:visible").all_text_contents() == ["start"] * 3
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(253, 253, 252)"
