"""The language: its oracle against enumeration and frequencies; the models that learn it."""

import itertools

import pytest
import torch

from uncertune.studies.language.grammar import LENGTH, TASKS, VOCABULARY, Language, divergence, entropy
from uncertune.studies.language.model import Transformer
from uncertune.studies.stacked import Stacked


@pytest.fixture(scope="module")
def language():
    return Language.draw(2, torch.Generator().manual_seed(0))


def test_every_row_is_a_distribution_over_words(language):
    assert torch.allclose(language.table.sum(-1), torch.ones((), dtype=torch.float64), atol=1e-12)
    assert float(language.table[..., :TASKS].abs().max()) == 0
    assert float(language.table[..., TASKS:].min()) > 0


def test_the_entropy_of_two_words_is_that_of_their_enumeration(language):
    """H(x₁, x₂) = H(x₁) + E[H(x₂ | x₁)], the joint distribution word by word from ``oracle``."""
    pairs = torch.tensor(list(itertools.product(range(TASKS, VOCABULARY), repeat=2)))
    texts = torch.cat([torch.full((len(pairs), 1), 3), pairs], 1).expand(2, -1, -1)
    oracle = language.oracle(texts)
    joint = oracle.gather(-1, texts[..., 1:, None])[..., 0].prod(-1)
    assert torch.allclose(joint.sum(1), torch.ones(2, dtype=torch.float64))
    by_enumeration = torch.special.entr(joint).sum(1)
    first = language.table[:, 3, 0, 3]
    second = (first[:, :, None] * language.table[:, 3, 1]).sum(1)  # not conditional: larger
    conditional = (first * entropy(language.table[:, 3, 1])).sum(1)
    assert torch.allclose(by_enumeration, entropy(first) + conditional)
    assert (entropy(second) > conditional).all()


def test_samples_follow_the_oracle(language):
    texts = language.sample([2], 20_000, torch.Generator().manual_seed(1))
    assert texts.shape == (2, 20_000, LENGTH + 1)
    first = torch.stack([torch.bincount(row, minlength=VOCABULARY) for row in texts[:, :, 1]]) / 20_000
    assert torch.allclose(first.double(), language.table[:, 2, 0, 2], atol=0.015)
    # the fact after each content word
    before, fact = texts[0, :, 2], texts[0, :, 3]
    word = int(before.mode().values)
    here = torch.bincount(fact[before == word], minlength=VOCABULARY).double()
    assert torch.allclose(here / here.sum(), language.table[0, 2, 2, word], atol=0.05)


def test_noise_replaces_words(language):
    clean = language.sample([0, 1], 4000, torch.Generator().manual_seed(1))
    noisy = language.sample([0, 1], 4000, torch.Generator().manual_seed(1), noise=1.0)
    frequencies = torch.bincount(noisy[:, :, 1:].flatten(), minlength=VOCABULARY)[TASKS:].double()
    assert torch.allclose(frequencies / frequencies.sum(), torch.full((18,), 1 / 18).double(), atol=2e-3)
    assert torch.equal(clean[:, :, 0], noisy[:, :, 0])


def test_a_shift_changes_only_its_tasks(language):
    shifted = language.shifted(2, 0.5, torch.Generator().manual_seed(2))
    same = (shifted.table == language.table).all(-1)
    assert same[:, 2:].all()
    assert 0.4 < same[:, :2, 1:].double().mean() < 0.6
    assert torch.equal(language.shifted(2, 0.0, torch.Generator().manual_seed(2)).table, language.table)


def test_certainty_takes_chance_away(language):
    certain = language.certain(2, 1.0)
    assert float(entropy(certain.table[:, :2]).max()) == 0
    assert torch.equal(certain.table[:, :2].argmax(-1), language.table[:, :2].argmax(-1))
    assert torch.equal(certain.table[:, 2:], language.table[:, 2:])
    half = language.certain(2, 0.5).table
    assert torch.allclose(half.sum(-1), torch.ones((), dtype=torch.float64))
    assert torch.allclose(half[:, :2].amax(-1), 0.5 + language.table[:, :2].amax(-1) / 2)


def test_divergence_is_zero_for_the_truth_and_positive_otherwise(language):
    oracle = language.oracle(language.sample([4], 5, torch.Generator().manual_seed(3)))
    assert float(divergence(oracle, oracle.clamp(min=1e-300).log()).abs().max()) < 1e-12
    flat = torch.full_like(oracle, 1 / VOCABULARY).log()
    kl = torch.tensor(VOCABULARY).double().log() - entropy(oracle)
    assert torch.allclose(divergence(oracle, flat), kl)


def test_the_model_sees_nothing_that_comes_later():
    model = Transformer().eval()
    tokens = torch.randint(VOCABULARY, (1, LENGTH))
    changed = tokens.clone()
    changed[0, 10:] = (changed[0, 10:] + 1) % VOCABULARY
    before, after = model(tokens), model(changed)
    assert torch.allclose(before[:, :10], after[:, :10], atol=1e-5)
    assert not torch.allclose(before[:, 10:], after[:, 10:], atol=1e-3)


def test_stacked_models_are_the_single_ones():
    """Outputs, gradients, and a fresh dropout mask for each."""
    stacked = Stacked(lambda: Transformer().eval(), [5, 6])
    torch.manual_seed(6)
    single = Transformer().eval()
    tokens = torch.randint(VOCABULARY, (2, 3, LENGTH))
    assert torch.allclose(stacked(tokens)[1], single(tokens[1]), atol=1e-5)
    stacked(tokens).square().sum().backward()
    single(tokens[1]).square().sum().backward()
    for name, parameter in single.named_parameters():
        assert torch.allclose(stacked.parameters[name].grad[1], parameter.grad, rtol=1e-3, atol=1e-3)
    same = stacked.repeated(2)
    same.base.train()
    twice = same(tokens.repeat_interleave(2, 0))
    same.base.eval()
    assert not torch.allclose(twice[0], twice[1])
    assert torch.equal(same.parameters["embed"][0], same.parameters["embed"][1])
