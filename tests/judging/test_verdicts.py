"""What judgements come to: signs, counts, both readings, warnings."""

import pytest

from uncertune.judging.judgements import BASELINE_FIRST, MODEL_FIRST, Judgement
from uncertune.judging.pairs import Pair
from uncertune.judging.verdicts import verdict


def judged(number, order, preference, mass=1.0, outcome="judged"):
    return Judgement(str(number), order, outcome, preference, "A", "judge", mass)


def both(preferences, **more):
    """Judgements of (model first, baseline first) preferences for the model, prompt by prompt."""
    orders = (MODEL_FIRST, BASELINE_FIRST)
    return [
        judged(number, order, one, **more)
        for number, given in enumerate(preferences)
        for order, one in zip(orders, given, strict=True)
    ]


def pairs(count, model=100, baseline=100):
    return [Pair(str(number), [], "m" * model, "b" * baseline) for number in range(count)]


def test_a_preference_for_what_is_shown_first_is_a_position_bias_above_nought():
    found = verdict(pairs(40), both([(0.8, 0.2)] * 40))
    assert found["position_bias"]["value"] == pytest.approx(1.386, abs=1e-3)
    assert found["order_averaged"]["value"] == pytest.approx(0.5)
    assert (found["decided"]["won"], found["decided"]["lost"], found["decided"]["tied"]) == (0, 0, 40)
    assert found["decided"]["share"] is None
    assert verdict(pairs(40), both([(0.2, 0.8)] * 40))["position_bias"]["value"] == pytest.approx(-1.386, abs=1e-3)


def test_a_longer_answer_that_wins_is_a_length_effect_above_nought():
    answers = [Pair(str(n), [], "m" * (200 if n % 2 else 50), "b" * 100) for n in range(40)]
    found = verdict(answers, both([(0.7, 0.7) if n % 2 else (0.3, 0.3) for n in range(40)]))
    assert found["length_effect"]["value"] > 0.5
    assert (found["decided"]["won"], found["decided"]["lost"]) == (20, 20)
    assert found["decided"]["like_length"] == {"won": 0, "lost": 0, "share": None}


def test_the_side_taken_counts_where_the_share_says_nothing():
    found = verdict(pairs(40), both([(0.82, 0.19)] * 32 + [(0.81, 0.18)] * 8))
    assert found["adjusted"]["value"] == pytest.approx(0.5, abs=0.02)
    assert found["decided"]["share"]["value"] == 0.8
    assert found["decided"]["share"]["low"] == pytest.approx(0.6435, abs=1e-3)
    assert found["decided"]["like_length"]["won"] == 32
    assert "few" not in (found["warning"] or "")


def test_like_length_is_within_a_fifth_of_the_mean():
    lengths = [(100, 100), (110, 90), (111, 89), (90, 110), (300, 100)]
    answers = [Pair(str(n), [], "m" * one, "b" * two) for n, (one, two) in enumerate(lengths)]
    found = verdict(answers, both([(0.9, 0.9)] * 5))["decided"]
    assert (found["won"], found["like_length"]["won"]) == (5, 3)


def test_what_is_missing_or_weak_is_said():
    lost = [judged(40, MODEL_FIRST, None, None, "timeout"), judged(40, BASELINE_FIRST, 0.6, 0.9)]
    found = verdict(pairs(41), both([(0.6, 0.6), (0.4, 0.4)] * 20, mass=0.3) + lost)
    assert found["outcomes"] == {"judged": 81, "timeout": 1}
    assert found["decided"]["one_order"] == 1
    assert "1 of 82 judgements are missing from the rates: 1 timeout" in found["warning"]
    assert "the judge puts only 31% of its probability" in found["warning"]
    assert found["label_mass"] == pytest.approx((80 * 0.3 + 0.9) / 81)
    few = verdict(pairs(3), both([(0.6, 0.6), (0.4, 0.4), (0.7, 0.6)], mass=None))
    assert "only 3 prompts are decided (below 30)" in few["warning"]
    assert "6 of 6 judgements came without probabilities" in few["warning"]
    assert verdict(pairs(1), both([(0.6, 0.6)]))["raw"] is None
