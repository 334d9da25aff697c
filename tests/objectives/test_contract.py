"""The contract of every objective (STYLE habit 8): gradcheck, the analytic gradient, masked means nothing."""

import pytest
import torch

from helpers.cases import ALL_CASES, CASES, D, K, T, V, factored, half, labels, probabilities, settled, sparse
from uncertune.objectives import OBJECTIVES, SparseTeacher, Targets, anchored, clipped_advantage, weighted_nll

CASE = pytest.mark.parametrize("case", ALL_CASES.values(), ids=ALL_CASES.keys())


def explicit_weights(targets: Targets) -> torch.Tensor:
    """w as a (T, V) matrix, written out entry by entry (without the tail bucket, which is no part of eq. 1)."""
    w = torch.zeros(targets.size, V, dtype=torch.float64)
    for t in range(targets.size):
        for k in range(targets.ids.shape[1]):
            w[t, targets.ids[t, k]] += targets.weights[t, k].double()
        for term in targets.factored:
            u = term.head.weight.double() @ term.hidden[t].double()
            u = term.head.scale * (u if term.head.bias is None else u + term.head.bias.double())
            if term.head.softcap is not None:
                u = term.head.softcap * torch.tanh(u / term.head.softcap)
            w[t] += term.weight[t].double() * u.softmax(-1)
        if targets.uniform_weight is not None:
            w[t] += targets.uniform_weight[t].double() / V
        if targets.dense is not None:
            w[t] += targets.dense[t].double()
    return w


def test_every_objective_has_a_case():
    assert {name.split("/")[0] for name in CASES} >= set(OBJECTIVES)


@CASE
def test_gradcheck(case):
    logits = torch.randn(T, V, dtype=torch.float64, requires_grad=True)
    targets = settled(case(torch.float64, T), logits)
    assert torch.autograd.gradcheck(lambda z: weighted_nll(z, targets), logits)


@CASE
def test_loss_and_gradient_are_equation_1(case):
    targets = case(torch.float64, T)
    logits = torch.randn(T, V, dtype=torch.float64, requires_grad=True)
    loss = weighted_nll(logits, targets)
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    targets = settled(targets, logits)
    w, z = explicit_weights(targets), logits.detach()
    expected = -(w * z.log_softmax(-1)).sum(-1)
    expected_grad = w.sum(-1, keepdim=True) * z.softmax(-1) - w
    if targets.tail_weight is not None and targets.ids.shape[1] < V:
        for t in range(T):
            outside = torch.tensor([x not in targets.ids[t].tolist() for x in range(V)])
            tail, p = targets.tail_weight[t], z[t].softmax(-1)
            expected[t] -= tail * p[outside].sum().log()
            expected_grad[t] += tail * (p - torch.where(outside, p / p[outside].sum(), 0))
    torch.testing.assert_close(loss.detach(), expected)
    torch.testing.assert_close(grad, expected_grad)


@CASE
def test_rows_without_weight_have_exactly_no_gradient(case):
    targets = case(torch.float64, T)
    logits = torch.randn(T, V, dtype=torch.float64, requires_grad=True)
    loss = weighted_nll(logits, targets)
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    silent = ~targets.row_mask()
    assert (loss[silent] == 0).all()
    assert (grad[silent] == 0).all()
    assert (grad[~silent] != 0).any(-1).all()


@CASE
def test_scaling_a_token_scales_its_loss(case):
    z, factor_T = torch.randn(T, V, dtype=torch.float64), torch.rand(T, dtype=torch.float64)
    targets = settled(case(torch.float64, T), z)
    torch.testing.assert_close(weighted_nll(z, targets.scaled(factor_T)), weighted_nll(z, targets) * factor_T)


@CASE
def test_no_tokens(case):
    logits = torch.randn(0, V, requires_grad=True)
    loss = weighted_nll(logits, case(torch.float32, 0))
    assert loss.shape == (0,)
    loss.sum().backward()


@CASE
def test_precision_in_is_precision_out(case):
    for dtype, out in ((torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32)):
        assert weighted_nll(torch.randn(T, V, dtype=dtype), case(torch.float32, T)).dtype == out


def test_labels_outside_the_response_have_no_weight():
    y = labels()
    y[::2] = -100
    given = {
        "selected": torch.ones(T, dtype=torch.bool),
        "teacher": probabilities(torch.float64),
        "advantages": torch.randn(T),
        "oracle": probabilities(torch.float64),
    }
    for objective in OBJECTIVES.values():
        targets = objective(y, **{key: given[key] for key in objective.needs})
        assert targets.row_mask().tolist() == (y != -100).tolist()
        for anchor in (given["teacher"], factored(torch.float64)):
            assert anchored(targets, y, anchor, 0.5).row_mask().tolist() == (y != -100).tolist()
    for form in ("plain", "renormalized", "tail"):
        cut = OBJECTIVES["truncated_distill"](y, teacher=given["teacher"], top_k=K, truncation=form)
        assert cut.row_mask().tolist() == (y != -100).tolist()


