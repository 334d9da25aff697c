"""Fig. 11: the exhaustive optimum is one, and for whitened data it is the top K residuals."""

import itertools

import pytest
import torch

from uncertune.studies.subset import METHODS, descend, exhaustive_optimum, problems, subsets, top_k


def loss_after(z, residual, mask, rate):
    """½‖Z w' − d‖² after a step on ``mask``, by doing it."""
    moved = residual - rate * z @ (z.T @ (mask * residual))
    return float(0.5 * moved.square().sum())


@pytest.mark.parametrize(("n", "k"), [(5, 2), (7, 3), (6, 1), (4, 4)])
def test_exhaustive_is_brute_force(n, k):
    generator = torch.Generator().manual_seed(n)
    z = torch.randn(3, n, 4, generator=generator, dtype=torch.float64)
    residual = torch.randn(3, n, generator=generator, dtype=torch.float64)
    rates = torch.tensor([0.1, 0.02, 0.3], dtype=torch.float64)
    found = exhaustive_optimum(z @ z.transpose(1, 2), residual, rates, subsets(n, k))
    for seed, rate in enumerate(rates):
        best = min(
            loss_after(z[seed], residual[seed], torch.tensor([float(i in chosen) for i in range(n)]).double(), rate)
            for chosen in itertools.combinations(range(n), k)
        )
        assert loss_after(z[seed], residual[seed], found[seed], rate) == pytest.approx(best, rel=1e-12)
        assert found[seed].sum() == k


@pytest.mark.parametrize("rate", [0.01, 0.5, 1.0, 1.9])
def test_where_the_data_are_whitened_top_k_is_the_optimum(rate):
    """The proof's case, Z Zᵀ = I: each chosen residual shrinks by 1 − λ, no other changes."""
    problem = problems(20, "whitened", torch.Generator().manual_seed(0))
    gram = problem.z_SND @ problem.z_SND.transpose(1, 2)
    assert torch.allclose(gram, torch.eye(16, dtype=torch.float64).expand_as(gram), atol=1e-12)
    residual = torch.randn(20, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.equal(exhaustive_optimum(gram, residual, torch.full((20,), rate), subsets(16, 4)), top_k(residual, 4))


def test_where_they_are_not_it_need_not_be():
    problem = problems(50, "correlated", torch.Generator().manual_seed(0))
    gram = problem.z_SND @ problem.z_SND.transpose(1, 2)
    best = exhaustive_optimum(gram, problem.d_SN, torch.full((50,), 0.01), subsets(16, 4))
    assert not torch.equal(best, top_k(problem.d_SN, 4))


@pytest.mark.parametrize("kind", ["whitened", "independent", "correlated"])
def test_every_method_descends(kind):
    for method in METHODS:
        generator = torch.Generator().manual_seed(2)
        losses = descend(problems(8, kind, generator), method, 40, generator)
        assert losses.shape == (8, 41)
        assert (losses[:, -1] < losses[:, 0]).all()
