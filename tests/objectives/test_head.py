"""The one definition of the logits, and what builds on it."""

import pytest
import torch

from uncertune.fused import linear_token_stats
from uncertune.objectives import Head
from uncertune.objectives.head import finish_logits, slope
from uncertune.uncertainty.bald import Logits

T, V, D = 13, 37, 8
OPTIONS = {"bias": torch.randn(V, dtype=torch.float64), "softcap": 5.0, "scale": 0.7}


def head_and_hidden() -> tuple[Head, torch.Tensor]:
    return Head(torch.randn(V, D, dtype=torch.float64), **OPTIONS), torch.randn(T, D, dtype=torch.float64)


def test_logits_are_the_written_definition():
    head, hidden = head_and_hidden()
    u = 0.7 * (hidden @ head.weight.T + OPTIONS["bias"])
    torch.testing.assert_close(head.logits(hidden), 5.0 * torch.tanh(u / 5.0))


def test_slope_is_the_derivative_of_the_logits():
    head, hidden = head_and_hidden()
    products = (hidden @ head.weight.T).requires_grad_()
    z = finish_logits(products, head.finish)
    (grad,) = torch.autograd.grad(z.sum(), products)
    torch.testing.assert_close(slope(z.detach(), head.finish), grad)


def test_a_head_and_its_parts_are_the_same_to_the_fused_functions():
    head, hidden = head_and_hidden()
    y = torch.randint(V, (T,))
    whole, parts = linear_token_stats(hidden, head, y), linear_token_stats(hidden, head.weight, y, **OPTIONS)
    assert torch.equal(whole.loss, parts.loss)
    torch.testing.assert_close(whole.loss, -head.logits(hidden).log_softmax(-1)[torch.arange(T), y])
    with pytest.raises(TypeError, match="a Head has its own bias, softcap and scale"):
        linear_token_stats(hidden, head, y, softcap=5.0)


def test_logits_of_an_ensemble_are_the_head_s():
    head, hidden = head_and_hidden()
    torch.testing.assert_close(Logits.of(head, like=hidden)(hidden), head.logits(hidden))
