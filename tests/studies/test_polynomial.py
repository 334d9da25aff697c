"""Fig. 2C: the closed form of the epistemic variance, and the numbers behind one datum."""

import numpy as np
import pytest
import torch
from scipy import stats

from uncertune.studies import polynomial
from uncertune.studies.correlation import ranks, spearman
from uncertune.studies.polynomial import COEFFICIENT_NOISE, LEARNING_RATE, epistemic_variance, powers


def test_epistemic_variance_is_near_its_closed_form():
    """Var = σ² Σ_p x^{2p}; of a variance over R draws the relative error is √(2 / (R − 1))."""
    x = torch.linspace(-1, 1, 9, dtype=torch.float64)
    draws = 40_000
    found = epistemic_variance(powers(x)[None], torch.Generator().manual_seed(0), draws)[0]
    exact = COEFFICIENT_NOISE**2 * powers(x).square().sum(-1)
    assert torch.allclose(found, exact, rtol=5 * (2 / draws) ** 0.5)


def test_spearman_is_scipys():
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(2, 3, 20))
    a[:, :9] = a[:, :9].round()  # ties
    found = spearman(torch.from_numpy(a), torch.from_numpy(b))
    assert found.tolist() == pytest.approx([stats.spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)])
    assert ranks(torch.tensor([3.0, 1.0, 3.0])).tolist() == [1.5, 0.0, 1.5]
    assert spearman(torch.ones(4), torch.arange(4)).isnan()


def test_the_drop_is_that_of_a_gradient_step(monkeypatch):
    """One polynomial, one stage, by autograd."""
    seen = {}
    monkeypatch.setattr(polynomial, "spearman", lambda value, drop: seen.setdefault("drop", drop).sum(-1))
    scales = torch.tensor([0.3], dtype=torch.float64)
    found = polynomial.measured(1, torch.Generator().manual_seed(3), scales)
    generator = torch.Generator().manual_seed(3)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    true = normal(1, 6)[0]
    x = 2 * torch.rand(1, 20, generator=generator, dtype=torch.float64)[0] - 1
    sd = 0.1 * torch.rand(1, 20, generator=generator, dtype=torch.float64)[0]
    y = powers(x) @ true + sd * normal(1, 20)[0]
    epistemic_variance(powers(x)[None], generator)
    now = true + 0.3 * normal(1, 1, 6)[0, 0]
    grid = powers(torch.linspace(-1, 1, 100, dtype=torch.float64))

    def error(w):
        return (grid @ (w - true)).square().mean()

    for datum in range(20):
        w = now.clone().requires_grad_()
        (0.5 * (powers(x[datum]) @ w - y[datum]) ** 2).backward()
        drop = error(now) - error(now - LEARNING_RATE * w.grad)
        assert float(seen["drop"][0, 0, datum]) == pytest.approx(float(drop), abs=1e-12)
    hurt = (seen["drop"][0, 0] < 0).double()
    assert float(found["hurt all"]) == pytest.approx(float(hurt.mean()))
    assert float(found["hurt aleatoric"]) == pytest.approx(float(hurt[sd.topk(5).indices].mean()))
