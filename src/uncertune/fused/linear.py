"""The public functions of the fused head.

Shape legend: ``T`` response tokens (flattened), ``V`` vocabulary, ``D`` hidden size, ``K`` entries kept of ``V``.
In every function: ``hidden`` (T, D); ``head`` a ``Head``, or its weight (V, D) with ``bias``, ``softcap`` and ``scale``
as keywords; and logits ``z = Head(head, bias, softcap, scale).logits(hidden)``.

Precision: products in autocast's dtype under autocast, else in that of ``hidden``, summed in float32; softmax, loss and
entropy in float32, or float64 for float64. At most ``uncertune.fused.projection.logits_bytes`` of logits exist at a
time; ``Projection.rounding`` says how half-precision products are stored.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from uncertune.fused import chunked
from uncertune.fused.chunk import Source
from uncertune.fused.chunked import Job, Scored, Swept
from uncertune.fused.projection import Projection, Rounding, TokenStats
from uncertune.objectives import Head, SparseTeacher, Targets
from uncertune.objectives.loss import check_vocabulary


def linear_weighted_nll(
    hidden: Tensor,
    head: Tensor | Head,
    targets: Targets,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
    scored: Scored | None = None,
    factor: float = 1.0,
) -> Tensor:
    """``weighted_nll(logits, targets)`` without the logits: (T,) in nats, differentiable in hidden, head and bias.

    Equals ``uncertune.objectives.weighted_nll(cap(scale * (hidden @ head.T + bias)), targets)``. Rows without weight
    are not projected, nor are teacher rows without weight, and a frozen head gets no gradient.

    ``scored``, the result of ``score_tokens`` for the same hidden states and head, saves computing its products again.
    ``factor`` is the factor by which the losses will be multiplied: half-precision gradients are rounded after it.
    Raises ValueError if shapes do not fit.
    """
    head = _built(head, bias, softcap, scale)
    return weighted_sweep(hidden, head, targets, scored=scored, factor=factor).loss


def linear_weighted_nll_with_stats(
    hidden: Tensor,
    head: Tensor | Head,
    targets: Targets,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
    rounded: bool = False,
    factor: float = 1.0,
) -> tuple[Tensor, TokenStats]:
    """``linear_weighted_nll`` and ``linear_token_stats`` of all tokens in one sweep; ``rounded`` as in
    ``weighted_sweep``."""
    swept = weighted_sweep(
        hidden, _built(head, bias, softcap, scale), targets, labels=labels, rounded=rounded, factor=factor
    )
    assert swept.stats is not None
    return swept.loss, swept.stats


def weighted_sweep(
    hidden: Tensor,
    head: Head,
    targets: Targets,
    *,
    labels: Tensor | None = None,
    scored: Scored | None = None,
    rounded: bool = False,
    factor: float = 1.0,
    everywhere: bool = False,
) -> Swept:
    """``linear_weighted_nll`` with further results: the divergence of every factored term and, with ``labels`` (T,),
    the statistics of all tokens.

    With ``rounded``, half-precision logits are rounded to that precision before the float32 softmax, as in other
    trainers; this makes plain MLE equal to theirs digit for digit, and is worse for distillation.

    ``everywhere`` states that every token has weight, also in every factored term. The sweep then does not wait for the
    device to find those without. If the statement is wrong, losses and gradients are the same, at the price of work.
    """
    if labels is not None:
        _check_labels(hidden, labels)
    references = scored.labels if scored is not None else _references(targets) if labels is None else labels
    rounding: Rounding = "plain" if rounded else "offset"
    job = _job(hidden, head, targets, references, scored=scored, rounding=rounding)
    return _apply(hidden, head, replace(job, with_stats=labels is not None, factor=factor, everywhere=everywhere))


def score_tokens(
    hidden: Tensor,
    head: Tensor | Head,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
    keep: bool = False,
) -> Scored:
    """``linear_token_stats`` as ``.stats``, with results that a weighted sweep over the same tokens can reuse.

    ``keep`` stores the products of as many tokens as ``logits_bytes`` allows, which saves a second projection; this is
    worth the memory if most tokens will have weight. Raises ValueError if shapes do not fit.
    """
    head = _built(head, bias, softcap, scale)
    _check(hidden, head)
    _check_labels(hidden, labels)
    projection = Projection.of(hidden, head, "offset")
    with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
        return chunked.score(hidden.detach(), projection, labels, keep=keep)


def linear_token_stats(
    hidden: Tensor,
    head: Tensor | Head,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
) -> TokenStats:
    """Loss and entropy (nats) of every token and whether its label is the most likely one, each (T,); no gradient.

    ``labels`` is (T,) int64 without −100. Raises ValueError if shapes do not fit.
    """
    return score_tokens(hidden, head, labels, bias=bias, softcap=softcap, scale=scale).stats


@torch.no_grad()
def linear_top_k(
    hidden: Tensor,
    head: Tensor | Head,
    k: int,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
) -> SparseTeacher:
    """The ``k`` most probable tokens of each row, with their probabilities over the whole vocabulary; no gradient."""
    head = _built(head, bias, softcap, scale)
    _check(hidden, head)
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    projection = Projection.of(hidden, head)
    with torch.autocast(hidden.device.type, enabled=False):
        return SparseTeacher(*chunked.top_k(hidden, projection, min(k, head.vocabulary)))


def _references(targets: Targets) -> Tensor | None:
    """The reference token of each row for half-precision products: the one of the largest weight."""
    if targets.ids.shape[1] == 0:
        return None
    return targets.ids.gather(-1, targets.weights.abs().argmax(-1, keepdim=True))[:, 0]


def _job(
    hidden: Tensor,
    head: Head,
    targets: Targets,
    labels: Tensor | None,
    *,
    scored: Scored | None = None,
    rounding: Rounding = "offset",
) -> Job:
    """The sweep for these targets, in the precision that they need."""
    _check(hidden, head)
    if targets.size != hidden.shape[0]:
        raise ValueError(f"targets have {targets.size} rows, hidden {hidden.shape[0]}")
    if scored is not None and len(scored.labels) != hidden.shape[0]:
        raise ValueError(f"scored has {len(scored.labels)} rows, hidden {hidden.shape[0]}")
    check_vocabulary(targets, head.vocabulary)
    shared = [_same(term.head.weight, head.weight) for term in targets.factored]
    # Separate rounding would exceed the difference of student and teacher (with one head it is taken before rounding).
    if rounding == "offset" and (labels is None or not all(shared)):
        rounding = "exact"
    if scored is not None and scored.projection.rounding not in ("exact", rounding):
        scored = None
    student = Projection.of(hidden, head, rounding) if scored is None else scored.projection
    sources = tuple(
        Source(replace(student, finish=term.head.finish) if one else Projection.of(term.hidden, term.head), one)
        for term, one in zip(targets.factored, shared, strict=True)
    )
    return Job(targets, student, labels, sources, scored)


def _apply(hidden: Tensor, head: Head, job: Job) -> Swept:
    weight, bias = head.weight, head.bias
    if not torch.is_grad_enabled():  # a Function would still treat leaves as trained
        weight, bias = weight.detach(), None if bias is None else bias.detach()
    train_hidden = torch.is_grad_enabled() and hidden.requires_grad
    with torch.autocast(hidden.device.type, enabled=False):
        loss, cross, divergence, *columns = chunked.WeightedNLL.apply(hidden, weight, bias, job, train_hidden)
    return Swept(loss, TokenStats(*columns) if columns else None, cross, divergence)


def _same(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors are the same memory with the same layout."""

    def place(one: Tensor) -> tuple[object, ...]:
        return one.data_ptr(), one.shape, one.stride(), one.dtype

    return place(left) == place(right)


def _built(head: Tensor | Head, bias: Tensor | None, softcap: float | None, scale: float) -> Head:
    if not isinstance(head, Head):
        return Head(head, bias, softcap, scale)
    if bias is not None or softcap is not None or scale != 1.0:
        raise TypeError("a Head has its own bias, softcap and scale: give them there")
    return head


def _check(hidden: Tensor, head: Head) -> None:
    weight, bias = head.weight, head.bias
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(f"hidden must be (T, D) and head (V, D), got {tuple(hidden.shape)} and {tuple(weight.shape)}")
    if bias is not None and bias.shape != (head.vocabulary,):
        raise ValueError(f"bias must be (V,) = ({head.vocabulary},), got {tuple(bias.shape)}")


def _check_labels(hidden: Tensor, labels: Tensor) -> None:
    if labels.shape != (hidden.shape[0],) or labels.dtype != torch.long:
        raise ValueError(f"labels must be int64 (T,) = ({hidden.shape[0]},), got {labels.dtype} {tuple(labels.shape)}")
