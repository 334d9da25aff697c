"""Advantages of groups, the clip, and the divergence from a reference: against what they are written out."""

import itertools

import pytest
import torch

from helpers.cases import D, T, V, labels
from uncertune.objectives import (
    OBJECTIVES,
    anchored,
    clip_binds,
    clipped_advantage,
    group_advantages,
    weighted_nll,
)


def test_a_group_is_judged_by_its_own_answers():
    rewards = torch.tensor([1.0, 0.0, 0.5, 4.0, 0.0, 2.0], dtype=torch.float64)
    groups = ["a", "b", "a", "b", "a", "b"]
    found = group_advantages(rewards, groups)
    for name in "ab":
        mine = torch.tensor([one == name for one in groups])
        r = rewards[mine]
        torch.testing.assert_close(found[mine], (r - r.mean()) / (r.std() + 1e-4))
        torch.testing.assert_close(group_advantages(rewards, groups, scale=False)[mine], r - r.mean())
    assert found.dtype == torch.float64


def test_the_order_of_answers_is_free():
    rewards, groups = torch.rand(12), torch.arange(12) % 3
    order = torch.randperm(12)
    torch.testing.assert_close(
        group_advantages(rewards[order], groups[order]), group_advantages(rewards, groups.tolist())[order]
    )


@pytest.mark.parametrize("scale", [True, False])
def test_equal_rewards_have_no_advantage(scale):
    rewards = [0.1] * 7 + [3.0]
    found = group_advantages(rewards, [0] * 7 + [1], scale=scale)
    assert found.tolist() == [0.0] * 8
    assert group_advantages([1, 0], ["x", "x"], scale=scale).sum() == 0
    assert group_advantages([], []).shape == (0,)


def test_refusals():
    with pytest.raises(ValueError, match="as long"):
        group_advantages([1.0, 2.0], [0])
    with pytest.raises(ValueError, match="finite, got nan"):
        group_advantages([1.0, float("nan")], [0, 0])
    with pytest.raises(TypeError, match="beta"):
        OBJECTIVES["policy_gradient"](labels(), advantages=torch.randn(T), beta=0.1)
    targets = OBJECTIVES["policy_gradient"](labels(), advantages=torch.randn(T))
    with pytest.raises(ValueError, match="anchor_weight must be at least 0"):
        anchored(targets, labels(), torch.full((T, V), 1 / V), -1.0)


@pytest.mark.parametrize(("low", "high"), [(0.2, None), (0.1, 0.4), (0.5, 0.05), (float("inf"), None)])
def test_the_clip_is_ppos(low, high):
    """Weight and mask against autograd through min(r A, clip(r) A), on either side of both ends of the clip."""
    advantages = torch.tensor([one for one in (-2.0, 0.0, 1.5) for _ in range(201)], dtype=torch.float64)
    log_ratio = torch.linspace(-1.0, 1.0, 201, dtype=torch.float64).repeat(3).requires_grad_()
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - low, 1 + (low if high is None else high))
    surrogate = torch.minimum(ratio * advantages, clipped * advantages)
    (expected,) = torch.autograd.grad(surrogate.sum(), log_ratio)
    assert not clipped_advantage(advantages, log_ratio, low, high).requires_grad
    torch.testing.assert_close(clipped_advantage(advantages, log_ratio, low, high), expected)
    binds = clip_binds(advantages, ratio.detach(), low, high)
    assert torch.equal(binds, (expected == 0) & (advantages != 0))
    assert bool(binds.any()) == (low != float("inf"))


def test_the_reference_term_is_the_expectation_of_grpos():
    """Σ_y p(y) · ∇k3(y) over every token y is the gradient of the forward divergence from the reference."""
    beta = 0.7
    z = torch.randn(T, V, dtype=torch.float64, requires_grad=True)
    hidden, head = torch.randn(T, D, dtype=torch.float64), torch.randn(V, D, dtype=torch.float64)
    p_ref = (hidden @ head.T).softmax(-1)
    log_p = z.log_softmax(-1)
    d = p_ref.log() - log_p
    k3 = d.exp() - d - 1  # per token that could have been sampled
    (expected,) = torch.autograd.grad(beta * (log_p.exp().detach() * k3).sum(), z)
    targets = OBJECTIVES["policy_gradient"](labels(), advantages=torch.zeros(T, dtype=torch.float64))
    targets = anchored(targets, labels(), (hidden, head), beta)
    (found,) = torch.autograd.grad(weighted_nll(z, targets).sum(), z)
    torch.testing.assert_close(found, expected)


def test_the_reference_adds_to_the_advantage():
    y, z = labels(), torch.randn(T, V, dtype=torch.float64)
    p, advantages = torch.randn(T, V, dtype=torch.float64).softmax(-1), torch.randn(T, dtype=torch.float64)
    policy, distill = OBJECTIVES["policy_gradient"], OBJECTIVES["distill"]
    top = p.topk(3, -1)
    for teacher, form in itertools.product((p, (top.indices, top.values)), (advantages, p.roll(1, -1))):
        both = weighted_nll(z, anchored(policy(y, advantages=form), y, teacher, 0.25))
        apart = weighted_nll(z, policy(y, advantages=form)) + 0.25 * weighted_nll(z, distill(y, teacher=teacher))
        torch.testing.assert_close(both, apart)
