"""The win rate: the truth of simulated judges, statsmodels, and the published figures of real judgements."""

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit

from uncertune.errors import UserError
from uncertune.evaluation import win_rate

RATES, LENGTH, PLACE = (0.35, 0.5, 0.65), 0.8, -0.9


def simulated(rng, rate, prompts=200, *, length=LENGTH, place=PLACE, noise=1.0, longer=0.5):
    """A judge who prefers longer answers and the second place; how much better an answer is differs by prompt.

    Both orders of a prompt share its quality, so judgements of one prompt depend on each other. ``rate`` is the share
    of judgements won at equal length and without a place: the intercept that gives it is found by its definition.
    """
    differences = rng.normal(longer, 1, prompts) * 400
    scaled = np.tanh(differences / np.std(np.repeat(differences, 2), ddof=1))
    quality = rng.normal(0, noise, prompts)
    logit = np.log(rate / (1 - rate))
    position = np.tile([1, -1], prompts)
    eta = logit + np.repeat(quality + length * scaled, 2) + place * position
    won = rng.random(2 * prompts) < expit(eta)
    return won.astype(float), np.repeat(differences, 2), position, np.repeat(np.arange(prompts), 2)


@pytest.mark.parametrize("rate", RATES)
def test_the_true_preference_is_recovered(rate):
    rng = np.random.default_rng(0)
    found = win_rate(*simulated(rng, rate, prompts=20_000, noise=0.0))
    assert found.win_rate == pytest.approx(rate, abs=0.01)
    assert found.length_effect == pytest.approx(LENGTH, abs=0.06)
    assert found.position_effect == pytest.approx(PLACE, abs=0.05)
    assert found.order_averaged == pytest.approx(
        (expit(np.log(rate / (1 - rate)) + PLACE) + expit(np.log(rate / (1 - rate)) - PLACE)) / 2, abs=0.01
    )
    assert abs(found.raw - rate) > 0.015, "the raw rate has the judge's liking for length in it"


def test_intervals_cover_at_their_nominal_rate():
    """Judgements of one prompt depend on each other; the truth is the fit to very many prompts."""
    rng = np.random.default_rng(1)
    truth = win_rate(*simulated(rng, 0.6, prompts=100_000))
    names = ("win_rate", "order_averaged", "position_effect", "length_effect", "raw")
    intervals = ("interval", "order_averaged_interval", "position_interval", "length_interval", "raw_interval")
    inside = dict.fromkeys(names, 0)
    runs = 200
    for _ in range(runs):
        found = win_rate(*simulated(rng, 0.6, prompts=100))
        for name, interval in zip(names, intervals, strict=True):
            low, high = getattr(found, interval)
            inside[name] += low <= getattr(truth, name) <= high
    for name, count in inside.items():  # a true 95 % leaves 0.895 to 0.995 once in 1000 times
        assert 0.895 <= count / runs <= 0.995, (name, count / runs)


def test_intervals_that_take_judgements_for_independent_are_too_narrow():
    rng = np.random.default_rng(2)
    preference, difference, position, prompt = simulated(rng, 0.6, prompts=2000, noise=2.0)
    clustered = win_rate(preference, difference, position, prompt)
    alone = win_rate(preference, difference, position, np.arange(len(prompt)))
    assert alone.win_rate == pytest.approx(clustered.win_rate)
    assert alone.standard_error < 0.9 * clustered.standard_error


def statsmodels_fit(preference, difference, position, prompt):
    """Constant, length and, where it varies, position."""
    import statsmodels.api as sm

    scaled = np.tanh(difference / np.std(difference, ddof=1))
    columns = np.column_stack([np.ones_like(scaled), scaled, position][: 3 if np.ptp(position) else 2])
    model = sm.GLM(preference, columns, family=sm.families.Binomial())
    return model.fit(cov_type="cluster", cov_kwds={"groups": prompt, "df_correction": True}, use_t=True)


