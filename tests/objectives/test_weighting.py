"""Token weightings against their papers' formulas, written out; anchors and members against dense implementations."""

import math

import pytest
import torch

from helpers.cases import FAMILY, D, T, V, factored, half, labels, members
from uncertune.fused import linear_weighted_nll, weighted_sweep
from uncertune.fused.elementwise import Finish, top_logits
from uncertune.objectives import (
    OBJECTIVES,
    TOKEN_WEIGHTINGS,
    Head,
    anchored,
    token_weighting,
    weighted_nll,
)
from uncertune.objectives.head import finish_logits


def eaft_of_the_paper(p: list[float], k: int = 20) -> float:
    top = sorted(p, reverse=True)[:k]
    share = [x / sum(top) for x in top]
    return -sum(x * math.log(x) for x in share) / math.log(k)


WRITTEN_OUT = {
    "none": lambda p, y: 1.0,
    "dft": lambda p, y: p[y],
    "eaft": lambda p, y: eaft_of_the_paper(p),
    "infosft": lambda p, y: max(0.0, p[y] * (math.log(0.93 / 0.07) - math.log(p[y] / (1 - p[y])))),
    "focal": lambda p, y: (1 - p[y]) ** 2,
}


@pytest.mark.parametrize("name", TOKEN_WEIGHTINGS)
def test_each_weighting_is_its_formula(name):
    z, y = 3 * torch.randn(T, V, dtype=torch.float64), labels()
    z[0, y[0]] = 20.0  # a token that the model is sure of
    loss = weighted_nll(z, OBJECTIVES["mle"](y, token_weighting=token_weighting(name)))
    for t in range(T):
        p = z[t].softmax(-1).tolist()
        assert loss[t].item() == pytest.approx(-WRITTEN_OUT[name](p, y[t]) * math.log(p[y[t]]), abs=1e-10)


def test_parameters_reach_the_formula():
    z, y = torch.randn(T, V, dtype=torch.float64), labels()
    p_y = z.softmax(-1)[torch.arange(T), y]
    focal = weighted_nll(z, OBJECTIVES["mle"](y, token_weighting=token_weighting("focal", {"gamma": 0.5})))
    torch.testing.assert_close(focal, -((1 - p_y) ** 0.5) * p_y.log())
    squared = weighted_nll(z, OBJECTIVES["mle"](y, token_weighting=token_weighting("eaft", {"top_k": 3, "alpha": 2.0})))
    wanted = [eaft_of_the_paper(z[t].softmax(-1).tolist(), k=3) ** 2 * -p_y[t].log().item() for t in range(T)]
    torch.testing.assert_close(squared, torch.tensor(wanted, dtype=torch.float64))


def test_eaft_of_more_tokens_than_there_are_is_relative_to_all_of_them():
    y, weighting = torch.zeros(2, dtype=torch.long), token_weighting("eaft", {"top_k": 20})
    loss = weighted_nll(torch.zeros(2, 5), OBJECTIVES["mle"](y, token_weighting=weighting))
    assert loss.tolist() == pytest.approx([math.log(5)] * 2)  # all tokens are as likely: the weight is 1


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dtf", {}, "must be one of none, dft, .*; got 'dtf'"),
        ("eaft", {"top_k": 1}, "eaft_top_k must be at least 2"),
        ("eaft", {"alpha": -1.0}, "eaft_alpha must be at least 0"),
        ("infosft", {"cutoff": 1.0}, r"infosft_cutoff must be in \(0, 1\)"),
        ("focal", {"gamma": -1.0}, "focal_gamma must be at least 0"),
    ],
)
def test_parameters_out_of_range(name, options, message):
    with pytest.raises(ValueError, match=message):
        token_weighting(name, options)


@pytest.mark.parametrize("extreme", [0.0, -60.0])
@pytest.mark.parametrize("name", TOKEN_WEIGHTINGS)
def test_weights_are_finite_where_the_model_is_certain(name, extreme):
    z = torch.zeros(1, V)
    z[0, 3] = 200.0
    y = torch.tensor([3 if extreme == 0 else 4])
    loss = weighted_nll(z, OBJECTIVES["mle"](y, token_weighting=token_weighting(name)))
    assert loss.isfinite().all()
    assert (loss >= 0).all()


def test_an_objective_without_a_label_s_term_takes_no_weighting():
    with pytest.raises(TypeError, match="distill cannot use 'token_weighting'"):
        OBJECTIVES["distill"](labels(), teacher=factored(torch.float32), token_weighting=token_weighting("dft"))


def test_the_weighting_multiplies_the_label_s_term_alone():
    z, y, teacher = torch.randn(T, V, dtype=torch.float64), labels(), factored(torch.float64)
    given = {"selected": half(), "teacher": teacher}
    dft = weighted_nll(z, OBJECTIVES["masked_mle_distill"](y, **given, token_weighting=token_weighting("dft")))
    plain = weighted_nll(z, OBJECTIVES["masked_mle_distill"](y, **given))
    torch.testing.assert_close(dft[~half()], plain[~half()])
    p_y = z.softmax(-1)[torch.arange(T), y]
    torch.testing.assert_close(dft[half()], (p_y * plain)[half()])


