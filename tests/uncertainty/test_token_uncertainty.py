"""The uncertainty of a batch's response tokens against everything stored in float64, and what it must not depend on."""

import copy
import math

import pytest
import torch
from peft import LoraConfig, get_peft_model

from helpers.tiny import KINDS, tiny_model
from uncertune.errors import UserError
from uncertune.models import attach_head
from uncertune.uncertainty import (
    adapter_ensemble,
    dropout_ensemble,
    mc_dropout,
    model_ensemble,
    sample_seed,
    token_uncertainty,
)

COLUMNS = ("total", "aleatoric", "epistemic", "loss", "entropy")


def batch(rows=3, columns=11, vocab=97, seed=0):
    ids = torch.randint(3, vocab, (rows, columns), generator=torch.Generator().manual_seed(seed))
    labels = ids.clone()
    for row in range(rows):
        labels[row, : 3 * row] = -100
    labels[:, 7] = -100  # a hole in the response
    return ids, labels


def naive(forwards, labels):
    """Total, aleatoric, epistemic of one row from logits (S, L, V) of all samples, as SPEC S18 writes them."""
    wanted = labels[1:] != -100
    probs_STV = torch.stack(forwards)[:, :-1][:, wanted].double().softmax(-1)
    aleatoric = torch.special.entr(probs_STV).sum(-1).mean(0)
    total = torch.special.entr(probs_STV.mean(0)).sum(-1)
    return total, aleatoric, total - aleatoric


def assert_equal(ours, theirs, atol=0.0):
    for name in COLUMNS:
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=0, atol=atol)
    assert torch.equal(ours.position, theirs.position)


def assert_sound(result, vocabulary=97):
    assert torch.equal(result.total, result.aleatoric + result.epistemic)
    assert (result.epistemic >= 0).all()
    assert (result.total <= math.log(vocabulary) + 1e-9).all()
    assert all(getattr(result, name).dtype == torch.float64 for name in COLUMNS)


def adapted(names=("default", "other"), **options):
    config = LoraConfig(r=4, target_modules="all-linear", **options)
    model = get_peft_model(tiny_model("llama", tie_word_embeddings=False), config, adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, config)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "modules_to_save" in name:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


# ----------------------------------------------------------------------------------------------- against the definition