def test_renormalized_weights_are_the_teachers_shares_of_its_most_probable_tokens():
    p = probabilities(torch.float64)
    top = p.topk(K, -1)
    targets = OBJECTIVES["truncated_distill"](labels(), teacher=p, top_k=K, truncation="renormalized")
    assert torch.equal(targets.ids, top.indices)
    torch.testing.assert_close(targets.weights.sum(-1), torch.ones(T, dtype=torch.float64))
    torch.testing.assert_close(targets.weights / targets.weights[:, :1], top.values / top.values[:, :1])


def test_a_token_weighting_multiplies_the_labels_term_alone():
    """The teacher's entries of a sparse target stay, those of the label and of its smoothing do not."""
    y, z, p = labels(), torch.randn(T, V, dtype=torch.float64), probabilities(torch.float64)
    selected = torch.arange(T) % 2 == 0
    given = {"selected": selected, "teacher": SparseTeacher(*reversed(p.topk(K, -1))), "label_smoothing": 0.2}
    plain = OBJECTIVES["masked_mle_distill"](y, **given)
    halved = OBJECTIVES["masked_mle_distill"](y, **given, token_weighting=lambda view: view.log_prob * 0 + 0.5)
    factor = torch.where(selected, 0.5, 1.0).double()
    torch.testing.assert_close(weighted_nll(z, halved), weighted_nll(z, plain) * factor)


def test_cross_entropy_is_torchs():
    y, z = labels(), torch.randn(T, V)
    expected = torch.nn.functional.cross_entropy(z, y, reduction="none")
    torch.testing.assert_close(weighted_nll(z, OBJECTIVES["mle"](y)), expected)


def test_everything_selected_is_mle_and_nothing_selected_is_distillation():
    y, z, teacher = labels(), torch.randn(T, V, dtype=torch.float64), factored(torch.float64)
    s5 = OBJECTIVES["masked_mle_distill"]
    everything, nothing = torch.ones(T, dtype=torch.bool), torch.zeros(T, dtype=torch.bool)
    assert torch.equal(
        weighted_nll(z, s5(y, selected=everything, teacher=teacher)), weighted_nll(z, OBJECTIVES["mle"](y))
    )
    assert torch.equal(
        weighted_nll(z, s5(y, selected=nothing, teacher=teacher)),
        weighted_nll(z, OBJECTIVES["distill"](y, teacher=teacher)),
    )


def test_policy_gradient_with_dense_advantage_p_is_distillation():
    y, z, p = labels(), torch.randn(T, V, dtype=torch.float64), probabilities(torch.float64)
    assert torch.equal(
        weighted_nll(z, OBJECTIVES["policy_gradient"](y, advantages=p)),
        weighted_nll(z, OBJECTIVES["distill"](y, teacher=p)),
    )


def test_truncations_of_a_sparse_and_of_a_dense_teacher_agree():
    y, z, p = labels(), torch.randn(T, V, dtype=torch.float64), probabilities(torch.float64)
    top = p.topk(2 * K, -1)
    for form in ("plain", "renormalized", "tail"):
        dense = OBJECTIVES["truncated_distill"](y, teacher=p, top_k=K, truncation=form)
        cut = OBJECTIVES["truncated_distill"](
            y, teacher=SparseTeacher(top.indices, top.values), top_k=K, truncation=form
        )
        torch.testing.assert_close(weighted_nll(z, dense), weighted_nll(z, cut))
    assert torch.allclose(dense.weights.sum(-1) + dense.tail_weight, torch.ones(T, dtype=torch.float64))


def test_with_the_tail_bucket_the_divergence_to_the_teacher_is_never_negative():
    y, p = labels(), probabilities(torch.float64)
    targets = OBJECTIVES["truncated_distill"](y, teacher=p, top_k=K, truncation="tail")
    coarse = torch.cat([targets.weights, targets.tail_weight[:, None]], -1)
    entropy = -(coarse * coarse.log()).sum(-1)
    for _ in range(20):
        z = p.log() + 0.3 * torch.randn(T, V, dtype=torch.float64)
        assert (weighted_nll(z, targets) - entropy > -1e-12).all()
    torch.testing.assert_close(weighted_nll(p.log(), targets), entropy)