# ---- published losses, as they are usually written


def dense_kl(anchor_logits: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """KL(anchor ‖ model) of each token."""
    log_q = anchor_logits.log_softmax(-1)
    return (log_q.exp() * (log_q - logits.log_softmax(-1))).sum(-1)


@pytest.mark.parametrize("weighting", ["dft", "none"], ids=["ASFT", "SFT + KL"])
def test_published_losses_with_an_anchor(weighting):
    """Loss (less the anchor's entropy, a constant) and gradients, through the fused head, to 1e-6 in float64."""
    y, base = labels(), factored(torch.float64)
    hidden = torch.randn(T, D, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(V, D, dtype=torch.float64, requires_grad=True)
    z = hidden @ weight.T
    base_logits = base.head.logits(base.hidden)
    log_p = z.log_softmax(-1)[torch.arange(T), y]
    gate = log_p.exp().detach() if weighting == "dft" else 1.0
    dense = -gate * log_p + 0.1 * dense_kl(base_logits, z)
    targets = anchored(OBJECTIVES["mle"](y, token_weighting=token_weighting(weighting)), y, base, 0.1)
    swept = weighted_sweep(hidden, Head(weight), targets)
    log_q = base_logits.log_softmax(-1)
    entropy = -(log_q.exp() * log_q).sum(-1)
    torch.testing.assert_close(swept.loss - 0.1 * entropy, dense, rtol=0, atol=1e-6)
    torch.testing.assert_close(swept.divergence[0], dense_kl(base_logits, z), rtol=0, atol=1e-6)
    torch.testing.assert_close(swept.cross_entropy[0], dense_kl(base_logits, z) + entropy, rtol=0, atol=1e-6)
    for ours, theirs in zip(
        torch.autograd.grad(swept.loss.sum(), (hidden, weight)),
        torch.autograd.grad(dense.sum(), (hidden, weight)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_label_smoothing_is_torchs():
    z, y = torch.randn(T, V, dtype=torch.float64), labels()
    torch.testing.assert_close(
        weighted_nll(z, OBJECTIVES["mle"](y, label_smoothing=0.1)),
        torch.nn.functional.cross_entropy(z, y, reduction="none", label_smoothing=0.1),
    )


def test_members_are_the_mean_of_their_distributions():
    z, y, three = torch.randn(T, V, dtype=torch.float64), labels(), members(torch.float64)
    mean = torch.stack([one.head.logits(one.hidden).softmax(-1) for one in three]).mean(0)
    apart, together = (weighted_nll(z, OBJECTIVES["distill"](y, teacher=teacher)) for teacher in (three, mean))
    torch.testing.assert_close(apart, together)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_changes_nothing_changes_no_bit(dtype):
    """β = 0, one member, ε = 0 and token_weighting none, against the plain objective."""
    y, teacher = labels(), factored(dtype)
    plain = OBJECTIVES["masked_mle_distill"](y, selected=half(), teacher=teacher)
    given = {"selected": half(), "teacher": [teacher], "token_weighting": token_weighting("none")}
    neutral = anchored(OBJECTIVES["masked_mle_distill"](y, **given, label_smoothing=0.0), y, factored(dtype), 0.0)
    hidden, head = (
        torch.randn(T, D, dtype=dtype, requires_grad=True),
        torch.randn(V, D, dtype=dtype, requires_grad=True),
    )
    outcomes = []
    for targets in (plain, neutral):
        loss = linear_weighted_nll(hidden, head, targets)
        outcomes.append((loss, *torch.autograd.grad(loss.sum(), (hidden, head))))
    for ours, theirs in zip(*outcomes, strict=True):
        assert torch.equal(ours, theirs)


# ---- how the fused head finds the most probable tokens


@pytest.mark.parametrize("vocabulary", [37, 64, 1300, 64 * 40, 64 * 25 + 20])
def test_top_logits(vocabulary):
    raw, bias = torch.randn(T, vocabulary), torch.randn(vocabulary)
    raw[0, :64] += 10  # all of the largest in one block
    raw[1, -20:] += 10  # and behind the last whole block
    for finish in (Finish(), Finish(None, 0.5, 3.0), Finish(bias), Finish(None, -0.5)):
        wanted = finish_logits(raw, finish).topk(min(20, vocabulary), -1).values
        torch.testing.assert_close(top_logits(raw, None, finish, min(20, vocabulary)), wanted)


def test_a_teacher_of_members_needs_one():
    with pytest.raises(ValueError, match="at least one"):
        OBJECTIVES["distill"](labels(), teacher=[])


def test_every_weighting_is_in_the_contract_cases():
    assert {name.split("/")[1].split(",")[0] for name in FAMILY} >= set(TOKEN_WEIGHTINGS)