@pytest.mark.parametrize("kind", ["llama", "gemma2", "phi3", "phi", "granite"])
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-9), (torch.float32, 2e-6)])
@pytest.mark.parametrize("pass_tokens", [1, 40])
def test_equal_to_storing_every_distribution(kind, pass_tokens, dtype, atol):
    model = tiny_model(kind, dtype=dtype)
    ids, labels = batch()
    result = token_uncertainty(model, ids, labels, samples=7, rate=0.2, seed=4, pass_tokens=pass_tokens)
    assert_sound(result)
    stack = max(1, pass_tokens // 11)
    expected = []
    with torch.no_grad(), mc_dropout(model, 0.2) as reseed:
        for row in range(3):
            forwards = []
            for first in range(0, 7, stack):
                reseed(sample_seed(4, ids[row], first))
                forwards += model(ids[row].expand(min(stack, 7 - first), -1)).logits.unbind(0)
            expected.append(naive(forwards, labels[row]))
    for name, theirs in zip(("total", "aleatoric", "epistemic"), zip(*expected, strict=True), strict=True):
        torch.testing.assert_close(getattr(result, name), torch.cat(theirs), rtol=0, atol=atol)
    assert result.epistemic.min() > 1e-6


@pytest.mark.parametrize("kind", ["llama", "gemma2", "phi"])
def test_loss_and_entropy_are_those_of_the_plain_model(kind):
    model = tiny_model(kind)
    ids, labels = batch()
    result = token_uncertainty(model, ids, labels, samples=2)
    with torch.no_grad():
        log_probs = model(ids).logits[:, :-1].double().log_softmax(-1)
    wanted = labels[:, 1:] != -100
    assert torch.equal(result.position, wanted.nonzero() + torch.tensor([0, 1]))
    loss = -log_probs.gather(-1, ids[:, 1:, None]).squeeze(-1)[wanted]
    torch.testing.assert_close(result.loss, loss, rtol=0, atol=1e-5)
    torch.testing.assert_close(result.entropy, -(log_probs.exp() * log_probs).sum(-1)[wanted], rtol=0, atol=1e-5)


def test_rate_0_has_no_epistemic_uncertainty():
    ids, labels = batch()
    result = token_uncertainty(tiny_model("llama"), ids, labels, samples=5, rate=0.0)
    assert result.epistemic.abs().max() <= 1e-6
    torch.testing.assert_close(result.total, result.entropy, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_architecture(kind, dtype):
    model = tiny_model(kind, dtype=dtype)
    ids, labels = batch(rows=2)
    small, large = (token_uncertainty(model, ids, labels, samples=8, rate=rate) for rate in (0.02, 0.4))
    assert_sound(small)
    assert 0 < small.epistemic.mean() < large.epistemic.mean()


# -------------------------------------------------------------------------------------- what it must not depend on


@pytest.mark.parametrize("kind", ["llama", "gemma2", "mixtral"])
def test_a_document_alone_in_a_batch_and_padded_is_the_same(kind):
    model = tiny_model(kind)
    ids, labels = batch()
    options = {"samples": 5, "pass_tokens": 25}
    together = token_uncertainty(model, ids, labels, **options)
    for row in range(3):
        own = together.position[:, 0] == row
        alone = token_uncertainty(model, ids[row : row + 1], labels[row : row + 1], **options)
        for name in COLUMNS:
            assert torch.equal(getattr(alone, name), getattr(together, name)[own])
    for left, right in ((4, 0), (0, 3)):
        pads = [torch.nn.functional.pad(x, (left, right), value=fill) for x, fill in ((ids, 2), (labels, -100))]
        mask = torch.nn.functional.pad(torch.ones_like(ids), (left, right))
        padded = token_uncertainty(model, *pads, attention_mask=mask, **options)
        assert torch.equal(padded.position, together.position + torch.tensor([0, left]))
        for name in COLUMNS:
            assert torch.equal(getattr(padded, name), getattr(together, name))


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2"])
def test_little_memory_gives_the_same_numbers(kind):
    model = tiny_model(kind)
    ids, labels = batch()
    plenty = token_uncertainty(model, ids, labels, samples=9)
    hidden_only = token_uncertainty(model, ids, labels, samples=9, memory=3 * 9 * 32 * 4)  # 3 tokens at a time
    sums = token_uncertainty(model, ids, labels, samples=9, memory=4 * 97 * 8)  # 4 tokens of sums, 2 of hidden states
    assert_equal(hidden_only, plenty, atol=2e-6)  # float32 products of other shapes
    assert_equal(sums, plenty, atol=2e-6)


def test_the_seed_matters_and_the_global_generator_does_not():
    model = tiny_model("llama")
    ids, labels = batch()
    first = token_uncertainty(model, ids, labels, samples=3)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert_equal(token_uncertainty(model, ids, labels, samples=3), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(token_uncertainty(model, ids, labels, samples=3, seed=1).total, first.total)


def test_progress_counts_samples():
    seen = []
    ids, labels = batch(rows=2)
    token_uncertainty(
        tiny_model("llama"), ids, labels, samples=5, pass_tokens=22, progress=lambda *counts: seen.append(counts)
    )
    assert seen == [(2, 10), (4, 10), (5, 10), (7, 10), (9, 10), (10, 10)]


def test_nothing_to_score():
    ids, _ = batch()
    labels = torch.full_like(ids, -100)
    labels[:, 0] = 5  # nothing predicts the first token of a row
    result = token_uncertainty(tiny_model("llama"), ids, labels, samples=2)
    assert result.total.shape == (0,)
    assert result.position.shape == (0, 2)


# ------------------------------------------------------------------------------------------------------ the model after


@pytest.mark.parametrize("attached", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_the_model_is_left_as_it_was(attached, training):
    model = adapted()
    if attached:
        attach_head(model)
    model.train(training)
    for parameter in model.parameters():
        parameter.grad = None
    before = {(name, key): id(value) for name, module in model.named_modules() for key, value in vars(module).items()}
    weights = copy.deepcopy(model.state_dict())
    trainable = [parameter.requires_grad for parameter in model.parameters()]
    ids, labels = batch()
    assert not token_uncertainty(model, ids, labels, samples=2).total.requires_grad
    after = {(name, key): id(value) for name, module in model.named_modules() for key, value in vars(module).items()}
    assert {key: value for key, value in before.items() if after.get(key) != value} == {}
    assert after.keys() == before.keys()
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert [parameter.requires_grad for parameter in model.parameters()] == trainable
    assert all(parameter.grad is None for parameter in model.parameters())


# ------------------------------------------------------------------------------------------------------ other ensembles


def test_models_as_members():
    models = [tiny_model("llama", seed=seed, dtype=torch.float64) for seed in range(3)]
    ids, labels = batch()
    result = token_uncertainty(models[0], ids, labels, ensemble=model_ensemble(models))
    assert_sound(result)
    with torch.no_grad():
        forwards = [model(ids).logits for model in models]
    expected = [naive([logits[row] for logits in forwards], labels[row]) for row in range(3)]
    torch.testing.assert_close(result.epistemic, torch.cat([row[2] for row in expected]), rtol=0, atol=1e-9)


def test_loaded_members_come_one_at_a_time_and_once_where_memory_allows():
    loaded = []

    def loader(seed):
        return lambda: loaded.append(seed) or tiny_model("llama", seed=seed)

    ids, labels = batch()
    ensemble = model_ensemble([loader(0), loader(1)])
    result = token_uncertainty(tiny_model("llama"), ids, labels, ensemble=ensemble)
    assert loaded == [0, 1]
    tight = token_uncertainty(tiny_model("llama"), ids, labels, ensemble=ensemble, memory=8 * 97 * 8)
    assert_equal(tight, result, atol=2e-6)
    assert len(loaded) > 4


def test_identical_members_have_no_epistemic_uncertainty():
    ids, labels = batch()
    model = tiny_model("phi3")
    result = token_uncertainty(model, ids, labels, ensemble=model_ensemble([model, copy.deepcopy(model), model]))
    assert result.epistemic.abs().max() <= 1e-6


@pytest.mark.parametrize("own_head", [False, True])
def test_adapters_as_members(own_head):
    model = adapted(**({"modules_to_save": ["lm_head"]} if own_head else {})).double()
    ids, labels = batch()
    trainable = [parameter.requires_grad for parameter in model.parameters()]
    ensemble = adapter_ensemble(model, ["default", "other"])
    assert ensemble.shared_head is not own_head
    result = token_uncertainty(model, ids, labels, ensemble=ensemble)
    assert (model.active_adapter, [parameter.requires_grad for parameter in model.parameters()]) == (
        "default",
        trainable,
    )
    forwards = []
    for name in ("default", "other"):
        model.set_adapter(name)
        with torch.no_grad():
            forwards.append(model(ids).logits)
    expected = [naive([logits[row] for logits in forwards], labels[row]) for row in range(3)]
    torch.testing.assert_close(result.total, torch.cat([row[0] for row in expected]), rtol=0, atol=1e-9)
    assert result.epistemic.min() > 1e-6


def test_dropout_members_say_that_they_share_the_head():
    assert dropout_ensemble(tiny_model("llama"), 3).shared_head
    assert not model_ensemble([tiny_model("llama")]).shared_head


# ------------------------------------------------------------------------------------------------------------- mistakes


def test_inputs_that_do_not_fit_are_refused():
    model = tiny_model("llama")
    ids, labels = batch()
    mask = torch.ones_like(ids)
    mask[1, 0] = 0
    hole = torch.ones_like(ids)
    hole[2, 5] = 0
    cases = [
        ({"labels": labels[:, 1:]}, "does not fit input_ids"),
        ({"attention_mask": mask[:, 1:]}, "attention_mask"),
        ({"attention_mask": hole}, "row 2 has a hole"),
        ({"attention_mask": mask, "labels": ids}, "row 1 has a label on padding"),
        ({"samples": 0}, "samples: 0"),
        ({"rate": 1.0}, "rate: 1.0"),
        ({"places": "residual"}, "no dropout at 'residual'"),
        ({"samples": 3, "ensemble": model_ensemble([model])}, "leave those out"),
        ({"ensemble": model_ensemble([tiny_model("llama", vocab_size=98)])}, "vocabularies differ"),
    ]
    for options, message in cases:
        with pytest.raises(UserError, match=message) as caught:
            token_uncertainty(model, ids, **{"labels": labels, **options})
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no adapter 'third'"):
        adapter_ensemble(adapted(), ["third"])
    with pytest.raises(UserError, match="empty"):
        model_ensemble([])
