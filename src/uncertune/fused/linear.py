"""The front door of the fused head.

Shape legend: ``T`` response tokens (flattened), ``V`` vocabulary, ``D`` hidden size, ``K`` entries kept of ``V``.
In every function: ``hidden`` (T, D), ``head`` (V, D), ``bias`` (V,) or None, and logits
``z = cap(scale · (hidden headᵀ + bias))`` with ``cap(u) = softcap · tanh(u / softcap)``.

Precision: products in autocast's type where autocast is on, else in that of ``hidden``; logits, softmax and loss in
float32, or float64 for float64. No (T, V) tensor is built; a chunk's logits take at most
``uncertune.fused.projection.CHUNK_BYTES``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from uncertune.fused import chunked
from uncertune.fused.projection import Projection, TokenStats
from uncertune.objectives import SparseTeacher, Targets
from uncertune.objectives.loss import check_vocabulary


def linear_weighted_nll(
    hidden: Tensor,
    head: Tensor,
    targets: Targets,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
) -> Tensor:
    """``weighted_nll(logits, targets)`` without the logits: (T,) in nats, differentiable in hidden, head and bias.

    Equals ``uncertune.objectives.weighted_nll(cap(scale * (hidden @ head.T + bias)), targets)``. Rows of no weight
    are not projected, teacher rows only where the teacher has weight, and a head that needs no gradient gets none.
    Raises ValueError where shapes do not fit.
    """
    return _run(hidden, head, targets, bias, softcap, scale)[0]


def linear_weighted_nll_with_stats(
    hidden: Tensor,
    head: Tensor,
    targets: Targets,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
    rounded: bool = False,
    factor: float = 1.0,
) -> tuple[Tensor, TokenStats]:
    """``linear_weighted_nll`` and ``linear_token_stats`` of all tokens in one sweep.

    With ``rounded``, half-precision logits are rounded to that precision before the float32 softmax, as the usual
    trainers do; it makes plain MLE comparable with them digit for digit and is worse for distillation. ``factor`` is
    what the losses will be multiplied by: half-precision gradients are rounded after it and not before.
    """
    _check_labels(hidden, labels)
    loss, *columns = _run(hidden, head, targets, bias, softcap, scale, labels, rounded, factor)
    return loss, TokenStats(*columns)


@torch.no_grad()
def linear_token_stats(
    hidden: Tensor,
    head: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
) -> TokenStats:
    """Loss and entropy (nats) of every token and whether its label is the most likely one, each (T,); no gradient.

    ``labels`` is (T,) int64 without −100. Raises ValueError where shapes do not fit.
    """
    _check(hidden, head, bias)
    _check_labels(hidden, labels)
    projection = Projection.of(hidden, head, bias, softcap, scale)
    with torch.autocast(hidden.device.type, enabled=False):
        return chunked.token_stats(hidden, projection, labels)


@torch.no_grad()
def linear_top_k(
    hidden: Tensor,
    head: Tensor,
    k: int,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
) -> SparseTeacher:
    """The ``k`` most probable tokens of each row, with their probabilities over the whole vocabulary; no gradient."""
    _check(hidden, head, bias)
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    projection = Projection.of(hidden, head, bias, softcap, scale)
    with torch.autocast(hidden.device.type, enabled=False):
        return SparseTeacher(*chunked.top_k(hidden, projection, min(k, head.shape[0])))


def _run(
    hidden: Tensor,
    head: Tensor,
    targets: Targets,
    bias: Tensor | None,
    softcap: float | None,
    scale: float,
    labels: Tensor | None = None,
    rounded: bool = False,
    factor: float = 1.0,
) -> tuple[Tensor, ...]:
    _check(hidden, head, bias)
    if targets.size != hidden.shape[0]:
        raise ValueError(f"targets have {targets.size} rows, hidden {hidden.shape[0]}")
    check_vocabulary(targets, head.shape[0])
    student = Projection.of(hidden, head, bias, softcap, scale, rounded)
    teacher = None
    if targets.teacher_hidden is not None and targets.teacher_head is not None:
        teacher = Projection.of(
            targets.teacher_hidden,
            targets.teacher_head,
            targets.teacher_bias,
            targets.teacher_softcap,
            targets.teacher_scale,
            shared=student if _same(targets.teacher_head, head) else None,
        )
    train_hidden = torch.is_grad_enabled() and hidden.requires_grad
    with torch.autocast(hidden.device.type, enabled=False):
        return chunked.WeightedNLL.apply(hidden, head, bias, targets, student, teacher, labels, train_hidden, factor)


def _same(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors are one piece of memory, read alike."""

    def place(one: Tensor) -> tuple[object, ...]:
        return one.data_ptr(), one.shape, one.stride(), one.dtype

    return place(left) == place(right)


def _check(hidden: Tensor, head: Tensor, bias: Tensor | None) -> None:
    if hidden.dim() != 2 or head.dim() != 2 or hidden.shape[1] != head.shape[1]:
        raise ValueError(f"hidden must be (T, D) and head (V, D), got {tuple(hidden.shape)} and {tuple(head.shape)}")
    if bias is not None and bias.shape != (head.shape[0],):
        raise ValueError(f"bias must be (V,) = ({head.shape[0]},), got {tuple(bias.shape)}")


def _check_labels(hidden: Tensor, labels: Tensor) -> None:
    if labels.shape != (hidden.shape[0],) or labels.dtype != torch.long:
        raise ValueError(f"labels must be int64 (T,) = ({hidden.shape[0]},), got {labels.dtype} {tuple(labels.shape)}")