def test_clipped_advantage_has_the_gradient_of_the_clipped_surrogate():
    y, z = labels(), torch.randn(T, V, dtype=torch.float64, requires_grad=True)
    advantages = torch.randn(T, dtype=torch.float64)
    old = z.detach().log_softmax(-1).gather(-1, y[:, None])[:, 0] + 0.5 * torch.randn(T, dtype=torch.float64)

    def log_ratio():
        return z.log_softmax(-1).gather(-1, y[:, None])[:, 0] - old

    ratio = log_ratio().exp()
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
    (expected,) = torch.autograd.grad(-surrogate.sum(), z)
    weights = clipped_advantage(advantages, log_ratio())
    assert (weights == 0).any()
    assert (weights != 0).any()
    loss = weighted_nll(z, OBJECTIVES["policy_gradient"](y, advantages=weights))
    torch.testing.assert_close(torch.autograd.grad(loss.sum(), z)[0], expected)


def test_weights_are_constants():
    teacher_logits = torch.randn(T, V, requires_grad=True)
    z = torch.randn(T, V, requires_grad=True)
    weighted_nll(z, OBJECTIVES["distill"](labels(), teacher=teacher_logits.softmax(-1))).sum().backward()
    assert teacher_logits.grad is None
    assert z.grad is not None


def test_refusals():
    y = labels()
    with pytest.raises(TypeError, match="mle cannot use 'selected'"):
        OBJECTIVES["mle"](y, selected=half())
    with pytest.raises(TypeError, match="masked_mle needs 'selected'"):
        OBJECTIVES["masked_mle"](y)
    with pytest.raises(TypeError, match="needs 'teacher'"):
        OBJECTIVES["masked_mle_distill"](y, selected=half())
    with pytest.raises(TypeError, match="linear_top_k"):
        OBJECTIVES["truncated_distill"](y, teacher=factored(torch.float32))
    with pytest.raises(TypeError, match="int64"):
        OBJECTIVES["mle"](y.float())
    with pytest.raises(ValueError, match="bool"):
        OBJECTIVES["masked_mle"](y, selected=half().float())
    with pytest.raises(ValueError, match="4096"):
        OBJECTIVES["oracle"](y, oracle=torch.zeros(T, 4097))
    with pytest.raises(ValueError, match="top_k"):
        OBJECTIVES["truncated_distill"](y, teacher=probabilities(torch.float32), top_k=0)
    with pytest.raises(ValueError, match="truncation"):
        OBJECTIVES["truncated_distill"](y, teacher=probabilities(torch.float32), truncation="half")
    with pytest.raises(ValueError, match="vocabulary of 36"):
        weighted_nll(torch.randn(T, V), OBJECTIVES["distill"](y, teacher=probabilities(torch.float32)[:, :36]))
    with pytest.raises(ValueError, match="logits must be"):
        weighted_nll(torch.randn(T + 1, V), OBJECTIVES["mle"](y))


def test_targets_check_their_shapes():
    ids, weights = torch.zeros(T, 1, dtype=torch.long), torch.ones(T, 1)
    for wrong in (
        {"ids": ids[:, 0], "weights": weights[:, 0]},
        {"ids": ids.int(), "weights": weights},
        {"ids": ids, "weights": ids},
        {"ids": ids, "weights": weights, "teacher_weight": torch.ones(T)},
        {"ids": ids, "weights": weights, "teacher_bias": torch.ones(V)},
        {"ids": ids, "weights": weights, "tail_weight": torch.ones(T, 1)},
        {"ids": ids, "weights": weights, "dense": torch.ones(T - 1, V)},
        {
            "ids": ids,
            "weights": weights,
            "teacher_weight": torch.ones(T),
            "teacher_hidden": torch.ones(T, D),
            "teacher_head": torch.ones(V, D + 1),
        },
    ):
        with pytest.raises(ValueError):
            Targets(**wrong)
    with pytest.raises(ValueError, match="at least 0"):
        Targets(ids, weights).scaled(-torch.ones(T))
    with pytest.raises(ValueError, match="token_weight must be"):
        Targets(ids, weights).scaled(torch.ones(T + 1))


def test_pairs_and_teachers_mean_the_same():
    y, z = labels(), torch.randn(T, V, dtype=torch.float64)
    ids, probs = sparse(torch.float64)
    hidden, head = torch.randn(T, D, dtype=torch.float64), torch.randn(V, D, dtype=torch.float64)
    distill = OBJECTIVES["distill"]
    assert torch.equal(
        weighted_nll(z, distill(y, teacher=(ids, probs))),
        weighted_nll(z, distill(y, teacher=SparseTeacher(ids, probs))),
    )
    factored_loss = weighted_nll(z, distill(y, teacher=(hidden, head)))
    assert torch.equal(weighted_nll(z, distill(y, teacher=(hidden, head))), factored_loss)
    torch.testing.assert_close(factored_loss, weighted_nll(z, distill(y, teacher=(hidden @ head.T).softmax(-1))))