def assert_is(found, fit):
    assert found.win_rate == pytest.approx(expit(fit.params[0]), abs=1e-6)
    assert found.length_effect == pytest.approx(fit.params[1], abs=1e-5)
    error = fit.bse[0] * found.win_rate * (1 - found.win_rate)
    assert found.standard_error == pytest.approx(error, rel=1e-4)
    ends = fit.conf_int()
    assert found.interval == pytest.approx(tuple(expit(ends[0])), abs=1e-5)
    assert found.length_interval == pytest.approx(tuple(ends[1]), abs=1e-4)
    if len(fit.params) < 3:
        assert found.order_averaged == pytest.approx(found.win_rate)
        assert found.order_averaged_interval == pytest.approx(found.interval)
        return
    assert found.position_effect == pytest.approx(fit.params[2], abs=1e-5)
    assert found.position_interval == pytest.approx(tuple(ends[2]), abs=1e-4)
    rates = expit(fit.params[0] + fit.params[2] * np.array([1, -1]))
    slopes = rates * (1 - rates) / 2
    gradient = np.array([slopes.sum(), 0, slopes[0] - slopes[1]])
    spread = np.sqrt(gradient @ fit.cov_params() @ gradient)
    low, high = found.order_averaged_interval
    assert found.order_averaged == pytest.approx(rates.mean(), abs=1e-6)
    assert (high - low) / 2 == pytest.approx(1.96 * spread, rel=0.05)


@pytest.mark.parametrize("soft", [False, True])
def test_it_is_the_binomial_glm_of_statsmodels(soft):
    rng = np.random.default_rng(3)
    preference, difference, position, prompt = simulated(rng, 0.6)
    if soft:
        preference = np.clip(0.7 * preference + rng.uniform(0, 0.3, len(preference)), 0, 1)
    assert_is(
        win_rate(preference, difference, position, prompt), statsmodels_fit(preference, difference, position, prompt)
    )


PUBLISHED = {  # win rate and length-controlled win rate on AlpacaEval's leaderboard
    "FuseChat-Gemma-2-9B-Instruct": (70.50, 70.18),
    "FuseChat-Llama-3.1-8B-Instruct": (63.33, 65.39),
    "vicuna-13b-v1.5": (6.72, 10.48),
    "OpenHermes-2.5-Mistral-7B": (10.34, 16.25),
}


@pytest.fixture(scope="module")
def real():
    path = Path(os.environ.get("UNCERTUNE_DATA", "nowhere")) / "alpaca_eval_judgements.jsonl.gz"
    if not path.is_file():
        pytest.skip("needs alpaca_eval_judgements in UNCERTUNE_DATA")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    out = {}
    for model in PUBLISHED:
        own = [row for row in rows if row["model"] == model]
        columns = [
            [row["preference"] for row in own],
            [row["length"] - row["baseline_length"] for row in own],
            [row["position"] for row in own],
            [row["prompt"] for row in own],
        ]
        out[model] = [np.asarray(column, dtype=float) for column in columns]
    return out


@pytest.mark.parametrize("model", PUBLISHED)
def test_real_judgements_give_what_statsmodels_gives_and_the_published_raw_rate(model, real):
    found = win_rate(*real[model])
    assert 100 * found.raw == pytest.approx(PUBLISHED[model][0], abs=0.01)
    assert_is(found, statsmodels_fit(*real[model]))


@pytest.mark.parametrize("model", PUBLISHED)
def test_the_page_of_evaluation_holds_what_comes_out(model, real):
    found = win_rate(*real[model])
    low, high = found.interval
    averaged = f"{found.order_averaged:.2%}" if found.position_effect else "–"
    row = f"| {model} | {found.raw:.2%} | {found.win_rate:.2%} \\[{100 * low:.1f}, {100 * high:.1f}\\] | "
    row += f"{PUBLISHED[model][1]:.2f}% | {averaged} |"
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "judge.md").read_text()
    assert row.replace("%", " %") in page


