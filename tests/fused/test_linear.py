"""The fused head equals the plain definition, for every objective, on awkward shapes and in every precision."""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from helpers.cases import ALL_CASES, CASES, D, K, T, V, factored, half, labels, settled
from uncertune.fused import (
    kernels,
    linear_token_stats,
    linear_top_k,
    linear_weighted_nll,
    linear_weighted_nll_with_stats,
    score_tokens,
    weighted_sweep,
)
from uncertune.fused import projection as projection_module
from uncertune.objectives import OBJECTIVES, Head, weighted_nll
from uncertune.selection import select

HEADS = {
    "plain": {},
    "bias": {"bias": True},
    "soft-cap and scale": {"softcap": 3.0, "scale": 0.5},
    "all": {"bias": True, "softcap": 5.0, "scale": 1.7},
}


SETTINGS = {
    "float64, all of a head, ragged chunks": (torch.float64, "all", 4),
    "float64, soft-cap, chunks of one token": (torch.float64, "soft-cap and scale", 1),
    "float32, bias, whole chunks": (torch.float32, "bias", 5),
    "float32, plain, one chunk": (torch.float32, "plain", 128),
}


def plain_logits(hidden, head, *, bias=None, softcap=None, scale=1.0):
    z = hidden @ head.T
    z = scale * (z if bias is None else z + bias)
    return z if softcap is None else softcap * torch.tanh(z / softcap)


def inputs(dtype, n=T, options=(), train_head=True):
    options = dict(options)
    hidden = torch.randn(n, D, dtype=dtype, requires_grad=True)
    head = torch.randn(V, D, dtype=dtype, requires_grad=train_head)
    if options.pop("bias", False):
        options["bias"] = torch.randn(V, dtype=dtype, requires_grad=train_head)
    return hidden, head, options


def gradients(loss, upstream, hidden, head, options):
    leaves = [x for x in (hidden, head, options.get("bias")) if x is not None and x.requires_grad]
    return torch.autograd.grad((loss * upstream).sum(), leaves)


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS.keys())
@pytest.mark.parametrize("case", ALL_CASES.values(), ids=ALL_CASES.keys())
def test_equals_the_plain_definition(case, setting, monkeypatch):
    dtype, head_name, rows = setting
    monkeypatch.setattr(projection_module, "CHUNK_ROWS", {"cpu": rows})
    targets = case(dtype, T)
    hidden, head, options = inputs(dtype, options=HEADS[head_name])
    upstream = torch.randn(T, dtype=dtype)
    fused = linear_weighted_nll(hidden, head, targets, **options)
    plain = weighted_nll(plain_logits(hidden, head, **options), targets)
    tolerance = {"rtol": 1e-9, "atol": 1e-11} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(fused, plain, **tolerance)
    for ours, theirs in zip(
        gradients(fused, upstream, hidden, head, options),
        gradients(plain, upstream, hidden, head, options),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, **tolerance)


@pytest.mark.parametrize("case", ALL_CASES.values(), ids=ALL_CASES.keys())
def test_gradcheck(case, monkeypatch):
    """Finite differences in random directions; the test above compares entry by entry with the plain definition."""
    monkeypatch.setattr(projection_module, "CHUNK_ROWS", {"cpu": 4})
    hidden, head, options = inputs(torch.float64, options=HEADS["all"])
    targets = settled(case(torch.float64, T), plain_logits(hidden, head, **options))
    assert torch.autograd.gradcheck(
        lambda h, w, b: linear_weighted_nll(h, w, targets, bias=b, softcap=5.0, scale=1.7),
        (hidden, head, options["bias"]),
        fast_mode=True,
    )


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_half_precision_keeps_float32_logits(case):
    """Against the exact result of the same bfloat16 inputs: no worse than 1 % in norm, 10 times better in loss."""
    targets = case(torch.float32, T)
    hidden, head, _ = inputs(torch.bfloat16)
    loss = linear_weighted_nll(hidden, head, targets)
    assert loss.dtype == torch.float32
    exact_hidden, exact_head = (x.detach().double().requires_grad_() for x in (hidden, head))
    exact = weighted_nll(plain_logits(exact_hidden, exact_head), targets)
    torch.testing.assert_close(loss.double(), exact, rtol=1e-4, atol=1e-4)
    ours = torch.autograd.grad(loss.sum(), (hidden, head))
    for got, want in zip(ours, torch.autograd.grad(exact.sum(), (exact_hidden, exact_head)), strict=True):
        assert got.dtype == torch.bfloat16
        assert (got.double() - want).norm() <= 0.01 * want.norm() + 1e-6


