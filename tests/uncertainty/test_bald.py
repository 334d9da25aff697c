"""The streamed decomposition against numbers by hand and against the definition in float64."""

import math

import pytest
import torch

from uncertune.objectives import Head
from uncertune.uncertainty import bald
from uncertune.uncertainty.bald import Logits, Plan, decompose


def naive(probs_STV):
    """SPEC S18, written down: total, aleatoric, epistemic from the stored distributions."""
    aleatoric = torch.special.entr(probs_STV).sum(-1).mean(0)
    total = torch.special.entr(probs_STV.mean(0)).sum(-1)
    return total, aleatoric, total - aleatoric


def random_case(samples=5, tokens=13, vocabulary=37, width=8, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(samples, tokens, width, generator=generator).to(dtype)
    return hidden, torch.randn(vocabulary, width, generator=generator).to(dtype)


def of_probabilities(*rows):
    """Hidden states (S, 1, V) and an identity head: sample s has exactly the distribution ``rows[s]``."""
    probs = torch.tensor(rows, dtype=torch.float64)
    return probs.log().clamp(min=-1e4)[:, None].float(), torch.eye(probs.shape[1])


def run(hidden, weight, **options):
    return decompose(hidden, Logits.of(Head(weight, **options), like=hidden))


def assert_sound(result, vocabulary):
    assert torch.equal(result.total, result.aleatoric + result.epistemic)
    assert (result.epistemic >= 0).all()
    assert (result.epistemic <= math.log(vocabulary)).all()


def test_two_members_by_hand():
    # H(1/2, 1/2) = ln 2; H(1/4, 3/4) = 2 ln 2 − 3/4 ln 3; H(3/8, 5/8) = 3 ln 2 − 3/8 ln 3 − 5/8 ln 5
    result = run(*of_probabilities((0.5, 0.5), (0.25, 0.75)))
    total, aleatoric = (
        3 * math.log(2) - 0.375 * math.log(3) - 0.625 * math.log(5),
        1.5 * math.log(2) - 0.375 * math.log(3),
    )
    assert result.total.item() == pytest.approx(total, abs=1e-7)
    assert result.aleatoric.item() == pytest.approx(aleatoric, abs=1e-7)
    assert result.epistemic.item() == pytest.approx(0.033822, abs=1e-6)


def test_two_members_who_are_certain_of_different_tokens():
    result = run(*of_probabilities((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)))
    assert result.aleatoric.item() == 0
    assert result.epistemic.item() == pytest.approx(math.log(2), abs=1e-12)


@pytest.mark.parametrize(
    "options", [{}, {"softcap": 2.0}, {"scale": 0.25}, {"softcap": 1.5, "scale": 3.0, "bias": True}]
)
def test_equal_to_the_definition_for_every_head(options):
    hidden, weight = random_case()
    options = {**options, "bias": torch.linspace(-1, 1, 37)} if "bias" in options else options
    z = hidden.double() @ weight.double().T + options.get("bias", torch.zeros(1)).double()
    z = z * options.get("scale", 1.0)
    z = z if "softcap" not in options else options["softcap"] * (z / options["softcap"]).tanh()
    result = run(hidden, weight, **options)
    for ours, theirs in zip((result.total, result.aleatoric, result.epistemic), naive(z.softmax(-1)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert_sound(result, 37)


def test_half_precision_heads_give_float32_logits():
    hidden, weight = random_case(dtype=torch.bfloat16)
    expected = naive((hidden.double() @ weight.double().T).softmax(-1))
    torch.testing.assert_close(run(hidden, weight).epistemic, expected[2], rtol=0, atol=1e-6)


@pytest.mark.parametrize("spread", [0.0, 1.0, 30.0])
@pytest.mark.parametrize("samples", [3, 100])
def test_identical_members_have_no_epistemic_uncertainty(samples, spread):
    generator = torch.Generator().manual_seed(0)
    row = (spread * torch.randn(1, 2, 4, generator=generator)).expand(samples, 2, 4)
    result = run(row, torch.randn(50_000 if samples == 3 else 5_000, 4, generator=generator))
    assert result.epistemic.abs().max() <= 1e-7
    assert torch.equal(result.total, result.aleatoric + result.epistemic)


def test_a_forbidden_token_has_probability_0():
    hidden, weight = random_case(vocabulary=6)
    bias = torch.tensor([0.0, -torch.inf, 0.0, 0.0, 0.0, 0.0])
    keep = [0, 2, 3, 4, 5]
    torch.testing.assert_close(run(hidden, weight, bias=bias).total, run(hidden, weight[keep]).total)


def test_logits_that_are_not_finite_are_not_hidden():
    hidden, weight = random_case()
    hidden[2, 3] = torch.nan
    assert run(hidden, weight).total.isnan().nonzero().flatten().tolist() == [3]


def test_rounding_alone_is_clamped(monkeypatch):
    hidden, weight = random_case(samples=2)
    moments = bald._Moments()
    for hidden_TD in hidden:
        moments.add(hidden_TD @ weight.T)
    moments._entropy_t += 2.0  # what no distribution has
    assert (moments.finish().epistemic < -0.1).all()


@pytest.mark.parametrize("tokens", [0, 1, 13])
@pytest.mark.parametrize("chunk", [1, 4, 10_000])
def test_both_strategies_and_all_chunk_sizes_agree(tokens, chunk, monkeypatch):
    hidden, weight = random_case(tokens=tokens)
    whole = run(hidden, weight)
    monkeypatch.setitem(bald.CHUNK_BYTES, "cpu", chunk * (bald._LOGIT + bald._SUM) * 37)
    logits = Logits.of(Head(weight), like=hidden)
    kept, sums = bald.KeptHidden(), bald.StreamedSums()
    for accumulator in (kept, sums):
        for hidden_TD in hidden:
            accumulator.add(hidden_TD, logits)
    for name in ("total", "aleatoric", "epistemic"):
        torch.testing.assert_close(getattr(kept.finish(), name), getattr(sums.finish(), name), rtol=0, atol=1e-6)
        torch.testing.assert_close(getattr(sums.finish(), name), getattr(whole, name), rtol=0, atol=1e-6)
        assert getattr(whole, name).shape == (tokens,)


def test_the_plan_takes_the_fewest_passes_within_memory():
    sizes = {"width": 576, "vocabulary": 49_152, "itemsize": 4, "shared_head": True}
    assert Plan.of(1000, 100, memory=2**30, **sizes) == Plan("hidden", 4660, 230_400)
    assert Plan.of(1000, 1000, memory=2**28, **sizes).keep == "sums"  # 116 tokens of hidden states, 682 of sums
    assert Plan.of(1000, 100, memory=2**28, **{**sizes, "shared_head": False}) == Plan("sums", 682, 393_216)
    assert Plan.of(7, 100, memory=1, **sizes).tokens == 1
    plan = Plan("sums", 4, 8)
    assert [(part.start, part.stop) for part in plan.pieces(9)] == [(0, 4), (4, 8), (8, 9)]


def test_members_with_heads_of_their_own_equal_their_dense_mixture(monkeypatch):
    """Chunk by chunk, members of other hidden sizes and heads; no tensor of T × V."""
    members = [
        (torch.randn(13, width), Head(torch.randn(37, width), softcap=cap)) for width, cap in ((8, None), (5, 4.0))
    ]
    monkeypatch.setattr(bald, "CHUNK_BYTES", {"cpu": 4 * 37 * 12})
    logits = [Logits.of(head, like=hidden) for hidden, head in members]
    found = bald.decompose_members([hidden for hidden, _ in members], logits)
    p = torch.stack([head.logits(hidden).double().softmax(-1) for hidden, head in members])
    torch.testing.assert_close(found.total, torch.special.entr(p.mean(0)).sum(-1), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.aleatoric, torch.special.entr(p).sum(-1).mean(0), rtol=0, atol=1e-6)
    assert len(list(logits[0].chunks(13))) > 1
    nothing = [hidden[:0] for hidden, _ in members]
    assert bald.decompose_members(nothing, logits).epistemic.shape == (0,)
