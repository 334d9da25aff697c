"""The comparison in a browser: it turns its pages, fits a phone, and runs nothing of what strangers wrote."""

import pytest

from helpers.comparison_folders import comparison_folder
from uncertune.comparison.page import write_comparison

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> str:
    folder = comparison_folder(tmp_path_factory.mktemp("comparison"))
    return write_comparison(folder, in_distribution=["gsm8k", "head to head"]).as_uri()


def answers(page):
    return page.locator("#answers-side-by-side")


def test_nothing_alien_runs_on_any_page(visit):
    page = visit()
    for _ in range(2):
        assert "window.hacked = 1" in answers(page).text_content()
        answers(page).get_by_role("button", name="Next").click()


def test_answers_are_turned_in_pages(visit):
    page = visit()
    rows, choice = answers(page).locator(".rows > li:visible"), answers(page).locator("select")
    assert rows.count() == 10
    assert choice.locator("option").all_text_contents() == ["1–10 of 23", "11–20 of 23", "21–23 of 23"]
    assert answers(page).get_by_role("button", name="Previous").get_attribute("aria-disabled") == "true"
    answers(page).get_by_role("button", name="Next").focus()
    page.keyboard.press("Enter")
    assert choice.input_value() == "1"
    assert "Tell me about 10." in rows.first.text_content()
    choice.select_option("2")
    assert rows.count() == 3
    assert answers(page).get_by_role("button", name="Next").get_attribute("aria-disabled") == "true"
    # the pages of other sections stay where they are
    assert page.locator("#gsm8k-answers select").input_value() == "0"


def test_verdicts_stand_beneath_the_answer_they_are_of(visit):
    row = answers(visit()).locator(".rows > li").first
    names = row.locator(".answer h3").all_text_contents()
    assert names == ["mle", "masked_mle", "masked_mle_distill"]
    said = [one.locator(".verdicts li").all_text_contents() for one in row.locator(".answer").all()]
    assert said[0] == ["Cut off at 256 tokens."]
    assert [line.split(":")[0] for line in said[1][:2]] == ["Shown first", "Shown second"]


def test_a_judges_reply_cannot_turn_our_words_around(visit):
    page = visit()
    text = " ".join(answers(page).locator(".verdicts li").all_text_contents())
    assert "no verdict (unparsable), it said:" in text
    assert not set("\u202a\u202b\u202d\u202e\u2066\u2067\u2068\u2069") & set(text)


@pytest.mark.parametrize("width", [320, 360, 768, 1200])
def test_the_page_never_scrolls_sideways(visit, width):
    page = visit(width)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


@pytest.mark.parametrize("width", [360, 1200])
def test_bars_start_at_zero_and_ticks_stand_under_their_lines(visit, width):
    page = visit(width)
    chart = page.locator("#gain-out-of-distribution .chart")
    zero = chart.locator(".bar:not(.ends) line.stroke-ink").first.bounding_box()["x"]
    for bar in chart.locator("rect").all():
        box = bar.bounding_box()
        assert min(abs(box["x"] - zero), abs(box["x"] + box["width"] - zero)) < 1
    tick = chart.locator(".ends text", has_text="0%").last.bounding_box()
    assert abs(tick["x"] + tick["width"] / 2 - zero) < 1.5


def test_every_chart_names_its_models_and_says_its_numbers(visit):
    page = visit()
    for chart in page.locator(".chart").all():
        for bar in chart.locator(".bar:not(.ends)").all():
            assert bar.locator(".named").text_content().startswith("masked_mle")
            assert "%" in bar.locator(".value").text_content()


def test_without_scripts_and_in_print_all_answers_stand(browser, address, visit):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(address)
    assert answers(page).locator(".rows > li:visible").count() == 23
    assert not answers(page).locator(".pager").is_visible()
    context.close()
    page = visit()
    page.emulate_media(media="print")
    assert answers(page).locator(".rows > li:visible").count() == 23