@pytest.fixture
def _large(monkeypatch):
    """Every vocabulary counts as large, so that a CPU rounds half-precision products relative to the label's."""
    monkeypatch.setattr(projection_module, "LARGE_VOCABULARY", 1)
    monkeypatch.setattr(kernels.CompiledFunction, "works", False)


@pytest.mark.usefixtures("_large")
@pytest.mark.parametrize("options", HEADS.values(), ids=HEADS.keys())
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_rounding_relative_to_the_label(case, options):
    """Logits far from 0, as bfloat16 likes least. Loss: 2⁻⁸ of what it is made of; gradient: 1 % in norm."""
    targets, y = case(torch.float32, T), labels()
    hidden, head, options = inputs(torch.bfloat16, options=options)
    with torch.no_grad():
        hidden[:, 0] = head[:, 0] = 6  # all logits gain 36: a plain bfloat16 would be off by up to 0.125
    exact = [x.detach().double().requires_grad_() for x in (hidden, head)]
    widened = {k: v.detach().double() if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    loss, stats = linear_weighted_nll_with_stats(hidden, head, targets, y, **options)
    log_p = plain_logits(*exact, **widened).log_softmax(-1)
    want = weighted_nll(log_p, targets)
    size = weighted_nll(log_p.detach(), replace_weights(targets))
    assert ((loss.double() - want).abs() <= 2**-7 * size + 1e-3).all()
    label_loss = -log_p.gather(-1, y[:, None])[:, 0]
    assert ((stats.loss.double() - label_loss).abs() <= 2**-8 * label_loss + 1e-4).all()
    ours, theirs = torch.autograd.grad(loss.sum(), (hidden, head)), torch.autograd.grad(want.sum(), exact)
    for got, wanted in zip(ours, theirs, strict=True):
        assert (got.double() - wanted).norm() <= 0.01 * wanted.norm() + 1e-3


def replace_weights(targets):
    """The same targets with all weights positive: the size of the terms that a loss of both signs adds up."""
    dense = None if targets.dense is None else targets.dense.abs()
    return replace(targets, weights=targets.weights.abs(), dense=dense)


@pytest.mark.parametrize("large", [False, True], ids=["small vocabulary", "large vocabulary"])
@pytest.mark.parametrize("own", [False, True], ids=["one head", "two equal heads"])
@pytest.mark.parametrize("distance", [2**-7, 2**-9])
def test_gradient_near_the_teacher_survives_half_precision(distance, own, large, request):
    """Student = teacher + a little, our normal case: rounding the logits costs far more than 1 % of the gradient."""
    if large:
        request.getfixturevalue("_large")
    n, d, v = 64, 256, 4000
    teacher_hidden = torch.randn(n, d).bfloat16()
    head = (torch.randn(v, d) * 0.3).bfloat16()
    hidden = (teacher_hidden.float() + distance * torch.randn(n, d)).bfloat16().requires_grad_()
    y = labels(n, v)
    targets = OBJECTIVES["distill"](y, teacher=(teacher_hidden, head.clone() if own else head))
    loss, _ = linear_weighted_nll_with_stats(hidden, head, targets, y)
    (got,) = torch.autograd.grad(loss.sum(), hidden)
    exact = hidden.detach().double().requires_grad_()
    teacher = (teacher_hidden.double() @ head.double().T).softmax(-1)
    (want,) = torch.autograd.grad(-(teacher * (exact @ head.double().T).log_softmax(-1)).sum(), exact)
    assert (got.double() - want).norm() < 0.01 * want.norm()
    dense = hidden.detach().requires_grad_()
    rounded = (teacher_hidden @ head.T).float().softmax(-1)
    (usual,) = torch.autograd.grad(-(rounded * (dense @ head.T).float().log_softmax(-1)).sum(), dense)
    assert (usual.double() - want).norm() > 0.04 * want.norm()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_no_tokens(case):
    hidden, head, _ = inputs(torch.float32, n=0)
    loss = linear_weighted_nll(hidden, head, case(torch.float32, 0))
    assert loss.shape == (0,)
    loss.sum().backward()
    assert hidden.grad.shape == (0, D)
    assert (head.grad == 0).all()


def test_all_masked_stays_connected():
    hidden, head, _ = inputs(torch.float32)
    targets = OBJECTIVES["masked_mle"](labels(), selected=torch.zeros(T, dtype=torch.bool))
    linear_weighted_nll(hidden, head, targets).sum().backward()
    assert (hidden.grad == 0).all()
    assert (head.grad == 0).all()


def test_a_frozen_head_gets_no_gradient():
    hidden, head, _ = inputs(torch.float32, train_head=False)
    linear_weighted_nll(hidden, head, OBJECTIVES["mle"](labels())).sum().backward()
    assert hidden.grad is not None
    assert head.grad is None


class Largest(TorchDispatchMode):
    """The largest tensor made."""

    def __init__(self):
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        return out


def products(step):
    """Products of a step, in units of one T × D × V."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


@pytest.mark.parametrize("train_head", [False, True], ids=["frozen", "trained"])
def test_work_in_proportion(train_head):
    """Rows without weight cost no second product, a teacher only what it weighs, a frozen head no gradient."""
    n, d, v = 400, 8, 50
    hidden, y = torch.randn(n, d, requires_grad=True), labels(n, v)
    head = torch.randn(v, d, requires_grad=train_head)
    teachers = {"shared": (torch.randn(n, d), head), "apart": (torch.randn(n, d), torch.randn(v, d))}

    def step(name, keep=False, selects=True, **given):
        scored = None
        if selects:
            scored = score_tokens(hidden, head, y, keep=keep)
            given["selected"] = select(scored.stats.loss, 0.25)
        linear_weighted_nll(hidden, head, OBJECTIVES[name](y, **given), scored=scored).mean().backward()

    one = 2 * n * d * v
    back = 2 if train_head else 1
    assert products(lambda: step("mle", selects=False)) == (1 + back) * one
    assert products(lambda: step("masked_mle")) == (1 + (1 + back) / 4) * one
    assert products(lambda: step("masked_mle", keep=True)) == (1 + back / 4) * one
    for teacher in teachers.values():
        assert products(lambda t=teacher: step("distill", selects=False, teacher=t)) == (2 + back) * one
        assert products(lambda t=teacher: step("masked_mle_distill", teacher=t)) == (2 + back + 3 / 4) * one
        assert products(lambda t=teacher: step("masked_mle_distill", True, teacher=t)) == (1 + back + 3 / 4) * one


def test_a_trained_head_under_uneven_gradients_takes_a_second_sweep():
    hidden, head, _ = inputs(torch.float64)
    targets = OBJECTIVES["mle"](labels())
    upstream = torch.randn(T, dtype=torch.float64)
    one = 2 * T * D * V
    assert products(lambda: linear_weighted_nll(hidden, head, targets).sum().backward()) == 3 * one
    assert products(lambda: (linear_weighted_nll(hidden, head, targets) * upstream).sum().backward()) == 5 * one


@pytest.mark.parametrize("factor", [1.0, 0.25])
@pytest.mark.parametrize("upstream", [3.0, torch.linspace(-1, 2, T, dtype=torch.float64)], ids=["even", "uneven"])
def test_gradients_are_those_of_the_incoming_gradient_whatever_factor_was_expected(factor, upstream):
    hidden, head, options = inputs(torch.float64, options=HEADS["all"].items())
    targets = OBJECTIVES["mle"](labels())
    plain = weighted_nll(plain_logits(hidden, head, **options), targets)
    fused = linear_weighted_nll(hidden, head, targets, factor=factor, **options)
    expected = gradients(plain, upstream, hidden, head, options)
    for found, wanted in zip(gradients(fused, upstream, hidden, head, options), expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_a_trained_head_has_no_gradient_without_grad_mode():
    hidden, head, _ = inputs(torch.float64)
    targets = OBJECTIVES["mle"](labels())
    with torch.no_grad():
        assert products(lambda: linear_weighted_nll(hidden, head, targets)) == 2 * T * D * V


@pytest.mark.parametrize("train_head", [False, True], ids=["frozen", "trained"])
@pytest.mark.parametrize("kept", [0, 16, 28, 41])
@pytest.mark.parametrize("case", ["masked_mle", "masked_mle_distill/factored", "truncated_distill/tail", "nothing"])
def test_what_scoring_kept_changes_no_result(case, kept, train_head, monkeypatch):
    n, rows, dtype = 41, 4, torch.float64
    monkeypatch.setattr(projection_module, "CHUNK_ROWS", {"cpu": rows})
    most = (kept + 2 * rows) * V * 8
    monkeypatch.setattr(projection_module, "LOGITS_BYTES", {"cpu": most})  # a chunk's buffers, and the rest
    targets, y = CASES[case](dtype, n), labels(n)
    hidden, head, options = inputs(dtype, n, options=HEADS["all"], train_head=train_head)
    scored = score_tokens(hidden, head, y, keep=kept > 0, **options)
    assert scored.kept == kept
    assert all(raw.shape[0] <= rows for raw in scored.raw)
    loss = linear_weighted_nll(hidden, head, targets, scored=scored, **options)
    plain = weighted_nll(plain_logits(hidden, head, **options), targets)
    torch.testing.assert_close(loss, plain)
    for ours, theirs in zip(
        gradients(loss, 1.0, hidden, head, options), gradients(plain, 1.0, hidden, head, options), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    "case", ["mle", "distill/factored", "mle/eaft, anchored", "masked_mle", "masked_mle_distill/everything"]
)
def test_the_statement_that_every_token_has_weight_changes_no_result(case):
    """Also where it is wrong; then it costs work."""
    targets, y = ALL_CASES[case](torch.float64, T), labels()
    hidden, head, _ = inputs(torch.float64, train_head=True)
    found = []
    for everywhere in (False, True):
        swept = weighted_sweep(hidden, Head(head), targets, labels=y, everywhere=everywhere)
        found.append([swept.loss, swept.stats.loss, *torch.autograd.grad(swept.loss.sum(), (hidden, head))])
    for looked, stated in zip(*found, strict=True):
        torch.testing.assert_close(stated, looked)


@pytest.mark.parametrize(
    "name",
    [
        "mle",
        "masked_mle_distill/factored",
        "policy_gradient/sampled",
        "mle/eaft, anchored",
        "masked_mle_distill/everything",
    ],
)
@pytest.mark.parametrize("train_head", [False, True])
def test_no_tensor_of_t_by_v(name, train_head, monkeypatch):
    n, rows = 64, 8
    monkeypatch.setattr(projection_module, "CHUNK_ROWS", {"cpu": rows})
    hidden, head, _ = inputs(torch.float32, n=n, train_head=train_head)
    with Largest() as seen:
        linear_weighted_nll_with_stats(hidden, head, ALL_CASES[name](torch.float32, n), labels(n))[0].sum().backward()
        linear_token_stats(hidden, head, labels(n))
    assert seen.largest <= max((4 if train_head else 1) * rows * V, V * D, n * D)


def test_weightings_cost_no_product_and_each_factored_term_one():
    """Frozen head: label 2 products (logits and their gradient), plus one for an anchor and one for each member."""

    def cost(name):
        hidden, head, _ = inputs(torch.float32, n=48, train_head=False)
        targets = ALL_CASES[name](torch.float32, 48)
        return products(lambda: linear_weighted_nll(hidden, head, targets).sum().backward()) / (2 * 48 * D * V)

    assert [cost(f"mle/{name}") for name in ("none", "dft", "eaft", "infosft", "focal", "smoothed")] == [2] * 6
    assert cost("mle/dft, anchored") == 3
    assert cost("masked_mle_distill/none") == pytest.approx(2 + 2 / 3)
    assert cost("masked_mle_distill/none, 3 members") == pytest.approx(2 + 3 * 2 / 3)
    assert cost("masked_mle_distill/none, anchored, 3 members") == pytest.approx(3 + 3 * 2 / 3)


def test_statistics():
    hidden, head, options = inputs(torch.float64, options=HEADS["all"])
    y = labels()
    log_p = plain_logits(hidden, head, **options).log_softmax(-1)
    for stats in (
        linear_token_stats(hidden, head, y, **options),
        linear_weighted_nll_with_stats(hidden, head, OBJECTIVES["masked_mle"](y, selected=half()), y, **options)[1],
    ):
        torch.testing.assert_close(stats.loss, -log_p.gather(-1, y[:, None])[:, 0].detach())
        torch.testing.assert_close(stats.entropy, -(log_p.exp() * log_p).sum(-1).detach())
        assert stats.correct.tolist() == (log_p.argmax(-1) == y).tolist()
        assert not stats.loss.requires_grad
    empty = linear_token_stats(hidden[:0], head, y[:0], **options)
    assert empty.loss.shape == empty.entropy.shape == empty.correct.shape == (0,)


def test_loss_beside_statistics_is_the_loss_without():
    hidden, head, _ = inputs(torch.float64)
    targets, y = CASES["masked_mle_distill/factored"](torch.float64, T), labels()
    loss, _ = linear_weighted_nll_with_stats(hidden, head, targets, y)
    alone = linear_weighted_nll(hidden, head, targets)
    torch.testing.assert_close(loss, alone)
    for a, b in zip(
        torch.autograd.grad(loss.sum(), (hidden, head)), torch.autograd.grad(alone.sum(), (hidden, head)), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_top_k():
    teacher = factored(torch.float64)
    top = linear_top_k(teacher.hidden, teacher.head, K)
    p = teacher.head.logits(teacher.hidden).softmax(-1).topk(K, -1)
    assert top.ids.tolist() == p.indices.tolist()
    torch.testing.assert_close(top.probs, p.values)
    assert linear_top_k(teacher.hidden, teacher.head, 99).ids.shape == (T, V)
    assert linear_top_k(teacher.hidden[:0], teacher.head, K).ids.shape == (0, K)


def test_autocast_sets_the_precision_of_the_products():
    hidden, head, _ = inputs(torch.float32)
    targets = OBJECTIVES["mle"](labels())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = linear_weighted_nll(hidden, head, targets)
        rounded, _ = linear_weighted_nll_with_stats(hidden, head, targets, labels(), rounded=True)
    assert loss.dtype == rounded.dtype == torch.float32
    want = weighted_nll((hidden.bfloat16() @ head.bfloat16().T), targets)
    torch.testing.assert_close(rounded, want)
    full = linear_weighted_nll(hidden, head, targets)
    assert not torch.equal(full, rounded)


def test_refusals():
    hidden, head, _ = inputs(torch.float32)
    targets = OBJECTIVES["mle"](labels())
    with pytest.raises(ValueError, match="hidden must be"):
        linear_weighted_nll(hidden[:, :3], head, targets)
    with pytest.raises(ValueError, match="targets have 13 rows"):
        linear_weighted_nll(hidden[:3], head, targets)
    with pytest.raises(ValueError, match="bias"):
        linear_weighted_nll(hidden, head, targets, bias=torch.zeros(3))
    with pytest.raises(ValueError, match="labels"):
        linear_token_stats(hidden, head, labels()[:3])
    with pytest.raises(ValueError, match="k must"):
        linear_top_k(hidden, head, 0)
    with pytest.raises(ValueError, match="vocabulary"):
        linear_weighted_nll(
            hidden, head, OBJECTIVES["distill"](labels(), teacher=(torch.randn(T, D), torch.randn(V + 1, D)))
        )
