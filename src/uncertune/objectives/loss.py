"""``weighted_nll``: eq. 1 on plain logits, the readable definition and the reference of the tests."""

from __future__ import annotations

import torch
from torch import Tensor

from uncertune.objectives.targets import Targets
from uncertune.objectives.weighting import TokenView


def weighted_nll(logits: Tensor, targets: Targets) -> Tensor:
    """The negated eq. 1 of the paper, per token: ``ℓ_t = Σ_x w_t(x) · (LSE(z_t) − z_t[x])``, plus the tail bucket.

    ``logits`` z is (T, V); the result is (T,), in nats, float32 (float64 for float64 logits). The gradient is
    ``(Σ_x w_t(x)) · softmax(z_t) − w_t``; the weights are constants. Nothing is averaged here: the trainer divides
    once. Raises ValueError if T or V differ, and IndexError for ids outside the vocabulary.

    This builds (T, V) tensors; ``uncertune.fused.linear_weighted_nll`` computes the same without them.
    """
    if logits.dim() != 2 or logits.shape[0] != targets.size:
        raise ValueError(f"logits must be (T, V) with T = {targets.size}, got {tuple(logits.shape)}")
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    log_probs_TV = logits.to(dtype).log_softmax(-1)
    check_vocabulary(targets, log_probs_TV.shape[-1])
    if targets.token_weighting is not None:
        targets = targets.weighted(token_view(log_probs_TV.detach(), targets.ids[:, 0]))
    loss_T = -(targets.weights.to(dtype) * log_probs_TV.gather(-1, targets.ids)).sum(-1)
    for term in targets.factored:
        probs_TV = term.head.logits(term.hidden, dtype).softmax(-1)
        loss_T = loss_T - term.weight.to(dtype) * (probs_TV * log_probs_TV).sum(-1)
    if targets.uniform_weight is not None:
        loss_T = loss_T - targets.uniform_weight.to(dtype) * log_probs_TV.mean(-1)
    if targets.dense is not None:
        loss_T = loss_T - (targets.dense.to(dtype) * log_probs_TV).sum(-1)
    if targets.tail_weight is not None:
        outside_TV = torch.ones_like(log_probs_TV, dtype=torch.bool).scatter(-1, targets.ids, False)
        counts = (targets.tail_weight != 0) & outside_TV.any(-1)  # a bucket of no tokens has no term
        tail_T = log_probs_TV.masked_fill(~outside_TV & counts[:, None], float("-inf")).logsumexp(-1)
        loss_T = loss_T - torch.where(counts, targets.tail_weight.to(dtype) * tail_T, torch.zeros_like(tail_T))
    return loss_T


def token_view(log_probs_TV: Tensor, labels_T: Tensor) -> TokenView:
    """The input of a token weighting, from plain log-probabilities."""
    return TokenView(
        log_prob=log_probs_TV.gather(-1, labels_T[:, None])[:, 0],
        entropy=-(log_probs_TV.exp() * log_probs_TV).sum(-1),
        top_logits=lambda k: log_probs_TV.topk(min(k, log_probs_TV.shape[-1]), dim=-1).values,
    )


def check_vocabulary(targets: Targets, vocabulary: int) -> None:
    """Raise ValueError if a factored term or the dense part has another vocabulary than the student."""
    parts = [("teacher_head", term.head.vocabulary) for term in targets.factored]
    parts += [("dense", targets.dense.shape[1])] if targets.dense is not None else []
    for name, size in parts:
        if size != vocabulary:
            raise ValueError(f"{name} has a vocabulary of {size}, the student {vocabulary}")