@pytest.mark.parametrize("model", [name for name, (_, rate) in PUBLISHED.items() if 50 < rate < 75])
def test_near_one_half_the_published_length_controlled_rate_comes_out(model, real):
    assert 100 * win_rate(*real[model]).win_rate == pytest.approx(PUBLISHED[model][1], abs=0.5)


@pytest.mark.parametrize("model", PUBLISHED)
def test_a_rate_that_moves_by_more_than_ten_points_is_warned_of(model, real):
    found = win_rate(*real[model])
    moved = max(abs(found.win_rate - found.raw), abs(found.order_averaged - found.raw))
    assert any("the adjustment moves the rate" in line for line in found.warnings) == (moved > 0.10)


def test_the_warning_names_the_extrapolation():
    rng = np.random.default_rng(4)
    found = win_rate(*simulated(rng, 0.4, prompts=500, length=3.0, place=0.0, longer=2.0))
    assert abs(found.order_averaged - found.raw) > 0.1
    assert any("it extrapolates" in line for line in found.warnings)
    found = win_rate(*simulated(rng, 0.4, prompts=500, length=0.0, place=0.0))
    assert found.warnings == ()


def test_nothing_but_wins_has_an_interval_all_the_same():
    prompt = np.repeat(np.arange(8), 2)
    found = win_rate(np.ones(16), np.repeat(np.arange(8.0), 2) * 10 - 35, np.tile([1, -1], 8), prompt)
    assert found.raw == 1
    assert 0.5 < found.interval[0] < found.win_rate < found.interval[1] < 1
    assert any("half a won and half a lost prompt" in line for line in found.warnings)


@pytest.mark.parametrize("length", [0, 7, 8, 1000, 10**6])
@pytest.mark.parametrize("sure", [0.4, 0.1, 1e-3, 1e-12])
def test_two_prompts_of_almost_one_length_extrapolate_to_a_finite_rate(length, sure):
    """The rate at equal length lies far outside the data: it may be 0, 1 or undetermined, but is a number."""
    preference = [sure, sure, 1 - sure, 1 - sure]
    found = win_rate(preference, [length, length, length + 1, length + 1], [1, -1, 1, -1], [0, 0, 1, 1])
    low, high = found.order_averaged_interval
    assert 0 <= low <= found.order_averaged <= high <= 1
    assert found.interval[0] <= found.win_rate <= found.interval[1]


def test_prompts_are_told_apart_by_any_label():
    """1 and "1" are two prompts, and so are two tuples."""
    preference, place = [0.9, 0.6, 0.4, 0.8], [1, -1, 1, -1]
    by_number = win_rate(preference, [3, 2, 1, 5], place, [0, 0, 1, 1])
    assert win_rate(preference, [3, 2, 1, 5], place, [1, 1, "1", "1"]) == by_number
    assert win_rate(preference, [3, 2, 1, 5], place, [("a", 1), ("a", 1), ("a", 2), ("a", 2)]) == by_number


def test_a_column_that_says_nothing_is_left_out():
    rng = np.random.default_rng(5)
    preference, _, position, prompt = simulated(rng, 0.6)
    found = win_rate(preference, np.zeros(len(prompt)), position, prompt)
    assert found.length_effect == 0
    assert np.isnan(found.length_interval).all()
    assert any("the length term is left out" in line for line in found.warnings)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (([0.5, 1.2], [0, 1], [1, 1], [0, 1]), "must be in [0, 1]"),
        (([0.5, 0.5], [0, 1], [1, 2], [0, 1]), "position must be"),
        (([0.5, 0.5], [0, float("nan")], [1, 1], [0, 1]), "must be finite"),
        (([0.5, 0.5], [0, 1], [1, -1], [0, 0]), "1 prompts have judgements"),
        (([0.5], [0, 1], [1, -1], [0, 1]), "differ in length"),
    ],
)
def test_bad_judgements_are_one_line(rows, says):
    with pytest.raises(UserError) as caught:
        win_rate(*rows)
    assert says in str(caught.value)
