"""The fused head at the sizes of real models on a GPU (``pytest -m gpu``); the same lines run tiny on the CPU."""

import pytest
import torch

from uncertune.fused import linear_token_stats, linear_weighted_nll, projection
from uncertune.objectives import OBJECTIVES, FactoredTeacher, Head, anchored, weighted_nll

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# tokens (a multiple of nothing), hidden, vocabulary, soft-cap
SIZES = [
    pytest.param((53, 16, 301, None), id="tiny"),
    pytest.param((53, 16, 301, 30.0), id="tiny, soft-cap"),
    pytest.param((1021, 576, 49152, None), id="smollm2", marks=pytest.mark.gpu),
    pytest.param((1021, 2048, 128256, None), id="llama-3.2-1b", marks=pytest.mark.gpu),
    pytest.param((509, 2304, 256000, 30.0), id="gemma-2-2b", marks=pytest.mark.gpu),
]
HALF = [torch.bfloat16, torch.float16] if DEVICE == "cuda" else [torch.float32, torch.bfloat16]


def problem(size, dtype):
    tokens, width, vocabulary, softcap = size
    generator = torch.Generator(DEVICE).manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, device=DEVICE, generator=generator).to(dtype)

    hidden = draw(tokens, width).requires_grad_()
    weight = draw(vocabulary, width) * width**-0.5 * 2
    labels = torch.randint(vocabulary, (tokens,), device=DEVICE, generator=generator)
    other = FactoredTeacher(draw(tokens, width), Head(weight, softcap=softcap))
    return hidden, Head(weight, softcap=softcap), labels, other


def targets_of(name, labels, other):
    half = torch.arange(len(labels), device=labels.device) % 2 == 0
    match name:
        case "masked_mle":
            return OBJECTIVES["masked_mle"](labels, selected=half)
        case "both":
            return OBJECTIVES["masked_mle_distill"](labels, selected=half, teacher=other)
        case "anchored":
            return anchored(OBJECTIVES["mle"](labels), labels, other, 0.1)
        case "signed":
            return OBJECTIVES["policy_gradient"](labels, advantages=torch.linspace(-1, 1, len(labels), device=DEVICE))
    return OBJECTIVES[name](labels)


NAMES = ("mle", "masked_mle", "both", "anchored", "signed")


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", SIZES)
def test_loss_and_gradient_are_those_of_plain_logits_in_float32(size, name, dtype):
    hidden, head, labels, other = problem(size, dtype)
    targets = targets_of(name, labels, other)
    loss_T = linear_weighted_nll(hidden, head, targets)
    (ours,) = torch.autograd.grad(loss_T.sum(), hidden)
    wide = hidden.detach().float().requires_grad_()
    plain = Head(head.weight.float(), softcap=head.softcap)
    far = FactoredTeacher(other.hidden.float(), plain)
    want_T = weighted_nll(plain.logits(wide), targets_of(name, labels, far))
    (want,) = torch.autograd.grad(want_T.sum(), wide)
    slack = 2e-5 if dtype == torch.float32 else 3e-2
    assert float((loss_T - want_T).detach().norm() / want_T.detach().norm()) < slack
    assert float((ours.float() - want).norm() / want.norm()) < slack


@pytest.mark.parametrize("size", SIZES)
def test_the_same_bits_each_time(size):
    hidden, head, labels, other = problem(size, HALF[0])
    found = []
    for _ in range(2):
        loss_T = linear_weighted_nll(hidden, head, targets_of("both", labels, other))
        found.append((loss_T.detach(), *torch.autograd.grad(loss_T.sum(), hidden)))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", SIZES[3:])
def test_no_logits_of_all_tokens_are_held(size, name):
    hidden, head, labels, other = problem(size, torch.bfloat16)
    targets = targets_of(name, labels, other)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    linear_weighted_nll(hidden, head, targets).sum().backward()
    peak = torch.cuda.max_memory_allocated() - before
    assert peak < projection.logits_bytes(hidden.device) + 8 * hidden.numel() * 4


@pytest.mark.gpu
@pytest.mark.parametrize("size", SIZES[2:])
def test_compiled_or_not_gives_the_same_statistics(size, monkeypatch):
    hidden, head, labels, _ = problem(size, torch.bfloat16)
    stats = linear_token_stats(hidden.detach(), head, labels)
    monkeypatch.setattr(projection, "LARGE_VOCABULARY", 2**62)  # plain functions for every vocabulary
    plain = linear_token_stats(hidden.detach(), head, labels)
    torch.testing.assert_close(stats.loss, plain.loss, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(stats.entropy, plain.entropy, rtol=1e-4, atol=1e-4)
