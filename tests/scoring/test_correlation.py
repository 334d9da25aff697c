"""Correlations against independent computations, and intervals that cover."""

import math

import numpy as np
import pytest

from uncertune.scoring.correlation import correlations, ranks
from uncertune.statistics.bootstrap import document_draws, estimate, mean_of


def columns(seed: int = 0, documents: int = 30) -> tuple[dict, np.ndarray]:
    """Tokens of documents of 5 to 30, with ties, and an effect of the document."""
    generator = np.random.default_rng(seed)
    sizes = generator.integers(5, 31, documents)
    document = np.repeat(np.arange(documents) * 7, sizes)
    effect = np.repeat(generator.normal(size=documents), sizes)
    latent = generator.normal(size=(3, len(document)))
    return {
        "epistemic": np.exp(latent[0] + effect),
        "aleatoric": np.round(np.exp(latent[1]), 1),
        "loss": np.exp(latent[0] + 0.5 * latent[1] + effect),
        "entropy": np.exp(latent[1] + 0.3 * latent[2]),
    }, document


def slow_ranks(values) -> list[float]:
    ordered = sorted(values)
    return [np.mean([i + 1 for i, other in enumerate(ordered) if other == value]) for value in values]


def test_pearson_and_spearman_are_numpy_s():
    data, document = columns()
    found = correlations(data, document, draws=5, seed=0)
    for (x, y), one in found.by["pearson"].items():
        assert one.value == pytest.approx(np.corrcoef(data[x], data[y])[0, 1], abs=1e-12)
    for (x, y), one in found.by["spearman"].items():
        expected = np.corrcoef(slow_ranks(data[x]), slow_ranks(data[y]))[0, 1]
        assert one.value == pytest.approx(expected, abs=1e-12)
    closer = found.closer["pearson"]
    by = found.by["pearson"]
    assert closer["epistemic"].value == pytest.approx(by["epistemic", "loss"].value - by["epistemic", "entropy"].value)
    assert closer["aleatoric"].value == pytest.approx(by["aleatoric", "entropy"].value - by["aleatoric", "loss"].value)


def test_weighted_ranks_are_those_of_repeated_values():
    generator = np.random.default_rng(1)
    values = generator.integers(0, 6, 20).astype(float)
    times = generator.integers(0, 4, 20)
    repeated = np.repeat(values, times)
    expected = dict(zip(repeated, slow_ranks(repeated), strict=True))
    got = ranks(values, times.astype(float))
    assert [got[i] for i in range(20) if times[i]] == pytest.approx(
        [expected[values[i]] for i in range(20) if times[i]]
    )


def test_a_draw_is_the_correlation_of_the_documents_drawn():
    """The bootstrap with weights equals one that really repeats the documents."""
    data, document = columns(documents=12)
    weights = document_draws(12, 40, seed=3)
    assert (weights.sum(1) == 12).all()
    names = np.unique(document)
    drawn = {"pearson": [], "spearman": []}
    for row in weights:
        index = np.concatenate(
            [np.flatnonzero(document == n) for n, w in zip(names, row, strict=True) for _ in range(int(w))]
        )
        x, y = data["epistemic"][index], data["loss"][index]
        drawn["pearson"].append(np.corrcoef(x, y)[0, 1])
        drawn["spearman"].append(np.corrcoef(slow_ranks(x), slow_ranks(y))[0, 1])
    found = correlations(data, document, draws=40, seed=3)
    for kind, values in drawn.items():
        one = found.by[kind]["epistemic", "loss"]
        assert (one.low, one.high) == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])), abs=1e-9)


def test_the_interval_covers_at_about_its_rate():
    """Documents with effects of their own: intervals over tokens would cover far too rarely."""
    truth = columns(seed=10_000, documents=4000)
    target = np.corrcoef(truth[0]["aleatoric"], truth[0]["entropy"])[0, 1]
    means = math.exp(1)  # E exp(N(0, 1) + N(0, 1))
    hits = hits_of_mean = 0
    for seed in range(60):
        data, document = columns(seed=seed, documents=60)
        one = correlations(data, document, draws=200, seed=seed).by["pearson"]["aleatoric", "entropy"]
        hits += one.low <= target <= one.high
        mean = mean_of(data["epistemic"], document, draws=200, seed=seed)
        hits_of_mean += mean.low <= means <= mean.high
    assert 0.8 <= hits / 60 <= 1.0
    assert 0.7 <= hits_of_mean / 60 <= 1.0


def test_a_mean_is_over_the_tokens_drawn():
    """Documents of different lengths whose tokens are all 3: so is the mean of every draw."""
    one = mean_of(np.full(7, 3.0), np.array([0, 0, 0, 0, 1, 2, 2]), draws=50, seed=0)
    assert (one.value, one.low, one.high) == (3, 3, 3)


def test_what_is_not_defined_is_not_a_number():
    document = np.zeros(4, dtype=np.int64)
    data = dict.fromkeys(("epistemic", "aleatoric", "loss", "entropy"), np.ones(4))
    found = correlations(data, document, draws=5, seed=0).by["pearson"]["epistemic", "loss"]
    assert math.isnan(found.value)
    assert math.isnan(found.low)
    assert math.isnan(estimate(1.0, np.array([math.nan])).low)
