"""What a token is shown as, and how deep its colour is."""

import math

import pytest

from uncertune.report import Frame, Token, TokenDocument, Tokens
from uncertune.report.tokens import LEVELS, Scale, direction, scale_of, shown, visible


def section(*scores: float | None) -> Tokens:
    tokens = tuple(Token("x", score, False, True) for score in scores)
    return Tokens("", "", (TokenDocument("", (Frame("start", tokens),)),))


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        (" plain", " plain"),
        ("a\n\nb", "a↵\n↵\nb"),
        ("\r\n", "↵\n"),
        ("\r", "⟨U+000D⟩"),
        ("\tx", "\tx"),
        ("", "∅"),
        ("\x00", "⟨U+0000⟩"),
        ("\u202eabc", "⟨U+202E⟩abc"),
        ("\u2067", "⟨U+2067⟩"),
        ("\u200b\ufeff", "⟨U+200B⟩⟨U+FEFF⟩"),
        ("\ud800", "⟨U+D800⟩"),
        ("\ufffd", "\ufffd"),
        ("<script>", "<script>"),
        ("👩\u200d🚒", "👩\u200d🚒"),
    ],
)
def test_nothing_in_a_token_is_unseen(text, seen):
    assert visible(text) == seen


@pytest.mark.parametrize(("text", "way"), [("", "ltr"), ("12 abc", "ltr"), ("12 שלום abc", "rtl"), ("سلام", "rtl")])
def test_direction(text, way):
    assert direction(text) == way


def test_the_scale_is_round_and_covers_the_scores():
    scale = scale_of(section(*(i / 10 for i in range(61))))
    assert (scale.low, scale.step) == (0.0, 1.0)
    assert [scale.level(score) for score in (0.0, 0.99, 1.0, 6.5, 7.0, 99.0)] == [0, 0, 1, 6, 7, 7]
    assert scale.ticks == ["0", "1", "2", "3", "4", "5", "6", "7"]


@pytest.mark.parametrize("top", [1e-7, 3e-4, 0.03, 0.7, 1.0, 17.0, 4.2e5])
def test_any_size_of_score_spreads_over_the_levels(top):
    scale = scale_of(section(*(top * i / 100 for i in range(101))))
    levels = {scale.level(top * i / 100) for i in range(101)}
    assert min(levels) == 0
    assert max(levels) >= LEVELS // 2
    assert len(set(scale.ticks)) == LEVELS


def test_scores_below_zero_have_a_place():
    scale = scale_of(section(-2.0, 0.0, 2.0))
    assert scale.low <= -2.0
    assert scale.level(-2.0) == 0
    assert scale.ticks[0].startswith("−")


def test_scores_that_are_not_numbers_change_nothing():
    assert scale_of(section(1.0, 3.0, None, math.nan, math.inf)) == scale_of(section(1.0, 3.0))
    assert scale_of(section(None, math.nan)) == scale_of(section()) == Scale(0.0, 1.0)
    assert scale_of(section(0.0, 0.0)).step > 0
    assert [Scale(0.0, 1.0).level(score) for score in (math.nan, math.inf, -math.inf)] == [-1, LEVELS - 1, 0]


def test_a_frame_counts_its_response_tokens_only():
    tokens = (
        Token("p", 9.0, False, False),
        Token("a", 1.0, True, True),
        Token("b", 3.0, False, True),
        Token("c", None, False, True),
        Token("d", math.nan, False, True),
        Token("e", 0.005, False, True),
        Token("f", 1e-5, False, True),
    )
    everything = Tokens("", "", (TokenDocument("t", (Frame("start", tokens),)),))
    frame = shown(everything.documents[0], everything, scale_of(everything)).frames[0]
    assert frame.summary == "1 of 6 response tokens selected (17%), mean loss 1.00 nats"
    assert [token.note for token in frame.tokens] == [
        "9.00 nats, p = 0.012% · prompt",
        "1.00 nats, p = 37% · selected",
        "3.00 nats, p = 5%",
        "not scored",
        "NaN nats",
        "0.005 nats, p = 99.5%",
        "1e−05 nats, p = >99.99%",
    ]
    assert [token.classes for token in frame.tokens] == ["p s7", "s2 on", "s6", "", "", "s0", "s0"]
