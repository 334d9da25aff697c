"""The second reading of a win rate: prompts that a judge decides, the exact interval, and the temperature."""

import gzip
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit, logit

from uncertune.errors import UserError
from uncertune.statistics.decided import exact_interval, fit_temperature, order_averaged, tempered_rate
from uncertune.statistics.winrate import win_rate


def weak_judge(rng, prompts=200, *, share=0.85, compression=0.05, bias=1.5):
    """A judge on the better side of most prompts, with preferences near one half and a position bias."""
    better = rng.random(prompts) < share
    opinion = np.where(better, 1.0, -1.0) * rng.uniform(0.5, 1.5, prompts) * compression
    position = np.tile([1, -1], prompts)
    preference = expit(np.repeat(opinion, 2) + bias * position)
    return preference, np.repeat(rng.normal(0, 300, prompts), 2), position, np.repeat(np.arange(prompts), 2), better


def test_a_judge_that_hardly_leans_but_leans_rightly_decides():
    preference, length, position, prompt, better = weak_judge(np.random.default_rng(0))
    found = win_rate(preference, length, position, prompt)
    assert found.win_rate == pytest.approx(0.5, abs=0.02), "by share of probability nothing is seen"
    decided = found.decided
    assert (decided.won, decided.lost, decided.tied, decided.one_order) == (better.sum(), (~better).sum(), 0, 0)
    assert decided.share == better.mean()
    low = stats.beta.ppf(0.025, better.sum(), (~better).sum() + 1)
    high = stats.beta.ppf(0.975, better.sum() + 1, (~better).sum())
    assert decided.interval == pytest.approx((low, high))
    assert decided.adjusted == pytest.approx(better.mean(), abs=0.02)


def test_each_order_weighs_the_same_and_a_bias_cancels():
    position = np.array([1, 1, 1, -1, 1, -1, 1, 0, 0])
    log_odds = np.array([2.0, 2.0, 2.0, -1.0, 3.0, -3.0, 5.0, 0.4, 0.2])
    prompt = np.array([0, 0, 0, 0, 1, 1, 2, 3, 3])
    found = order_averaged(expit(log_odds), position.astype(float), prompt)
    assert found == pytest.approx([0.5, 0.0, math.nan, 0.3], nan_ok=True)
    counts = win_rate(expit(log_odds), np.zeros(9), position, prompt).decided
    assert (counts.won, counts.lost, counts.tied, counts.one_order) == (2, 0, 1, 1)
    assert counts.interval == pytest.approx((0.025**0.5, 1.0))


def test_letters_without_probabilities_that_follow_the_order_are_a_tie():
    found = win_rate([1, 0, 1, 1, 0, 0], np.zeros(6), [1, -1, 1, -1, 1, -1], [0, 0, 1, 1, 2, 2]).decided
    assert (found.won, found.lost, found.tied, found.share) == (1, 1, 1, 0.5)


def test_length_is_ruled_out_on_decided_prompts():
    """The judge takes the longer answer's side; the model's are mostly longer, and no better."""
    rng = np.random.default_rng(1)
    length = rng.normal(300, 300, 4000)
    won = rng.random(4000) < expit(2.0 * np.tanh(length / length.std(ddof=1)))
    preference = np.repeat(np.where(won, 0.6, 0.4), 2)
    found = win_rate(preference, np.repeat(length, 2), np.tile([1, -1], 4000), np.repeat(np.arange(4000), 2)).decided
    assert found.share > 0.7
    low, high = found.adjusted_interval
    assert low < 0.5 < high
    assert found.adjusted == pytest.approx(0.5, abs=0.03)


def test_the_exact_interval_covers():
    counts = np.arange(21)
    for truth in (0.05, 0.5, 0.83):
        weights = stats.binom.pmf(counts, 20, truth)
        inside = [low <= truth <= high for low, high in (exact_interval(int(count), 20) for count in counts)]
        assert weights @ np.array(inside) >= 0.95


@pytest.mark.parametrize("truth", [0.1, 1.0, 3.0])
def test_the_temperature_is_recovered(truth):
    rng = np.random.default_rng(2)
    x = rng.normal(0, 1.5, 20_000) * truth
    right = rng.random(20_000) < expit(x / truth)
    found = fit_temperature(x, right)
    assert found.value == pytest.approx(truth, rel=0.05)
    assert found.agreement == pytest.approx(np.mean((x > 0) == right))
    rate, (low, high) = tempered_rate(x, found.value)
    assert low < right.mean() < high
    assert rate == pytest.approx(right.mean(), abs=0.01)


def test_the_temperature_is_the_maximum_of_the_likelihood():
    import statsmodels.api as sm

    rng = np.random.default_rng(3)
    x = rng.normal(0, 1, 400)
    right = (rng.random(400) < expit(2 * x)).astype(float)
    scale = np.abs(x).mean()
    xs, ys = np.append(x, [scale, scale]), np.append(right, [1, 0])
    fit = sm.GLM(ys, xs[:, None], family=sm.families.Binomial(), freq_weights=np.append(np.ones(400), [0.5, 0.5])).fit()
    assert 1 / fit_temperature(x, right).value == pytest.approx(fit.params[0], rel=1e-4)


def test_a_judge_that_is_always_right_has_a_finite_temperature_and_one_that_is_wrong_none():
    x = np.array([0.02, 0.05, -0.01, 0.03])
    found = fit_temperature(x, [1, 1, 0, 1])
    assert 0 < found.value < 0.05
    assert (found.agreement, found.pairs) == (1.0, 4)
    assert math.isinf(fit_temperature(x, [0, 0, 1, 0]).value)
    assert tempered_rate(x, math.inf)[0] == 0.5
    for wrong in (([], []), ([0.1], [2]), ([math.nan], [1]), ([0.0], [1]), ([0.1, 0.2], [1])):
        with pytest.raises(UserError, match="temperature"):
            fit_temperature(*wrong)


def test_real_judgements():
    path = Path(os.environ.get("UNCERTUNE_DATA", "nowhere")) / "alpaca_eval_judgements.jsonl.gz"
    if not path.is_file():
        pytest.skip("needs alpaca_eval_judgements in UNCERTUNE_DATA")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    for model, position in (("FuseChat-Gemma-2-9B-Instruct", "unknown"), ("vicuna-13b-v1.5", "known")):
        own = [row for row in rows if row["model"] == model]
        columns = {name: np.array([row[name] for row in own], dtype=float) for name in ("preference", "position")}
        length = [row["length"] - row["baseline_length"] for row in own]
        prompt = [row["prompt"] for row in own]
        found = win_rate(columns["preference"], length, columns["position"], prompt).decided
        if position == "known":
            assert found.one_order == (columns["position"] != 0).sum() > 800, (
                "one order each: the bias is still in them"
            )
            assert found.share is None
            found = win_rate(columns["preference"], length, np.zeros(805), prompt).decided
        wins, losses = int((columns["preference"] > 0.5).sum()), int((columns["preference"] < 0.5).sum())
        assert (found.won, found.lost, found.one_order) == (wins, losses, 0)
        test = stats.binomtest(wins, wins + losses).proportion_ci(0.95, method="exact")
        assert found.interval == pytest.approx((test.low, test.high))
        low, high = found.adjusted_interval
        assert 0 < low < found.adjusted < high < 1
        assert logit(found.adjusted) == pytest.approx(logit(found.share), abs=1.0)  # answers of like length
